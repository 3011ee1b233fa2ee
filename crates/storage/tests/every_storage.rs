//! What every storage has to do, run against each.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

use vmseal_storage::testing::Simulated;
use vmseal_storage::{Access, Error, File, Kind, LocalDir, LockMode, Memory, Storage, StoragePath};

fn each(test: impl Fn(&dyn Storage)) {
    test(&Memory::new());
    test(&Simulated::new(1));
    let folder = tempfile::tempdir().unwrap();
    test(&LocalDir::open(folder.path()).unwrap());
}

fn path(text: &str) -> StoragePath {
    StoragePath::new(text).unwrap()
}

fn bytes(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; len];
    file.read_at(&mut buffer, offset).unwrap();
    buffer
}

#[test]
fn bytes_lie_where_they_were_written() {
    each(|storage| {
        let file = storage.create(&path("a"), None).unwrap();
        file.write_at(b"world", 5000).unwrap();
        file.write_at(b"hello", 0).unwrap();
        assert_eq!(file.len().unwrap(), 5005);
        assert_eq!(bytes(file.as_ref(), 0, 6), b"hello\0");
        assert_eq!(bytes(file.as_ref(), 4999, 6), b"\0world");
        file.set_len(5002).unwrap();
        file.set_len(6000).unwrap();
        assert_eq!(bytes(file.as_ref(), 5000, 5), b"wo\0\0\0");
        assert!(matches!(
            file.read_at(&mut [0; 2], 5999),
            Err(Error::UnexpectedEnd { len_bytes: 6000, wanted_bytes: 6001, .. })
        ));
        file.sync().unwrap();
    });
}

#[test]
fn holes_are_found_and_made() {
    each(|storage| {
        let file = storage.create(&path("a"), None).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(&[1; 4096], 65_536).unwrap();
        let data = file.next_data(0).unwrap().unwrap();
        assert!(data.start <= 65_536 && data.end >= 69_632, "{data:?}");
        assert!(data.end - data.start < 1 << 20);
        assert_eq!(file.next_data(66_000).unwrap().unwrap().start, 66_000);
        file.punch_hole(65_536, 4096).unwrap();
        assert_eq!(bytes(file.as_ref(), 65_536, 4096), vec![0; 4096]);
        assert_eq!(file.len().unwrap(), 1 << 20);
        file.write_at(&[7; 100], 0).unwrap();
        file.punch_hole(10, 20).unwrap();
        assert_eq!(bytes(file.as_ref(), 9, 22), [&[7][..], &[0; 20], &[7]].concat());
    });
}

#[test]
fn a_replacement_is_whole_and_leaves_nothing_else() {
    each(|storage| {
        storage.replace(&path("a.vmx"), b"one").unwrap();
        storage.replace(&path("a.vmx"), b"second").unwrap();
        assert_eq!(storage.read(&path("a.vmx"), 100).unwrap(), b"second");
        assert_eq!(storage.list(&StoragePath::root()).unwrap(), ["a.vmx"]);
        assert!(matches!(storage.read(&path("a.vmx"), 5), Err(Error::TooLong { len_bytes: 6, limit_bytes: 5, .. })));
    });
}

#[test]
fn names_are_told_apart() {
    each(|storage| {
        assert!(storage.metadata(&path("f/a")).unwrap().is_none());
        storage.create_folder(&path("f")).unwrap();
        storage.create_folder(&path("f")).unwrap();
        storage.create(&path("f/a"), None).unwrap();
        assert!(matches!(storage.create(&path("f/a"), None), Err(Error::AlreadyExists { .. })));
        assert!(matches!(storage.open(&path("f/b"), Access::Read), Err(Error::NotFound { .. })));
        assert!(matches!(storage.open(&path("f"), Access::Read), Err(Error::WrongKind { .. })));
        assert_eq!(storage.metadata(&path("f")).unwrap().unwrap().kind, Kind::Folder);
        assert_eq!(storage.metadata(&path("f/a")).unwrap().unwrap().kind, Kind::File);
        storage.rename(&path("f/a"), &path("f/b")).unwrap();
        assert_eq!(storage.list(&path("f")).unwrap(), ["b"]);
        storage.remove(&path("f/b")).unwrap();
        assert!(matches!(storage.remove(&path("f/b")), Err(Error::NotFound { .. })));
        storage.sync_folder(&path("f")).unwrap();
    });
}

#[test]
fn a_change_of_content_changes_the_version() {
    each(|storage| {
        let version = || storage.metadata(&path("a")).unwrap().unwrap().version.unwrap();
        let file = storage.create(&path("a"), None).unwrap();
        file.write_at(b"one", 0).unwrap();
        let first = version();
        assert_eq!(version(), first);
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_at(b"two", 0).unwrap();
        assert_ne!(version(), first);
    });
}

#[test]
fn a_file_is_known_by_its_identity() {
    each(|storage| {
        let identity = |name: &str| storage.metadata(&path(name)).unwrap().unwrap().identity.unwrap();
        storage.create(&path("a"), None).unwrap();
        storage.create(&path("b"), None).unwrap();
        assert_ne!(identity("a"), identity("b"));
        let before = identity("a");
        storage.rename(&path("a"), &path("c")).unwrap();
        assert_eq!(identity("c"), before);
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), b"x").unwrap();
    std::fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
    let storage = LocalDir::open(folder.path()).unwrap();
    let metadata = ["a", "b"].map(|name| storage.metadata(&path(name)).unwrap().unwrap());
    assert_eq!(metadata[0], metadata[1]);
}

#[test]
fn a_lock_keeps_others_out_until_it_is_dropped() {
    each(|storage| {
        let held = storage.lock(&path("a.lock"), LockMode::Exclusive).unwrap();
        for mode in [LockMode::Shared, LockMode::Exclusive] {
            match storage.lock(&path("a.lock"), mode) {
                Err(Error::Locked { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
                other => panic!("{other:?}"),
            }
        }
        drop(held);
        let shared = [(); 2].map(|()| storage.lock(&path("a.lock"), LockMode::Shared).unwrap());
        assert!(matches!(storage.lock(&path("a.lock"), LockMode::Exclusive), Err(Error::Locked { .. })));
        drop(shared);
        drop(storage.lock(&path("a.lock"), LockMode::Exclusive).unwrap());
        assert!(storage.list(&StoragePath::root()).unwrap().is_empty());
    });
}

#[test]
fn a_folder_is_not_left_through_links() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"x").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
    std::fs::write(folder.path().join("real"), b"inside").unwrap();
    std::os::unix::fs::symlink("real", folder.path().join("alias")).unwrap();
    let storage = LocalDir::open(folder.path()).unwrap();
    assert!(matches!(storage.open(&path("link/secret"), Access::Read), Err(Error::PathRefused { .. })));
    assert!(matches!(storage.create(&path("link/new"), None), Err(Error::PathRefused { .. })));
    assert_eq!(storage.read(&path("alias"), 10).unwrap(), b"inside");
    // Replacing a link would leave the file that it names as it was.
    assert!(matches!(storage.replace(&path("alias"), b"new"), Err(Error::WrongKind { .. })));
    assert_eq!(std::fs::read(folder.path().join("real")).unwrap(), b"inside");
    assert_eq!(storage.list(&StoragePath::root()).unwrap(), ["alias", "link", "real"]);
}

#[test]
fn permissions_survive_a_replacement_and_new_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalDir::open(folder.path()).unwrap();
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o7777;
    storage.replace(&path("key"), b"1").unwrap();
    assert_eq!(mode("key"), 0o600);
    std::fs::set_permissions(folder.path().join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    storage.replace(&path("key"), b"2").unwrap();
    assert_eq!(mode("key"), 0o644);
}

#[test]
fn a_file_refuses_work_after_its_first_failed_write() {
    // A file that may not grow: the limit applies to this process alone, so the test runs itself in another.
    if std::env::var_os("VMSEAL_TEST_LIMIT").is_none() {
        let limit = "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact a_file_refuses_work_after_its_first_failed_write";
        let status = std::process::Command::new("bash")
            .args(["-c", limit])
            .arg(std::env::current_exe().unwrap())
            .env("VMSEAL_TEST_LIMIT", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalDir::open(folder.path()).unwrap();
    let file = storage.create(&path("a"), None).unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    assert!(file.write_at(&[1; 4096], 1 << 20).is_err());
    assert!(matches!(file.write_at(&[1; 16], 0), Err(Error::Latched { .. })));
    assert!(matches!(file.sync(), Err(Error::Latched { .. })));
    assert!(storage.open(&path("a"), Access::ReadWrite).unwrap().write_at(&[1; 16], 0).is_ok());
}

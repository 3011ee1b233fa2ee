//! The simulator itself: it finds what is wrong, passes what is right, and does each thing that it says.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failing test")]

use std::collections::BTreeSet;

use vmseal_storage::testing::{FolderOrder, Simulated, SyncFailure, Tearing};
use vmseal_storage::{Access, Error, LockMode, Storage, StoragePath};

const OLD: &[u8] = &[b'o'; 5000];
const NEW: &[u8] = &[b'n'; 7000];
const SEEDS: u64 = 40;
/// So many find a broken protocol, when it is crashed at each of its operations.
const FEW_SEEDS: u64 = 8;
const TEARINGS: [Tearing; 2] = [Tearing::Sector, Tearing::Byte];
const ORDERS: [FolderOrder; 2] = [FolderOrder::Journal, FolderOrder::Any];

fn path(text: &str) -> StoragePath {
    StoragePath::new(text).unwrap()
}

fn content(storage: &Simulated, name: &str) -> Option<Vec<u8>> {
    match storage.read(&path(name), 1 << 30) {
        Ok(bytes) => Some(bytes),
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A storage in which `a` is there, durable.
fn with_old() -> Simulated {
    let storage = Simulated::new(0);
    storage.create(&path("a"), None).unwrap().write_at(OLD, 0).unwrap();
    storage.settle();
    storage
}

/// What is under `a` after crashes at every operation of a protocol, in every mode: each content that is found.
fn outcomes(
    (tearing, order): (Tearing, FolderOrder),
    seeds: u64,
    protocol: impl Fn(&Simulated) -> Result<(), Error>,
) -> BTreeSet<Option<Vec<u8>>> {
    let start = with_old();
    start.set_tearing(tearing);
    start.set_folder_order(order);
    let whole = start.snapshot(0);
    protocol(&whole).unwrap();
    let mut found = BTreeSet::new();
    for operation in 0..whole.operations() {
        for seed in 0..seeds {
            let storage = start.snapshot(seed);
            storage.crash_at(Some(operation));
            let error = protocol(&storage).unwrap_err();
            assert!(Simulated::is_crash(&error), "{error}");
            assert!(storage.has_crashed());
            storage.restart();
            found.insert(content(&storage, "a"));
        }
    }
    found
}

fn each_mode(test: impl Fn(Tearing, FolderOrder)) {
    for tearing in TEARINGS {
        for order in ORDERS {
            test(tearing, order);
        }
    }
}

/// What a reader may find of a replacement.
fn whole() -> BTreeSet<Option<Vec<u8>>> {
    [Some(OLD.to_vec()), Some(NEW.to_vec())].into()
}

#[test]
fn the_right_replacement_survives_every_crash() {
    each_mode(|tearing, order| {
        let found = outcomes((tearing, order), 500, |storage| storage.replace(&path("a"), NEW));
        assert_eq!(found, whole(), "{tearing:?}, {order:?}");
    });
}

#[test]
fn a_rename_without_a_sync_before_it_is_found_out() {
    let unsynced = |storage: &Simulated| {
        storage.create(&path("b"), None)?.write_at(NEW, 0)?;
        storage.rename(&path("b"), &path("a"))?;
        storage.sync_folder(&StoragePath::root())
    };
    each_mode(|tearing, order| {
        assert!(!outcomes((tearing, order), FEW_SEEDS, unsynced).is_subset(&whole()), "{tearing:?}, {order:?}");
        let found = outcomes((tearing, order), SEEDS, unsynced);
        let broken = &found - &whole();
        // Among them the empty file that users of real storage know.
        assert!(broken.contains(&Some(Vec::new())), "{tearing:?}, {order:?}");
        assert!(broken.len() > 5, "{}", broken.len());
        assert!(!broken.contains(&None), "a rename is atomic");
    });
}

#[test]
fn a_removal_before_the_rename_is_found_out() {
    each_mode(|tearing, order| {
        let found = outcomes((tearing, order), FEW_SEEDS, |storage| {
            let file = storage.create(&path("b"), None)?;
            file.write_at(NEW, 0)?;
            file.sync()?;
            storage.remove(&path("a"))?;
            storage.rename(&path("b"), &path("a"))?;
            storage.sync_folder(&StoragePath::root())
        });
        assert!(found.contains(&None), "{tearing:?}, {order:?}");
    });
}

#[test]
fn writing_in_place_is_found_out() {
    each_mode(|tearing, order| {
        let found = outcomes((tearing, order), SEEDS, |storage| {
            let file = storage.open(&path("a"), Access::ReadWrite)?;
            file.write_at(NEW, 0)?;
            file.sync()
        });
        assert!(found.is_superset(&whole()));
        assert!(found.len() > 20, "{tearing:?}, {order:?}: {}", found.len());
    });
}

/// A success that is reported before the folder is synced is one that a crash takes back; one reported after it is not.
#[test]
fn a_name_is_durable_with_its_folder_and_not_before() {
    for (syncs, expected) in [(false, [false, true].as_slice()), (true, &[true])] {
        let found: BTreeSet<bool> = (0..SEEDS)
            .map(|seed| {
                let storage = Simulated::new(seed);
                storage.create(&path("a"), None).unwrap().sync().unwrap();
                if syncs {
                    storage.sync_folder(&StoragePath::root()).unwrap();
                }
                storage.restart();
                content(&storage, "a").is_some()
            })
            .collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_folder_that_is_not_durable_takes_its_files_along() {
    for (synced, expected) in [(false, [false, true].as_slice()), (true, &[true])] {
        let found: BTreeSet<bool> = (0..SEEDS)
            .map(|seed| {
                let storage = Simulated::new(seed);
                storage.create_folder(&path("f")).unwrap();
                storage.replace(&path("f/a"), NEW).unwrap();
                if synced {
                    storage.sync_folder(&StoragePath::root()).unwrap();
                }
                storage.restart();
                let there = content(&storage, "f/a");
                assert_eq!(there.is_some(), storage.metadata(&path("f")).unwrap().is_some());
                assert!(there.is_none_or(|content| content == NEW));
                synced || storage.metadata(&path("f")).unwrap().is_some()
            })
            .collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }
}

/// Creations of `0` to `4` in turn: the journal leaves a beginning of them, the other order any of them.
#[test]
fn folders_keep_what_their_order_allows() {
    let left = |order| -> BTreeSet<Vec<String>> {
        (0..400)
            .map(|seed| {
                let storage = Simulated::new(seed);
                storage.set_folder_order(order);
                for name in 0..5 {
                    storage.create(&path(&name.to_string()), None).unwrap();
                }
                storage.restart();
                storage.list(&StoragePath::root()).unwrap()
            })
            .collect()
    };
    let beginnings: BTreeSet<Vec<String>> =
        (0..=5).map(|count| (0..count).map(|name: u32| name.to_string()).collect()).collect();
    assert_eq!(left(FolderOrder::Journal), beginnings);
    assert_eq!(left(FolderOrder::Any).len(), 32);
}

/// Two folders go their own ways, and a rename between them leaves the file in one of the two.
#[test]
fn a_rename_between_folders_is_atomic() {
    for order in ORDERS {
        let mut found = BTreeSet::new();
        for seed in 0..200 {
            let storage = Simulated::new(seed);
            storage.set_folder_order(order);
            for folder in ["f", "g"] {
                storage.create_folder(&path(folder)).unwrap();
            }
            storage.create(&path("f/a"), None).unwrap().write_at(OLD, 0).unwrap();
            storage.settle();
            storage.create(&path("f/x"), None).unwrap();
            storage.create(&path("g/y"), None).unwrap();
            storage.rename(&path("f/a"), &path("g/a")).unwrap();
            storage.restart();
            let names: Vec<String> = storage.paths().iter().map(ToString::to_string).collect();
            assert_eq!(names.iter().filter(|name| name.ends_with("/a")).count(), 1, "{names:?}");
            found.insert(names);
        }
        // Journal: moved only with all that went before. Any: each of the three for itself.
        assert_eq!(found.len(), if order == FolderOrder::Journal { 5 } else { 8 });
    }
}

/// The sectors of a file that was one letter and is overwritten with another, and is torn.
fn torn(tearing: Tearing, seed: u64) -> Vec<u8> {
    let storage = Simulated::new(seed);
    storage.set_tearing(tearing);
    let file = storage.create(&path("a"), None).unwrap();
    file.write_at(&[b'o'; 8192], 0).unwrap();
    storage.settle();
    // Not on a sector's edge.
    file.write_at(&[b'n'; 6000], 1000).unwrap();
    storage.restart();
    content(&storage, "a").unwrap()
}

#[test]
fn writes_are_torn_at_the_size_that_was_set() {
    let is_mixed = |part: &[u8]| part.iter().any(|byte| *byte != part[0]);
    let written = 1000..7000;
    for tearing in TEARINGS {
        let (mut torn_files, mut torn_sectors) = (0, 0);
        for seed in 0..200 {
            let bytes = torn(tearing, seed);
            assert_eq!(bytes.len(), 8192);
            assert!(bytes[..written.start].iter().chain(&bytes[written.end..]).all(|byte| *byte == b'o'), "beside it");
            torn_files += u64::from(is_mixed(&bytes[written.clone()]));
            // The written part of each sector.
            torn_sectors += (0..16)
                .filter(|sector| {
                    let part = written.start.max(sector * 512)..written.end.min(sector * 512 + 512);
                    !part.is_empty() && is_mixed(&bytes[part])
                })
                .count();
        }
        assert!(torn_files > 50, "{torn_files}");
        assert_eq!(torn_sectors > 50, tearing == Tearing::Byte, "{torn_sectors}");
        assert!(tearing == Tearing::Byte || torn_sectors == 0);
    }
}

/// Two unsynced writes to the same place: either may be the later one, or neither be there.
#[test]
fn overlapping_writes_come_in_any_order() {
    let found: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let storage = with_old().snapshot(seed);
            let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
            file.write_at(b"1", 0).unwrap();
            file.write_at(b"2", 0).unwrap();
            storage.restart();
            content(&storage, "a").unwrap()[..1].to_vec()
        })
        .collect();
    assert_eq!(found, [b"1", b"2", b"o"].map(|byte| byte.to_vec()).into());
}

#[test]
fn lengths_and_holes_are_old_or_new() {
    let mut lens = BTreeSet::new();
    let mut holes = BTreeSet::new();
    let mut cut = BTreeSet::new();
    for seed in 0..400 {
        let storage = with_old().snapshot(seed);
        let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
        file.punch_hole(0, 1024).unwrap();
        file.set_len(4000).unwrap();
        file.set_len(9000).unwrap();
        storage.restart();
        let bytes = content(&storage, "a").unwrap();
        lens.insert(bytes.len());
        assert!(bytes.iter().enumerate().all(|(at, byte)| match at {
            1024..4000 => *byte == b'o',
            5000.. => *byte == 0,
            _ => [0, b'o'].contains(byte),
        }));
        holes.insert((bytes[0], bytes[512]));
        cut.insert(bytes.get(4000).copied());
    }
    assert_eq!(lens, [4000, 5000, 9000].into());
    assert_eq!(holes, [(0, 0), (0, b'o'), (b'o', 0), (b'o', b'o')].into());
    assert_eq!(cut, [None, Some(0), Some(b'o')].into());
}

#[test]
fn a_sync_through_one_handle_covers_all() {
    for seed in 0..SEEDS {
        let storage = with_old().snapshot(seed);
        let [writer, other] = [Access::ReadWrite, Access::Read].map(|access| storage.open(&path("a"), access).unwrap());
        writer.write_at(NEW, 0).unwrap();
        other.sync().unwrap();
        storage.restart();
        assert_eq!(content(&storage, "a").unwrap(), NEW);
    }
}

#[test]
fn the_same_seed_gives_the_same_and_another_something_else() {
    for tearing in TEARINGS {
        assert!((0..SEEDS).all(|seed| torn(tearing, seed) == torn(tearing, seed)));
        assert!((0..SEEDS).map(|seed| torn(tearing, seed)).collect::<BTreeSet<_>>().len() > 10);
    }
}

/// A crash in recovery, again and again until it gets through.
#[test]
fn recovery_can_be_crashed_too() {
    for seed in 0..SEEDS {
        let storage = with_old().snapshot(seed);
        for crash in 0.. {
            storage.crash_at(Some(storage.operations() + crash));
            let result = storage.replace(&path("a"), NEW);
            if result.is_ok() {
                break;
            }
            storage.restart();
            assert!(whole().contains(&content(&storage, "a")));
            assert!(storage.list(&StoragePath::root()).unwrap().len() <= 2);
        }
        storage.crash_at(None);
        assert_eq!(storage.list(&StoragePath::root()).unwrap(), ["a"]);
        storage.restart();
        assert_eq!(content(&storage, "a").unwrap(), NEW);
    }
}

#[test]
fn nothing_works_between_a_crash_and_the_restart_and_old_handles_never() {
    for power in [true, false] {
        let storage = with_old();
        let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
        let held = storage.lock(&path("lock"), LockMode::Exclusive).unwrap();
        storage.crash_at(Some(storage.operations() + 1));
        file.len().unwrap();
        file.len().unwrap_err();
        let count = storage.operations();
        let errors = [
            file.read_at(&mut [0], 0).unwrap_err(),
            file.write_at(b"x", 0).unwrap_err(),
            file.sync().unwrap_err(),
            storage.open(&path("a"), Access::Read).unwrap_err(),
            storage.open(&path("missing"), Access::Read).unwrap_err(),
            storage.metadata(&path("a")).unwrap_err(),
            storage.lock(&path("lock"), LockMode::Shared).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| Simulated::is_crash(error)), "{errors:?}");
        assert_eq!(storage.operations(), count, "what does not happen is not counted");
        if power {
            storage.restart();
        } else {
            storage.restart_program();
        }
        assert!(!storage.has_crashed());
        assert!(Simulated::is_crash(&file.write_at(b"x", 0).unwrap_err()));
        let new = storage.lock(&path("lock"), LockMode::Exclusive).unwrap();
        // Neither the old lock nor the old handle reaches into the new time.
        drop((held, file));
        assert!(matches!(storage.lock(&path("lock"), LockMode::Shared), Err(Error::Locked { .. })));
        drop(new);
        let other = storage.open(&path("b"), Access::Read).unwrap_err();
        assert!(!Simulated::is_crash(&other));
    }
}

/// The end of the program alone loses nothing, and makes nothing durable.
#[test]
fn a_program_that_ends_leaves_what_it_did_to_the_next_power_cut() {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let storage = with_old().snapshot(seed);
        storage.open(&path("a"), Access::ReadWrite).unwrap().write_at(NEW, 0).unwrap();
        storage.restart_program();
        assert_eq!(content(&storage, "a").unwrap(), NEW);
        storage.restart();
        found.insert(content(&storage, "a").unwrap());
    }
    assert!(found.contains(OLD) && found.contains(NEW) && found.len() > 5);
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    let storage = with_old();
    let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
    storage.replace(&path("a"), NEW).unwrap();
    let mut first = [0];
    file.read_at(&mut first, 0).unwrap();
    assert_eq!(first, [b'o']);
    file.write_at(b"x", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(content(&storage, "a").unwrap(), NEW);
    storage.remove(&path("a")).unwrap();
    file.read_at(&mut first, 0).unwrap();
    assert_eq!(first, [b'x']);
}

#[test]
fn a_failed_sync_latches_and_keeps_what_it_was_told_to() {
    let mut partly = BTreeSet::new();
    for failure in [SyncFailure::Kept, SyncFailure::Lost, SyncFailure::Partial] {
        for seed in 0..SEEDS {
            let storage = with_old().snapshot(seed);
            let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
            file.write_at(&NEW[..5000], 0).unwrap();
            storage.fail_sync_at(Some((storage.syncs(), failure)));
            let error = file.sync().unwrap_err();
            assert!(!Simulated::is_crash(&error), "{error}");
            assert!(matches!(file.sync(), Err(Error::Latched { .. })));
            assert!(matches!(file.write_at(b"x", 0), Err(Error::Latched { .. })));
            // It reads well, and a sync through another handle says so too; what was lost stays lost.
            assert_eq!(content(&storage, "a").unwrap(), &NEW[..5000]);
            let again = storage.open(&path("a"), Access::ReadWrite).unwrap();
            again.write_at(b"y", 4999).unwrap();
            again.sync().unwrap();
            storage.restart();
            let left = content(&storage, "a").unwrap();
            assert_eq!(left[4999], b'y');
            match failure {
                SyncFailure::Kept => assert_eq!(left[..4999], NEW[..4999]),
                SyncFailure::Lost => assert_eq!(left[..4999], OLD[..4999]),
                _ => drop(partly.insert(left)),
            }
        }
    }
    assert!(partly.len() > 5);
}

/// What is cut off after a lost sync is gone from what is durable too.
#[test]
fn a_cut_after_a_lost_sync_holds() {
    for seed in 0..SEEDS {
        let storage = with_old().snapshot(seed);
        let open = || storage.open(&path("a"), Access::ReadWrite).unwrap();
        let file = open();
        file.write_at(b"x", 0).unwrap();
        storage.fail_sync_at(Some((storage.syncs(), SyncFailure::Lost)));
        file.sync().unwrap_err();
        let file = open();
        file.set_len(1000).unwrap();
        file.set_len(5000).unwrap();
        file.sync().unwrap();
        storage.restart();
        assert_eq!(content(&storage, "a").unwrap(), [&OLD[..1000], &[0; 4000]].concat());
    }
}

/// A name is taken from a file by a rename or a removal alone, whatever is lost.
#[test]
fn a_creation_never_displaces_a_file() {
    for order in ORDERS {
        for seed in 0..200 {
            let storage = with_old().snapshot(seed);
            storage.set_folder_order(order);
            storage.rename(&path("a"), &path("b")).unwrap();
            storage.create(&path("a"), None).unwrap();
            storage.restart();
            let found = ["a", "b"].map(|name| content(&storage, name));
            assert_eq!(found.iter().filter(|content| content.as_deref() == Some(OLD)).count(), 1, "{order:?}");
        }
    }
}

#[test]
fn a_failed_sync_of_a_folder_leaves_its_names_unsynced() {
    for (failure, expected) in [(SyncFailure::Kept, [true].as_slice()), (SyncFailure::Lost, &[false, true])] {
        let found: BTreeSet<bool> = (0..SEEDS)
            .map(|seed| {
                let storage = Simulated::new(seed);
                storage.create(&path("a"), None).unwrap();
                storage.fail_sync_at(Some((0, failure)));
                storage.sync_folder(&StoragePath::root()).unwrap_err();
                storage.restart();
                content(&storage, "a").is_some()
            })
            .collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_full_disk_refuses_data_and_files_until_something_goes() {
    let storage = with_old();
    let file = storage.create(&path("b"), None).unwrap();
    assert_eq!(storage.free_bytes().unwrap(), None);
    storage.set_room_bytes(Some(3 * 4096));
    assert_eq!(storage.free_bytes().unwrap(), Some(3 * 4096));
    file.set_len(1 << 40).unwrap();
    let error = file.write_at(&[1; 5 * 4096], 0).unwrap_err();
    assert!(matches!(error, Error::StorageFull { .. }));
    // What fitted is there; the handle refuses more, another one does not.
    let mut block = [0; 4096];
    file.read_at(&mut block, 2 * 4096).unwrap();
    assert_eq!(block, [1; 4096]);
    file.read_at(&mut block, 3 * 4096).unwrap();
    assert_eq!(block, [0; 4096]);
    assert!(matches!(file.write_at(b"x", 0), Err(Error::Latched { .. })));
    let again = || storage.open(&path("b"), Access::ReadWrite).unwrap();
    again().write_at(b"x", 0).unwrap();
    assert!(matches!(again().set_len((1 << 40) + 1), Err(Error::StorageFull { .. })));
    assert!(matches!(storage.create(&path("c"), None), Err(Error::StorageFull { .. })));
    assert!(matches!(storage.replace(&path("a"), NEW), Err(Error::StorageFull { .. })));
    assert_eq!(storage.list(&StoragePath::root()).unwrap(), ["a", "b"], "nothing is left over");
    again().punch_hole(0, 4096).unwrap();
    assert_eq!(storage.free_bytes().unwrap(), Some(4096));
    storage.create(&path("c"), None).unwrap();
    drop(file);
    storage.remove(&path("b")).unwrap();
    assert_eq!(storage.free_bytes().unwrap(), Some(3 * 4096));
}

/// A replacement at every amount of room: it says that the disk is full and leaves the old file, or it works.
#[test]
fn a_replacement_on_a_full_disk_leaves_the_old_file() {
    let results: Vec<bool> = (0..5)
        .map(|blocks| {
            let storage = with_old();
            storage.set_room_bytes(Some(blocks * 4096));
            let result = storage.replace(&path("a"), NEW);
            assert!(matches!(result, Ok(()) | Err(Error::StorageFull { .. })));
            assert_eq!(content(&storage, "a").unwrap(), if result.is_ok() { NEW } else { OLD });
            result.is_ok()
        })
        .collect();
    assert_eq!(results, [false, false, false, true, true]);
}

#[test]
fn reads_and_writes_fail_where_they_are_told_to() {
    let storage = with_old();
    let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
    let mut bytes = [0; 10];
    storage.fail_read_at(Some(storage.reads() + 1));
    file.read_at(&mut bytes, 0).unwrap();
    assert!(matches!(file.read_at(&mut bytes, 0), Err(Error::Io { .. })));
    file.read_at(&mut bytes, 0).unwrap();
    storage.fail_write_at(Some(storage.writes() + 1));
    file.write_at(b"12", 0).unwrap();
    assert!(matches!(file.write_at(&[b'3'; 5000], 0), Err(Error::Io { .. })));
    assert!(matches!(file.sync(), Err(Error::Latched { .. })));
}

#[test]
fn damage_is_there_before_and_after_a_crash_and_no_version_tells() {
    let storage = with_old();
    let version = || storage.metadata(&path("a")).unwrap().unwrap().version;
    let before = version();
    storage.flip(&path("a"), 4999, 0x81).unwrap();
    let mut expected = OLD.to_vec();
    expected[4999] ^= 0x81;
    assert_eq!(content(&storage, "a").unwrap(), expected);
    assert!(matches!(storage.flip(&path("a"), 5000, 1), Err(Error::UnexpectedEnd { .. })));
    assert!(matches!(storage.flip(&path("b"), 0, 1), Err(Error::NotFound { .. })));
    storage.restart();
    assert_eq!(content(&storage, "a").unwrap(), expected);
    storage.truncate(&path("a"), 4999).unwrap();
    storage.restart();
    assert_eq!(content(&storage, "a").unwrap(), &OLD[..4999]);
    assert_eq!(version(), before);
}

#[test]
fn versions_and_identities_outlive_a_restart_and_never_come_again() {
    for seed in 0..SEEDS {
        let storage = with_old().snapshot(seed);
        let known = || storage.metadata(&path("a")).unwrap().unwrap();
        let old = known();
        storage.restart();
        assert_eq!(known(), old);
        storage.open(&path("a"), Access::ReadWrite).unwrap().write_at(b"x", 0).unwrap();
        let new = known();
        assert_ne!(new.version, old.version);
        storage.restart();
        let left = known();
        assert_eq!(left.identity, old.identity);
        assert!([old.version, new.version].contains(&left.version));
        storage.open(&path("a"), Access::ReadWrite).unwrap().write_at(b"x", 0).unwrap();
        assert!(![old.version, new.version].contains(&known().version));
    }
}

#[test]
fn a_snapshot_is_independent() {
    let storage = with_old();
    let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
    let copy = storage.snapshot(1);
    assert_eq!((copy.operations(), copy.writes()), (0, 0));
    file.write_at(NEW, 0).unwrap();
    copy.replace(&path("b"), NEW).unwrap();
    assert_eq!(content(&copy, "a").unwrap(), OLD);
    assert_eq!(content(&storage, "b"), None);
    assert_eq!(content(&storage, "a").unwrap(), NEW);
}

/// A copy of a disk of 8 MiB and a crash on it cost so little that 100,000 of them take minutes. The bound is a hundred times what it takes.
#[test]
fn crashes_are_cheap() {
    let start = Simulated::new(0);
    start.create(&path("a"), None).unwrap().write_at(&vec![1; 8 << 20], 0).unwrap();
    start.settle();
    let begin = std::time::Instant::now();
    for seed in 0..1000 {
        let storage = start.snapshot(seed);
        let file = storage.open(&path("a"), Access::ReadWrite).unwrap();
        for chunk in 0..4 {
            file.write_at(&vec![2; 64 << 10], chunk << 20).unwrap();
        }
        storage.restart();
    }
    let taken = begin.elapsed();
    assert!(taken < std::time::Duration::from_secs(60), "{taken:?}");
}

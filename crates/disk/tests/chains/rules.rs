//! What is refused: chains that are broken, endless, mixed, or would change a parent.

use vmseal_disk::{Disk, DiskLayout, Error, HolePolicy, UnitSize};
use vmseal_formats::Descriptor;
use vmseal_storage::{Access, Memory, Storage};

use crate::links::{Grains, Keys, Kind, NewLink, path, read_all};

fn edit(storage: &Memory, name: &str, from: &str, to: &str) {
    let text = String::from_utf8(storage.read(&path(name), 1 << 20).unwrap()).unwrap();
    assert!(text.contains(from), "{text}");
    storage.replace(&path(name), text.replace(from, to).as_bytes()).unwrap();
}

/// A flat disk with two split children.
fn chain(encrypted: [bool; 3]) -> (Memory, Keys) {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let links = [("a", Kind::Flat, None), ("bb", Kind::Split, Some("a.vmdk")), ("ccc", Kind::Split, Some("bb.vmdk"))];
    for ((name, kind, parent), is_encrypted) in links.into_iter().zip(encrypted) {
        let mut new = NewLink::new(name, kind, 1000, parent);
        new.encryption = is_encrypted.then_some((UnitSize::B512, HolePolicy::Zero));
        new.make(&storage, &mut keys, &Grains::new());
    }
    (storage, keys)
}

#[test]
fn links_in_the_clear_and_encrypted_ones_are_not_mixed() {
    for encrypted in [[true, true, false], [false, true, true], [true, false, true], [true, false, false]] {
        let (storage, keys) = chain(encrypted);
        let error = keys.try_open(&storage, &path("ccc.vmdk"), Access::Read).unwrap_err();
        assert!(matches!(error, Error::MixedChain { .. }), "{encrypted:?}: {error}");
        // Whoever wants to see what is left may.
        let disk = keys.salvage(&storage, &path("ccc.vmdk"));
        assert!(disk.damage().iter().any(|damage| matches!(damage, Error::MixedChain { .. })));
    }
    for encrypted in [[true; 3], [false; 3]] {
        let (storage, keys) = chain(encrypted);
        keys.open(&storage, &path("ccc.vmdk"), Access::Read);
        let error = Disk::open_chain::<Error>(&storage, &path("ccc.vmdk"), Access::Read, &mut |_, _| Ok(None));
        assert_eq!(error.is_err(), encrypted[0]);
    }
}

#[test]
fn the_first_write_changes_the_childs_content_id_and_no_parents() {
    let (storage, keys) = chain([true; 3]);
    let cid = |name: &str| DiskLayout::read_descriptor(&storage, &path(name)).unwrap().0.cid();
    let before = [cid("a.vmdk"), cid("bb.vmdk"), cid("ccc.vmdk")];
    let mut disk = keys.open(&storage, &path("ccc.vmdk"), Access::ReadWrite);
    disk.write_at(&[1; 10], 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(before[..2], [cid("a.vmdk"), cid("bb.vmdk")]);
    assert_ne!(before[2], cid("ccc.vmdk"));
    // A parent that is written breaks its children, and they say so.
    let mut disk = keys.open(&storage, &path("bb.vmdk"), Access::ReadWrite);
    disk.discard(0, 1).unwrap();
    drop(disk);
    let error = keys.try_open(&storage, &path("ccc.vmdk"), Access::Read).unwrap_err();
    assert!(matches!(error, Error::ParentChanged { .. }), "{error}");
}

#[test]
fn chains_that_are_broken_or_do_not_end_are_errors() {
    let open = |storage: &Memory, keys: &Keys| keys.try_open(storage, &path("ccc.vmdk"), Access::Read).unwrap_err();
    let (storage, keys) = chain([false; 3]);
    edit(&storage, "ccc.vmdk", "\"bb.vmdk\"", "\"gone.vmdk\"");
    assert!(matches!(open(&storage, &keys), Error::NoParent { .. }));
    edit(&storage, "ccc.vmdk", "\"gone.vmdk\"", "\"ccc.vmdk\"");
    assert!(matches!(open(&storage, &keys), Error::EndlessChain { .. }));
    // Outside the storage nothing is looked for.
    edit(&storage, "ccc.vmdk", "\"ccc.vmdk\"", "\"../../etc/gone.vmdk\"");
    assert!(matches!(open(&storage, &keys), Error::NoParent { .. }));

    let (storage, keys) = chain([false; 3]);
    edit(&storage, "a.vmdk", "parentCID=ffffffff", "parentCID=12345678\nparentFileNameHint=\"ccc.vmdk\"");
    assert!(matches!(open(&storage, &keys), Error::EndlessChain { .. }));
}

#[test]
fn a_chain_has_at_most_255_parents() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let mut parent: Option<String> = None;
    for depth in 0..257 {
        NewLink::new(&format!("d{depth}"), Kind::Split, 8, parent.as_deref()).make(&storage, &mut keys, &Grains::new());
        parent = Some(format!("d{depth}.vmdk"));
    }
    assert_eq!(read_all(&keys.open(&storage, &path("d255.vmdk"), Access::Read)), vec![0; 4096]);
    let error = keys.try_open(&storage, &path("d256.vmdk"), Access::Read).unwrap_err();
    assert!(matches!(error, Error::EndlessChain { .. }), "{error}");
}

#[test]
fn a_parent_in_the_childs_own_file_is_not_written() {
    let (storage, keys) = chain([false; 3]);
    edit(&storage, "bb.vmdk", "SPARSE \"bb-s001.vmdk\"", "FLAT \"a-flat.vmdk\" 0");
    keys.open(&storage, &path("bb.vmdk"), Access::Read);
    let error = keys.try_open(&storage, &path("bb.vmdk"), Access::ReadWrite).unwrap_err();
    assert!(error.to_string().contains("is an extent of its parent too"), "{error}");
}

#[test]
fn a_parent_with_the_childs_name_is_found_in_its_own_folder() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    for folder in ["clone", "master"] {
        storage.create_folder(&path(folder)).unwrap();
    }
    NewLink::new("vm", Kind::Flat, 100, None).make(&storage, &mut keys, &Grains::new());
    NewLink::new("kid", Kind::Split, 100, Some("vm.vmdk")).make(&storage, &mut keys, &Grains::new());
    let mut disk = keys.open(&storage, &path("vm.vmdk"), Access::ReadWrite);
    disk.write_at(b"base", 7).unwrap();
    drop(disk);
    let (parent, _) = DiskLayout::read_descriptor(&storage, &path("vm.vmdk")).unwrap();
    edit(&storage, "kid.vmdk", "parentCID=12345678", &format!("parentCID={:08x}", parent.cid()));
    edit(&storage, "kid.vmdk", "\"vm.vmdk\"", "\"D:\\VMs\\master\\vm.vmdk\"");
    for (from, to) in [
        ("vm.vmdk", "master/vm.vmdk"),
        ("vm-flat.vmdk", "master/vm-flat.vmdk"),
        ("kid.vmdk", "clone/vm.vmdk"),
        ("kid-s001.vmdk", "clone/kid-s001.vmdk"),
        ("kid-s002.vmdk", "clone/kid-s002.vmdk"),
    ] {
        storage.rename(&path(from), &path(to)).unwrap();
    }
    let all = read_all(&keys.open(&storage, &path("clone/vm.vmdk"), Access::Read));
    assert_eq!(&all[7..11], b"base");
}

#[test]
fn kinds_that_are_not_written_say_so_and_are_not_converted() {
    for kind in [Kind::Cowd, Kind::SeSparse, Kind::Stream] {
        let storage = Memory::new();
        let mut keys = Keys::default();
        let new = NewLink::new("a", kind, 300, None);
        let grain = vec![7; new.grain_len() as usize];
        new.make(&storage, &mut keys, &Grains::from([(1, Some(grain.clone()))]));
        let disk = Disk::open(&storage, &path("a.vmdk"), None, Access::Read).unwrap();
        let mut bytes = vec![0; grain.len() * 2];
        disk.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [vec![0; grain.len()], grain].concat());
        let error = Disk::open(&storage, &path("a.vmdk"), None, Access::ReadWrite).unwrap_err();
        assert!(matches!(error, Error::ReadOnlyKind { .. }), "{error}");
        let error = DiskLayout::open(&storage, &path("a.vmdk")).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let descriptor: Descriptor = DiskLayout::read_descriptor(&storage, &path("a.vmdk")).unwrap().0;
        assert_eq!(descriptor.capacity_sectors(), 300);
    }
}

#[test]
fn discarding_gives_room_back_and_holes_show() {
    for (unit, kind) in [
        (None, Kind::Flat),
        (None, Kind::Monolithic),
        (Some(UnitSize::B4096), Kind::Flat),
        (Some(UnitSize::B512), Kind::Monolithic),
    ] {
        let storage = Memory::new();
        let mut keys = Keys::default();
        let mut new = NewLink::new("a", kind, 8192, None);
        new.encryption = unit.map(|unit| (unit, HolePolicy::Zero));
        new.make(&storage, &mut keys, &Grains::new());
        let mut disk = keys.open(&storage, &path("a.vmdk"), Access::ReadWrite);
        disk.write_at(&vec![1; 4 << 20], 0).unwrap();
        disk.discard(1 << 20, 1 << 20).unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.next_data(1 << 20).unwrap().unwrap().start, 2 << 20, "{unit:?} {kind:?}");
        let name = if kind == Kind::Flat { "a-flat.vmdk" } else { "a.vmdk" };
        let file = storage.open(&path(name), Access::Read).unwrap();
        let (mut at, mut stored) = (0, 0);
        while let Some(data) = file.next_data(at).unwrap() {
            stored += data.end - data.start;
            at = data.end;
        }
        assert!((3 << 20..(3 << 20) + (128 << 10)).contains(&stored), "{stored} {unit:?} {kind:?}");
    }
}

#[test]
fn a_disk_without_holes_keeps_none() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let mut new = NewLink::new("a", Kind::Flat, 256, None);
    new.encryption = Some((UnitSize::B512, HolePolicy::Fill));
    new.make(&storage, &mut keys, &Grains::new());
    let mut disk = keys.open(&storage, &path("a.vmdk"), Access::ReadWrite);
    disk.write_at(&vec![1; 131_072], 0).unwrap();
    disk.discard(100, 100_000).unwrap();
    let mut all = vec![1; 131_072];
    all[100..100_100].fill(0);
    assert!(read_all(&disk) == all);
    let stored = storage.read(&path("a-flat.vmdk"), 1 << 20).unwrap();
    assert!(stored.chunks(512).all(|unit| unit.iter().any(|byte| *byte != 0)));
}

#[test]
fn a_terabyte_of_nothing_is_passed_over_at_once() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let sectors = 2 << 30;
    let mut parent: Option<String> = None;
    for name in ["a", "bb", "ccc"] {
        let mut new = NewLink::new(name, Kind::Monolithic, sectors, parent.as_deref());
        new.grain_sectors = 2048;
        new.make(&storage, &mut keys, &Grains::new());
        parent = Some(format!("{name}.vmdk"));
    }
    let mut disk = keys.open(&storage, &path("ccc.vmdk"), Access::ReadWrite);
    let at = (900_u64 << 30) + 5;
    disk.write_at(&[1], at).unwrap();
    let data = disk.next_data(0).unwrap().unwrap();
    assert!(data.contains(&at) && data.end - data.start <= 1 << 20, "{data:?}");
    assert_eq!(disk.next_data(data.end).unwrap(), None);
    disk.discard(0, sectors * 512).unwrap();
    assert_eq!(disk.next_data(0).unwrap(), None);
}

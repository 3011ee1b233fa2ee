//! Every kind of disk, plain and encrypted, against a model that is obviously right: a vector of bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

use proptest::collection::vec;
use proptest::prelude::*;
use vmseal_disk::{
    Disk, DiskCipher, DiskId, DiskLayout, Encryption, Error, HolePolicy, NewDisk, NewDiskType, PieceKind, UnitSize,
};
use vmseal_formats::KeyList;
use vmseal_keys::{Dek, KeySource, TestKeys, system_rng};
use vmseal_storage::{Access, Memory, Storage, StoragePath};

const TYPES: [NewDiskType; 5] = [
    NewDiskType::MonolithicFlat,
    NewDiskType::MonolithicSparse,
    NewDiskType::TwoGbMaxExtentFlat,
    NewDiskType::TwoGbMaxExtentSparse,
    NewDiskType::Vmfs,
];
const DEK: [u8; 64] = {
    let mut key = [7; 64];
    key[0] = 1;
    key
};

fn path() -> StoragePath {
    StoragePath::new("web01.vmdk").unwrap()
}

fn dek() -> Dek {
    Dek::from_bytes(&DEK).unwrap()
}

/// Says in the descriptor that the disk is encrypted, as the recrypt engine does after it has converted the data: here nothing was written.
fn mark_encrypted(storage: &Memory, unit: UnitSize) {
    let mut keys = TestKeys::new();
    let id = keys.create(&TestKeys::provider("test")).unwrap();
    let disk = DiskId::from_bytes([5; 16]);
    let text = Encryption::dek_text(disk, unit, HolePolicy::Zero, &dek());
    let mut list = KeyList::new();
    list.push(KeyList::lock_under(&id, &keys.fetch(&id).unwrap(), &text, &mut system_rng()).unwrap());
    let layout = DiskLayout::open(storage, &path()).unwrap();
    let mut descriptor = layout.descriptor().clone();
    Encryption::new(disk, unit, HolePolicy::Zero, list).write_to(&mut descriptor);
    match layout.descriptor_place() {
        vmseal_disk::DescriptorPlace::OwnFile => storage.replace(&path(), &descriptor.to_bytes()).unwrap(),
        vmseal_disk::DescriptorPlace::Embedded { offset_bytes, .. } => {
            let file = storage.open(&path(), Access::ReadWrite).unwrap();
            file.write_at(descriptor.text(), offset_bytes).unwrap();
        }
    }
}

fn open(storage: &Memory, unit: Option<UnitSize>) -> Disk<'_> {
    let cipher = unit.map(|unit| DiskCipher::new(&dek(), unit).unwrap());
    Disk::open(storage, &path(), cipher, Access::ReadWrite).unwrap()
}

fn units() -> impl Strategy<Value = Option<UnitSize>> {
    prop_oneof![Just(None), Just(Some(UnitSize::B512)), Just(Some(UnitSize::B4096))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_disk_keeps_what_is_written(
        disk_type in proptest::sample::select(TYPES.as_slice()),
        unit in units(),
        sectors in 1_u64..3000,
        operations in vec((any::<proptest::sample::Index>(), 1_usize..200_000, any::<u8>(), any::<bool>()), 1..12),
    ) {
        let storage = Memory::new();
        let size = sectors * 512;
        NewDisk::new(disk_type, size).create(&storage, &path()).unwrap();
        if let Some(unit) = unit {
            mark_encrypted(&storage, unit);
        }
        let mut model = vec![0; size as usize];
        let mut disk = open(&storage, unit);
        for (at, len, byte, reopen) in operations {
            let start = at.index(model.len());
            let end = model.len().min(start + len);
            let data: Vec<u8> = (start..end).map(|index| (index % 251) as u8 ^ byte).collect();
            disk.write_at(&data, start as u64).unwrap();
            model[start..end].copy_from_slice(&data);
            if reopen {
                disk.flush().unwrap();
                drop(disk);
                disk = open(&storage, unit);
            }
            let mut read = vec![0xaa; model.len() - start];
            disk.read_at(&mut read, start as u64).unwrap();
            prop_assert!(read == model[start..]);
        }
        disk.flush().unwrap();
        drop(disk);

        // Every byte that the disk holds is in one piece, at its place, and under the cipher.
        let layout = DiskLayout::open(&storage, &path()).unwrap();
        let mut found = vec![0; model.len()];
        for file_path in layout.files() {
            let file = storage.open(&file_path, Access::Read).unwrap();
            let mut end = 0;
            for piece in layout.pieces(file.as_ref(), &file_path).unwrap() {
                let piece = piece.unwrap();
                prop_assert!(piece.file_range.start >= end && piece.file_range.end > piece.file_range.start);
                end = piece.file_range.end;
                let PieceKind::Guest { virtual_byte } = piece.kind else { continue };
                let mut bytes = vec![0; (piece.file_range.end - piece.file_range.start) as usize];
                file.read_at(&mut bytes, piece.file_range.start).unwrap();
                if let Some(unit) = unit {
                    DiskCipher::new(&dek(), unit).unwrap().decrypt(&mut bytes, virtual_byte).unwrap();
                }
                found[virtual_byte as usize..virtual_byte as usize + bytes.len()].copy_from_slice(&bytes);
            }
        }
        prop_assert!(found == model);
    }
}

#[test]
fn an_encrypted_disk_is_not_opened_as_a_plain_one_nor_the_other_way_round() {
    let storage = Memory::new();
    NewDisk::new(NewDiskType::Vmfs, 1 << 20).create(&storage, &path()).unwrap();
    let cipher = || Some(DiskCipher::new(&dek(), UnitSize::B512).unwrap());
    assert!(matches!(Disk::open(&storage, &path(), cipher(), Access::Read), Err(Error::NotEncrypted { .. })));
    mark_encrypted(&storage, UnitSize::B512);
    assert!(matches!(Disk::open(&storage, &path(), None, Access::Read), Err(Error::Encrypted { .. })));
    Disk::open(&storage, &path(), cipher(), Access::Read).unwrap();
}

#[test]
fn a_disk_that_was_opened_for_reading_is_not_written() {
    let storage = Memory::new();
    NewDisk::new(NewDiskType::Vmfs, 1 << 20).create(&storage, &path()).unwrap();
    let before = storage.read(&path(), 1 << 20).unwrap();
    let mut disk = Disk::open(&storage, &path(), None, Access::Read).unwrap();
    assert!(disk.write_at(b"x", 0).is_err());
    assert!(matches!(disk.read_at(&mut [0; 2], (1 << 20) - 1), Err(Error::BeyondEnd { .. })));
    drop(disk);
    assert_eq!(storage.read(&path(), 1 << 20).unwrap(), before);
}

#[test]
fn the_first_write_changes_the_content_id_and_nothing_else_of_the_descriptor() {
    for disk_type in TYPES {
        let storage = Memory::new();
        NewDisk::new(disk_type, 1 << 20).create(&storage, &path()).unwrap();
        let before = DiskLayout::open(&storage, &path()).unwrap().descriptor().clone();
        let mut disk = open(&storage, None);
        disk.write_at(b"x", 0).unwrap();
        disk.write_at(b"y", 0).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let after = DiskLayout::open(&storage, &path()).unwrap().descriptor().clone();
        let (before, after) =
            (String::from_utf8(before.to_bytes()).unwrap(), String::from_utf8(after.to_bytes()).unwrap());
        let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(old, new)| old != new).collect();
        assert_eq!(changed.len(), 1, "{disk_type:?}");
        assert!(changed[0].0.starts_with("CID=") && changed[0].1.starts_with("CID="));
    }
}

#[test]
fn damaged_tables_are_errors_that_name_the_byte() {
    // In an empty disk of 1 MiB: descriptor in sectors 1 to 20, redundant directory in 21, its table in 22 to 25, directory in 26, table in 27.
    let grain_table = 27 * 512_u64;
    let cases: [(&str, u64, u32); 4] = [
        ("a table beyond the end", 26 * 512, 1 << 30),
        ("a grain beyond the end", grain_table, 1 << 30),
        ("two grains in one place", grain_table + 4, 128),
        ("a grain on a table", grain_table + 4, 27),
    ];
    for (case, offset, value) in cases {
        let storage = Memory::new();
        NewDisk::new(NewDiskType::MonolithicSparse, 1 << 20).create(&storage, &path()).unwrap();
        let mut disk = open(&storage, None);
        disk.write_at(&[1; 512], 0).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let file = storage.open(&path(), Access::ReadWrite).unwrap();
        file.write_at(&value.to_le_bytes(), offset).unwrap();
        let layout = DiskLayout::open(&storage, &path()).unwrap();
        let pieces = layout.pieces(file.as_ref(), &path()).and_then(|pieces| pieces.collect::<Result<Vec<_>, _>>());
        assert!(matches!(pieces, Err(Error::DamagedTables { .. })), "{case}: {pieces:?}");
    }
}

#[test]
fn one_grain_named_a_million_times_is_noticed_before_memory_is_used_up() {
    // Every entry of every table names the same grain of one sector.
    let storage = Memory::new();
    NewDisk::new(NewDiskType::MonolithicSparse, 64 << 30).create(&storage, &path()).unwrap();
    let file = storage.open(&path(), Access::ReadWrite).unwrap();
    let layout = DiskLayout::open(&storage, &path()).unwrap();
    let mut gd = [0; 8];
    file.read_at(&mut gd, 56).unwrap();
    let directory = u64::from_le_bytes(gd) * 512;
    let end = (file.len().unwrap() / 512) as u32;
    file.set_len(file.len().unwrap() + (1 << 16)).unwrap();
    for table in 0..2048 {
        let mut sector = [0; 4];
        file.read_at(&mut sector, directory + table * 4).unwrap();
        let entries: Vec<u8> = (0..512).flat_map(|_| end.to_le_bytes()).collect();
        file.write_at(&entries, u64::from(u32::from_le_bytes(sector)) * 512).unwrap();
    }
    let error = layout.check_files(&storage).unwrap_err();
    assert!(matches!(error, Error::DamagedTables { .. }), "{error}");
    // And one table that every entry of the directory names.
    let first: Vec<u8> = (0..2048).flat_map(|_| 27_u32.to_le_bytes()).collect();
    file.write_at(&first, directory).unwrap();
    let error = layout.check_files(&storage).unwrap_err();
    assert!(error.to_string().contains("name the same grain table"), "{error}");
}

#[test]
fn data_units_of_4096_bytes_are_refused_where_an_extent_ends_within_one() {
    let storage = Memory::new();
    let text =
        b"# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\
        RW 9 FLAT \"a.vmdk\" 0\nRW 8 FLAT \"b.vmdk\" 0\nddb.adapterType = \"lsilogic\"\n";
    storage.replace(&path(), text).unwrap();
    for name in ["a.vmdk", "b.vmdk"] {
        storage.create(&StoragePath::new(name).unwrap(), None).unwrap().set_len(9 * 512).unwrap();
    }
    let layout = DiskLayout::open(&storage, &path()).unwrap();
    layout.check_unit(UnitSize::B512).unwrap();
    assert!(matches!(layout.check_unit(UnitSize::B4096), Err(Error::UnitDoesNotFit { .. })));
    assert_eq!(layout.capacity_bytes(), 17 * 512);
}

#[test]
fn extents_that_are_missing_short_shared_or_outside_are_refused() {
    let descriptor = |extents: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"custom\"\n{extents}\n"
        )
    };
    let cases = [
        ("RW 10 FLAT \"absent.vmdk\" 0", "absent.vmdk is not there"),
        ("RW 10 FLAT \"a.vmdk\" 0", "a.vmdk has 4096 bytes, and its descriptor says 5120"),
        ("RW 4 FLAT \"a.vmdk\" 5", "a.vmdk has 4096 bytes, and its descriptor says 4608"),
        ("RW 4 FLAT \"a.vmdk\" 0\nRW 4 FLAT \"a.vmdk\" 3", "use the same bytes"),
        ("RW 4 FLAT \"../a.vmdk\" 0", "leads outside"),
        ("RW 4 FLAT \"/dev/sda\" 0", "absolute"),
        ("RW 4 VMFSSPARSE \"a.vmdk\"", "VMFSSPARSE"),
        ("RW 4 SESPARSE \"a.vmdk\"", "SESPARSE"),
        ("RW 4 VMFSRAW \"a.vmdk\"", "VMFSRAW"),
        ("RW 4 SPARSE \"a.vmdk\"", "a.vmdk"),
    ];
    for (extents, message) in cases {
        let storage = Memory::new();
        storage.create(&StoragePath::new("a.vmdk").unwrap(), None).unwrap().set_len(4096).unwrap();
        storage.replace(&path(), descriptor(extents).as_bytes()).unwrap();
        let error = DiskLayout::open(&storage, &path()).unwrap_err().to_string();
        assert!(error.contains(message), "{extents}: {error}");
    }
}

#[test]
fn zero_and_read_only_extents_keep_their_word() {
    let storage = Memory::new();
    storage.create(&StoragePath::new("a.vmdk").unwrap(), None).unwrap().set_len(8192).unwrap();
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"custom\"\n\
        RW 8 FLAT \"a.vmdk\" 8\nRW 8 ZERO\nRDONLY 8 FLAT \"a.vmdk\" 0\n";
    storage.replace(&path(), text.as_bytes()).unwrap();
    let mut disk = Disk::open(&storage, &path(), None, Access::ReadWrite).unwrap();
    assert_eq!(disk.size_bytes(), 3 * 4096);
    disk.write_at(&[1; 4096], 0).unwrap();
    for (offset, access) in [(4095, "ZERO"), (4096, "ZERO"), (8192, "RDONLY")] {
        let error = disk.write_at(&[2; 2], offset).unwrap_err();
        assert!(matches!(error, Error::ExtentAccess { access: found, .. } if found == access), "{error}");
    }
    let mut all = vec![9; 3 * 4096];
    disk.read_at(&mut all, 0).unwrap();
    assert_eq!(all, [vec![1; 4096], vec![0; 8192]].concat());
    assert_eq!(
        storage.open(&StoragePath::new("a.vmdk").unwrap(), Access::Read).unwrap().next_data(0).unwrap(),
        Some(4096..8192)
    );
}

//! What can be read of damaged disks, and that what cannot is told.

use core::ops::Range;

use vmseal_disk::{Disk, Error, HolePolicy, UnitSize};
use vmseal_formats::SparseHeader;
use vmseal_storage::{Access, Memory, Storage};

use crate::links::{Grains, Keys, Kind, NewLink, path, read_all};

const SIZE: usize = 64 << 20;

/// A sparse disk of 64 MiB, two tables, written throughout its first half and at its end; what it holds.
fn sparse(encryption: Option<UnitSize>) -> (Memory, Keys, Vec<u8>, SparseHeader) {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let mut new = NewLink::new("a", Kind::Monolithic, SIZE as u64 / 512, None);
    new.encryption = encryption.map(|unit| (unit, HolePolicy::Zero));
    new.make(&storage, &mut keys, &Grains::new());
    let mut disk = keys.open(&storage, &path("a.vmdk"), Access::ReadWrite);
    for (start, len) in [(0, SIZE / 2), (SIZE - 100_000, 100_000)] {
        let data: Vec<u8> = (start..start + len).map(|index| (index % 251) as u8 ^ (index >> 16) as u8).collect();
        disk.write_at(&data, start as u64).unwrap();
    }
    disk.flush().unwrap();
    let all = read_all(&disk);
    drop(disk);
    let mut start = [0; 512];
    storage.open(&path("a.vmdk"), Access::Read).unwrap().read_at(&mut start, 0).unwrap();
    (storage, keys, all, SparseHeader::parse(&start).unwrap())
}

fn write(storage: &Memory, name: &str, offset: u64, bytes: &[u8]) {
    storage.open(&path(name), Access::ReadWrite).unwrap().write_at(bytes, offset).unwrap();
}

/// Reads everything, checks that what is not lost is right and that what is lost is zeros; tells what is lost.
fn salvage(disk: &Disk<'_>, wanted: &[u8]) -> Vec<Range<u64>> {
    let mut bytes = vec![0xaa; wanted.len()];
    let lost = disk.salvage_read(&mut bytes, 0).unwrap();
    let mut expected = wanted.to_vec();
    for range in &lost {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert!(bytes == expected, "{lost:?}");
    // Whoever copies by ranges of data meets every loss.
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(data) = disk.next_data(at).unwrap() {
        found.push(data.clone());
        at = data.end;
    }
    for range in &lost {
        let met: u64 =
            found.iter().map(|data| data.end.min(range.end).saturating_sub(data.start.max(range.start))).sum();
        assert_eq!(met, range.end - range.start);
    }
    lost
}

#[test]
fn the_redundant_directory_and_its_tables_stand_in_for_the_main_ones() {
    for unit in [None, Some(UnitSize::B4096)] {
        for case in ["directory noise", "directory zeros", "table noise", "table zeros", "one entry"] {
            let (storage, keys, all, header) = sparse(unit);
            let directory = header.gd_sector * 512;
            let table = directory + 512;
            match case {
                "directory noise" => write(&storage, "a.vmdk", directory, &[0xee; 8]),
                "directory zeros" => write(&storage, "a.vmdk", directory, &[0; 8]),
                "table noise" => write(&storage, "a.vmdk", table, &[0xee; 2048]),
                "table zeros" => write(&storage, "a.vmdk", table, &[0; 2048]),
                _ => write(&storage, "a.vmdk", table + 4 * 77, &[3, 0, 0, 0]),
            }
            let plain = keys.try_open(&storage, &path("a.vmdk"), Access::Read);
            assert!(
                plain.is_err()
                    || plain.is_ok_and(|disk| {
                        let mut bytes = vec![0; SIZE];
                        disk.read_at(&mut bytes, 0).is_err() || bytes != all
                    }),
                "{case}"
            );
            assert_eq!(salvage(&keys.salvage(&storage, &path("a.vmdk")), &all), [], "{case}");
        }
    }
}

#[test]
fn grains_that_neither_directory_names_are_told() {
    let (storage, keys, all, header) = sparse(Some(UnitSize::B512));
    for sector in [header.gd_sector, header.redundant_gd_sector] {
        write(&storage, "a.vmdk", (sector + 1) * 512 + 4 * 10, &[0xee; 12]);
    }
    let lost = salvage(&keys.salvage(&storage, &path("a.vmdk")), &all);
    assert_eq!(lost, [655_360..851_968]);
    assert!(keys.open(&storage, &path("a.vmdk"), Access::Read).read_at(&mut vec![0; SIZE], 0).is_err());
}

#[test]
fn a_file_that_is_cut_off_gives_what_is_left() {
    let (storage, keys, all, _) = sparse(Some(UnitSize::B4096));
    let file = storage.open(&path("a.vmdk"), Access::ReadWrite).unwrap();
    // The last two grains hold the end of the disk; 10000 bytes are left of the last but one.
    let cut = file.len().unwrap() - 2 * 65_536 + 10_000;
    file.set_len(cut).unwrap();
    let lost = salvage(&keys.salvage(&storage, &path("a.vmdk")), &all);
    let first = SIZE as u64 - 2 * 65_536;
    assert_eq!(lost, [first + 8192..SIZE as u64]);
}

#[test]
fn missing_and_short_extents_are_lost_and_the_rest_is_read() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let mut new = NewLink::new("a", Kind::Split, 4096, None);
    new.encryption = Some((UnitSize::B512, HolePolicy::Zero));
    new.make(&storage, &mut keys, &Grains::new());
    let mut disk = keys.open(&storage, &path("a.vmdk"), Access::ReadWrite);
    let all: Vec<u8> = (0..4096 * 512).map(|index| (index % 251) as u8).collect();
    disk.write_at(&all, 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    storage.remove(&path("a-s001.vmdk")).unwrap();
    assert!(keys.try_open(&storage, &path("a.vmdk"), Access::Read).is_err());
    let disk = keys.salvage(&storage, &path("a.vmdk"));
    assert!(matches!(disk.damage(), [Error::Storage(_)]), "{:?}", disk.damage());
    assert_eq!(salvage(&disk, &all), [0..2048 * 512]);

    let storage = Memory::new();
    let mut keys = Keys::default();
    NewLink::new("f", Kind::Flat, 4096, None).make(&storage, &mut keys, &Grains::new());
    let mut disk = keys.open(&storage, &path("f.vmdk"), Access::ReadWrite);
    disk.write_at(&all, 0).unwrap();
    drop(disk);
    storage.open(&path("f-flat.vmdk"), Access::ReadWrite).unwrap().set_len(1_000_000).unwrap();
    assert!(keys.try_open(&storage, &path("f.vmdk"), Access::Read).is_err());
    let lost = salvage(&keys.salvage(&storage, &path("f.vmdk")), &all);
    assert_eq!(lost, [999_424..4096 * 512]);
}

#[test]
fn what_a_missing_parent_had_is_lost_and_the_childs_is_read() {
    for remove in ["a.vmdk", "a-flat.vmdk"] {
        let storage = Memory::new();
        let mut keys = Keys::default();
        NewLink::new("a", Kind::Flat, 2048, None).make(&storage, &mut keys, &Grains::new());
        NewLink::new("b", Kind::Split, 2048, Some("a.vmdk")).make(&storage, &mut keys, &Grains::new());
        let mut disk = keys.open(&storage, &path("b.vmdk"), Access::ReadWrite);
        disk.write_at(&[9; 65_536], 131_072).unwrap();
        disk.flush().unwrap();
        let all = read_all(&disk);
        drop(disk);
        storage.remove(&path(remove)).unwrap();
        let disk = keys.salvage(&storage, &path("b.vmdk"));
        assert_eq!(disk.damage().len(), 1);
        assert_eq!(salvage(&disk, &all), [0..131_072, 196_608..1 << 20]);
    }
}

#[test]
fn a_damaged_compressed_grain_is_lost_alone() {
    let storage = Memory::new();
    let mut keys = Keys::default();
    let new = NewLink::new("a", Kind::Stream, 1024, None);
    let grain = |number: u8| (0..65_536).map(|index| (index * 7 % 251) as u8 ^ number).collect::<Vec<u8>>();
    new.make(&storage, &mut keys, &(0..4).map(|number| (number, Some(grain(number as u8)))).collect());
    let mut all: Vec<u8> = (0..4).flat_map(grain).collect();
    all.resize(1024 * 512, 0);
    // The first grain begins at the multiple of a grain behind header and descriptor.
    write(&storage, "a.vmdk", 65_536 + 20, &[0xff; 40]);
    assert!(keys.open(&storage, &path("a.vmdk"), Access::Read).read_at(&mut vec![0; 65_536], 0).is_err());
    assert_eq!(salvage(&keys.salvage(&storage, &path("a.vmdk")), &all), [0..65_536]);
}

//! The sparse extents of `tests/vectors/vmdk`, read to the guest's bytes, and those that are written.

use serde_json::Value;
use vmseal_formats::sparse_header::SECTOR_LEN;
use vmseal_formats::stream_optimized::{self, Marker};
use vmseal_formats::{Descriptor, ExtentKind, GrainEntry, SparseHeader};

use crate::cases::{Vectors, check_error, sha256, text};
use crate::extents::{disk, read_extent, write_sparse, write_stream};

fn folder(file: &str) -> &str {
    file.rsplit_once('/').unwrap().0
}

/// The bytes that the guest sees, parents included.
fn read_disk(vectors: &Vectors, name: &str) -> Vec<u8> {
    let file = vectors.named(name);
    let descriptor = match SparseHeader::parse(&file) {
        Ok(header) => {
            let start = header.descriptor_offset_sectors as usize * SECTOR_LEN;
            Descriptor::parse(&file[start..start + header.descriptor_sectors as usize * SECTOR_LEN]).unwrap()
        }
        Err(_) => Descriptor::parse(&file).unwrap(),
    };
    let mut disk = match descriptor.parent_hint() {
        Some(parent) => read_disk(vectors, &format!("{}/{parent}", folder(name))),
        None => vec![0; descriptor.capacity_sectors() as usize * SECTOR_LEN],
    };
    let mut at = 0;
    for extent in descriptor.extents() {
        let place = &mut disk[at..at + extent.sector_count as usize * SECTOR_LEN];
        at += place.len();
        let Some(file) = &extent.file else { continue };
        let file = vectors.named(&format!("{}/{file}", folder(name)));
        match extent.kind {
            ExtentKind::Flat | ExtentKind::Vmfs => {
                let start = extent.offset_sectors as usize * SECTOR_LEN;
                place.copy_from_slice(&file[start..start + place.len()]);
            }
            _ => drop(read_extent(&file, place).unwrap_or_else(|error| panic!("{name}: {error}"))),
        }
    }
    disk
}

#[test]
fn every_disk_gives_the_guests_bytes() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("valid").iter().filter(|case| case.get("raw_sha256").is_some()) {
        if text(&case["file"]).starts_with("esxi-encrypted") {
            continue; // the data is ciphertext of a form that nobody knows
        }
        assert_eq!(sha256(&read_disk(&vectors, text(&case["file"]))), text(&case["raw_sha256"]), "{case}");
        count += 1;
    }
    assert!(count >= 12);
}

#[test]
fn every_allocation_is_the_one_that_was_written() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("valid") {
        let Some(allocated) = case["allocated_grains"].as_array() else { continue };
        let file = vectors.file(case);
        let capacity = SparseHeader::parse(&file).unwrap().capacity_sectors as usize;
        let entries = read_extent(&file, &mut vec![0; capacity * SECTOR_LEN]).unwrap();
        let found = |wanted: fn(&GrainEntry) -> bool| {
            entries
                .iter()
                .enumerate()
                .filter(|(_, entry)| wanted(entry))
                .map(|(index, _)| Value::from(index))
                .collect::<Vec<_>>()
        };
        assert_eq!(&found(|entry| matches!(entry, GrainEntry::Data { .. })), allocated, "{case}");
        let zeroed = case["zero_grains"].as_array().cloned().unwrap_or_default();
        assert_eq!(found(|entry| *entry == GrainEntry::Zero), zeroed, "{case}");
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn damaged_grains_are_refused() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("invalid") {
        if !["bad/sparse-gte-outside.vmdk", "bad/stream-no-footer.vmdk", "bad/stream-bad-deflate.vmdk"]
            .contains(&text(&case["file"]))
        {
            continue;
        }
        check_error(case, read_extent(&vectors.file(case), &mut vec![0; 1024 * SECTOR_LEN]));
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn the_markers_of_a_stream_lead_from_its_start_to_its_end() {
    let file = Vectors::of("vmdk").named("stream/stream.vmdk");
    let header = SparseHeader::parse(&file).unwrap();
    let mut sector = header.overhead_sectors as usize;
    let mut grains = Vec::new();
    loop {
        let at = sector * SECTOR_LEN;
        sector += match Marker::parse(&file[at..], at as u64).unwrap() {
            Marker::Grain { sector, stored_len } => {
                grains.push(sector / header.grain_sectors);
                (stream_optimized::GRAIN_MARKER_LEN + stored_len as usize).div_ceil(SECTOR_LEN)
            }
            Marker::GrainTable { sector_count } | Marker::GrainDirectory { sector_count } => 1 + sector_count as usize,
            Marker::Footer => 2,
            Marker::EndOfStream => break,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(grains, [0, 2, 7]);
    assert_eq!((sector + 1) * SECTOR_LEN, file.len());
}

#[test]
fn what_is_written_is_read_again() {
    for (sectors, grain_sectors, grains) in
        [(2048_usize, 16_usize, &[0, 5, 127][..]), (1000, 8, &[0, 124]), (70_001, 128, &[511, 512, 546]), (64, 64, &[])]
    {
        let disk = disk(sectors, grain_sectors, grains);
        let mut found = vec![0; disk.len()];
        read_extent(&write_sparse(&disk, grain_sectors, grains), &mut found).unwrap();
        assert!(found == disk, "sparse {sectors}");

        let mut found = vec![0; disk.len()];
        read_extent(&write_stream(&disk, grain_sectors, grains), &mut found).unwrap();
        assert!(found == disk, "stream {sectors}");
    }
}

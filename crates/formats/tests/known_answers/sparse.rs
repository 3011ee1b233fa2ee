//! The sparse extents of `tests/vectors/vmdk`, read to the guest's bytes, and those that are written.

use serde_json::Value;
use vmseal_formats::sparse_header::SECTOR_LEN;
use vmseal_formats::stream_optimized::{self, Marker};
use vmseal_formats::{
    CowdHeader, CreateType, Descriptor, Error, Extent, ExtentKind, GrainEntry, GrainLayout, NewDescriptor,
    SparseHeader, SparseWriter, StreamWriter,
};

use crate::cases::{Vectors, check_error, sha256, text};

fn slice(file: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &file[(range.start as usize).min(file.len())..(range.end as usize).min(file.len())]
}

/// What each grain of an extent is.
fn entries(layout: &GrainLayout, file: &[u8]) -> Result<Vec<GrainEntry>, Error> {
    let len = file.len() as u64;
    let mut entries = Vec::new();
    for table in layout.read_directory(slice(file, layout.directory_range()), len)? {
        match table {
            Some(sector) => entries.extend(layout.read_table(sector, slice(file, layout.table_range(sector)), len)?),
            None => entries.resize(entries.len() + layout.gtes_per_gt as usize, GrainEntry::Absent),
        }
    }
    entries.truncate(layout.grain_count() as usize);
    Ok(entries)
}

/// Writes what an extent has over what its parent showed.
fn read_extent(file: &[u8], disk: &mut [u8]) -> Result<Vec<GrainEntry>, Error> {
    let (header, layout) = if file.starts_with(b"COWD") {
        (None, CowdHeader::parse(file)?.layout())
    } else {
        let mut header = SparseHeader::parse(file)?;
        if header.is_at_end() {
            header = SparseHeader::parse_footer(file, file.len() as u64)?;
        }
        header.check_file_len(file.len() as u64)?;
        let layout = header.layout();
        (Some(header), layout)
    };
    let entries = entries(&layout, file)?;
    let grain_len = layout.grain_sectors as usize * SECTOR_LEN;
    for (place, (index, entry)) in disk.chunks_mut(grain_len).zip(entries.iter().enumerate()) {
        match entry {
            GrainEntry::Absent => {}
            GrainEntry::Zero => place.fill(0),
            GrainEntry::Data { sector } => {
                let start = *sector as usize * SECTOR_LEN;
                match header.as_ref().filter(|header| header.is_compressed()) {
                    Some(header) => {
                        let sector = index as u64 * layout.grain_sectors;
                        let grain = stream_optimized::read_grain(header, &file[start..], start as u64, sector)?;
                        place.copy_from_slice(&grain[..place.len()]);
                    }
                    None => place.copy_from_slice(&file[start..start + place.len()]),
                }
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(entries)
}

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

/// A disk with some grains: patterns that compress and such that do not.
fn disk(sectors: usize, grain_sectors: usize, grains: &[usize]) -> Vec<u8> {
    let mut disk = vec![0; sectors * SECTOR_LEN];
    for grain in grains {
        let start = grain * grain_sectors * SECTOR_LEN;
        let end = (start + grain_sectors * SECTOR_LEN).min(disk.len());
        let mut state = *grain as u32 | 1;
        for byte in &mut disk[start..end] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = if grain % 2 == 0 { (state >> 24) as u8 } else { 0x55 };
        }
    }
    disk
}

fn descriptor(kind: CreateType, sectors: u64) -> Descriptor {
    NewDescriptor::new(kind, 1, vec![Extent::new(ExtentKind::Sparse, sectors, Some("x.vmdk"))]).build().unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    for (sectors, grain_sectors, grains) in
        [(2048_usize, 16_usize, &[0, 5, 127][..]), (1000, 8, &[0, 124]), (70_001, 128, &[511, 512, 546]), (64, 64, &[])]
    {
        let disk = disk(sectors, grain_sectors, grains);
        let grain_len = grain_sectors * SECTOR_LEN;
        let data = |grain: usize| &disk[grain * grain_len..((grain + 1) * grain_len).min(disk.len())];

        let embedded = descriptor(CreateType::MonolithicSparse, sectors as u64);
        let mut writer = SparseWriter::new(sectors as u64, grain_sectors as u64, Some(&embedded)).unwrap();
        let mut file = Vec::new();
        for &grain in grains.iter().rev() {
            let at = writer.allocate(grain as u64).unwrap() as usize;
            assert_eq!(writer.allocate(grain as u64).unwrap() as usize, at);
            file.resize(file.len().max(at + grain_len), 0);
            file[at..at + data(grain).len()].copy_from_slice(data(grain));
        }
        assert!(writer.allocate(sectors.div_ceil(grain_sectors) as u64).is_err());
        let start = writer.finish();
        file.resize(file.len().max(start.len()), 0);
        file[..start.len()].copy_from_slice(&start);
        let mut found = vec![0; disk.len()];
        read_extent(&file, &mut found).unwrap();
        assert!(found == disk, "sparse {sectors}");

        let embedded = descriptor(CreateType::StreamOptimized, sectors as u64);
        let (mut writer, mut file) = StreamWriter::new(sectors as u64, grain_sectors as u64, &embedded).unwrap();
        for &grain in grains {
            file.extend(writer.grain(grain as u64, data(grain)).unwrap());
            assert!(writer.grain(grain as u64, data(grain)).is_err());
        }
        file.extend(writer.finish().unwrap());
        let mut found = vec![0; disk.len()];
        read_extent(&file, &mut found).unwrap();
        assert!(found == disk, "stream {sectors}");
    }
}

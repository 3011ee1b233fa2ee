//! Sparse extents in memory, read and written with the crate's parts.

use vmseal_formats::sparse_header::SECTOR_LEN;
use vmseal_formats::stream_optimized;
use vmseal_formats::{
    CowdHeader, CreateType, Descriptor, Error, Extent, ExtentKind, GrainEntry, GrainLayout, NewDescriptor,
    SparseHeader, SparseWriter, StreamWriter,
};

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
pub(crate) fn read_extent(file: &[u8], disk: &mut [u8]) -> Result<Vec<GrainEntry>, Error> {
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

/// A disk with some grains: patterns that compress and such that do not.
pub(crate) fn disk(sectors: usize, grain_sectors: usize, grains: &[usize]) -> Vec<u8> {
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

/// A monolithicSparse file named `x.vmdk` with these grains of a disk, put into it from the last to the first.
pub(crate) fn write_sparse(disk: &[u8], grain_sectors: usize, grains: &[usize]) -> Vec<u8> {
    let (sectors, grain_len) = (disk.len() / SECTOR_LEN, grain_sectors * SECTOR_LEN);
    let embedded = descriptor(CreateType::MonolithicSparse, sectors as u64);
    let mut writer = SparseWriter::new(sectors as u64, grain_sectors as u64, Some(&embedded)).unwrap();
    let mut file = Vec::new();
    for &grain in grains.iter().rev() {
        let data = &disk[grain * grain_len..((grain + 1) * grain_len).min(disk.len())];
        let at = writer.allocate(grain as u64).unwrap() as usize;
        assert_eq!(writer.allocate(grain as u64).unwrap() as usize, at);
        file.resize(file.len().max(at + grain_len), 0);
        file[at..at + data.len()].copy_from_slice(data);
    }
    assert!(writer.allocate(sectors.div_ceil(grain_sectors) as u64).is_err());
    let start = writer.finish();
    file.resize(file.len().max(start.len()), 0);
    file[..start.len()].copy_from_slice(&start);
    file
}

/// A streamOptimized file named `x.vmdk` with these grains of a disk.
pub(crate) fn write_stream(disk: &[u8], grain_sectors: usize, grains: &[usize]) -> Vec<u8> {
    let (sectors, grain_len) = (disk.len() / SECTOR_LEN, grain_sectors * SECTOR_LEN);
    let embedded = descriptor(CreateType::StreamOptimized, sectors as u64);
    let (mut writer, mut file) = StreamWriter::new(sectors as u64, grain_sectors as u64, &embedded).unwrap();
    for &grain in grains {
        let data = &disk[grain * grain_len..((grain + 1) * grain_len).min(disk.len())];
        file.extend(writer.grain(grain as u64, data).unwrap());
        assert!(writer.grain(grain as u64, data).is_err());
    }
    file.extend(writer.finish().unwrap());
    file
}

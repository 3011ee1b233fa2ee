//! Writers of sparse extents: they say what is written where, the caller writes.

use std::io::Write;

use flate2::Compression as Level;
use flate2::write::ZlibEncoder;

use crate::descriptor::Descriptor;
use crate::error::{Error, Place};
use crate::sparse_header::{Compression, GD_AT_END, GTES_PER_GT, SECTOR_LEN, SparseHeader};
use crate::stream_optimized::{END_OF_STREAM, FOOTER, GRAIN_DIRECTORY, GRAIN_TABLE};

/// The room for an embedded descriptor that every product leaves, in sectors.
pub(crate) const DESCRIPTOR_SECTORS: u64 = 20;
/// Sectors of a grain table.
const TABLE_SECTORS: u64 = GTES_PER_GT as u64 * 4 / SECTOR_LEN as u64;
/// The most sectors that an entry can point to.
const SECTOR_MAX: u64 = u32::MAX as u64;
/// The most grain tables that are kept in memory: 4 TiB of disk in grains of 64 KiB.
const TABLES_MAX: u64 = 1 << 17;

/// Writes a hosted sparse extent.
///
/// Grains come in any order; [`allocate`](Self::allocate) says where each goes. The start of the file, with header,
/// descriptor and tables, comes last, from [`finish`](Self::finish).
#[derive(Debug)]
pub struct SparseWriter {
    header: SparseHeader,
    descriptor: Vec<u8>,
    entries: Vec<u32>,
    next_sector: u64,
}

impl SparseWriter {
    /// Begins an extent, with the descriptor inside for a disk of one file.
    ///
    /// # Errors
    /// [`Error::Value`] and [`Error::Limit`] for sizes; [`Error::Length`] for a descriptor longer than its room of 20
    /// sectors.
    pub fn new(capacity_sectors: u64, grain_sectors: u64, descriptor: Option<&Descriptor>) -> Result<Self, Error> {
        let mut header = checked(capacity_sectors, grain_sectors)?;
        let descriptor = descriptor_room(descriptor)?;
        if !descriptor.is_empty() {
            header.descriptor_offset_sectors = 1;
            header.descriptor_sectors = DESCRIPTOR_SECTORS;
        }
        let tables_sectors = header.gd_sector_count() + header.gd_entry_count() * TABLE_SECTORS;
        header.redundant_gd_sector = 1 + header.descriptor_sectors;
        header.gd_sector = header.redundant_gd_sector + tables_sectors;
        header.overhead_sectors = (header.gd_sector + tables_sectors).next_multiple_of(grain_sectors);
        header.flags |= SparseHeader::FLAG_REDUNDANT_GD;
        let entries = vec![0; header.grain_count() as usize];
        let next_sector = header.overhead_sectors;
        Ok(Self { header, descriptor, entries, next_sector })
    }

    /// The byte of the file where a grain goes; the same when it is asked for again.
    ///
    /// # Errors
    /// [`Error::Value`] for a grain behind the capacity; [`Error::Limit`] at 2 TiB, which the tables cannot address.
    pub fn allocate(&mut self, grain: u64) -> Result<u64, Error> {
        let sector = self.next_sector;
        let entry = entry(&mut self.entries, grain)?;
        if *entry == 0 {
            *entry = addressed(sector)?;
            self.next_sector += self.header.grain_sectors;
        }
        Ok(u64::from(*entry) * SECTOR_LEN as u64)
    }

    /// The bytes of the file from its start up to the first grain.
    pub fn finish(self) -> Vec<u8> {
        let mut start = self.header.to_bytes().to_vec();
        start.extend_from_slice(&self.descriptor);
        for gd_sector in [self.header.redundant_gd_sector, self.header.gd_sector] {
            debug_assert_eq!(start.len() as u64, gd_sector * SECTOR_LEN as u64);
            let first_table = gd_sector + self.header.gd_sector_count();
            for table in 0..self.header.gd_entry_count() {
                start.extend_from_slice(&((first_table + table * TABLE_SECTORS) as u32).to_le_bytes());
            }
            start.resize((first_table * SECTOR_LEN as u64) as usize, 0);
            self.entries.iter().for_each(|entry| start.extend_from_slice(&entry.to_le_bytes()));
            let end = first_table + self.header.gd_entry_count() * TABLE_SECTORS;
            start.resize((end * SECTOR_LEN as u64) as usize, 0);
        }
        start.resize((self.header.overhead_sectors * SECTOR_LEN as u64) as usize, 0);
        start
    }
}

/// Writes a streamOptimized extent: what each call returns is put behind what is there.
#[derive(Debug)]
pub struct StreamWriter {
    header: SparseHeader,
    /// The sector of each table that is written, 0 for those without grains.
    directory: Vec<u32>,
    /// The table that the last grain is in.
    table: Vec<u32>,
    table_index: u64,
    next_grain: u64,
    next_sector: u64,
}

impl StreamWriter {
    /// Begins an extent; gives its start.
    ///
    /// # Errors
    /// As [`SparseWriter::new`].
    pub fn new(capacity_sectors: u64, grain_sectors: u64, descriptor: &Descriptor) -> Result<(Self, Vec<u8>), Error> {
        let mut header = checked(capacity_sectors, grain_sectors)?;
        let descriptor = descriptor_room(Some(descriptor))?;
        header.version = 3;
        header.flags |= SparseHeader::FLAG_COMPRESSED | SparseHeader::FLAG_MARKERS;
        header.compression = Compression::Deflate;
        header.descriptor_offset_sectors = 1;
        header.descriptor_sectors = DESCRIPTOR_SECTORS;
        header.gd_sector = GD_AT_END;
        header.overhead_sectors = (1 + DESCRIPTOR_SECTORS).next_multiple_of(grain_sectors);
        let mut start = header.to_bytes().to_vec();
        start.extend_from_slice(&descriptor);
        start.resize((header.overhead_sectors * SECTOR_LEN as u64) as usize, 0);
        let directory = vec![0; header.gd_entry_count() as usize];
        let table = vec![0; GTES_PER_GT as usize];
        let next_sector = header.overhead_sectors;
        Ok((Self { header, directory, table, table_index: 0, next_grain: 0, next_sector }, start))
    }

    /// The next grain, which has the size of a grain but for the last. Grains ascend; those left out are zeros.
    ///
    /// # Errors
    /// [`Error::Value`] for a grain behind the capacity or not above the last; [`Error::Length`] for one that is too
    /// long; [`Error::Limit`] at 2 TiB.
    pub fn grain(&mut self, grain: u64, data: &[u8]) -> Result<Vec<u8>, Error> {
        if grain < self.next_grain || grain >= self.header.grain_count() {
            let what = "the next grain of a streamOptimized extent, above the last and below the capacity,";
            return Err(Error::Value { what, found: grain.to_string(), place: Place::Byte(0) });
        }
        let grain_len = self.header.grain_sectors * SECTOR_LEN as u64;
        if data.len() as u64 > grain_len || data.is_empty() {
            let (what, wanted) = ("a grain", "needs the size of a grain or less");
            return Err(Error::Length { what, found: data.len() as u64, wanted });
        }
        let (table_index, entry_index) = self.header.layout().position(grain);
        let mut out = if table_index == self.table_index { Vec::new() } else { self.end_table()? };
        self.table_index = table_index;
        self.table[entry_index as usize] = addressed(self.next_sector + (out.len() / SECTOR_LEN) as u64)?;
        self.next_grain = grain + 1;

        let mut encoder = ZlibEncoder::new(Vec::with_capacity(data.len()), Level::default());
        // Zeros to the end of the last grain: readers expect a whole one.
        let padding = vec![0; grain_len as usize - data.len()];
        let stream = encoder.write_all(data).and_then(|()| encoder.write_all(&padding)).and_then(|()| encoder.finish());
        let stream = stream.map_err(|_| Error::Length { what: "a grain", found: 0, wanted: "cannot be compressed" })?;
        out.extend_from_slice(&(grain * self.header.grain_sectors).to_le_bytes());
        out.extend_from_slice(&(stream.len() as u32).to_le_bytes());
        out.extend_from_slice(&stream);
        out.resize(out.len().next_multiple_of(SECTOR_LEN), 0);
        self.next_sector += (out.len() / SECTOR_LEN) as u64;
        Ok(out)
    }

    /// The end of the file: tables, directory, the real header, the marker of the end.
    ///
    /// # Errors
    /// [`Error::Limit`] at 2 TiB.
    pub fn finish(mut self) -> Result<Vec<u8>, Error> {
        let mut out = self.end_table()?;
        let gd_sectors = self.header.gd_sector_count();
        put_marker(&mut out, gd_sectors, GRAIN_DIRECTORY);
        let mut footer = self.header.clone();
        footer.gd_sector = self.next_sector + (out.len() / SECTOR_LEN) as u64;
        self.directory.iter().for_each(|sector| out.extend_from_slice(&sector.to_le_bytes()));
        out.resize(out.len().next_multiple_of(SECTOR_LEN), 0);
        put_marker(&mut out, 1, FOOTER);
        out.extend_from_slice(&footer.to_bytes());
        put_marker(&mut out, 0, END_OF_STREAM);
        Ok(out)
    }

    /// The table with the grains so far, where it has some.
    fn end_table(&mut self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        if self.table.iter().any(|entry| *entry != 0) {
            put_marker(&mut out, TABLE_SECTORS, GRAIN_TABLE);
            self.directory[self.table_index as usize] = addressed(self.next_sector + 1)?;
            self.table.iter().for_each(|entry| out.extend_from_slice(&entry.to_le_bytes()));
            self.table.fill(0);
        }
        Ok(out)
    }
}

fn checked(capacity_sectors: u64, grain_sectors: u64) -> Result<SparseHeader, Error> {
    // Read back, so that what is written has met every check that a reader makes.
    let header = SparseHeader::parse(&SparseHeader::new(capacity_sectors, grain_sectors).to_bytes())?;
    if header.gd_entry_count() > TABLES_MAX {
        let found = header.gd_entry_count().to_string();
        return Err(Error::Limit { what: "grain tables; take larger grains", found, max: TABLES_MAX });
    }
    Ok(header)
}

/// The descriptor, padded to its room; nothing for none.
fn descriptor_room(descriptor: Option<&Descriptor>) -> Result<Vec<u8>, Error> {
    let Some(descriptor) = descriptor else { return Ok(Vec::new()) };
    let mut bytes = descriptor.text().to_vec();
    let room = DESCRIPTOR_SECTORS as usize * SECTOR_LEN;
    if bytes.len() > room {
        let (what, wanted) = ("an embedded descriptor", "has room for 10240");
        return Err(Error::Length { what, found: bytes.len() as u64, wanted });
    }
    bytes.resize(room, 0);
    Ok(bytes)
}

fn entry(entries: &mut [u32], grain: u64) -> Result<&mut u32, Error> {
    usize::try_from(grain).ok().and_then(|index| entries.get_mut(index)).ok_or_else(|| Error::Value {
        what: "a grain, below the capacity,",
        found: grain.to_string(),
        place: Place::Byte(0),
    })
}

fn addressed(sector: u64) -> Result<u32, Error> {
    u32::try_from(sector).map_err(|_| Error::Limit {
        what: "sectors of a sparse file",
        found: sector.to_string(),
        max: SECTOR_MAX,
    })
}

fn put_marker(out: &mut Vec<u8>, value: u64, kind: u32) {
    let end = out.len() + SECTOR_LEN;
    out.extend_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.resize(end, 0);
}

//! SESparse extents: snapshots on VMFS 6 (`docs/formats/sesparse.md`). Read only.

use core::ops::Range;

use bytes::Buf;

use crate::error::{Error, Place};
use crate::extent::Extent;
use crate::grain_table::GrainEntry;
use crate::sparse_header::SECTOR_LEN;

/// The constant header's magic.
pub const MAGIC: u64 = 0xcafe_babe;
/// The volatile header's magic.
pub const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
/// The bytes that both headers need, from the start of the file.
pub const HEADERS_LEN: usize = 2 * SECTOR_LEN;
/// The only version.
const VERSION: u64 = 0x0000_0002_0000_0001;
/// The only size of a grain: 4 KiB.
const GRAIN_SECTORS: u64 = 8;
/// The only size of a grain table: 4096 entries of 8 bytes.
const TABLE_SECTORS: u64 = 64;
/// Entries of a grain table.
pub const ENTRIES_PER_TABLE: u64 = TABLE_SECTORS * SECTOR_LEN as u64 / 8;
/// The greatest capacity that is taken, 64 TiB.
const CAPACITY_SECTORS_MAX: u64 = 1 << 37;

/// The high half of an entry in the directory that has a table.
const TABLE_PRESENT: u64 = 0x1000_0000;

/// The headers of an SESparse extent, as far as they say where grains are. Offsets and sizes in sectors of 512 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SeSparseHeader {
    /// The size of the extent on the virtual disk.
    pub capacity_sectors: u64,
    /// Where the grain directory is.
    pub gd_sector: u64,
    /// How many sectors it has.
    pub gd_sector_count: u64,
    /// Where the grain tables are, one after the other.
    pub tables_sector: u64,
    /// How many sectors they have.
    pub tables_sector_count: u64,
    /// Where the grains are.
    pub grains_sector: u64,
    /// How many sectors they have.
    pub grains_sector_count: u64,
}

impl SeSparseHeader {
    /// Reads both headers, from the first [`HEADERS_LEN`] bytes of the file.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::BadMagic`], [`Error::UnsupportedVersion`], [`Error::Value`], [`Error::Limit`];
    /// [`Error::Unsupported`] for a journal that was not replayed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const FORMAT: &str = "SESparse extent";
        let magic = MAGIC.to_le_bytes();
        if bytes[..bytes.len().min(8)] != magic[..bytes.len().min(8)] {
            return Err(Error::BadMagic { format: FORMAT, place: Place::Byte(0) });
        }
        let Some((headers, _)) = bytes.split_first_chunk::<HEADERS_LEN>() else {
            let (len_bytes, wanted_bytes) = (bytes.len() as u64, HEADERS_LEN as u64);
            return Err(Error::Truncated { format: FORMAT, len_bytes, wanted_bytes });
        };
        let (mut constant, mut volatile) = headers.split_at(SECTOR_LEN);
        constant.advance(8);
        let version = constant.get_u64_le();
        if version != VERSION {
            let version = format!("{version:#x}");
            return Err(Error::UnsupportedVersion { format: "the SESparse extent", version });
        }
        let value =
            |what, found: u64, offset| Err(Error::Value { what, found: found.to_string(), place: Place::Byte(offset) });
        let capacity_sectors = constant.get_u64_le();
        if capacity_sectors > CAPACITY_SECTORS_MAX {
            let found = capacity_sectors.to_string();
            return Err(Error::Limit { what: "sectors of an SESparse extent", found, max: CAPACITY_SECTORS_MAX });
        }
        let grain_sectors = constant.get_u64_le();
        if grain_sectors != GRAIN_SECTORS {
            return value("the size of a grain, 8 sectors,", grain_sectors, 24);
        }
        let table_sectors = constant.get_u64_le();
        if table_sectors != TABLE_SECTORS {
            return value("the size of a grain table, 64 sectors,", table_sectors, 32);
        }
        let flags = constant.get_u64_le();
        if flags != 0 {
            return Err(Error::UnsupportedFlags { format: FORMAT, flags: flags as u32 });
        }
        constant.advance(4 * 8);
        let mut areas = [(0, 0); 8];
        for area in &mut areas {
            *area = (constant.get_u64_le(), constant.get_u64_le());
        }
        let [volatile_header, _, _, directory, tables, _, _, grains] = areas;
        for (index, (sector, count)) in areas.into_iter().enumerate() {
            if sector.checked_add(count).is_none_or(|end| end > Extent::SECTORS_MAX) {
                let offset = 80 + 16 * index as u64;
                return value("a place in the file, of which the bytes fit 63 bits,", sector, offset);
            }
        }
        if volatile_header != (1, 1) {
            return value("where the volatile header is, sector 1,", volatile_header.0, 80);
        }
        if volatile.get_u64_le() != VOLATILE_MAGIC {
            let place = Place::Byte(SECTOR_LEN as u64);
            return Err(Error::BadMagic { format: "volatile header of an SESparse extent", place });
        }
        volatile.advance(2 * 8);
        if volatile.get_u64_le() != 0 {
            let why = "its journal was not replayed; start and stop the VM on ESXi";
            return Err(Error::Unsupported { what: "this SESparse extent", why });
        }
        let header = Self {
            capacity_sectors,
            gd_sector: directory.0,
            gd_sector_count: directory.1,
            tables_sector: tables.0,
            tables_sector_count: tables.1,
            grains_sector: grains.0,
            grains_sector_count: grains.1,
        };
        if header.directory_range().end > (directory.0 + directory.1) * SECTOR_LEN as u64 {
            return value("the size of a grain directory, enough for the capacity,", directory.1, 136);
        }
        Ok(header)
    }

    /// The size of a grain in sectors.
    pub fn grain_sectors(&self) -> u64 {
        GRAIN_SECTORS
    }

    /// The number of grains, the last of which may reach behind the capacity.
    pub fn grain_count(&self) -> u64 {
        self.capacity_sectors.div_ceil(GRAIN_SECTORS)
    }

    /// The bytes of the file that hold the entries of the grain directory.
    pub fn directory_range(&self) -> Range<u64> {
        let start = self.gd_sector * SECTOR_LEN as u64;
        start..start + self.grain_count().div_ceil(ENTRIES_PER_TABLE) * 8
    }

    /// The table of a grain, and the entry there.
    pub fn position(&self, grain: u64) -> (u64, u64) {
        (grain / ENTRIES_PER_TABLE, grain % ENTRIES_PER_TABLE)
    }

    /// What an entry of the directory says: the bytes of the file that hold the table; none where all its grains are
    /// absent.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for an entry of another form, and for a table outside the area of tables.
    pub fn table_range(&self, directory_index: u64, entry: u64) -> Result<Option<Range<u64>>, Error> {
        let place = Place::Byte(self.directory_range().start + directory_index.saturating_mul(8));
        let corrupt = |what| Err(Error::Corrupt { what, place });
        match (entry >> 32, entry & 0xffff_ffff) {
            (0, 0) => Ok(None),
            (TABLE_PRESENT, table) => {
                let offset = table * TABLE_SECTORS;
                if offset + TABLE_SECTORS > self.tables_sector_count {
                    return corrupt("a grain table lies outside the area of tables");
                }
                let start = (self.tables_sector + offset) * SECTOR_LEN as u64;
                Ok(Some(start..start + TABLE_SECTORS * SECTOR_LEN as u64))
            }
            _ => corrupt("an entry of the grain directory has a form that is not known"),
        }
    }

    /// What an entry of a grain table says; `offset` is where it is in the file, for errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for an entry of another form, and for a grain outside the area of grains.
    pub fn grain_entry(&self, entry: u64, offset: u64) -> Result<GrainEntry, Error> {
        let corrupt = |what| Err(Error::Corrupt { what, place: Place::Byte(offset) });
        match entry >> 60 {
            // Unallocated and unmapped: both show the parent.
            0 | 1 => Ok(GrainEntry::Absent),
            2 => Ok(GrainEntry::Zero),
            3 => {
                let cluster = (entry >> 48) & 0xfff | (entry & 0xffff_ffff_ffff) << 12;
                let start = cluster.checked_mul(GRAIN_SECTORS);
                match start.filter(|start| start + GRAIN_SECTORS <= self.grains_sector_count) {
                    Some(start) => Ok(GrainEntry::Data { sector: self.grains_sector + start }),
                    None => corrupt("a grain lies outside the area of grains"),
                }
            }
            _ => corrupt("an entry of a grain table has a form that is not known"),
        }
    }
}

/// Whatever the bytes: no entry leads outside its area.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let Ok(header) = SeSparseHeader::parse(data) else { return };
    for (index, entry) in data.as_chunks().0.iter().enumerate() {
        let entry = u64::from_le_bytes(*entry);
        if let Ok(Some(range)) = header.table_range(index as u64, entry) {
            assert!(range.end <= (header.tables_sector + header.tables_sector_count) * SECTOR_LEN as u64);
        }
        if let Ok(GrainEntry::Data { sector }) = header.grain_entry(entry, 0) {
            assert!(sector + GRAIN_SECTORS <= header.grains_sector + header.grains_sector_count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers with the areas of a small file.
    fn headers(change: impl Fn(&mut [u64; 128])) -> Vec<u8> {
        let mut words = [0; 128];
        words[..6].copy_from_slice(&[MAGIC, VERSION, 40_000, 8, 64, 0]);
        let areas = [(1, 1), (2, 2), (0x800, 0x800), (0x1000, 0x800), (0x1800, 640), (0, 0), (0, 0), (0x2000, 8000)];
        for (index, (sector, count)) in areas.into_iter().enumerate() {
            words[10 + 2 * index] = sector;
            words[11 + 2 * index] = count;
        }
        words[64..68].copy_from_slice(&[VOLATILE_MAGIC, 1, 1, 0]);
        change(&mut words);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn headers_are_checked() {
        let header = SeSparseHeader::parse(&headers(|_| ())).unwrap();
        assert_eq!((header.grain_count(), header.position(4097)), (5000, (1, 1)));
        assert_eq!(header.directory_range(), 0x1000 * 512..0x1000 * 512 + 16);
        let bad: [fn(&mut [u64; 128]); 8] = [
            |words| words[0] = 1,
            |words| words[1] = 1,
            |words| words[2] = u64::MAX,
            |words| words[3] = 16,
            |words| words[4] = 1,
            |words| words[5] = 1,
            |words| words[64] = 0xcafe_babe,
            |words| words[67] = 1,
        ];
        for change in bad {
            assert!(SeSparseHeader::parse(&headers(change)).is_err());
        }
        assert!(SeSparseHeader::parse(&headers(|words| words[16] = u64::MAX)).is_err());
    }

    #[test]
    fn entries_are_read_bit_by_bit() {
        let header = SeSparseHeader::parse(&headers(|_| ())).unwrap();
        assert_eq!(header.table_range(0, 0).unwrap(), None);
        let start = (0x1800 + 64) * 512;
        assert_eq!(header.table_range(0, 0x1000_0000_0000_0001).unwrap(), Some(start..start + 64 * 512));
        for bad in [1, 0x1000_0000_0000_000a, 0x2000_0000_0000_0000] {
            assert!(header.table_range(1, bad).is_err(), "{bad:#x}");
        }
        for (entry, wanted) in [
            (0, GrainEntry::Absent),
            (0x1000_0000_0000_0000, GrainEntry::Absent),
            (0x2fff_0000_0000_0000, GrainEntry::Zero),
            (0x3005_0000_0000_0000, GrainEntry::Data { sector: 0x2000 + 40 }),
        ] {
            assert_eq!(header.grain_entry(entry, 0).unwrap(), wanted, "{entry:#x}");
        }
        for bad in [0x4000_0000_0000_0000, 0x33e8_0000_0000_0000, 0x3000_0000_0000_0001, u64::MAX] {
            assert!(header.grain_entry(bad, 0).is_err(), "{bad:#x}");
        }
    }
}

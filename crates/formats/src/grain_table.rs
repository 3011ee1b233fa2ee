//! Grain directories and tables of 32-bit entries: where hosted sparse and COWD extents have their grains.

use core::ops::Range;

use crate::error::{Error, Place};
use crate::sparse_header::{SECTOR_LEN, SparseHeader};

/// Bytes of an entry.
const ENTRY_LEN: u64 = 4;

/// What an extent has at a grain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum GrainEntry {
    /// Nothing: the parent shows, or zeros where there is none.
    Absent,
    /// The grain begins at this sector of the file.
    Data {
        /// The sector.
        sector: u64,
    },
    /// Zeros, which hide the parent.
    Zero,
}

/// What the tables of an extent need to be found and read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GrainLayout {
    /// The size of the extent on the virtual disk.
    pub capacity_sectors: u64,
    /// The size of a grain.
    pub grain_sectors: u64,
    /// Entries of a grain table.
    pub gtes_per_gt: u64,
    /// Where the grain directory is.
    pub gd_sector: u64,
    /// Whether an entry of 1 means zeros.
    pub has_zeroed_grains: bool,
}

impl SparseHeader {
    /// How its grains are found. For a file with the header at the end this is asked of that one.
    pub fn layout(&self) -> GrainLayout {
        GrainLayout {
            capacity_sectors: self.capacity_sectors,
            grain_sectors: self.grain_sectors,
            gtes_per_gt: self.gtes_per_gt.into(),
            gd_sector: self.gd_in_use_sector(),
            has_zeroed_grains: self.has_zeroed_grains(),
        }
    }
}

impl GrainLayout {
    /// The number of grains, the last of which may reach behind the capacity.
    pub fn grain_count(&self) -> u64 {
        self.capacity_sectors.div_ceil(self.grain_sectors)
    }

    /// The number of grain tables.
    pub fn table_count(&self) -> u64 {
        self.grain_count().div_ceil(self.gtes_per_gt)
    }

    /// The bytes of the file that hold the grain directory.
    pub fn directory_range(&self) -> Range<u64> {
        let start = self.gd_sector.saturating_mul(SECTOR_LEN as u64);
        start..start.saturating_add(self.table_count() * ENTRY_LEN)
    }

    /// The bytes of the file that hold the table at this sector.
    pub fn table_range(&self, table_sector: u64) -> Range<u64> {
        let start = table_sector.saturating_mul(SECTOR_LEN as u64);
        start..start.saturating_add(self.gtes_per_gt * ENTRY_LEN)
    }

    /// The table of a grain, and the entry there.
    pub fn position(&self, grain: u64) -> (u64, u64) {
        (grain / self.gtes_per_gt, grain % self.gtes_per_gt)
    }

    /// Reads the grain directory: the sector of each table, none where all its grains are absent.
    ///
    /// # Errors
    /// [`Error::Truncated`] where `bytes` is shorter than [`directory_range`](Self::directory_range);
    /// [`Error::Corrupt`] for a table that reaches behind the end of the file.
    pub fn read_directory(&self, bytes: &[u8], file_len: u64) -> Result<Vec<Option<u64>>, Error> {
        let range = self.directory_range();
        let sectors = entries(bytes, self.table_count(), &range)?.enumerate().map(|(index, sector)| {
            let in_file = sector != 0 && self.table_range(sector).end <= file_len;
            match sector {
                0 => Ok(None),
                _ if in_file => Ok(Some(sector)),
                _ => {
                    let place = Place::Byte(range.start + index as u64 * ENTRY_LEN);
                    Err(Error::Corrupt { what: "a grain table lies behind the end of the file", place })
                }
            }
        });
        sectors.collect()
    }

    /// Reads a grain table.
    ///
    /// # Errors
    /// [`Error::Truncated`] where `bytes` is shorter than a table; [`Error::Corrupt`] for a grain that begins behind
    /// the end of the file.
    pub fn read_table(&self, table_sector: u64, bytes: &[u8], file_len: u64) -> Result<Vec<GrainEntry>, Error> {
        let range = self.table_range(table_sector);
        let read = entries(bytes, self.gtes_per_gt, &range)?.enumerate().map(|(index, entry)| match entry {
            0 => Ok(GrainEntry::Absent),
            1 if self.has_zeroed_grains => Ok(GrainEntry::Zero),
            sector if sector.saturating_mul(SECTOR_LEN as u64) < file_len => Ok(GrainEntry::Data { sector }),
            _ => {
                let place = Place::Byte(range.start + index as u64 * ENTRY_LEN);
                Err(Error::Corrupt { what: "a grain lies behind the end of the file", place })
            }
        });
        read.collect()
    }
}

fn entries(bytes: &[u8], count: u64, range: &Range<u64>) -> Result<impl Iterator<Item = u64>, Error> {
    let len = usize::try_from(count * ENTRY_LEN).unwrap_or(usize::MAX);
    let Some(bytes) = bytes.get(..len) else {
        let len_bytes = range.start.saturating_add(bytes.len() as u64);
        return Err(Error::Truncated { format: "table of a sparse extent", len_bytes, wanted_bytes: range.end });
    };
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from(u32::from_le_bytes(*entry))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: GrainLayout = GrainLayout {
        capacity_sectors: 1025 * 8,
        grain_sectors: 8,
        gtes_per_gt: 512,
        gd_sector: 3,
        has_zeroed_grains: true,
    };

    #[test]
    fn grains_are_found_by_table_and_entry() {
        assert_eq!((LAYOUT.grain_count(), LAYOUT.table_count()), (1025, 3));
        assert_eq!(LAYOUT.directory_range(), 1536..1548);
        assert_eq!(LAYOUT.position(513), (1, 1));
    }

    #[test]
    fn what_points_behind_the_file_is_corrupt() {
        let directory = [4_u32, 0, 9].map(u32::to_le_bytes).concat();
        assert_eq!(LAYOUT.read_directory(&directory, 1 << 20).unwrap(), [Some(4), None, Some(9)]);
        let error = LAYOUT.read_directory(&directory, 13 * 512 - 1).unwrap_err();
        assert!(matches!(error, Error::Corrupt { place: Place::Byte(1544), .. }), "{error}");
        assert!(matches!(LAYOUT.read_directory(&directory[..11], 1 << 20), Err(Error::Truncated { .. })));

        let mut table = vec![0; 2048];
        table[4] = 1;
        table[8] = 2;
        let entries = LAYOUT.read_table(4, &table, 2048).unwrap();
        assert_eq!(entries[..3], [GrainEntry::Absent, GrainEntry::Zero, GrainEntry::Data { sector: 2 }]);
        assert!(LAYOUT.read_table(4, &table, 1024).is_err());
        let plain = GrainLayout { has_zeroed_grains: false, ..LAYOUT };
        assert_eq!(plain.read_table(4, &table, 2048).unwrap()[1], GrainEntry::Data { sector: 1 });
    }
}

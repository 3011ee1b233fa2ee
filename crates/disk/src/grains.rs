//! The grain directory and tables of a hosted sparse extent.

use std::collections::BTreeMap;

use vmseal_formats::SparseHeader;
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::layout::SECTOR_LEN;

/// 16 Mi tables of 512 grains of 64 KiB address 512 TiB.
const DIRECTORY_LEN_MAX: u64 = 64 << 20;

/// Where a grain lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Nowhere: it was never written.
    Absent,
    /// In the file, at this byte.
    At(u64),
    /// Nowhere: it was zeroed.
    Zero,
}

impl Grain {
    /// The entry of a grain table; entry 1 is a zeroed grain where the header says so.
    pub(crate) fn from_entry(header: &SparseHeader, entry: u32) -> Self {
        match entry {
            0 => Self::Absent,
            1 if header.has_zeroed_grains() => Self::Zero,
            sector => Self::At(u64::from(sector) * SECTOR_LEN),
        }
    }
}

/// The grain directory of an extent, and the redundant one where that is in use. Tables are read when they are needed.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) main: Vec<u32>,
    pub(crate) redundant: Option<Vec<u32>>,
}

impl Directory {
    /// Reads the directories, and checks that they and the tables lie inside the file.
    pub(crate) fn read(file: &dyn File, path: &StoragePath, header: &SparseHeader) -> Result<Self, Error> {
        let read = |sector: u64| -> Result<Vec<u32>, Error> {
            let offset = sector.saturating_mul(SECTOR_LEN);
            let len_bytes = header.gd_entry_count().saturating_mul(4);
            let end = offset.saturating_add(len_bytes);
            if len_bytes > DIRECTORY_LEN_MAX || end > file.len()? {
                return Err(damaged(path, offset, "the grain directory lies beyond the end of the file"));
            }
            let entries = read_entries(file, offset, len_bytes)?;
            let table_len = table_len(header);
            let file_len = file.len()?;
            for entry in entries.iter().filter(|entry| **entry != 0) {
                let table = u64::from(*entry) * SECTOR_LEN;
                if table.saturating_add(table_len) > file_len {
                    return Err(damaged(path, table, "a grain table lies beyond the end of the file"));
                }
            }
            let mut tables: Vec<u32> = entries.iter().copied().filter(|entry| *entry != 0).collect();
            tables.sort_unstable();
            if let Some(pair) = tables.windows(2).find(|pair| pair[0] == pair[1]) {
                let table = u64::from(pair[0]) * SECTOR_LEN;
                return Err(damaged(path, table, "two entries of the grain directory name the same grain table"));
            }
            Ok(entries)
        };
        let main = read(header.gd_sector)?;
        let redundant = if header.flags & SparseHeader::FLAG_REDUNDANT_GD != 0 {
            Some(read(header.redundant_gd_sector)?)
        } else {
            None
        };
        Ok(Self { main, redundant })
    }
}

/// The bytes of a grain table.
pub(crate) fn table_len(header: &SparseHeader) -> u64 {
    u64::from(header.gtes_per_gt) * 4
}

/// Reads little-endian entries.
pub(crate) fn read_entries(file: &dyn File, offset: u64, len_bytes: u64) -> Result<Vec<u32>, Error> {
    let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect())
}

/// Little-endian entries.
pub(crate) fn entries_to_bytes(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

pub(crate) fn damaged(path: &StoragePath, offset: u64, what: &str) -> Error {
    Error::DamagedTables { path: path.to_string(), offset, what: what.to_owned() }
}

/// Grain tables in memory: those read lately, and those changed since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    tables: BTreeMap<usize, Table>,
}

#[derive(Debug)]
struct Table {
    entries: Vec<u32>,
    changed: bool,
}

impl Tables {
    /// Each table has 2 KiB as a rule: 2 MiB in memory.
    const COUNT_MAX: usize = 1024;

    /// The table at `index` of the directory, read by `read` where it is not in memory.
    pub(crate) fn table(
        &mut self,
        index: usize,
        read: impl FnOnce() -> Result<Vec<u32>, Error>,
    ) -> Result<&mut Vec<u32>, Error> {
        if !self.tables.contains_key(&index) {
            if self.tables.len() >= Self::COUNT_MAX {
                self.tables.retain(|_, table| table.changed);
            }
            let entries = read()?;
            self.tables.insert(index, Table { entries, changed: false });
        }
        match self.tables.get_mut(&index) {
            Some(table) => Ok(&mut table.entries),
            None => unreachable!("it was inserted above"),
        }
    }

    pub(crate) fn mark_changed(&mut self, index: usize) {
        if let Some(table) = self.tables.get_mut(&index) {
            table.changed = true;
        }
    }

    /// Whether so much has changed that it should be written.
    pub(crate) fn is_full(&self) -> bool {
        self.tables.values().filter(|table| table.changed).count() >= Self::COUNT_MAX / 2
    }

    /// The changed tables by index.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (usize, &[u32])> {
        self.tables.iter().filter(|(_, table)| table.changed).map(|(index, table)| (*index, table.entries.as_slice()))
    }

    pub(crate) fn mark_written(&mut self) {
        for table in self.tables.values_mut() {
            table.changed = false;
        }
    }
}

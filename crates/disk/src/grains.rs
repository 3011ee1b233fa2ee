//! Grain directories and tables: where the grains of an extent lie in its file.
//!
//! Tables stay in memory as they are in the file, 4 or 8 bytes for a grain; `vmseal_formats` says where they are and what an entry means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use vmseal_formats::{CowdHeader, GrainEntry, GrainLayout, SeSparseHeader, SparseHeader, se_sparse};
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::layout::SECTOR_LEN;

/// 16 Mi tables of 512 grains of 64 KiB address 512 TiB.
const DIRECTORY_LEN_MAX: u64 = 64 << 20;
/// A table that cannot be: no file of 32-bit sectors has one in its last sector. Salvage has it where an entry cannot be read.
const NO_TABLE: u32 = u32::MAX;

/// Where a grain lies, or a run of bytes within grains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Nowhere: the parent shows, or zeros.
    Absent,
    /// In the file, at this byte.
    At(u64),
    /// Nowhere: it was zeroed.
    Zero,
}

impl Grain {
    /// The entry of a hosted sparse extent's grain table; entry 1 is a zeroed grain where the header says so.
    pub(crate) fn from_entry(has_zeroed_grains: bool, entry: u32) -> Self {
        match entry {
            0 => Self::Absent,
            1 if has_zeroed_grains => Self::Zero,
            sector => Self::At(u64::from(sector) * SECTOR_LEN),
        }
    }
}

/// How the tables of an extent are laid out.
#[derive(Clone, Debug)]
pub(crate) enum GrainMap {
    /// Entries of 32 bits: hosted sparse, streamOptimized and COWD.
    Short(GrainLayout),
    /// Entries of 64 bits: SESparse.
    Long(SeSparseHeader),
}

impl GrainMap {
    /// That of a hosted sparse extent, by its main directory: the redundant one is for salvage.
    pub(crate) fn hosted(header: &SparseHeader) -> Self {
        Self::Short(GrainLayout { gd_sector: header.gd_sector, ..header.layout() })
    }

    pub(crate) fn cowd(header: &CowdHeader) -> Self {
        Self::Short(header.layout())
    }

    pub(crate) fn grain_len(&self) -> u64 {
        SECTOR_LEN
            * match self {
                Self::Short(layout) => layout.grain_sectors,
                Self::Long(header) => header.grain_sectors(),
            }
    }

    pub(crate) fn entries_per_table(&self) -> u64 {
        match self {
            Self::Short(layout) => layout.gtes_per_gt,
            Self::Long(_) => se_sparse::ENTRIES_PER_TABLE,
        }
    }

    /// The bytes of a table.
    pub(crate) fn table_len(&self) -> u64 {
        self.entries_per_table()
            * match self {
                Self::Short(_) => 4,
                Self::Long(_) => 8,
            }
    }

    /// The table of a grain, and the entry there.
    pub(crate) fn position(&self, grain: u64) -> (usize, usize) {
        let entries = self.entries_per_table();
        ((grain / entries) as usize, (grain % entries) as usize)
    }

    /// Reads the grain directory: the sector of each table, 0 for none.
    pub(crate) fn read_directory(&self, file: &dyn File, path: &StoragePath) -> Result<Vec<u32>, Error> {
        let range = match self {
            Self::Short(layout) => layout.directory_range(),
            Self::Long(header) => header.directory_range(),
        };
        let file_len = file.len()?;
        if range.end - range.start > DIRECTORY_LEN_MAX || range.end > file_len {
            return Err(damaged(path, range.start, "the grain directory lies beyond the end of the file"));
        }
        let sectors = match self {
            Self::Short(_) => read_entries(file, range.start, range.end - range.start)?,
            Self::Long(header) => read_long_entries(file, range.start, range.end - range.start)?
                .iter()
                .enumerate()
                .map(|(index, entry)| long_table(header, path, index as u64, *entry))
                .collect::<Result<_, _>>()?,
        };
        for sector in sectors.iter().filter(|sector| **sector != 0) {
            let table = u64::from(*sector) * SECTOR_LEN;
            if table.saturating_add(self.table_len()) > file_len {
                return Err(damaged(path, table, "a grain table lies beyond the end of the file"));
            }
        }
        let mut tables: Vec<u32> = sectors.iter().copied().filter(|sector| *sector != 0).collect();
        tables.sort_unstable();
        if let Some(pair) = tables.windows(2).find(|pair| pair[0] == pair[1]) {
            let table = u64::from(pair[0]) * SECTOR_LEN;
            return Err(damaged(path, table, "two entries of the grain directory name the same grain table"));
        }
        Ok(sectors)
    }

    /// Reads as much of the grain directory as can be read, whatever it says; the rest names tables that cannot be.
    pub(crate) fn salvage_directory(&self, file: &dyn File, path: &StoragePath) -> Vec<u32> {
        let (range, entry_len) = match self {
            Self::Short(layout) => (layout.directory_range(), 4),
            Self::Long(header) => (header.directory_range(), 8),
        };
        let count = usize::try_from((range.end - range.start).min(DIRECTORY_LEN_MAX) / entry_len).unwrap_or(0);
        let mut sectors = vec![NO_TABLE; count];
        let per_sector = (SECTOR_LEN / entry_len) as usize;
        for (index, part) in sectors.chunks_mut(per_sector).enumerate() {
            let offset = range.start.saturating_add(index as u64 * SECTOR_LEN);
            let len_bytes = part.len() as u64 * entry_len;
            match self {
                Self::Short(_) => {
                    if let Ok(entries) = read_entries(file, offset, len_bytes) {
                        part.copy_from_slice(&entries);
                    }
                }
                Self::Long(header) => {
                    let Ok(entries) = read_long_entries(file, offset, len_bytes) else { continue };
                    for (slot, entry) in entries.into_iter().enumerate() {
                        let table = long_table(header, path, (index * per_sector + slot) as u64, entry);
                        part[slot] = table.unwrap_or(NO_TABLE);
                    }
                }
            }
        }
        sectors
    }

    /// Reads the table at a sector.
    pub(crate) fn read_table(&self, file: &dyn File, sector: u32) -> Result<Table, Error> {
        let offset = u64::from(sector) * SECTOR_LEN;
        Ok(match self {
            Self::Short(_) => Table::Short(read_entries(file, offset, self.table_len())?),
            Self::Long(_) => Table::Long(read_long_entries(file, offset, self.table_len())?),
        })
    }

    /// What an entry of a table says.
    pub(crate) fn grain(&self, table: &Table, slot: usize, path: &StoragePath) -> Result<Grain, Error> {
        match (self, table) {
            (Self::Short(layout), Table::Short(entries)) => {
                Ok(Grain::from_entry(layout.has_zeroed_grains, entries[slot]))
            }
            (Self::Long(header), Table::Long(entries)) => match header.grain_entry(entries[slot], 0) {
                Ok(GrainEntry::Absent) => Ok(Grain::Absent),
                Ok(GrainEntry::Zero) => Ok(Grain::Zero),
                Ok(GrainEntry::Data { sector }) => Ok(Grain::At(sector.saturating_mul(SECTOR_LEN))),
                Ok(_) => Err(damaged(path, 0, "an entry of a grain table has a form that is not known")),
                Err(source) => Err(Error::Format { path: path.to_string(), source }),
            },
            _ => unreachable!("a table is read by the map that it belongs to"),
        }
    }
}

/// The sector of the table that an entry of an SESparse directory names.
fn long_table(header: &SeSparseHeader, path: &StoragePath, index: u64, entry: u64) -> Result<u32, Error> {
    let range = header.table_range(index, entry);
    match range.map_err(|source| Error::Format { path: path.to_string(), source })? {
        None => Ok(0),
        Some(range) => u32::try_from(range.start / SECTOR_LEN)
            .map_err(|_| damaged(path, range.start, "a grain table lies behind 2 TiB of the file")),
    }
}

/// The directory of a hosted sparse extent, and the redundant one where that is in use.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) main: Vec<u32>,
    pub(crate) redundant: Option<Vec<u32>>,
}

impl Directory {
    /// Reads the directories, and checks that they and the tables lie inside the file.
    pub(crate) fn read(file: &dyn File, path: &StoragePath, header: &SparseHeader) -> Result<Self, Error> {
        let main = GrainMap::hosted(header).read_directory(file, path)?;
        let redundant = if header.flags & SparseHeader::FLAG_REDUNDANT_GD != 0 {
            let map = GrainMap::Short(GrainLayout { gd_sector: header.redundant_gd_sector, ..header.layout() });
            Some(map.read_directory(file, path)?)
        } else {
            None
        };
        Ok(Self { main, redundant })
    }
}

/// Reads little-endian entries.
pub(crate) fn read_entries(file: &dyn File, offset: u64, len_bytes: u64) -> Result<Vec<u32>, Error> {
    let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect())
}

fn read_long_entries(file: &dyn File, offset: u64, len_bytes: u64) -> Result<Vec<u64>, Error> {
    let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect())
}

/// Little-endian entries.
pub(crate) fn entries_to_bytes(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

pub(crate) fn damaged(path: &StoragePath, offset: u64, what: &str) -> Error {
    Error::DamagedTables { path: path.to_string(), offset, what: what.to_owned() }
}

/// The entries of a grain table, as they are in the file.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    Short(Vec<u32>),
    Long(Vec<u64>),
}

impl Table {
    fn len_bytes(&self) -> usize {
        match self {
            Self::Short(entries) => entries.len() * 4,
            Self::Long(entries) => entries.len() * 8,
        }
    }
}

/// Grain tables in memory: those read lately, and those changed since the last flush. Readers share it: the lock is held to look a table up
/// or to add one, never while a file is read.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    cached: RwLock<BTreeMap<usize, Arc<Table>>>,
    changed: BTreeSet<usize>,
}

impl Tables {
    /// 1024 tables of a hosted sparse extent: the tables of 32 GiB.
    const LEN_MAX_BYTES: usize = 2 << 20;
    /// Changed tables that are kept until they should be written.
    const CHANGED_MAX: usize = 512;

    /// The table at `index` of the directory, read by `read` where it is not in memory.
    pub(crate) fn table(&self, index: usize, read: impl FnOnce() -> Result<Table, Error>) -> Result<Arc<Table>, Error> {
        // A thread that panicked has left the map whole: each change of it is one call.
        if let Some(table) = self.cached.read().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return Ok(table.clone());
        }
        let table = Arc::new(read()?);
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() * table.len_bytes() >= Self::LEN_MAX_BYTES {
            cached.retain(|index, _| self.changed.contains(index));
        }
        Ok(cached.entry(index).or_insert(table).clone())
    }

    /// Changes an entry of 32 bits.
    pub(crate) fn set(
        &mut self,
        index: usize,
        slot: usize,
        entry: u32,
        read: impl FnOnce() -> Result<Table, Error>,
    ) -> Result<(), Error> {
        drop(self.table(index, read)?);
        let cached = self.cached.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(Table::Short(entries)) = cached.get_mut(&index).map(Arc::make_mut) {
            entries[slot] = entry;
            self.changed.insert(index);
        }
        Ok(())
    }

    /// Whether so much has changed that it should be written.
    pub(crate) fn is_full(&self) -> bool {
        self.changed.len() >= Self::CHANGED_MAX
    }

    /// The changed tables by index, as they are written.
    pub(crate) fn changed(&mut self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let cached = self.cached.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.changed.iter().filter_map(|index| match cached.get(index).map(AsRef::as_ref) {
            Some(Table::Short(entries)) => Some((*index, entries_to_bytes(entries))),
            _ => None,
        })
    }

    pub(crate) fn mark_written(&mut self) {
        self.changed.clear();
    }
}

//! Where the grains of a sparse extent lie, and new grains of a hosted one.
//!
//! New grains are appended. The tables that name them are kept in memory until a flush, which makes the data durable before any table that
//! points at it: after a crash no table names bytes that were not written, and at worst some grains at the end belong to nobody.

use std::sync::Arc;

use vmseal_formats::{GrainLayout, SparseHeader};
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::grains::{Directory, Grain, GrainMap, Table, Tables, damaged, entries_to_bytes};
use crate::layout::SECTOR_LEN;

/// An extent with grains: hosted sparse, COWD and SESparse; the tables of a streamOptimized one.
#[derive(Debug)]
pub(crate) struct GrainExtent {
    path: StoragePath,
    file: Box<dyn File>,
    map: GrainMap,
    directory: Directory,
    tables: Tables,
    /// Where the next grain or table goes: the length of the file.
    end: u64,
    /// The header of a hosted sparse extent, which is written.
    header: Option<SparseHeader>,
    directory_changed: bool,
    /// The tables of the redundant directory, where those are read too.
    salvage: Option<Tables>,
}

impl GrainExtent {
    /// Opens a hosted sparse extent.
    pub(crate) fn hosted(file: Box<dyn File>, path: &StoragePath, header: &SparseHeader) -> Result<Self, Error> {
        let directory = Directory::read(file.as_ref(), path, header)?;
        Self::with(file, path, GrainMap::hosted(header), directory, Some(header.clone()))
    }

    /// Opens an extent that is read only.
    pub(crate) fn read_only(file: Box<dyn File>, path: &StoragePath, map: GrainMap) -> Result<Self, Error> {
        let main = map.read_directory(file.as_ref(), path)?;
        Self::with(file, path, map, Directory { main, redundant: None }, None)
    }

    /// Opens an extent whose tables are damaged. Those of a hosted one are asked for in both directories.
    pub(crate) fn salvage(
        file: Box<dyn File>,
        path: &StoragePath,
        map: GrainMap,
        header: Option<&SparseHeader>,
    ) -> Result<Self, Error> {
        let main = map.salvage_directory(file.as_ref(), path);
        let redundant = header.filter(|header| header.redundant_gd_sector != 0).map(|header| {
            let map = GrainMap::Short(GrainLayout { gd_sector: header.redundant_gd_sector, ..header.layout() });
            map.salvage_directory(file.as_ref(), path)
        });
        let extent = Self::with(file, path, map, Directory { main, redundant }, header.cloned())?;
        Ok(Self { salvage: Some(Tables::default()), ..extent })
    }

    fn with(
        file: Box<dyn File>,
        path: &StoragePath,
        map: GrainMap,
        directory: Directory,
        header: Option<SparseHeader>,
    ) -> Result<Self, Error> {
        Ok(Self {
            path: path.clone(),
            end: file.len()?,
            file,
            map,
            directory,
            tables: Tables::default(),
            header,
            directory_changed: false,
            salvage: None,
        })
    }

    pub(crate) fn file(&self) -> &dyn File {
        self.file.as_ref()
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.end
    }

    pub(crate) fn path(&self) -> &StoragePath {
        &self.path
    }

    pub(crate) fn grain_len(&self) -> u64 {
        self.map.grain_len()
    }

    /// Where the bytes from `offset` of the extent on lie, and how many of the `len_bytes` bytes there lie so, one after the other: at least
    /// one. Whole absent tables are passed over.
    ///
    /// What is wrong with a grain is an error only where the range begins with it.
    pub(crate) fn run(&self, offset: u64, len_bytes: u64) -> Result<(Grain, u64), Error> {
        let grain_len = self.grain_len();
        let end = offset.saturating_add(len_bytes);
        let mut run = None;
        let mut table = None;
        let mut at = offset;
        while at < end {
            let (grain, count) = match self.locate(at / grain_len, &mut table) {
                Ok(located) => located,
                Err(error) if at == offset => return Err(error),
                Err(_) => break,
            };
            let here = match grain {
                Grain::At(byte) => Grain::At(byte + at % grain_len),
                grain => grain,
            };
            match (run, here) {
                (None, _) => run = Some(here),
                (Some(Grain::At(start)), Grain::At(byte)) if start + (at - offset) == byte => {}
                (Some(Grain::Absent), Grain::Absent) | (Some(Grain::Zero), Grain::Zero) => {}
                _ => break,
            }
            at = end.min((at / grain_len).saturating_add(count).saturating_mul(grain_len));
        }
        Ok((run.unwrap_or(Grain::Absent), at - offset))
    }

    /// Fills `buffer` from byte `byte` of the file on. The last grain of a file may be cut off: what is missing was never written.
    pub(crate) fn read_at(&self, buffer: &mut [u8], byte: u64) -> Result<(), Error> {
        let there = usize::try_from(self.end.saturating_sub(byte)).unwrap_or(usize::MAX);
        if there >= buffer.len() || self.salvage.is_some() {
            return Ok(self.file.read_at(buffer, byte)?);
        }
        let (stored, missing) = buffer.split_at_mut(there);
        self.file.read_at(stored, byte)?;
        missing.fill(0);
        Ok(())
    }

    /// Makes everything that was written durable: data first, then the tables, then the directory.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.file.sync()?;
        let Some(header) = &self.header else { return Ok(()) };
        let mut wrote = false;
        for (index, bytes) in self.tables.changed() {
            for directory in core::iter::once(&self.directory.main).chain(&self.directory.redundant) {
                self.file.write_at(&bytes, u64::from(directory[index]) * SECTOR_LEN)?;
            }
            wrote = true;
        }
        if wrote {
            self.file.sync()?;
            self.tables.mark_written();
        }
        if self.directory_changed {
            self.file.write_at(&entries_to_bytes(&self.directory.main), header.gd_sector * SECTOR_LEN)?;
            if let Some(redundant) = &self.directory.redundant {
                self.file.write_at(&entries_to_bytes(redundant), header.redundant_gd_sector * SECTOR_LEN)?;
            }
            self.file.sync()?;
            self.directory_changed = false;
        }
        Ok(())
    }

    /// Whether an entry of 1 means zeros.
    pub(crate) fn has_zeroed_grains(&self) -> bool {
        self.header.as_ref().is_some_and(SparseHeader::has_zeroed_grains)
    }

    /// Room for `count` grains at the end of the file, all zeros. No table names them yet.
    pub(crate) fn append_grains(&mut self, count: u64) -> Result<u64, Error> {
        if self.tables.is_full() {
            self.flush()?;
        }
        self.append(count * self.grain_len())
    }

    /// Says that `count` grains from `grain` on lie in the file from `byte` on, which is written.
    pub(crate) fn place_grains(&mut self, grain: u64, count: u64, byte: u64) -> Result<(), Error> {
        for index in 0..count {
            let sector = self.sector(byte + index * self.grain_len())?;
            self.set_entry(grain + index, sector)?;
        }
        Ok(())
    }

    /// Says that a grain is zeros, whatever the parent has.
    pub(crate) fn zero_grain(&mut self, grain: u64) -> Result<(), Error> {
        if self.tables.is_full() {
            self.flush()?;
        }
        self.set_entry(grain, 1)
    }

    fn set_entry(&mut self, grain: u64, entry: u32) -> Result<(), Error> {
        let (index, slot) = self.map.position(grain);
        if self.directory.main[index] == 0 {
            self.allocate_table(index)?;
        }
        let sector = self.directory.main[index];
        self.tables.set(index, slot, entry, || self.map.read_table(self.file.as_ref(), sector))
    }

    /// Where a grain lies, and for how many grains that is known to be the same. `table` is the last table that was looked at.
    fn locate(&self, grain: u64, table: &mut Option<(usize, Arc<Table>)>) -> Result<(Grain, u64), Error> {
        let (index, slot) = self.map.position(grain);
        if self.salvage.is_some() {
            return Ok((self.salvaged(index, slot)?, 1));
        }
        let Some(&sector) = self.directory.main.get(index) else {
            return Err(damaged(&self.path, 0, "the grain directory is shorter than the disk"));
        };
        if sector == 0 {
            return Ok((Grain::Absent, self.map.entries_per_table() - slot as u64));
        }
        let entries = match table {
            Some((last, entries)) if *last == index => entries,
            _ => {
                let entries = self.tables.table(index, || self.map.read_table(self.file.as_ref(), sector))?;
                &mut table.insert((index, entries)).1
            }
        };
        Ok((self.checked(self.map.grain(entries, slot, &self.path)?)?, 1))
    }

    fn checked(&self, grain: Grain) -> Result<Grain, Error> {
        match grain {
            Grain::At(byte) if byte >= self.end => {
                Err(damaged(&self.path, byte, "a grain lies beyond the end of the file"))
            }
            grain => Ok(grain),
        }
    }

    /// What the main directory says of a grain, or where that is damaged or has nothing the redundant one.
    fn salvaged(&self, index: usize, slot: usize) -> Result<Grain, Error> {
        let main = self.look_up(&self.directory.main, &self.tables, index, slot);
        if let Look::Found(grain) = main {
            return Ok(grain);
        }
        let copy = match (&self.directory.redundant, &self.salvage) {
            (Some(directory), Some(tables)) => Some(self.look_up(directory, tables, index, slot)),
            _ => None,
        };
        match (main, copy) {
            (Look::Found(grain), _) | (_, Some(Look::Found(grain))) => Ok(grain),
            (Look::Nothing | Look::NoTable, _) => Ok(Grain::Absent),
            // The table is lost, and its copy is there.
            (Look::BadTable(_), Some(Look::Nothing)) => Ok(Grain::Absent),
            // There was something, and nobody knows where.
            (Look::BadTable(error) | Look::BadEntry(error), _) => Err(error),
        }
    }

    fn look_up(&self, directory: &[u32], tables: &Tables, index: usize, slot: usize) -> Look {
        let sector = match directory.get(index) {
            Some(0) => return Look::NoTable,
            Some(sector) => *sector,
            None => return Look::BadTable(damaged(&self.path, 0, "the grain directory is shorter than the disk")),
        };
        let offset = u64::from(sector) * SECTOR_LEN;
        if offset.saturating_add(self.map.table_len()) > self.end {
            return Look::BadTable(damaged(&self.path, offset, "a grain table lies beyond the end of the file"));
        }
        let table = match tables.table(index, || self.map.read_table(self.file.as_ref(), sector)) {
            Ok(table) => table,
            Err(error) => return Look::BadTable(error),
        };
        let first = self.header.as_ref().map_or(0, |header| header.overhead_sectors.saturating_mul(SECTOR_LEN));
        match self.map.grain(&table, slot, &self.path).and_then(|grain| self.checked(grain)) {
            Ok(Grain::Absent) => Look::Nothing,
            Ok(Grain::At(byte)) if byte < first => {
                Look::BadEntry(damaged(&self.path, byte, "a grain lies among the tables"))
            }
            Ok(grain) => Look::Found(grain),
            Err(error) => Look::BadEntry(error),
        }
    }

    /// Adds an empty table where the directory has none, and a second one for the redundant directory.
    fn allocate_table(&mut self, index: usize) -> Result<(), Error> {
        let len = self.map.table_len().next_multiple_of(SECTOR_LEN);
        let byte = self.append(len)?;
        let main = self.sector(byte)?;
        if self.directory.redundant.is_some() {
            let byte = self.append(len)?;
            let sector = self.sector(byte)?;
            if let Some(directory) = &mut self.directory.redundant {
                directory[index] = sector;
            }
        }
        self.directory.main[index] = main;
        self.directory_changed = true;
        Ok(())
    }

    /// Makes the file longer by `len` zero bytes from the next grain boundary on.
    fn append(&mut self, len: u64) -> Result<u64, Error> {
        let byte = self.end.next_multiple_of(self.grain_len());
        self.sector(byte + len)?;
        self.file.set_len(byte + len)?;
        self.end = byte + len;
        Ok(byte)
    }

    fn sector(&self, byte: u64) -> Result<u32, Error> {
        u32::try_from(byte / SECTOR_LEN).map_err(|_| Error::ExtentFull { path: self.path.to_string() })
    }
}

/// What a directory and its tables say of a grain, where they may be damaged.
enum Look {
    /// The entry names what cannot be.
    BadEntry(Error),
    /// The table cannot be read.
    BadTable(Error),
    /// A grain in the file, or a zeroed one.
    Found(Grain),
    /// The directory has no table here.
    NoTable,
    /// The table has no grain here.
    Nothing,
}

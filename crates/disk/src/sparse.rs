//! Random access to the stored bytes of a hosted sparse extent.
//!
//! New grains are appended. The tables that name them are kept in memory until a flush, which makes the data durable before any table that
//! points at it: after a crash no table names bytes that were not written, and at worst some grains at the end belong to nobody.

use core::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmseal_formats::SparseHeader;
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::grains::{Directory, Grain, Tables, damaged, entries_to_bytes, read_entries, table_len};
use crate::layout::SECTOR_LEN;

#[derive(Debug)]
pub(crate) struct SparseExtent {
    path: StoragePath,
    file: Box<dyn File>,
    header: SparseHeader,
    directory: Directory,
    directory_changed: bool,
    tables: Mutex<Tables>,
    /// Where the next grain or table goes.
    end: u64,
}

impl SparseExtent {
    pub(crate) fn open(file: Box<dyn File>, path: &StoragePath, header: &SparseHeader) -> Result<Self, Error> {
        let directory = Directory::read(file.as_ref(), path, header)?;
        let end = file.len()?;
        Ok(Self {
            path: path.clone(),
            file,
            header: header.clone(),
            directory,
            directory_changed: false,
            tables: Mutex::new(Tables::default()),
            end,
        })
    }

    /// Fills `buffer` with stored bytes from byte `offset` of the extent on; what was never written is zeros.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut rest = buffer;
        for part in self.parts(offset, rest.len() as u64) {
            let (here, tail) = rest.split_at_mut(part.len);
            match self.locate(part.grain)? {
                Grain::Absent | Grain::Zero => here.fill(0),
                Grain::At(byte) => {
                    // The last grain of a file may be cut off where the disk ends; what is missing was never written.
                    let at = byte + part.within.start;
                    let there = usize::try_from(self.file.len()?.saturating_sub(at)).unwrap_or(usize::MAX);
                    let (stored, missing) = here.split_at_mut(there.min(part.len));
                    self.file.read_at(stored, at)?;
                    missing.fill(0);
                }
            }
            rest = tail;
        }
        Ok(())
    }

    /// Writes stored bytes at byte `offset` of the extent, and adds grains where there are none.
    pub(crate) fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        let mut rest = data;
        for part in self.parts(offset, data.len() as u64).collect::<Vec<_>>() {
            let (here, tail) = rest.split_at(part.len);
            let byte = match self.locate(part.grain)? {
                Grain::At(byte) => byte,
                Grain::Absent | Grain::Zero => self.allocate(part.grain)?,
            };
            self.file.write_at(here, byte + part.within.start)?;
            rest = tail;
        }
        Ok(())
    }

    /// Makes everything that was written durable: data first, then the tables, then the directory.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.file.sync()?;
        let mut tables = lock(&self.tables);
        let mut wrote = false;
        for (index, entries) in tables.changed() {
            let bytes = entries_to_bytes(entries);
            for directory in core::iter::once(&self.directory.main).chain(&self.directory.redundant) {
                self.file.write_at(&bytes, u64::from(directory[index]) * SECTOR_LEN)?;
            }
            wrote = true;
        }
        if wrote {
            self.file.sync()?;
            tables.mark_written();
        }
        if self.directory_changed {
            self.file.write_at(&entries_to_bytes(&self.directory.main), self.header.gd_sector * SECTOR_LEN)?;
            if let Some(redundant) = &self.directory.redundant {
                self.file.write_at(&entries_to_bytes(redundant), self.header.redundant_gd_sector * SECTOR_LEN)?;
            }
            self.file.sync()?;
            drop(tables);
            self.directory_changed = false;
        }
        Ok(())
    }

    fn grain_len(&self) -> u64 {
        self.header.grain_sectors * SECTOR_LEN
    }

    /// The parts of a range, grain by grain.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = Part> + use<> {
        let grain_len = self.grain_len();
        let mut at = offset;
        let end = offset + len;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at % grain_len;
            let stop = grain_len.min(start + (end - at));
            let part = Part { grain: at / grain_len, within: start..stop, len: (stop - start) as usize };
            at += stop - start;
            Some(part)
        })
    }

    /// The table of a grain, and the grain's place in it.
    fn position(&self, grain: u64) -> (usize, usize) {
        let entries = u64::from(self.header.gtes_per_gt);
        ((grain / entries) as usize, (grain % entries) as usize)
    }

    fn locate(&self, grain: u64) -> Result<Grain, Error> {
        let (table, slot) = self.position(grain);
        let Some(&sector) = self.directory.main.get(table) else {
            return Err(damaged(&self.path, 0, "the grain directory is shorter than the disk"));
        };
        if sector == 0 {
            return Ok(Grain::Absent);
        }
        let mut tables = lock(&self.tables);
        let entries = tables.table(table, || self.read_table(sector))?;
        let grain = Grain::from_entry(&self.header, entries[slot]);
        if let Grain::At(byte) = grain
            && byte >= self.end
        {
            return Err(damaged(&self.path, byte, "a grain lies beyond the end of the file"));
        }
        Ok(grain)
    }

    fn read_table(&self, sector: u32) -> Result<Vec<u32>, Error> {
        read_entries(self.file.as_ref(), u64::from(sector) * SECTOR_LEN, table_len(&self.header))
    }

    /// Adds a grain of zeros at the end of the file.
    fn allocate(&mut self, grain: u64) -> Result<u64, Error> {
        if lock(&self.tables).is_full() {
            self.flush()?;
        }
        let (table, slot) = self.position(grain);
        if self.directory.main[table] == 0 {
            self.allocate_table(table)?;
        }
        let byte = self.append(self.grain_len())?;
        let sector = self.sector(byte)?;
        let directory_sector = self.directory.main[table];
        let mut tables = lock(&self.tables);
        tables.table(table, || self.read_table(directory_sector))?[slot] = sector;
        tables.mark_changed(table);
        Ok(byte)
    }

    /// Adds an empty table where the directory has none, and a second one for the redundant directory.
    fn allocate_table(&mut self, table: usize) -> Result<(), Error> {
        let len = table_len(&self.header).next_multiple_of(SECTOR_LEN);
        let byte = self.append(len)?;
        let main = self.sector(byte)?;
        let redundant = match self.directory.redundant {
            Some(_) => {
                let byte = self.append(len)?;
                self.sector(byte)?
            }
            None => 0,
        };
        self.directory.main[table] = main;
        if let Some(directory) = &mut self.directory.redundant {
            directory[table] = redundant;
        }
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

/// The part of a request that lies in one grain.
struct Part {
    grain: u64,
    within: Range<u64>,
    len: usize,
}

/// A thread that panicked has left the tables whole: each change is one assignment.
fn lock(tables: &Mutex<Tables>) -> MutexGuard<'_, Tables> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

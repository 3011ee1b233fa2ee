//! Where a chain may hold something else than zeros.

use core::ops::Range;
use std::sync::atomic::Ordering;

use vmseal_storage::File;

use crate::cipher::DiskCipher;
use crate::error::Error;
use crate::link::{Body, Link, Source};

/// Makes storage tell the holes of a chain truly.
pub(crate) fn sync_for_holes(links: &[Link]) -> Result<(), Error> {
    links.iter().try_for_each(Link::sync_for_holes)
}

/// The parts of a range in which a chain may hold something else than zeros.
pub(crate) fn data_in(links: &[Link], range: Range<u64>) -> Result<Vec<Range<u64>>, Error> {
    sync_for_holes(links)?;
    let mut found = Vec::new();
    let Some((link, parents)) = links.split_first() else { return Ok(found) };
    let mut at = range.start;
    while let Some(data) = link.next_data(parents, at, range.end)? {
        at = data.end;
        found.push(data);
    }
    Ok(found)
}

impl Link {
    /// The next range at or after `offset` and before `end` that may hold something else than zeros.
    pub(crate) fn next_data(&self, parents: &[Self], offset: u64, end: u64) -> Result<Option<Range<u64>>, Error> {
        let end = end.min(self.size_bytes);
        let mut at = offset;
        while at < end {
            let extent = &self.extents[self.extent_index(at)];
            let within = at - extent.virtual_byte;
            let wanted = (end - at).min(extent.len_bytes - within);
            let run = match self.run(extent, within, wanted) {
                // What is lost has to be read, so that its loss is told.
                Err(_) if self.is_salvage => return Ok(Some(at..at + wanted.min(extent.unknown_len(within)))),
                run => run?,
            };
            let here = at..at + run.1;
            let data = match run.0 {
                Source::Zero => None,
                Source::Absent => match parents.split_first() {
                    Some((parent, grandparents)) => parent.next_data(grandparents, here.start, here.end)?,
                    None => None,
                },
                Source::File(..) | Source::Grains(..) if self.is_salvage => Some(here.clone()),
                Source::File(file, byte) => self.stored_data(file, byte, &here)?,
                Source::Grains(grains, byte) => self.stored_data(grains.file(), byte, &here)?,
                Source::Stream(..) => Some(here.clone()),
            };
            if data.is_some() {
                return Ok(data);
            }
            at = here.end;
        }
        Ok(None)
    }

    /// Makes storage tell holes truly: what was written and is not on storage yet may look like one.
    pub(crate) fn sync_for_holes(&self) -> Result<(), Error> {
        if self.synced.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = self.extents.iter().try_for_each(|extent| match &extent.body {
            Body::Flat { file, .. } => file.sync(),
            Body::Grains(grains) => grains.file().sync(),
            Body::Stream(stream) => stream.file().sync(),
            Body::Zero | Body::Missing { .. } => Ok(()),
        });
        if synced.is_err() {
            self.synced.store(false, Ordering::Release);
        }
        Ok(synced?)
    }

    pub(crate) fn mark_unsynced(&mut self) {
        *self.synced.get_mut() = false;
    }

    /// The first part of `here`, which lies in a file from `byte` on, that is no hole there, in whole data units.
    fn stored_data(&self, file: &dyn File, byte: u64, here: &Range<u64>) -> Result<Option<Range<u64>>, Error> {
        let unit = self.cipher.as_ref().map(DiskCipher::unit);
        // A data unit of which any byte is stored has other bytes for the guest everywhere.
        let start = unit.map_or(here.start, |unit| unit.around(here, self.size_bytes).start);
        let Some(data) = file.next_data(byte + start - here.start)? else { return Ok(None) };
        let guest = |at: u64| (at + here.start).saturating_sub(byte);
        let found = guest(data.start).max(start)..guest(data.end).max(start);
        let found = unit.map_or(found.clone(), |unit| unit.around(&found, self.size_bytes));
        let found = found.start.max(here.start)..found.end.min(here.end);
        Ok((found.start < found.end).then_some(found))
    }
}

//! What is done about bytes that cannot be read.

use core::ops::Range;

use crate::error::Error;

/// What a reader does where bytes cannot be read.
pub(crate) enum OnDamage<'a> {
    /// It fails.
    Fail,
    /// It goes on, with zeros in their place, and notes which they are: ranges of the disk, ascending.
    Note(&'a mut Vec<Range<u64>>),
}

impl OnDamage<'_> {
    /// Fails, or notes that `range` of the disk is lost and fills what it was to be read into.
    pub(crate) fn lose(&mut self, error: Error, buffer: &mut [u8], start: u64) -> Result<(), Error> {
        let Self::Note(lost) = self else { return Err(error) };
        buffer.fill(0);
        let range = start..start + buffer.len() as u64;
        match lost.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => lost.push(range),
        }
        Ok(())
    }

    pub(crate) fn is_noted(&self) -> bool {
        matches!(self, Self::Note(_))
    }
}

//! Data units that were never written: how many there are, and how they are written.

use core::ops::{ControlFlow, Range};

use zeroize::Zeroizing;

use crate::damage::OnDamage;
use crate::disk::Disk;
use crate::error::Error;

/// What is read at once: whole data units and grains.
const CHUNK_LEN: u64 = 1 << 20;

impl Disk<'_> {
    /// Counts the data units of an encrypted disk whose stored bytes are all zero. `report` is told of the bytes gone through, and may stop.
    /// None where it was stopped.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`Error::NotEncrypted`].
    pub fn count_unwritten(&mut self, report: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Option<u64>, Error> {
        let unit_len = self.unit_len()?;
        let mut count = 0;
        let mut chunk = Vec::new();
        let mut at = 0;
        while at < self.size_bytes() {
            self.read_chunk(&mut chunk, at)?;
            count += unwritten(&chunk, unit_len).map(|run| run.len().div_ceil(unit_len) as u64).sum::<u64>();
            at += chunk.len() as u64;
            if report(chunk.len() as u64).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }

    /// Writes enciphered zeros to every such data unit, durable, and gives how many there were. Nothing changes of what is read, whatever of it
    /// is done when it is cut off, so that the content ID stays.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at), also for `ZERO` extents, of which nothing can be written; [`Error::NotEncrypted`].
    pub fn fill_unwritten(&mut self, report: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Option<u64>, Error> {
        let unit_len = self.unit_len()?;
        self.top.check_writable(self.size_bytes(), 0)?;
        let mut count = 0;
        let mut chunk = Vec::new();
        let mut zeros = Zeroizing::new(Vec::new());
        let mut at = 0;
        while at < self.size_bytes() {
            self.read_chunk(&mut chunk, at)?;
            for run in unwritten(&chunk, unit_len) {
                let start = at + run.start as u64;
                zeros.clear();
                zeros.resize(run.len(), 0);
                self.top.write(&[], &zeros, start)?;
                count += run.len().div_ceil(unit_len) as u64;
            }
            at += chunk.len() as u64;
            if report(chunk.len() as u64).is_break() {
                return Ok(None);
            }
        }
        self.flush()?;
        Ok(Some(count))
    }

    fn unit_len(&self) -> Result<usize, Error> {
        if let Some(parent) = self.parents.first() {
            return Err(Error::HasParent { path: self.path.to_string(), parent: parent.path.to_string() });
        }
        let cipher = self.top.cipher.as_ref().ok_or_else(|| Error::NotEncrypted { path: self.path.to_string() })?;
        Ok(cipher.unit().bytes() as usize)
    }

    /// Reads stored bytes.
    fn read_chunk(&mut self, chunk: &mut Vec<u8>, at: u64) -> Result<(), Error> {
        chunk.resize(CHUNK_LEN.min(self.size_bytes() - at) as usize, 0);
        let cipher = self.top.cipher.take();
        let read = self.top.read(&[], chunk, at, &mut OnDamage::Fail);
        self.top.cipher = cipher;
        read
    }
}

/// The runs of data units that are all zero.
fn unwritten(chunk: &[u8], unit_len: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    core::iter::from_fn(move || {
        let is_zero = |unit: &[u8]| unit.iter().all(|byte| *byte == 0);
        let start = from + chunk[from..].chunks(unit_len).position(is_zero)? * unit_len;
        let count = chunk[start..].chunks(unit_len).take_while(|unit| is_zero(unit)).count();
        from = chunk.len().min(start + count * unit_len);
        Some(start..from)
    })
}

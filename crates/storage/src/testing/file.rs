//! An open file of the simulated storage.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::memory::{BLOCK_LEN, blocks, lock};
use crate::path::StoragePath;
use crate::storage::{Access, File};
use crate::testing::faults::{count, crashed, injected};
use crate::testing::state::State;

#[derive(Debug)]
pub(super) struct SimulatedFile {
    state: Arc<Mutex<State>>,
    path: StoragePath,
    file: u64,
    epoch: u64,
    access: Access,
    /// Set by the first failed write or sync.
    failed: AtomicBool,
}

impl SimulatedFile {
    pub(super) fn new(state: &Arc<Mutex<State>>, path: &StoragePath, file: u64, epoch: u64, access: Access) -> Self {
        Self { state: state.clone(), path: path.clone(), file, epoch, access, failed: AtomicBool::new(false) }
    }

    fn operation<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = lock(&self.state);
        if state.epoch != self.epoch {
            return Err(crashed(&self.path, operation));
        }
        state.operation(&self.path, operation, act)
    }

    fn check_latch(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Relaxed) { Err(Error::Latched { path: self.path.to_string() }) } else { Ok(()) }
    }

    /// A change, given how much of it fails: nothing, or its end where the test wants it so.
    fn change(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut State, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.operation(operation, |state| {
            let number = count(&mut state.counts.writes);
            self.check_latch()?;
            if self.access == Access::Read {
                return Err(Error::PermissionDenied { path: self.path.to_string(), operation: "writing" });
            }
            let version = state.next_number();
            state.file(self.file).touch(version);
            let fails = state.faults.write_at == Some(number);
            let result = act(state, fails).and(if fails { Err(injected(&self.path, operation)) } else { Ok(()) });
            self.latch(result)
        })
    }

    fn latch<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn full(&self) -> Error {
        Error::StorageFull { path: self.path.to_string() }
    }
}

/// How many of the bytes of a range can be written before the disk is full.
fn fitting_len(state: &mut State, file: u64, range: Range<u64>) -> usize {
    let Some(mut room) = state.room_blocks() else { return (range.end - range.start) as usize };
    let content = state.file(file).current();
    let mut len = 0;
    for (block, part) in blocks(range) {
        if !content.has_block(block) {
            if room == 0 {
                break;
            }
            room -= 1;
        }
        len += part.len();
    }
    len
}

impl File for SimulatedFile {
    fn len(&self) -> Result<u64, Error> {
        self.operation("looking at it", |state| Ok(state.file(self.file).current().len()))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.operation("reading it", |state| {
            let number = count(&mut state.counts.reads);
            let fails = state.faults.read_at == Some(number);
            let content = state.file(self.file).current();
            let end = offset.saturating_add(buffer.len() as u64);
            if end > content.len() {
                return Err(Error::UnexpectedEnd {
                    path: self.path.to_string(),
                    len_bytes: content.len(),
                    wanted_bytes: end,
                });
            }
            if fails {
                let half = buffer.len() / 2;
                content.read(&mut buffer[..half], offset);
                return Err(injected(&self.path, "reading it"));
            }
            content.read(buffer, offset);
            Ok(())
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.change("writing it", |state, fails| {
            let end = offset.checked_add(data.len() as u64).filter(|end| *end <= i64::MAX as u64);
            let end = end.ok_or_else(|| self.full())?;
            let mut len = fitting_len(state, self.file, offset..end);
            let is_full = len < data.len();
            if fails {
                len = state.random.below(len as u64 + 1) as usize;
            }
            if len > 0 {
                state.file(self.file).write(&data[..len], offset);
            }
            if is_full { Err(self.full()) } else { Ok(()) }
        })
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), Error> {
        self.change("changing its length", |state, fails| {
            let grows = len_bytes > state.file(self.file).current().len();
            if len_bytes > i64::MAX as u64 || grows && state.room_blocks() == Some(0) {
                return Err(self.full());
            }
            if !fails || state.random.half() {
                state.file(self.file).set_len(len_bytes);
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), Error> {
        self.operation("syncing it", |state| {
            let number = count(&mut state.counts.syncs);
            self.check_latch()?;
            if state.is_cut {
                return Ok(());
            }
            match state.faults.sync_at {
                Some((at, failure)) if at == number => {
                    let tearing = state.tearing;
                    let mut random = state.random.clone();
                    state.file(self.file).fail_sync(failure, &mut random, tearing);
                    state.random = random;
                    self.latch(Err(injected(&self.path, "syncing it")))
                }
                _ => {
                    state.file(self.file).sync();
                    Ok(())
                }
            }
        })
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.change("punching a hole into it", |state, fails| {
            let end = offset.saturating_add(len_bytes).min(state.file(self.file).current().len());
            if offset >= end {
                return Ok(());
            }
            let end = if fails { offset + state.random.below((end - offset) / BLOCK_LEN + 1) * BLOCK_LEN } else { end };
            if offset < end {
                state.file(self.file).clear(offset..end);
            }
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        self.operation("looking for holes", |state| Ok(state.file(self.file).current().next_data(offset)))
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        // After a restart it is no longer counted.
        if state.epoch == self.epoch
            && let Some(file) = state.files.get_mut(&self.file)
        {
            file.handle_count = file.handle_count.saturating_sub(1);
        }
    }
}

//! The engine that converts data where it lies.
//!
//! The guest's bytes of all extents are gone through zone by zone. While one zone is written, the next but one is read, digested and
//! enciphered on the other cores:
//!
//! 0. Before the first zone a slot of no zone is made durable, which has the digests of the first: from here on one damaged slot loses nothing.
//! 1. The journal's slot for the zone is made durable. A crash before leaves the zone as it was, and the slot before it tells so.
//! 2. The zone is written and made durable. A crash leaves each 512 bytes of it old or new, which their digests tell apart.
//! 3. The slot of the next zone says that this one is complete.
//!
//! The same walk from new data to old undoes what was converted. `recover.rs` mends what a crash left.

use core::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use vmseal_disk::{DiskLayout, Piece, PieceKind, UnitSize};
use vmseal_storage::{File, StoragePath};
use zeroize::Zeroizing;

use crate::convert::Transform;
use crate::error::Error;
use crate::journal::{JournalFile, JournalKey, Run, Zone, digests_len, run_digests_len};
use crate::record::Frontier;
use crate::recover::Recovered;

/// The bytes that are read, enciphered or written at once.
pub(crate) const CHUNK_LEN: usize = 256 << 10;

/// An extent file to convert.
pub(crate) struct Target {
    pub(crate) path: StoragePath,
    pub(crate) file: Box<dyn File>,
    pub(crate) len_bytes: u64,
    pub(crate) layout: Arc<DiskLayout>,
    pub(crate) unit: UnitSize,
    pub(crate) transform: Transform,
}

/// Which way data is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// As the operation wants it.
    Forward,
    /// Back to what it was.
    Back,
}

impl Target {
    /// From what the data is before a pass to what it is after it.
    pub(crate) fn step(&self, direction: Direction, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        match direction {
            Direction::Forward => self.transform.apply(data, virtual_byte),
            Direction::Back => self.transform.undo(data, virtual_byte),
        }
    }

    /// From what the data is after a pass to what it was before it.
    pub(crate) fn inverse(&self, direction: Direction, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        match direction {
            Direction::Forward => self.transform.undo(data, virtual_byte),
            Direction::Back => self.transform.apply(data, virtual_byte),
        }
    }

    /// Whether zeros were never written by the guest, and stay as they are.
    fn keeps_zeros(&self, direction: Direction) -> bool {
        match direction {
            Direction::Forward => self.transform.from.is_some(),
            Direction::Back => self.transform.to.is_some(),
        }
    }
}

/// One pass over the data of all extents.
pub(crate) struct Pass<'a> {
    pub(crate) targets: &'a [Target],
    pub(crate) direction: Direction,
    /// Where the pass ends; at the end of the last file otherwise.
    pub(crate) limit: Option<Frontier>,
    pub(crate) zone_bytes: u64,
    pub(crate) runs_max: usize,
    pub(crate) workers: usize,
}

impl Pass<'_> {
    /// Converts everything from `from` on. `start` is there where the pass begins, and is called once the first slot is durable, before the first
    /// byte of data is written; `progress` after each zone with the place up to which everything is durable, and may stop the pass.
    pub(crate) fn run(
        &self,
        journal: &JournalFile,
        from: Frontier,
        mut generation: u64,
        start: Option<&mut dyn FnMut() -> Result<(), Error>>,
        progress: &mut dyn FnMut(Frontier) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(self, from);
        let mut spare = Vec::new();
        let mut current = self.next(&mut walk, journal.key(), Filled::default())?;
        let mut next = match current {
            Some(_) => self.next(&mut walk, journal.key(), Filled::default())?,
            None => None,
        };
        if let (Some(start), Some(first)) = (start, &current) {
            generation += 1;
            journal.write(generation, (&Zone::default(), &[]), &[], Some((&first.zone, &first.digests)))?;
            start()?;
        }
        while let Some(zone) = current {
            generation += 1;
            let after = next.as_ref().map(|next| (&next.zone, next.digests.as_slice()));
            let write = || {
                journal.write(generation, (&zone.zone, &zone.digests), &zone.data, after)?;
                self.write(&zone)
            };
            let buffers = spare.pop().unwrap_or_default();
            let (written, filled) = if next.is_none() {
                (write(), Ok(None))
            } else if self.workers == 1 {
                let written = write();
                let filled = if written.is_ok() { self.next(&mut walk, journal.key(), buffers) } else { Ok(None) };
                (written, filled)
            } else {
                std::thread::scope(|scope| {
                    let filling = scope.spawn(|| self.next(&mut walk, journal.key(), buffers));
                    let written = write();
                    (written, filling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                })
            };
            written?;
            let reached = Frontier { file: zone.zone.file, offset: zone.zone.end() };
            if progress(reached).is_break() {
                return Err(Error::Stopped);
            }
            spare.push(zone);
            current = next;
            next = filled?;
        }
        Ok(())
    }

    /// Writes the slot of a zone that recovery completes, together with the zone after it.
    pub(crate) fn note(
        &self,
        journal: &JournalFile,
        recovered: Recovered,
        zone: (&Zone, &[u8]),
        data: &[u8],
    ) -> Result<(), Error> {
        let after = self.next(&mut Walk::new(self, recovered.reached), journal.key(), Filled::default())?;
        let after = after.as_ref().map(|filled| (&filled.zone, filled.digests.as_slice()));
        journal.write(recovered.generation, zone, data, after)
    }

    /// Reads, digests and converts the next zone, in memory.
    fn next(&self, walk: &mut Walk<'_>, key: &JournalKey, mut filled: Filled) -> Result<Option<Filled>, Error> {
        let Some(zone) = walk.next()? else { return Ok(None) };
        filled.data.resize(zone.data_len(), 0);
        filled.digests.resize(run_digests_len(&zone), 0);
        filled.chunks.clear();
        filled.chunks.extend(chunks(&zone));
        filled.unchanged.clear();
        filled.unchanged.resize(filled.chunks.len(), false);
        filled.zone = zone;
        let target = &self.targets[filled.zone.file as usize];
        let mut tasks = Vec::with_capacity(filled.chunks.len());
        let (mut data, mut digests) = (filled.data.as_mut_slice(), filled.digests.as_mut_slice());
        for (chunk, unchanged) in filled.chunks.iter().zip(&mut filled.unchanged) {
            let (here, rest) = data.split_at_mut(chunk.len as usize);
            let (noted, rest_digests) = digests.split_at_mut(digests_len(here.len()));
            (data, digests) = (rest, rest_digests);
            tasks.push((chunk, here, noted, unchanged));
        }
        let file = filled.zone.file;
        each(self.workers, tasks, |(chunk, data, digests, unchanged), scratch| {
            target.file.read_at(data, chunk.offset)?;
            key.digests(file, chunk.offset, data, scratch, digests)?;
            *unchanged = target.keeps_zeros(self.direction) && data.iter().all(|byte| *byte == 0);
            if *unchanged { Ok(()) } else { target.step(self.direction, data, chunk.virtual_byte) }
        })?;
        Ok(Some(filled))
    }

    /// Writes a zone over its old content, and makes it durable.
    fn write(&self, filled: &Filled) -> Result<(), Error> {
        let target = &self.targets[filled.zone.file as usize];
        let mut rest = filled.data.as_slice();
        for (chunk, unchanged) in filled.chunks.iter().zip(&filled.unchanged) {
            let (here, after) = rest.split_at(chunk.len as usize);
            rest = after;
            if !unchanged {
                target.file.write_at(here, chunk.offset)?;
            }
        }
        target.file.sync()?;
        Ok(())
    }
}

/// A zone in memory: its new content, and the digests of its old one.
#[derive(Default)]
struct Filled {
    zone: Zone,
    chunks: Vec<Run>,
    data: Zeroizing<Vec<u8>>,
    digests: Vec<u8>,
    /// Of each chunk: whether it stays as it is.
    unchanged: Vec<bool>,
}

/// A zone's runs in the parts that are worked on at once.
pub(crate) fn chunks(zone: &Zone) -> impl Iterator<Item = Run> {
    zone.runs.iter().flat_map(|run| {
        (0..run.len).step_by(CHUNK_LEN).map(|skip| Run {
            offset: run.offset + skip,
            len: (run.len - skip).min(CHUNK_LEN as u64),
            virtual_byte: run.virtual_byte + skip,
        })
    })
}

/// Does `work` on each task, on `workers` threads; each has a scratch buffer of its own.
fn each<T: Send>(
    workers: usize,
    tasks: Vec<T>,
    work: impl Fn(T, &mut Vec<u8>) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let threads = workers.min(tasks.len());
    let queue = Mutex::new(tasks.into_iter());
    let failed = Mutex::new(None);
    // A worker that panicked has left the queue whole: it only takes from it.
    let work_on = || {
        let mut scratch = Zeroizing::new(Vec::new());
        loop {
            let Some(task) = queue.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
            if let Err(error) = work(task, &mut scratch) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work_on);
        }
        work_on();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

type Pieces<'a> = Box<dyn Iterator<Item = Result<Piece, vmseal_disk::Error>> + Send + 'a>;

/// The zones of a pass, in order.
struct Walk<'a> {
    pass: &'a Pass<'a>,
    file: usize,
    /// What lies before this in the file is passed over.
    from: u64,
    pieces: Option<Pieces<'a>>,
    /// What is left of the last piece.
    rest: Option<Run>,
}

impl<'a> Walk<'a> {
    fn new(pass: &'a Pass<'a>, from: Frontier) -> Self {
        Self { pass, file: from.file as usize, from: from.offset, pieces: None, rest: None }
    }

    fn next(&mut self) -> Result<Option<Zone>, Error> {
        let mut zone = Zone { file: self.file as u32, runs: Vec::new() };
        let mut room = self.pass.zone_bytes;
        while room >= UnitSize::MAX_BYTES && zone.runs.len() < self.pass.runs_max {
            let Some(run) = self.next_run()? else {
                if !zone.runs.is_empty() {
                    break;
                }
                // The next file has a zone of its own.
                (self.file, self.from, self.pieces) = (self.file + 1, 0, None);
                let ends = self.pass.limit.is_some_and(|limit| self.file > limit.file as usize);
                if self.file >= self.pass.targets.len() || ends {
                    self.file = self.pass.targets.len();
                    return Ok(None);
                }
                zone.file = self.file as u32;
                continue;
            };
            // Whole data units, but where the run ends.
            let len = run.len.min(room - room % UnitSize::MAX_BYTES);
            zone.runs.push(Run { len, ..run });
            room -= len;
            if len < run.len {
                let (offset, virtual_byte) = (run.offset + len, run.virtual_byte + len);
                self.rest = Some(Run { offset, len: run.len - len, virtual_byte });
            }
        }
        Ok(Some(zone))
    }

    /// The next run of the guest's bytes in this file.
    fn next_run(&mut self) -> Result<Option<Run>, Error> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        let Some(target) = self.pass.targets.get(self.file) else { return Ok(None) };
        let end = match self.pass.limit {
            Some(limit) if limit.file as usize == self.file => limit.offset,
            Some(limit) if (limit.file as usize) < self.file => 0,
            _ => u64::MAX,
        };
        let pieces = match &mut self.pieces {
            Some(pieces) => pieces,
            None => self.pieces.insert(target.layout.pieces(target.file.as_ref(), &target.path)?),
        };
        for piece in pieces {
            let Piece { file_range, kind } = piece?;
            let PieceKind::Guest { virtual_byte } = kind else { continue };
            let range = file_range.start.max(self.from)..file_range.end.min(end);
            if range.start < range.end {
                let virtual_byte = virtual_byte + (range.start - file_range.start);
                return Ok(Some(Run { offset: range.start, len: range.end - range.start, virtual_byte }));
            }
        }
        Ok(None)
    }
}

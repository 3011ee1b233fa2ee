//! The engine: one file of a disk, from one cipher to another.
//!
//! A file is seen as an ordered list of [pieces](vmseal_disk::Piece). The guest's bytes are transformed under the number of
//! their data unit on the virtual disk; what is metadata is copied; what no table points at is left out, since it may hold old
//! plaintext. Workers read, transform and write chunk by chunk, so that reading, enciphering and writing overlap on all cores.

use core::ops::ControlFlow;
use core::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vmseal_disk::{DiskCipher, Piece, PieceKind};
use vmseal_storage::{File, Storage};
use zeroize::Zeroize;

use crate::error::Error;

/// The bytes a worker holds at once: reading and writing in pieces of 256 KiB was fastest where it was measured
/// (docs/performance.md), and several data units of any size fit.
const CHUNK_LEN: u64 = 256 << 10;
/// The bytes between two points to which a crashed conversion can return.
const CHECKPOINT_LEN: u64 = 512 << 20;
/// More workers than this only wait for storage.
const WORKERS_MAX: usize = 16;

/// How many threads work on a storage.
pub(crate) fn workers(storage: &dyn Storage) -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    storage.requests_max().map_or(available, |requests| available.min(requests.get()))
}

/// From which cipher to which.
pub(crate) struct Transform {
    pub(crate) from: Option<DiskCipher>,
    pub(crate) to: Option<DiskCipher>,
}

impl Transform {
    /// Transforms guest bytes that begin at `virtual_byte` of the disk.
    pub(crate) fn apply(&self, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        match (&self.from, &self.to) {
            (None, None) => Ok(()),
            (None, Some(to)) => to.encrypt(data, virtual_byte),
            (Some(from), None) => from.decrypt(data, virtual_byte),
            (Some(from), Some(to)) => from.transcrypt(to, data, virtual_byte),
        }
        .map_err(Error::Disk)
    }

    /// The way back: what [`apply`](Self::apply) made becomes what it was.
    pub(crate) fn undo(&self, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        match (&self.from, &self.to) {
            (None, None) => Ok(()),
            (None, Some(to)) => to.decrypt(data, virtual_byte),
            (Some(from), None) => from.encrypt(data, virtual_byte),
            (Some(from), Some(to)) => to.transcrypt(from, data, virtual_byte),
        }
        .map_err(Error::Disk)
    }
}

/// One conversion of one file.
pub(crate) struct Conversion<'a> {
    pub(crate) source: &'a dyn File,
    pub(crate) target: &'a dyn File,
    pub(crate) transform: &'a Transform,
    /// Bytes of the target that are durable already.
    pub(crate) done_bytes: u64,
    pub(crate) workers: usize,
}

impl Conversion<'_> {
    /// Copies every piece beyond `done_bytes`, and makes the target durable.
    ///
    /// `checkpoint` is told how many bytes from the start of the target are durable; `progress` how many bytes were passed since its
    /// last call, and may stop the conversion.
    pub(crate) fn run(
        &self,
        pieces: impl Iterator<Item = Result<Piece, vmseal_disk::Error>> + Send,
        checkpoint: &mut dyn FnMut(u64) -> Result<(), Error>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let len = self.source.len()?;
        if self.target.len()? != len {
            self.target.set_len(len)?;
        }
        let mut chunks = Chunks { pieces, current: None, from: self.done_bytes };
        let mut durable = self.done_bytes;
        loop {
            let end = self.run_batch(&mut chunks, durable, progress)?;
            self.target.sync()?;
            match end {
                Batch::Stopped => return Err(Error::Stopped),
                Batch::Complete => {
                    checkpoint(len)?;
                    if progress(len.saturating_sub(durable)).is_break() {
                        return Err(Error::Stopped);
                    }
                    return Ok(());
                }
                Batch::UpTo(offset) => {
                    checkpoint(offset)?;
                    durable = offset;
                }
            }
        }
    }

    /// Converts chunks until a checkpoint is due, on every core.
    fn run_batch<I>(
        &self,
        chunks: &mut Chunks<I>,
        start: u64,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Batch, Error>
    where
        I: Iterator<Item = Result<Piece, vmseal_disk::Error>> + Send,
    {
        let workers = self.workers;
        let queue = Mutex::new(Queue {
            chunks,
            until: start.saturating_add(CHECKPOINT_LEN),
            reached: start,
            end: None,
            failed: None,
        });
        let passed = AtomicU64::new(start);
        let mut reported = start;
        let mut report = |passed: u64| {
            let step = passed.saturating_sub(reported);
            reported = reported.max(passed);
            progress(step)
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(|| self.work(&queue, &passed, &mut |_| ControlFlow::Continue(())));
            }
            // The caller's thread works too, and is the one that reports.
            self.work(&queue, &passed, &mut report);
        });
        let mut queue = queue.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = queue.failed.take() {
            return Err(error);
        }
        let end = queue.end.take().unwrap_or(Batch::Complete);
        if let Batch::UpTo(offset) = end
            && report(offset).is_break()
        {
            return Ok(Batch::Stopped);
        }
        Ok(end)
    }

    fn work<I>(&self, queue: &Mutex<Queue<'_, I>>, passed: &AtomicU64, report: &mut dyn FnMut(u64) -> ControlFlow<()>)
    where
        I: Iterator<Item = Result<Piece, vmseal_disk::Error>>,
    {
        let mut buffer = Vec::new();
        loop {
            let Some(chunk) = lock(queue).next() else { break };
            if let Err(error) = self.convert(&chunk, &mut buffer) {
                lock(queue).fail(error);
                break;
            }
            let now = passed.fetch_max(chunk.file_range.end, Ordering::Relaxed).max(chunk.file_range.end);
            if report(now).is_break() {
                lock(queue).stop();
                break;
            }
        }
        buffer.zeroize();
    }

    fn convert(&self, chunk: &Chunk, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let len = usize::try_from(chunk.file_range.end - chunk.file_range.start).map_err(|_| Error::Stopped)?;
        buffer.resize(len, 0);
        self.source.read_at(buffer, chunk.file_range.start)?;
        if let Some(virtual_byte) = chunk.virtual_byte {
            // Zeros under a cipher were never written by the guest: they stay a hole. Zeros in the clear are data.
            if self.transform.from.is_some() && buffer.iter().all(|byte| *byte == 0) && !self.may_hold_data(chunk) {
                return Ok(());
            }
            self.transform.apply(buffer, virtual_byte)?;
        }
        self.target.write_at(buffer, chunk.file_range.start)?;
        Ok(())
    }

    /// Whether the target may hold something else than zeros there: only after an interrupted attempt.
    fn may_hold_data(&self, chunk: &Chunk) -> bool {
        match self.target.next_data(chunk.file_range.start) {
            Ok(Some(data)) => data.start < chunk.file_range.end,
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

/// How a batch ended.
enum Batch {
    UpTo(u64),
    Complete,
    Stopped,
}

/// A part of a piece.
struct Chunk {
    file_range: Range<u64>,
    /// Where it lies on the virtual disk; `None` for what is copied as it is.
    virtual_byte: Option<u64>,
}

/// The chunks to convert, in file order.
struct Chunks<I> {
    pieces: I,
    current: Option<Chunk>,
    from: u64,
}

impl<I: Iterator<Item = Result<Piece, vmseal_disk::Error>>> Chunks<I> {
    fn next(&mut self) -> Result<Option<Chunk>, vmseal_disk::Error> {
        loop {
            if let Some(current) = &mut self.current {
                let end = current.file_range.end.min(current.file_range.start + CHUNK_LEN);
                let chunk = Chunk { file_range: current.file_range.start..end, virtual_byte: current.virtual_byte };
                if end == current.file_range.end {
                    self.current = None;
                } else {
                    current.virtual_byte = current.virtual_byte.map(|byte| byte + (end - current.file_range.start));
                    current.file_range.start = end;
                }
                // What is durable already is passed over in whole chunks: pieces are cut at the same places each time.
                if chunk.file_range.end <= self.from {
                    continue;
                }
                return Ok(Some(chunk));
            }
            let Some(piece) = self.pieces.next() else { return Ok(None) };
            let piece = piece?;
            let virtual_byte = match piece.kind {
                PieceKind::Guest { virtual_byte } => Some(virtual_byte),
                PieceKind::Other => None,
                // It is written anew when the data is there.
                PieceKind::Descriptor => continue,
            };
            self.current = Some(Chunk { file_range: piece.file_range, virtual_byte });
        }
    }
}

/// What the workers share.
struct Queue<'c, I> {
    chunks: &'c mut Chunks<I>,
    until: u64,
    reached: u64,
    end: Option<Batch>,
    failed: Option<Error>,
}

impl<I: Iterator<Item = Result<Piece, vmseal_disk::Error>>> Queue<'_, I> {
    fn next(&mut self) -> Option<Chunk> {
        if self.end.is_some() || self.failed.is_some() {
            return None;
        }
        if self.reached >= self.until {
            self.end = Some(Batch::UpTo(self.reached));
            return None;
        }
        match self.chunks.next() {
            Ok(Some(chunk)) => {
                self.reached = chunk.file_range.end;
                Some(chunk)
            }
            Ok(None) => {
                self.end = Some(Batch::Complete);
                None
            }
            Err(error) => {
                self.fail(Error::Disk(error));
                None
            }
        }
    }
}

impl<I> Queue<'_, I> {
    fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }

    fn stop(&mut self) {
        self.end = Some(Batch::Stopped);
    }
}

/// A worker that panicked has left the queue whole: every change of it is a single assignment.
fn lock<'q, 'c, I>(queue: &'q Mutex<Queue<'c, I>>) -> std::sync::MutexGuard<'q, Queue<'c, I>> {
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! A device in memory, and a server for it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use vmseal_nbd::{Export, Listener, Server, Stop, UnixSocket};

/// What is allocated at once.
pub(crate) const BLOCK: usize = 64 << 10;

/// A thin device: blocks that were never written, or were trimmed, are not there.
#[derive(Debug)]
pub(crate) struct Memory {
    blocks: RwLock<Vec<Option<Vec<u8>>>>,
    size: u64,
    pub(crate) read_only: bool,
    pub(crate) fast_zeroes: bool,
    /// Reading or writing a byte of this range fails.
    pub(crate) bad: Range<u64>,
    /// How long each read takes.
    pub(crate) delay: Duration,
    pub(crate) flushes: AtomicUsize,
    /// How many reads are under way, and how many have been at most.
    reads: Mutex<(usize, usize)>,
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            blocks: RwLock::new(vec![None; (size as usize).div_ceil(BLOCK)]),
            size,
            read_only: false,
            fast_zeroes: false,
            bad: 0..0,
            delay: Duration::ZERO,
            flushes: AtomicUsize::new(0),
            reads: Mutex::new((0, 0)),
        }
    }

    pub(crate) fn most_reads_at_once(&self) -> usize {
        self.reads.lock().unwrap().1
    }

    pub(crate) fn blocks_allocated(&self) -> usize {
        self.blocks.read().unwrap().iter().filter(|block| block.is_some()).count()
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset + len <= self.size, "the server let {len} bytes at {offset} through");
        match offset < self.bad.end && offset + len > self.bad.start {
            true => Err(io::Error::other("secret text of the server")),
            false => Ok(()),
        }
    }

    fn each_block(offset: u64, len: u64) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let (start, end) = (offset as usize, (offset + len) as usize);
        (start / BLOCK..end.div_ceil(BLOCK)).map(move |index| {
            let (from, to) = (start.max(index * BLOCK), end.min((index + 1) * BLOCK));
            (index, from - index * BLOCK..to - index * BLOCK, from - start..to - start)
        })
    }
}

impl Export for Memory {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        {
            let mut reads = self.reads.lock().unwrap();
            reads.0 += 1;
            reads.1 = reads.1.max(reads.0);
        }
        std::thread::sleep(self.delay);
        let blocks = self.blocks.read().unwrap();
        for (index, within, here) in Self::each_block(offset, buffer.len() as u64) {
            match &blocks[index] {
                Some(block) => buffer[here].copy_from_slice(&block[within]),
                None => buffer[here].fill(0),
            }
        }
        self.reads.lock().unwrap().0 -= 1;
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        let mut blocks = self.blocks.write().unwrap();
        for (index, within, here) in Self::each_block(offset, data.len() as u64) {
            blocks[index].get_or_insert_with(|| vec![0; BLOCK])[within].copy_from_slice(&data[here]);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.write_zeroes(offset, len_bytes, true)
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_trim: bool) -> io::Result<()> {
        self.check(offset, len_bytes)?;
        let mut blocks = self.blocks.write().unwrap();
        for (index, within, _) in Self::each_block(offset, len_bytes) {
            if may_trim && within.len() == BLOCK {
                blocks[index] = None;
            } else if blocks[index].is_some() || !may_trim {
                blocks[index].get_or_insert_with(|| vec![0; BLOCK])[within].fill(0);
            }
        }
        Ok(())
    }

    fn zeroes_fast(&self) -> bool {
        self.fast_zeroes
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let blocks = self.blocks.read().unwrap();
        let first = (offset as usize / BLOCK..blocks.len()).find(|index| blocks[*index].is_some());
        Ok(first.map(|index| ((index * BLOCK) as u64).max(offset)..(((index + 1) * BLOCK) as u64).min(self.size)))
    }
}

/// Runs `test` beside a server on a Unix socket, and returns what the server told.
#[track_caller]
pub(crate) fn serve(export: &Memory, test: impl FnOnce(&Path, &Stop)) -> Vec<String> {
    serve_with(export, |server| server, test)
}

pub(crate) fn serve_with<'e>(
    export: &'e Memory,
    settings: impl FnOnce(Server<'e>) -> Server<'e>,
    test: impl FnOnce(&Path, &Stop),
) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("nbd.sock");
    let told = &*Box::leak(Box::new(Mutex::new(Vec::new())));
    let server = settings(Server::new(export).watched(|text| told.lock().unwrap().push(text.to_owned())));
    let stop = Stop::new().unwrap();
    let listener = Listener::Unix(UnixSocket::bind(&path).unwrap());
    std::thread::scope(|scope| {
        // A failed assertion of the test ends the server too, which would be waited for otherwise.
        struct Ends<'s>(&'s Stop);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        let served = scope.spawn(|| server.serve(&listener, &stop));
        let end = Ends(&stop);
        test(&path, &stop);
        drop(end);
        served.join().unwrap().unwrap();
    });
    std::mem::take(&mut told.lock().unwrap())
}

//! Runs on every core: cut into parts of whole units, which the caller's pool or threads of their own work on.
//!
//! ```
//! use vmseal_xts::XtsAes256;
//! use vmseal_xts::parallel::Threads;
//!
//! # let mut key = [0u8; 64];
//! # key[0] = 1;
//! let xts = XtsAes256::new(&key)?;
//! let mut disk = vec![0u8; 4 << 20];
//! xts.encrypt_units_parallel(&mut disk, 512, 0, &Threads::available())?;
//! # xts.decrypt_units(&mut disk, 512, 0)?;
//! # assert!(disk == vec![0; 4 << 20]);
//! # Ok::<(), vmseal_xts::Error>(())
//! ```

use std::boxed::Box;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use crate::error::Error;
use crate::run::Run;

/// A part in bytes is no smaller than this: a thread is not worth less.
const PART_LEN_MIN: usize = 128 << 10;
/// Parts for each worker: who is held up by the system leaves more to the others.
const PARTS: usize = 4;

/// What a worker does once.
pub type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Who works on the parts of a run: [`Threads`], or a pool of the embedder's.
///
/// ```
/// # use vmseal_xts::parallel::{Job, Workers};
/// struct OneAfterTheOther;
///
/// impl Workers for OneAfterTheOther {
///     fn count(&self) -> usize {
///         1
///     }
///
///     fn run(&self, jobs: Vec<Job<'_>>) {
///         jobs.into_iter().for_each(|job| job()); // a pool spawns each in a scope, and waits for all
///     }
/// }
/// ```
pub trait Workers {
    /// How many jobs are worked on at the same time.
    fn count(&self) -> usize;

    /// Runs every job, on any thread, and returns when all have ended.
    fn run(&self, jobs: Vec<Job<'_>>);
}

/// Threads of the standard library, made for one run and gone with it; the caller's thread is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads(NonZeroUsize);

impl Threads {
    /// As many as the system gives this process cores.
    pub fn available() -> Self {
        Self(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// `count` of them.
    pub fn new(count: NonZeroUsize) -> Self {
        Self(count)
    }
}

impl Workers for Threads {
    fn count(&self) -> usize {
        self.0.get()
    }

    fn run(&self, jobs: Vec<Job<'_>>) {
        let helpers = jobs.len().min(self.count()).saturating_sub(1);
        let queue = Mutex::new(jobs.into_iter());
        // The lock is not held while a job runs.
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(job) = next() {
                job();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                // Where the system has no more threads, this one does the work.
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
    }
}

/// Bytes that can be cut in two.
pub(crate) trait Cut: Send + Sized {
    fn cut(self, position: usize) -> (Self, Self);
}

impl Cut for &mut [u8] {
    fn cut(self, position: usize) -> (Self, Self) {
        self.split_at_mut(position)
    }
}

/// Input and output of the same length.
impl Cut for (&[u8], &mut [u8]) {
    fn cut(self, position: usize) -> (Self, Self) {
        let (first_in, second_in) = self.0.split_at(position);
        let (first_out, second_out) = self.1.split_at_mut(position);
        ((first_in, first_out), (second_in, second_out))
    }
}

/// Has `workers` do `process` on parts of a checked run of `len` bytes.
pub(crate) fn for_each_part<D: Cut>(
    data: D,
    len: usize,
    run: Run,
    workers: &dyn Workers,
    process: impl Fn(D, Run) + Sync,
) -> Result<(), Error> {
    let part_len = len.div_ceil(workers.count().saturating_mul(PARTS).max(1)).max(PART_LEN_MIN);
    let unit_count = part_len.div_ceil(run.unit_size);
    let part_len = unit_count.saturating_mul(run.unit_size);
    if workers.count() <= 1 || len <= part_len {
        process(data, run);
        return Ok(());
    }
    let done = AtomicUsize::new(0);
    let mut jobs = Vec::<Job<'_>>::new();
    let (mut data, mut run, mut left) = (data, run, len);
    while left > 0 {
        let (part, after) = data.cut(part_len.min(left));
        let (process, done) = (&process, &done);
        jobs.push(Box::new(move || {
            process(part, run);
            done.fetch_add(1, Ordering::Relaxed);
        }));
        data = after;
        run = run.skip(unit_count);
        left = left.saturating_sub(part_len);
    }
    let count = jobs.len();
    workers.run(jobs);
    // A pool that lost a job must not leave plaintext behind unnoticed.
    if done.load(Ordering::Relaxed) == count { Ok(()) } else { Err(Error::Workers) }
}

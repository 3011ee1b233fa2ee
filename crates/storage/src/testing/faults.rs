//! What goes wrong, and how.

use core::fmt;

use crate::error::Error;
use crate::path::StoragePath;

/// What storage writes whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tearing {
    /// Sectors of 512 bytes: after a crash each has its old content or its new.
    #[default]
    Sector,
    /// Single bytes: a sector may also have a new beginning, a new end, or new bytes anywhere.
    Byte,
}

/// What becomes of a folder's unsynced creations, renames and removals in a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderOrder {
    /// In each folder those up to some point are there, and none after it: what a journal does.
    #[default]
    Journal,
    /// Any of them are there. A file still has one name, and nothing takes a name that another file has, except by a rename.
    Any,
}

/// What a failed sync of a file does with what was unsynced. In each case the file reads as before until the power is cut, and a later sync that succeeds
/// does not make up for what this one lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncFailure {
    /// It is durable all the same.
    Kept,
    /// Nothing of it will ever be durable: the system took the pages for clean.
    Lost,
    /// Part of it is durable, torn like in a crash; the rest never will be.
    Partial,
}

/// Where something goes wrong. All counts are absolute, and count from 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) crash_at: Option<u64>,
    pub(super) read_at: Option<u64>,
    pub(super) write_at: Option<u64>,
    pub(super) sync_at: Option<(u64, SyncFailure)>,
}

/// How many calls there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) operations: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
}

/// Counts one more, and tells its number.
pub(super) fn count(counter: &mut u64) -> u64 {
    let number = *counter;
    *counter += 1;
    number
}

/// The source of every error from the crash on.
#[derive(Debug)]
pub(super) struct Crash;

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated power was cut")
    }
}

impl std::error::Error for Crash {}

pub(super) fn crashed(path: &StoragePath, operation: &'static str) -> Error {
    Error::Io { path: path.to_string(), operation, source: std::io::Error::other(Crash) }
}

pub(super) fn injected(path: &StoragePath, operation: &'static str) -> Error {
    Error::Io { path: path.to_string(), operation, source: std::io::Error::other("a fault that the test asked for") }
}

//! What is put in an operation's way.

use vmseal_rekey::Error;
use vmseal_storage::testing::{Simulated, SyncFailure};

use super::Random;

/// How much an operation does: where a fault can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) operations: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
    pub(crate) reports: u64,
}

/// What goes wrong in one attempt.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fault {
    /// The power is cut.
    Cut,
    /// A disk that is full.
    Full,
    /// The program ends.
    Kill,
    Read,
    /// It is asked to stop, at its nth report.
    Stop(u64),
    Sync,
    Write,
}

impl Fault {
    /// Without what goes with it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cut => "power cuts",
            Self::Full => "full disks",
            Self::Kill => "ends of the program",
            Self::Read => "failed reads",
            Self::Stop(_) => "stops",
            Self::Sync => "failed syncs",
            Self::Write => "failed writes",
        }
    }

    /// Puts the next fault in the way of what comes.
    pub(crate) fn set(storage: &Simulated, random: &mut Random, counts: Counts, nested: bool) -> Self {
        // Some follow quickly.
        let soon = nested && random.below(2) == 0;
        let mut place = |count: u64| random.below(if soon { count.min(12) } else { count }.max(1));
        let (operation, read) =
            (storage.operations() + place(counts.operations), storage.reads() + place(counts.reads));
        let (write, sync) = (storage.writes() + place(counts.writes), storage.syncs() + place(counts.syncs));
        let report = place(counts.reports);
        match random.below(16) {
            0..=5 => {
                storage.crash_at(Some(operation));
                Self::Cut
            }
            6 | 7 => {
                storage.crash_at(Some(operation));
                Self::Kill
            }
            8..=10 => {
                let failure = [SyncFailure::Kept, SyncFailure::Lost, SyncFailure::Partial][random.below(3) as usize];
                storage.fail_sync_at(Some((sync, failure)));
                Self::Sync
            }
            11 => {
                storage.fail_write_at(Some(write));
                Self::Write
            }
            12 => {
                storage.fail_read_at(Some(read));
                Self::Read
            }
            13 | 14 => {
                let magnitude = 12 + random.below(10);
                let room_bytes = random.below(1 << magnitude);
                storage.set_room_bytes(Some(room_bytes));
                storage.set_tells_room(false);
                Self::Full
            }
            _ => Self::Stop(report),
        }
    }

    /// Takes it away; whether it is one after which the machine starts again.
    pub(crate) fn clear(self, storage: &Simulated) -> bool {
        let crashed = storage.has_crashed();
        match self {
            Self::Cut if crashed => storage.restart(),
            Self::Kill if crashed => storage.restart_program(),
            _ => {}
        }
        storage.crash_at(None);
        storage.fail_sync_at(None);
        storage.fail_write_at(None);
        storage.fail_read_at(None);
        storage.set_room_bytes(None);
        storage.set_tells_room(true);
        crashed
    }
}

/// Whether an error is what storage did, or the stop that was asked for, and no finding about the VM.
pub(crate) fn is_of_storage(error: &Error) -> bool {
    use vmseal_storage::Error::{Io, Latched, StorageFull};
    match error {
        Error::Stopped => true,
        Error::Incomplete { source, .. } | Error::Interrupted { source, .. } | Error::UndoFailed { source, .. } => {
            is_of_storage(source)
        }
        Error::Storage(error) | Error::Disk(vmseal_disk::Error::Storage(error)) => {
            matches!(error, Io { .. } | Latched { .. } | StorageFull { .. })
        }
        _ => false,
    }
}

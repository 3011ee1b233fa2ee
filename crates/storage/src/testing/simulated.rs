//! The storage itself.

use core::num::NonZeroUsize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::memory::{BLOCK_LEN, lock};
use crate::path::StoragePath;
use crate::storage::{Access, File, Kind, Lock, LockMode, Metadata, Storage};
use crate::testing::content::Content;
use crate::testing::faults::{Crash, FolderOrder, SyncFailure, Tearing, count, injected};
use crate::testing::file::SimulatedFile;
use crate::testing::names::Node;
use crate::testing::state::State;
use crate::testing::unsynced::FileState;

/// A storage in memory that loses, tears and refuses what real storage may, where a test wants it. A clone is another handle of the same storage.
///
/// Every call of a method of [`Storage`] or [`File`] is one operation; a method that the trait itself provides is as many as it calls. Operations,
/// reads, writes and syncs are each counted from 0 and never start anew, also not after a [`restart`](Self::restart).
#[derive(Clone, Debug)]
pub struct Simulated {
    state: Arc<Mutex<State>>,
}

impl Simulated {
    /// An empty storage. The seed decides what crashes and failures leave.
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(seed))) }
    }

    /// An independent copy with what is there, durable or not, and the same settings, under another seed: the start of many runs. It costs next to nothing, as the
    /// content is shared until it changes. The copy has no locks, handles or pending faults, and counts from 0.
    #[must_use]
    pub fn snapshot(&self, seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(lock(&self.state).snapshot(seed))) }
    }

    /// How many operations there were: the number of the next one.
    pub fn operations(&self) -> u64 {
        lock(&self.state).counts.operations
    }

    /// How many calls of [`File::read_at`] there were.
    pub fn reads(&self) -> u64 {
        lock(&self.state).counts.reads
    }

    /// How many calls of [`File::write_at`], [`File::set_len`] and [`File::punch_hole`] there were.
    pub fn writes(&self) -> u64 {
        lock(&self.state).counts.writes
    }

    /// How many calls of [`File::sync`] and [`Storage::sync_folder`] there were.
    pub fn syncs(&self) -> u64 {
        lock(&self.state).counts.syncs
    }

    /// Every file, in order.
    pub fn paths(&self) -> Vec<StoragePath> {
        let state = lock(&self.state);
        let files = state.names.current().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// Cuts the power in the operation of this number. It happens wholly, in part or not at all; from it on every call fails with an error that
    /// [`is_crash`](Self::is_crash) knows, until [`restart`](Self::restart), which also takes this setting back.
    pub fn crash_at(&self, operation: Option<u64>) {
        lock(&self.state).faults.crash_at = operation;
    }

    /// Whether the power was cut and nothing restarted since.
    pub fn has_crashed(&self) -> bool {
        lock(&self.state).crashed
    }

    /// Whether an error, or one that it was made from, came from a crash.
    pub fn is_crash(error: &(dyn std::error::Error + 'static)) -> bool {
        core::iter::successors(Some(error), |error| error.source()).any(|error| {
            // The source of an `io::Error` is that of the error inside it, which would be passed over.
            error.is::<Crash>()
                || error
                    .downcast_ref::<std::io::Error>()
                    .and_then(std::io::Error::get_ref)
                    .is_some_and(|inner| inner.is::<Crash>())
        })
    }

    /// Starts again after the power was cut; where it was not, it is cut now. The seed chooses what the cut leaves. Locks are free, handles dead.
    pub fn restart(&self) {
        lock(&self.state).restart();
    }

    /// Starts again after the program alone was ended: nothing is lost, and nothing that was unsynced becomes durable. Locks are free, handles dead.
    pub fn restart_program(&self) {
        lock(&self.state).start();
    }

    /// Makes all that is there durable, as a state to start from.
    pub fn settle(&self) {
        let mut state = lock(&self.state);
        state.names.sync_all();
        state.files.values_mut().for_each(FileState::sync);
        state.forget_unreachable();
    }

    /// What crashes from now on tear.
    pub fn set_tearing(&self, tearing: Tearing) {
        lock(&self.state).tearing = tearing;
    }

    /// What crashes from now on leave of creations, renames and removals.
    pub fn set_folder_order(&self, order: FolderOrder) {
        lock(&self.state).folder_order = order;
    }

    /// Makes the disk full after so many more bytes, in whole blocks of 4096: a new file takes one, data takes those that it touches first, and what is removed,
    /// cut off or punched out gives them back. A write that does not fit happens in part.
    pub fn set_room_bytes(&self, room_bytes: Option<u64>) {
        lock(&self.state).set_room(room_bytes);
    }

    /// Lets the read of this number fail. The buffer is filled in part.
    pub fn fail_read_at(&self, read: Option<u64>) {
        lock(&self.state).faults.read_at = read;
    }

    /// Lets the write of this number fail. It happens in part.
    pub fn fail_write_at(&self, write: Option<u64>) {
        lock(&self.state).faults.write_at = write;
    }

    /// Lets the sync of this number fail. Where it is a folder's, the changes of names that it did not make durable stay unsynced: a later sync makes up for it.
    pub fn fail_sync_at(&self, sync: Option<(u64, SyncFailure)>) {
        lock(&self.state).faults.sync_at = sync;
    }

    /// Flips the bits of `mask` in the byte of a file at `offset_bytes`. Its version stays.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongKind`], or [`Error::UnexpectedEnd`] where the file is too short.
    pub fn flip(&self, path: &StoragePath, offset_bytes: u64, mask: u8) -> Result<(), Error> {
        self.damage(path, offset_bytes.saturating_add(1), |content| {
            if offset_bytes < content.len() {
                content.flip(offset_bytes, mask);
            }
        })
    }

    /// Loses what a file has from byte `len_bytes` on. Its version stays.
    ///
    /// # Errors
    /// As [`flip`](Self::flip).
    pub fn truncate(&self, path: &StoragePath, len_bytes: u64) -> Result<(), Error> {
        self.damage(path, len_bytes, |content| content.set_len(content.len().min(len_bytes)))
    }

    fn damage(&self, path: &StoragePath, wanted_bytes: u64, damage: impl Fn(&mut Content)) -> Result<(), Error> {
        let mut state = lock(&self.state);
        let file = state.file_number(path)?;
        let file = state.file(file);
        let len_bytes = file.current().len();
        if wanted_bytes > len_bytes {
            return Err(Error::UnexpectedEnd { path: path.to_string(), len_bytes, wanted_bytes });
        }
        file.damage(damage);
        Ok(())
    }

    fn operation<T>(
        &self,
        path: &StoragePath,
        operation: &'static str,
        act: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Error> {
        lock(&self.state).operation(path, operation, act)
    }
}

impl Storage for Simulated {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error> {
        let (file, epoch) = self.operation(path, "opening it", |state| {
            let file = state.file_number(path)?;
            state.file(file).handle_count += 1;
            Ok((file, state.epoch))
        })?;
        Ok(Box::new(SimulatedFile::new(&self.state, path, file, epoch, access)))
    }

    fn create(&self, path: &StoragePath, _like: Option<&StoragePath>) -> Result<Box<dyn File>, Error> {
        let (file, epoch) = self.operation(path, "creating it", |state| {
            state.check_folder(&path.folder())?;
            if state.names.node(path).is_some() {
                return Err(Error::AlreadyExists { path: path.to_string() });
            }
            if state.room_blocks() == Some(0) {
                return Err(Error::StorageFull { path: path.to_string() });
            }
            let file = state.next_number();
            state.files.insert(file, FileState::new(file));
            state.file(file).handle_count = 1;
            state.names.create(path, Node::File(file));
            Ok((file, state.epoch))
        })?;
        Ok(Box::new(SimulatedFile::new(&self.state, path, file, epoch, Access::ReadWrite)))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error> {
        self.operation(path, "looking at it", |state| {
            Ok(match state.names.node(path) {
                None => None,
                Some(Node::Folder) => Some(Metadata { len: 0, kind: Kind::Folder, version: None, identity: None }),
                Some(Node::File(number)) => {
                    let file = state.file(number);
                    Some(Metadata {
                        len: file.current().len(),
                        kind: Kind::File,
                        version: Some(file.version()),
                        identity: Some(number.into()),
                    })
                }
            })
        })
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error> {
        self.operation(folder, "reading the folder", |state| {
            state.check_folder(folder)?;
            let inside = state.names.current().filter(|(path, _)| path.folder() == *folder);
            let names: BTreeSet<String> = inside.map(|(path, _)| path.file_name().to_owned()).collect();
            Ok(names.into_iter().collect())
        })
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        self.operation(folder, "making the folder", |state| match state.names.node(folder) {
            Some(Node::Folder) => Ok(()),
            Some(Node::File(_)) => Err(Error::AlreadyExists { path: folder.to_string() }),
            None => {
                state.check_folder(&folder.folder())?;
                if state.room_blocks() == Some(0) {
                    return Err(Error::StorageFull { path: folder.to_string() });
                }
                state.names.create(folder, Node::Folder);
                Ok(())
            }
        })
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error> {
        self.operation(to, "renaming to it", |state| {
            if state.names.node(to) == Some(Node::Folder) {
                return Err(Error::WrongKind { path: to.to_string(), wanted: "file" });
            }
            let file = state.file_number(from)?;
            state.check_folder(&to.folder())?;
            if from != to {
                let version = state.next_number();
                state.file(file).touch(version);
                state.names.rename(from, to, Node::File(file));
            }
            Ok(())
        })
    }

    fn remove(&self, path: &StoragePath) -> Result<(), Error> {
        self.operation(path, "removing it", |state| {
            state.file_number(path)?;
            state.names.remove(path);
            Ok(())
        })
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        self.operation(folder, "syncing the folder", |state| {
            let number = count(&mut state.counts.syncs);
            state.check_folder(folder)?;
            if state.is_cut {
                return Ok(());
            }
            let failure = state.faults.sync_at.filter(|(at, _)| *at == number).map(|(_, failure)| failure);
            let random = &mut state.random;
            state.names.sync(folder, |count| match failure {
                None | Some(SyncFailure::Kept) => count,
                Some(SyncFailure::Lost) => 0,
                Some(SyncFailure::Partial) => random.below(count as u64 + 1) as usize,
            });
            state.forget_unreachable();
            if failure.is_some() { Err(injected(folder, "syncing the folder")) } else { Ok(()) }
        })
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
        let epoch = self.operation(path, "locking it", |state| {
            state.check_folder(&path.folder())?;
            let holders = match state.locks.get(path) {
                None => 1,
                Some((LockMode::Shared, count)) if mode == LockMode::Shared => count + 1,
                Some(_) => return Err(Error::Locked { path: path.to_string(), holder: Some(std::process::id()) }),
            };
            state.locks.insert(path.clone(), (mode, holders));
            Ok(state.epoch)
        })?;
        Ok(Box::new(SimulatedLock { state: self.state.clone(), path: path.clone(), epoch }))
    }

    fn in_use(&self, path: &StoragePath) -> Result<bool, Error> {
        self.operation(path, "looking for its users", |_| Ok(false))
    }

    /// One: the same seed has to give the same run.
    fn requests_max(&self) -> Option<NonZeroUsize> {
        Some(NonZeroUsize::MIN)
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        self.operation(&StoragePath::root(), "asking for free space", |state| {
            Ok(state.room_blocks().map(|blocks| blocks.saturating_mul(BLOCK_LEN)))
        })
    }
}

#[derive(Debug)]
struct SimulatedLock {
    state: Arc<Mutex<State>>,
    path: StoragePath,
    epoch: u64,
}

impl Lock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if state.epoch != self.epoch {
            return;
        }
        if let Some((_, count)) = state.locks.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                state.locks.remove(&self.path);
            }
        }
    }
}

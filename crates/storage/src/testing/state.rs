//! All that the handles of one simulated storage share.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::memory::BLOCK_LEN;
use crate::path::StoragePath;
use crate::storage::LockMode;
use crate::testing::faults::{Counts, Faults, FolderOrder, Tearing, count, crashed};
use crate::testing::names::{Names, Node};
use crate::testing::random::Random;
use crate::testing::unsynced::FileState;

#[derive(Debug)]
pub(super) struct State {
    pub(super) names: Names,
    /// By their number, which is never used again.
    pub(super) files: BTreeMap<u64, FileState>,
    pub(super) locks: BTreeMap<StoragePath, (LockMode, usize)>,
    /// How often it was started again. What is from another time is dead.
    pub(super) epoch: u64,
    /// The last number given out: to a file or a version.
    last_number: u64,
    pub(super) random: Random,
    pub(super) tearing: Tearing,
    pub(super) folder_order: FolderOrder,
    pub(super) faults: Faults,
    pub(super) counts: Counts,
    /// Blocks that the disk has; `None` where it is never full.
    capacity_blocks: Option<u64>,
    pub(super) crashed: bool,
    /// Whether the power is cut in the operation that is being done.
    pub(super) is_cut: bool,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            names: Names::default(),
            files: BTreeMap::new(),
            locks: BTreeMap::new(),
            epoch: 0,
            last_number: 0,
            random: Random::new(seed),
            tearing: Tearing::default(),
            folder_order: FolderOrder::default(),
            faults: Faults::default(),
            counts: Counts::default(),
            capacity_blocks: None,
            crashed: false,
            is_cut: false,
        }
    }

    pub(super) fn snapshot(&self, seed: u64) -> Self {
        let mut files = self.files.clone();
        files.values_mut().for_each(|file| file.handle_count = 0);
        Self {
            names: self.names.clone(),
            files,
            last_number: self.last_number,
            tearing: self.tearing,
            folder_order: self.folder_order,
            capacity_blocks: self.capacity_blocks,
            crashed: self.crashed,
            ..Self::new(seed)
        }
    }

    /// One operation: counted, and cut off where the crash is due. What it changes is unsynced then, so that the crash decides how much of it is there.
    pub(super) fn operation<T>(
        &mut self,
        path: &StoragePath,
        operation: &'static str,
        act: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.crashed {
            return Err(crashed(path, operation));
        }
        let number = count(&mut self.counts.operations);
        self.is_cut = self.faults.crash_at == Some(number);
        let result = act(self);
        if self.is_cut {
            self.is_cut = false;
            self.crashed = true;
            return Err(crashed(path, operation));
        }
        result
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The number of the file under a name.
    pub(super) fn file_number(&self, path: &StoragePath) -> Result<u64, Error> {
        match self.names.node(path) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Folder) => Err(Error::WrongKind { path: path.to_string(), wanted: "file" }),
            None => Err(Error::NotFound { path: path.to_string() }),
        }
    }

    /// A file that has a name or a handle.
    pub(super) fn file(&mut self, file: u64) -> &mut FileState {
        self.files.entry(file).or_default()
    }

    pub(super) fn check_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        match self.names.node(folder) {
            Some(Node::Folder) => Ok(()),
            Some(Node::File(_)) => Err(Error::WrongKind { path: folder.to_string(), wanted: "folder" }),
            None => Err(Error::NotFound { path: folder.to_string() }),
        }
    }

    /// The power is cut, and the storage started again.
    pub(super) fn restart(&mut self) {
        // Without this, crashes at two operations that leave the same changes unsynced would end alike under one seed.
        self.random.mix(self.counts.operations);
        self.names.crash(self.folder_order, &mut self.random);
        let named = self.names.files();
        self.files.retain(|file, _| named.contains(file));
        for file in self.files.values_mut() {
            file.crash(&mut self.random, self.tearing);
        }
        self.start();
    }

    /// The program has ended, and is started again.
    pub(super) fn start(&mut self) {
        self.files.values_mut().for_each(|file| file.handle_count = 0);
        self.locks.clear();
        self.epoch += 1;
        self.crashed = false;
        self.faults.crash_at = None;
    }

    /// Lets go of the files that no name, no handle and no crash can reach any more.
    pub(super) fn forget_unreachable(&mut self) {
        let named = self.names.files();
        self.files.retain(|number, file| file.handle_count > 0 || named.contains(number));
    }

    pub(super) fn set_room(&mut self, room_bytes: Option<u64>) {
        self.capacity_blocks = room_bytes.map(|room| self.used_blocks().saturating_add(room / BLOCK_LEN));
    }

    /// Blocks that can still be written; `None` where there is no end.
    pub(super) fn room_blocks(&self) -> Option<u64> {
        self.capacity_blocks.map(|capacity| capacity.saturating_sub(self.used_blocks()))
    }

    /// Every file takes one block beside its content, as an inode and its name do.
    fn used_blocks(&self) -> u64 {
        let named: BTreeSet<u64> = self
            .names
            .current()
            .filter_map(|(_, node)| match node {
                Node::File(file) => Some(file),
                Node::Folder => None,
            })
            .collect();
        let live = self.files.iter().filter(|(number, file)| file.handle_count > 0 || named.contains(number));
        live.map(|(_, file)| 1 + file.current().block_count()).sum()
    }
}

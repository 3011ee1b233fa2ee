//! The names of a storage, which of them are durable, and what a crash leaves of the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::path::StoragePath;
use crate::testing::faults::FolderOrder;
use crate::testing::random::Random;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A file, by its number.
    File(u64),
    Folder,
}

type Map = BTreeMap<StoragePath, Node>;

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    current: Map,
    durable: Map,
    /// In the order in which they were made.
    changes: Vec<NameChange>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create { path: StoragePath, node: Node },
    Remove { path: StoragePath },
    Rename { from: StoragePath, to: StoragePath, node: Node },
}

impl Names {
    pub(super) fn node(&self, path: &StoragePath) -> Option<Node> {
        if path.is_root() { Some(Node::Folder) } else { self.current.get(path).copied() }
    }

    pub(super) fn current(&self) -> impl Iterator<Item = (&StoragePath, Node)> {
        self.current.iter().map(|(path, node)| (path, *node))
    }

    /// The files that have a name, or had one that a crash may bring back.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        let changed = self.changes.iter().filter_map(|change| match change {
            NameChange::Create { node, .. } | NameChange::Rename { node, .. } => Some(node),
            NameChange::Remove { .. } => None,
        });
        let nodes = self.current.values().chain(self.durable.values()).chain(changed);
        nodes
            .filter_map(|node| match node {
                Node::File(file) => Some(*file),
                Node::Folder => None,
            })
            .collect()
    }

    pub(super) fn create(&mut self, path: &StoragePath, node: Node) {
        self.change(NameChange::Create { path: path.clone(), node });
    }

    pub(super) fn remove(&mut self, path: &StoragePath) {
        self.change(NameChange::Remove { path: path.clone() });
    }

    pub(super) fn rename(&mut self, from: &StoragePath, to: &StoragePath, node: Node) {
        self.change(NameChange::Rename { from: from.clone(), to: to.clone(), node });
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.current);
        self.changes.push(change);
    }

    /// Makes the changes in a folder durable, or as many of their beginning as `keep` makes of their number. A rename from or to another folder brings along
    /// what had been done there before it, as a journal does: without that the two folders would not fit together.
    pub(super) fn sync(&mut self, folder: &StoragePath, keep: impl FnOnce(usize) -> usize) {
        let mut folders = BTreeSet::from([folder.clone()]);
        let mut synced = BTreeSet::new();
        for (index, change) in self.changes.iter().enumerate().rev() {
            let mut of_change = change.folders();
            if !of_change.is_disjoint(&folders) {
                folders.append(&mut of_change);
                synced.insert(index);
            }
        }
        let kept: BTreeSet<usize> = synced.iter().copied().take(keep(synced.len())).collect();
        let changes = core::mem::take(&mut self.changes);
        for (index, change) in changes.into_iter().enumerate() {
            if kept.contains(&index) {
                change.apply(&mut self.durable);
            } else {
                self.changes.push(change);
            }
        }
    }

    pub(super) fn sync_all(&mut self) {
        self.changes.clear();
        self.durable = self.current.clone();
    }

    /// The power is cut.
    pub(super) fn crash(&mut self, order: FolderOrder, random: &mut Random) {
        let changes = core::mem::take(&mut self.changes);
        match order {
            FolderOrder::Any => {
                let share = random.below(257);
                for change in changes {
                    if random.below(256) < share {
                        change.apply(&mut self.durable);
                    }
                }
            }
            FolderOrder::Journal => self.keep_beginnings(&changes, random),
        }
        // What lies in a folder that has gone can no longer be reached.
        let mut reached = Map::new();
        for (path, node) in core::mem::take(&mut self.durable) {
            let folder = path.folder();
            if folder.is_root() || reached.get(&folder) == Some(&Node::Folder) {
                reached.insert(path, node);
            }
        }
        self.durable = reached.clone();
        self.current = reached;
    }

    /// In each folder the changes up to some point. One that belongs to two folders ends both where it is left out of one.
    fn keep_beginnings(&mut self, changes: &[NameChange], random: &mut Random) {
        let mut counts: BTreeMap<StoragePath, u64> = BTreeMap::new();
        for folder in changes.iter().flat_map(NameChange::folders) {
            *counts.entry(folder).or_default() += 1;
        }
        for count in counts.values_mut() {
            *count = random.below(*count + 1);
        }
        for change in changes {
            let folders = change.folders();
            let kept = folders.iter().all(|folder| counts.get(folder).is_some_and(|count| *count > 0));
            for folder in &folders {
                counts.entry(folder.clone()).and_modify(|count| *count = if kept { *count - 1 } else { 0 });
            }
            if kept {
                change.apply(&mut self.durable);
            }
        }
    }
}

impl NameChange {
    fn folders(&self) -> BTreeSet<StoragePath> {
        match self {
            Self::Create { path, .. } | Self::Remove { path } => [path.folder()].into(),
            Self::Rename { from, to, .. } => [from.folder(), to.folder()].into(),
        }
    }

    /// Does the change, also where others before it were left out: what a name stands for goes only by a removal or a rename, and a file has one name.
    fn apply(&self, names: &mut Map) {
        match self {
            Self::Create { path, node } => {
                names.entry(path.clone()).or_insert(*node);
            }
            Self::Remove { path } => {
                names.remove(path);
            }
            Self::Rename { to, node, .. } => {
                names.retain(|_, other| other != node);
                names.insert(to.clone(), *node);
            }
        }
    }
}

//! The simulator against models that are obviously right: any operations, and after each crash only what the model allows.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failing test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vmseal_storage::testing::{FolderOrder, Simulated, Tearing};
use vmseal_storage::{Access, Memory, Storage, StoragePath};

fn path(text: &str) -> StoragePath {
    StoragePath::new(text).unwrap()
}

/// What is done to one file.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write { offset: u64, len: usize, byte: u8 },
    SetLen(u64),
    Punch { offset: u64, len: u64 },
    Sync,
    Snapshot,
    Restart,
}

/// Some blocks, so that holes, partial blocks and whole ones meet.
const LEN_MAX: u64 = 20_000;

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0..LEN_MAX, 1..9000_usize, 1..=255_u8).prop_map(|(offset, len, byte)| Change::Write { offset, len, byte }),
        2 => (0..LEN_MAX).prop_map(Change::SetLen),
        2 => (0..LEN_MAX, 0..9000_u64).prop_map(|(offset, len)| Change::Punch { offset, len }),
        2 => Just(Change::Sync),
        1 => Just(Change::Snapshot),
        2 => Just(Change::Restart),
    ]
}

/// What a file may hold after a crash.
struct Allowed {
    /// What it holds now, with zeros beyond its length.
    now: Vec<u8>,
    len: usize,
    /// Each byte's values since the last sync.
    bytes: Vec<Vec<u8>>,
    lens: BTreeSet<usize>,
}

impl Allowed {
    fn only(content: &[u8]) -> Self {
        let mut now = content.to_vec();
        now.resize(LEN_MAX as usize + 9000, 0);
        let bytes = now.iter().map(|byte| vec![*byte]).collect();
        Self { now, len: content.len(), bytes, lens: [content.len()].into() }
    }

    fn set(&mut self, range: core::ops::Range<usize>, byte: u8) {
        for at in range {
            self.now[at] = byte;
            if !self.bytes[at].contains(&byte) {
                self.bytes[at].push(byte);
            }
        }
    }

    fn set_len(&mut self, len: usize) {
        if len < self.len {
            self.set(len..self.len, 0);
        }
        self.len = len;
        self.lens.insert(len);
    }
}

fn check_file(seed: u64, tearing: Tearing, changes: &[Change]) -> Result<(), TestCaseError> {
    let name = path("a");
    let mut storage = Simulated::new(seed);
    storage.set_tearing(tearing);
    storage.replace(&name, b"").unwrap();
    let mut copies = Vec::new();
    let mut allowed = Allowed::only(b"");
    for change in changes {
        let file = storage.open(&name, Access::ReadWrite).unwrap();
        match *change {
            Change::Write { offset, len, byte } => {
                file.write_at(&vec![byte; len], offset).unwrap();
                allowed.set(offset as usize..offset as usize + len, byte);
                allowed.set_len(allowed.len.max(offset as usize + len));
            }
            Change::SetLen(len) => {
                file.set_len(len).unwrap();
                allowed.set_len(len as usize);
            }
            Change::Punch { offset, len } => {
                file.punch_hole(offset, len).unwrap();
                let end = allowed.len.min((offset + len) as usize);
                allowed.set(end.min(offset as usize)..end, 0);
            }
            Change::Sync => {
                file.sync().unwrap();
                allowed = Allowed::only(&allowed.now[..allowed.len]);
            }
            Change::Snapshot => {
                // The copy goes on, and the old one must not change any more.
                let copy = storage.snapshot(seed);
                copies.push((storage, allowed.now[..allowed.len].to_vec()));
                storage = copy;
            }
            Change::Restart => {
                storage.restart();
                let content = storage.read(&name, u64::MAX).unwrap();
                prop_assert!(allowed.lens.contains(&content.len()), "{} of {:?}", content.len(), allowed.lens);
                for (at, byte) in content.iter().enumerate() {
                    prop_assert!(allowed.bytes[at].contains(byte), "byte {at}: {byte} of {:?}", allowed.bytes[at]);
                }
                allowed = Allowed::only(&content);
            }
        }
        prop_assert!(storage.read(&name, u64::MAX).unwrap() == allowed.now[..allowed.len], "what is read");
    }
    for (copy, content) in copies {
        prop_assert!(copy.read(&name, u64::MAX).unwrap() == content, "a copy changed");
    }
    Ok(())
}

/// What is done to names: by their place in `NAMES` and `FOLDERS`.
#[derive(Clone, Copy, Debug)]
enum NameChange {
    Create(usize),
    Remove(usize),
    Rename(usize, usize),
    Sync(usize),
    Restart,
}

const FOLDERS: [&str; 2] = ["", "f"];
const NAMES: [&str; 4] = ["a", "b", "f/a", "f/b"];

fn name_change() -> impl Strategy<Value = NameChange> {
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => name().prop_map(NameChange::Create),
        2 => name().prop_map(NameChange::Remove),
        4 => (name(), name()).prop_map(|(from, to)| NameChange::Rename(from, to)),
        3 => (0..FOLDERS.len()).prop_map(NameChange::Sync),
        2 => Just(NameChange::Restart),
    ]
}

type Names = BTreeMap<usize, u128>;

/// Which file each name stands for.
fn names(storage: &Simulated) -> Names {
    let found = NAMES.iter().enumerate().filter_map(|(index, name)| {
        storage.metadata(&path(name)).unwrap().map(|metadata| (index, metadata.identity.unwrap()))
    });
    found.collect()
}

fn check_names(seed: u64, order: FolderOrder, changes: &[NameChange]) -> Result<(), TestCaseError> {
    let storage = Simulated::new(seed);
    // It has no faults, and tells what each call has to say.
    let memory = Memory::new();
    storage.set_folder_order(order);
    for folder in &FOLDERS[1..] {
        storage.create_folder(&path(folder)).unwrap();
        memory.create_folder(&path(folder)).unwrap();
    }
    storage.settle();
    // What each name stood for since its folder was last synced.
    let mut history: Vec<BTreeSet<Option<u128>>> = vec![[None].into(); NAMES.len()];
    for change in changes {
        let same = match *change {
            NameChange::Create(name) => {
                let name = path(NAMES[name]);
                storage.create(&name, None).is_ok() == memory.create(&name, None).is_ok()
            }
            NameChange::Remove(name) => {
                let name = path(NAMES[name]);
                storage.remove(&name).is_ok() == memory.remove(&name).is_ok()
            }
            NameChange::Rename(from, to) => {
                let (from, to) = (path(NAMES[from]), path(NAMES[to]));
                storage.rename(&from, &to).is_ok() == memory.rename(&from, &to).is_ok()
            }
            NameChange::Sync(folder) => {
                storage.sync_folder(&path(FOLDERS[folder])).unwrap();
                let now = names(&storage);
                for (index, history) in history.iter_mut().enumerate() {
                    if path(NAMES[index]).folder().as_str() == FOLDERS[folder] {
                        *history = [now.get(&index).copied()].into();
                    }
                }
                true
            }
            NameChange::Restart => {
                storage.restart();
                let left = names(&storage);
                for (index, allowed) in history.iter_mut().enumerate() {
                    let file = left.get(&index).copied();
                    prop_assert!(allowed.contains(&file), "{}: {file:?} of {allowed:?}", NAMES[index]);
                    *allowed = [file].into();
                }
                let files: BTreeSet<u128> = left.values().copied().collect();
                prop_assert_eq!(files.len(), left.len(), "a file has two names");
                for (index, name) in NAMES.iter().enumerate() {
                    let name = path(name);
                    let _ = memory.remove(&name);
                    if left.contains_key(&index) {
                        memory.create(&name, None).unwrap();
                    }
                }
                true
            }
        };
        prop_assert!(same, "{change:?} says something else than in memory");
        prop_assert_eq!(storage.paths(), memory.paths());
        for (index, history) in history.iter_mut().enumerate() {
            history.insert(names(&storage).get(&index).copied());
        }
    }
    Ok(())
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_file_holds_only_what_it_held_since_its_last_sync(
        seed: u64,
        bytes: bool,
        changes in prop::collection::vec(change(), 1..25),
    ) {
        check_file(seed, if bytes { Tearing::Byte } else { Tearing::Sector }, &changes)?;
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_name_stands_only_for_what_it_stood_for_since_its_folder_was_synced(
        seed: u64,
        any: bool,
        changes in prop::collection::vec(name_change(), 1..80),
    ) {
        check_names(seed, if any { FolderOrder::Any } else { FolderOrder::Journal }, &changes)?;
    }
}

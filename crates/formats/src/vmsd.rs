//! Snapshot lists: VMSD files.

use std::collections::{BTreeMap, BTreeSet};

use crate::dictionary::Dictionary;
use crate::error::{Error, Place};

/// The snapshots of a VM, as they are listed, and what is odd about the list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotList {
    /// The highest UID that was given.
    pub last_uid: Option<u64>,
    /// The snapshot that the running disks stand on.
    pub current_uid: Option<u64>,
    /// The snapshots, by the index that they have in the file.
    pub snapshots: Vec<Snapshot>,
    /// What does not fit together.
    pub problems: Vec<Problem>,
}

/// A snapshot.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Snapshot {
    /// The number in the names of its entries.
    pub index: u64,
    /// Identifies it.
    pub uid: u64,
    /// The snapshot that it was taken on; none at a root.
    pub parent_uid: Option<u64>,
    /// Its VMSN file.
    pub file: Option<String>,
    /// Its name.
    pub display_name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// A number of unknown meaning.
    pub kind: Option<i64>,
    /// When it was taken, in microseconds since 1970-01-01 UTC.
    pub created_us: Option<i64>,
    /// The disks that it froze.
    pub disks: Vec<SnapshotDisk>,
    /// The linked clones that stand on it.
    pub clones: Vec<String>,
}

/// A disk that a snapshot froze.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotDisk {
    /// Where it is attached, as `scsi0:0`.
    pub node: Option<String>,
    /// Its descriptor.
    pub file: Option<String>,
}

/// What does not fit together in a list: what is there is trusted, and the user told.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Problem {
    /// `snapshot.numSnapshots` is another number.
    #[error("the list says {said} snapshots and has {found}")]
    Count {
        /// What it says.
        said: u64,
        /// What is there.
        found: u64,
    },
    /// Parents that lead back to the snapshot.
    #[error("snapshot {uid} is its own ancestor")]
    Cycle {
        /// One of them.
        uid: u64,
    },
    /// Two snapshots with one UID.
    #[error("there are two snapshots {uid}")]
    DuplicateUid {
        /// The UID.
        uid: u64,
    },
    /// Entries of a snapshot without a UID, which is left out.
    #[error("the entries snapshot{index}.* have no uid")]
    NoUid {
        /// The index.
        index: u64,
    },
    /// A snapshot that is named and not there.
    #[error("snapshot {uid} is named by {by} and not in the list")]
    NotThere {
        /// The UID.
        uid: u64,
        /// The entry that names it.
        by: String,
    },
}

/// A snapshot while its entries are gathered.
#[derive(Default)]
struct Draft {
    snapshot: Snapshot,
    uid: Option<u64>,
    disks: BTreeMap<u64, SnapshotDisk>,
    clones: BTreeMap<u64, String>,
    time_high: Option<i64>,
    time_low: Option<i64>,
}

impl SnapshotList {
    /// Reads a list; an empty file is a VM without snapshots.
    ///
    /// # Errors
    /// [`Error::Encoding`] and [`Error::Unknown`] for text that cannot be decoded, [`Error::Value`] for what has to be
    /// a number, with the line.
    pub fn parse(dictionary: &Dictionary) -> Result<Self, Error> {
        let mut list = Self::default();
        let mut drafts: BTreeMap<u64, Draft> = BTreeMap::new();
        let mut said = None;
        let mut seen = BTreeSet::new();
        for (name, value, place) in dictionary.decoded()? {
            let name = name.to_ascii_lowercase();
            if !seen.insert(name.clone()) {
                continue;
            }
            let unsigned = || number::<u64>(&value, place);
            match name.as_str() {
                "snapshot.lastuid" => list.last_uid = Some(unsigned()?),
                "snapshot.current" => list.current_uid = Some(unsigned()?),
                "snapshot.numsnapshots" => said = Some(unsigned()?),
                _ => {
                    if let Some((index, field)) = indexed(&name, "snapshot") {
                        drafts.entry(index).or_default().take(field, &value, place)?;
                    }
                }
            }
        }
        for (index, draft) in drafts {
            match draft.finish(index) {
                Some(snapshot) => list.snapshots.push(snapshot),
                None => list.problems.push(Problem::NoUid { index }),
            }
        }
        list.check(said);
        Ok(list)
    }

    /// The snapshot with this UID; the first, where a damaged list has two.
    pub fn snapshot(&self, uid: u64) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.uid == uid)
    }

    /// The snapshots without a parent in the list, in its order.
    pub fn roots(&self) -> impl Iterator<Item = &Snapshot> {
        let is_root = |snapshot: &&Snapshot| snapshot.parent_uid.is_none_or(|uid| self.snapshot(uid).is_none());
        self.snapshots.iter().filter(is_root)
    }

    /// The snapshots that were taken on this one, in the order of the list.
    pub fn children(&self, uid: u64) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(move |snapshot| snapshot.parent_uid == Some(uid))
    }

    /// A snapshot and those that it stands on, up to the root; it ends where a list is damaged so that it would go
    /// round.
    pub fn ancestry(&self, uid: u64) -> impl Iterator<Item = &Snapshot> {
        let mut seen = BTreeSet::new();
        core::iter::successors(self.snapshot(uid), |snapshot| self.snapshot(snapshot.parent_uid?))
            .take_while(move |snapshot| seen.insert(snapshot.uid))
    }

    fn check(&mut self, said: Option<u64>) {
        let found = self.snapshots.len() as u64;
        let mut problems = Vec::new();
        if let Some(said) = said.filter(|said| *said != found) {
            problems.push(Problem::Count { said, found });
        }
        // Of two snapshots with one UID the first counts, here as in every walk.
        let mut parents: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for snapshot in &self.snapshots {
            parents.entry(snapshot.uid).or_insert(snapshot.parent_uid);
        }
        let mut uids = BTreeSet::new();
        // Each snapshot is walked from once: its state says whether the walk that met it is over.
        let mut is_done: BTreeMap<u64, bool> = BTreeMap::new();
        for snapshot in &self.snapshots {
            if !uids.insert(snapshot.uid) {
                problems.push(Problem::DuplicateUid { uid: snapshot.uid });
            }
            if let Some(uid) = snapshot.parent_uid.filter(|uid| !parents.contains_key(uid)) {
                problems.push(Problem::NotThere { uid, by: format!("snapshot{}.parent", snapshot.index) });
            }
            let mut walked = Vec::new();
            let mut at = Some(snapshot.uid);
            while let Some(uid) = at {
                match is_done.insert(uid, false) {
                    None => walked.push(uid),
                    Some(true) => break,
                    Some(false) => {
                        problems.push(Problem::Cycle { uid });
                        break;
                    }
                }
                at = parents.get(&uid).copied().flatten();
            }
            if let Some(uid) = at {
                is_done.insert(uid, true);
            }
            for uid in walked {
                is_done.insert(uid, true);
            }
        }
        if let Some(uid) = self.current_uid.filter(|uid| *uid != 0 && !parents.contains_key(uid)) {
            problems.push(Problem::NotThere { uid, by: "snapshot.current".to_owned() });
        }
        self.problems.append(&mut problems);
    }
}

impl Draft {
    fn take(&mut self, field: &str, value: &str, place: Place) -> Result<(), Error> {
        let snapshot = &mut self.snapshot;
        match field {
            "uid" => self.uid = Some(number(value, place)?),
            "parent" => snapshot.parent_uid = Some(number(value, place)?),
            "filename" => snapshot.file = Some(value.to_owned()),
            "displayname" => snapshot.display_name = Some(value.to_owned()),
            "description" => snapshot.description = Some(value.to_owned()),
            "type" => snapshot.kind = Some(number(value, place)?),
            "createtimehigh" => self.time_high = Some(number(value, place)?),
            "createtimelow" => self.time_low = Some(number(value, place)?),
            _ => {
                if let Some((index, field)) = indexed(field, "disk") {
                    let disk = self.disks.entry(index).or_default();
                    match field {
                        "filename" => disk.file = Some(value.to_owned()),
                        "node" => disk.node = Some(value.to_owned()),
                        _ => {}
                    }
                } else if let Some(index) = field.strip_prefix("clone").and_then(|index| index.parse().ok()) {
                    self.clones.insert(index, value.to_owned());
                }
            }
        }
        Ok(())
    }

    fn finish(self, index: u64) -> Option<Snapshot> {
        let created_us = self.time_high.zip(self.time_low).map(|(high, low)| (high << 32) | (low & 0xffff_ffff));
        let (disks, clones) = (self.disks.into_values().collect(), self.clones.into_values().collect());
        Some(Snapshot { index, uid: self.uid?, created_us, disks, clones, ..self.snapshot })
    }
}

/// `snapshot12.uid` is 12 and `uid`.
fn indexed<'a>(name: &'a str, prefix: &str) -> Option<(u64, &'a str)> {
    let (index, field) = name.strip_prefix(prefix)?.split_once('.')?;
    let is_number = index.bytes().all(|byte| byte.is_ascii_digit());
    index.parse().ok().filter(|_| is_number).map(|index| (index, field))
}

fn number<T: core::str::FromStr>(value: &str, place: Place) -> Result<T, Error> {
    value.trim().parse().map_err(|_| Error::Value {
        what: "a number in the snapshot list",
        found: value.to_owned(),
        place,
    })
}

/// Whatever the bytes: it ends, and every snapshot is reached from a root or is told to be in a cycle.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let Ok(list) = SnapshotList::parse(&Dictionary::parse(data)) else { return };
    let has_cycle = list.problems.iter().any(|problem| matches!(problem, Problem::Cycle { .. }));
    for snapshot in list.snapshots.iter().take(64) {
        let last = list.ancestry(snapshot.uid).last();
        let is_root = last.is_some_and(|last| list.roots().any(|root| root.uid == last.uid));
        assert!(is_root || has_cycle);
        assert!(list.children(snapshot.uid).count() <= list.snapshots.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> SnapshotList {
        SnapshotList::parse(&Dictionary::parse(text.as_bytes())).unwrap()
    }

    #[test]
    fn a_tree_is_walked_both_ways() {
        let list = list(
            "snapshot.current = 3\nsnapshot.numSnapshots = 4\nsnapshot5.uid=1\nsnapshot0.uid = 2\nsnapshot0.parent = 1\n\
             Snapshot7.UID = 3\nsnapshot7.parent = 1\nsnapshot9.uid = 4\nsnapshot9.clone0 = \"/a/b.vmx\"\n",
        );
        let uids = |snapshots: Vec<&Snapshot>| snapshots.iter().map(|snapshot| snapshot.uid).collect::<Vec<_>>();
        assert_eq!(list.problems, []);
        assert_eq!(uids(list.roots().collect()), [1, 4]);
        assert_eq!(uids(list.children(1).collect()), [2, 3]);
        assert_eq!(uids(list.ancestry(3).collect()), [3, 1]);
        assert_eq!(list.snapshot(4).unwrap().clones, ["/a/b.vmx"]);
    }

    /// Found by fuzzing: the check for cycles saw the last snapshot of a UID, and walks see the first.
    #[test]
    fn a_cycle_is_told_where_a_second_snapshot_of_its_uid_is_a_root() {
        let list = list(
            "snapshot1.uid = 2\nsnapshot1.parent = 1\nsnapshot2.uid = 1\nsnapshot2.parent = 2\nsnapshot5.uid = 2\n",
        );
        assert!(list.problems.contains(&Problem::DuplicateUid { uid: 2 }));
        assert!(list.problems.iter().any(|problem| matches!(problem, Problem::Cycle { .. })), "{:?}", list.problems);
        assert_eq!(list.ancestry(2).count(), 2);
    }

    #[test]
    fn damage_is_told_and_does_not_hang() {
        let list = list(
            "snapshot.numSnapshots = 9\nsnapshot.current = 8\nsnapshot0.uid = 1\nsnapshot0.parent = 2\nsnapshot1.uid = 2\n\
             snapshot1.parent = 1\nsnapshot2.uid = 3\nsnapshot2.parent = 7\nsnapshot3.uid = 3\nsnapshot4.displayName = x\n\
             snapshot6.uid = 6\nsnapshot6.parent = 1\n",
        );
        for wanted in [
            Problem::Count { said: 9, found: 5 },
            Problem::Cycle { uid: 1 },
            Problem::DuplicateUid { uid: 3 },
            Problem::NoUid { index: 4 },
            Problem::NotThere { uid: 7, by: "snapshot2.parent".to_owned() },
            Problem::NotThere { uid: 8, by: "snapshot.current".to_owned() },
        ] {
            assert!(list.problems.contains(&wanted), "{wanted}: {:?}", list.problems);
        }
        assert_eq!(list.ancestry(1).count(), 2);
        assert_eq!(SnapshotList::parse(&Dictionary::new()).unwrap(), SnapshotList::default());
        let error = SnapshotList::parse(&Dictionary::parse(b"\nsnapshot0.uid = x")).unwrap_err();
        assert!(error.to_string().starts_with("line 2, column 17: a number"), "{error}");
    }
}

//! The snapshot tree of a VM, as its VMSD lists it.

use std::collections::{BTreeMap, BTreeSet};

use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::inventory::Snapshots;
use crate::vmx::{Entries, companion};

/// The snapshots that the VMSD lists; disks with a parent count as a snapshot that the VMSD has lost.
pub(crate) fn snapshots(storage: &dyn Storage, vmx: &StoragePath, on_links: bool) -> Result<Snapshots, Error> {
    let path = companion(vmx, "vmsd")?;
    let mut parents: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut current = None;
    if storage.metadata(&path)?.is_some() {
        let entries = Entries::read(storage, &path)?;
        current = entries.value("snapshot.current").map(str::to_owned);
        for (name, uid) in entries.iter() {
            let Some(index) = snapshot_index(name) else { continue };
            let parent = entries.value(&format!("snapshot{index}.parent")).map(str::to_owned);
            parents.insert(uid.to_owned(), parent);
        }
    }
    if parents.is_empty() {
        return Ok(if on_links { Snapshots::OneBranch { count: 1 } } else { Snapshots::None });
    }
    let with_child: BTreeSet<&String> = parents.values().flatten().collect();
    let leaves = parents.keys().filter(|uid| !with_child.contains(uid)).count();
    // The running disk hangs below the current snapshot: where that has other children, it is a branch of its own.
    let reverted = current.is_some_and(|uid| parents.contains_key(&uid) && with_child.contains(&uid));
    let count = parents.len();
    match leaves + usize::from(reverted) {
        _ if leaves == 0 => Err(Error::Vm {
            path: path.to_string(),
            what: "each snapshot in it is the child of another; restore it from a copy".to_owned(),
        }),
        1 => Ok(Snapshots::OneBranch { count }),
        branch_count => Ok(Snapshots::SeveralBranches { count, branch_count }),
    }
}

/// The index in `snapshot3.uid`.
fn snapshot_index(name: &str) -> Option<u32> {
    name.strip_prefix("snapshot")?.strip_suffix(".uid")?.parse().ok()
}

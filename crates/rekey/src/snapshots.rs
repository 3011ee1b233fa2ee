//! The snapshot tree of a VM, as its VMSD lists it.

use std::collections::BTreeMap;

use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::inventory::Snapshots;
use crate::survey::{companion, read_dictionary, text};

/// The snapshots that the VMSD lists; disks with a parent count as a snapshot that the VMSD has lost.
pub(crate) fn snapshots(storage: &dyn Storage, vmx: &StoragePath, on_links: bool) -> Result<Snapshots, Error> {
    let path = companion(vmx, "vmsd")?;
    let mut parents: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut current = None;
    if storage.metadata(&path)?.is_some() {
        let dictionary = read_dictionary(storage, &path)?;
        current = text(&dictionary, &path, "snapshot.current")?;
        for (name, value) in dictionary.entries() {
            let Some(index) = snapshot_index(&name) else { continue };
            let uid = String::from_utf8_lossy(&value).into_owned();
            let parent = text(&dictionary, &path, &format!("snapshot{index}.parent"))?;
            parents.insert(uid, parent);
        }
    }
    if parents.is_empty() {
        return Ok(if on_links { Snapshots::OneBranch { count: 1 } } else { Snapshots::None });
    }
    let has_child = |uid: &String| parents.values().any(|parent| parent.as_ref() == Some(uid));
    let leaves = parents.keys().filter(|uid| !has_child(uid)).count();
    // The running disk hangs below the current snapshot: where that has other children, it is a branch of its own.
    let reverted = current.is_some_and(|uid| parents.contains_key(&uid) && has_child(&uid));
    Ok(match leaves + usize::from(reverted) {
        0 | 1 => Snapshots::OneBranch { count: parents.len() },
        branch_count => Snapshots::SeveralBranches { count: parents.len(), branch_count },
    })
}

/// The index in `snapshot3.uid`.
fn snapshot_index(name: &[u8]) -> Option<u32> {
    let lower = core::str::from_utf8(name).ok()?.to_ascii_lowercase();
    lower.strip_prefix("snapshot")?.strip_suffix(".uid")?.parse().ok()
}

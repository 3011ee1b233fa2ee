//! The snapshot tree of a VM, as its VMSD lists it.

use std::collections::BTreeSet;

use vmseal_formats::{Dictionary, Problem, SnapshotList};
use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::inventory::Snapshots;
use crate::vmx::{DICTIONARY_LEN_MAX, companion};

/// The snapshots that the VMSD lists; disks with a parent count as a snapshot that the VMSD has lost.
pub(crate) fn snapshots(storage: &dyn Storage, vmx: &StoragePath, on_links: bool) -> Result<Snapshots, Error> {
    let path = companion(vmx, "vmsd")?;
    let list = match storage.metadata(&path)? {
        None => SnapshotList::default(),
        Some(_) => SnapshotList::parse(&Dictionary::parse(&storage.read(&path, DICTIONARY_LEN_MAX)?))
            .map_err(|source| Error::Format { path: path.to_string(), source })?,
    };
    if let Some(cycle) = list.problems.iter().find(|problem| matches!(problem, Problem::Cycle { .. })) {
        return Err(Error::Vm { path: path.to_string(), what: format!("{cycle}; restore it from a copy") });
    }
    let uids: BTreeSet<u64> = list.snapshots.iter().map(|snapshot| snapshot.uid).collect();
    let with_child: BTreeSet<u64> = list.snapshots.iter().filter_map(|snapshot| snapshot.parent_uid).collect();
    let leaf_count = uids.difference(&with_child).count();
    // The running disk hangs below the current snapshot: where that has other children, it is a branch of its own.
    let is_reverted = list.current_uid.is_some_and(|uid| uids.contains(&uid) && with_child.contains(&uid));
    let count = uids.len();
    Ok(match leaf_count + usize::from(is_reverted) {
        0 if on_links => Snapshots::OneBranch { count: 1 },
        0 => Snapshots::None,
        1 => Snapshots::OneBranch { count },
        branch_count => Snapshots::SeveralBranches { count, branch_count },
    })
}

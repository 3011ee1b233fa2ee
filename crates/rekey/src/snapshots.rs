//! The snapshot tree of a VM: as its VMSD lists it, and as the disk descriptors show it.

use std::collections::{BTreeMap, BTreeSet};

use vmseal_disk::{DiskLayout, find_parent};
use vmseal_formats::{Dictionary, Problem, SnapshotList};
use vmseal_storage::{Storage, StoragePath};

use crate::chain;
use crate::error::Error;
use crate::inventory::{Snapshots, VmDisk};
use crate::vmx::{DICTIONARY_LEN_MAX, companion};

/// Files that are looked at for links that the VMX does not lead to. A VM has some dozens.
const FILES_MAX: usize = 4096;

/// How many snapshots there are, and on how many branches.
#[derive(Clone, Copy, Debug, Default)]
struct Tree {
    count: usize,
    branch_count: usize,
}

/// The snapshots that the VMSD lists or the descriptors show, whichever are more: either may have been lost. `others` are files of other VMs.
pub(crate) fn snapshots(
    storage: &dyn Storage,
    vmx: &StoragePath,
    disks: &[VmDisk],
    others: &BTreeMap<String, String>,
) -> Result<Snapshots, Error> {
    let (listed, shown) = (listed(storage, vmx)?, shown(storage, disks, others)?);
    let count = listed.count.max(shown.count);
    Ok(match listed.branch_count.max(shown.branch_count) {
        0 => Snapshots::None,
        1 => Snapshots::OneBranch { count },
        branch_count => Snapshots::SeveralBranches { count, branch_count },
    })
}

/// What the VMSD lists.
fn listed(storage: &dyn Storage, vmx: &StoragePath) -> Result<Tree, Error> {
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
    Ok(Tree { count: uids.len(), branch_count: leaf_count + usize::from(is_reverted) })
}

/// What the descriptors show: the chains of the attached disks, and the links beside them that hang on one of those.
fn shown(storage: &dyn Storage, disks: &[VmDisk], others: &BTreeMap<String, String>) -> Result<Tree, Error> {
    let strays = stray_links(storage, disks, others)?;
    let mut tree = Tree::default();
    for disk in disks {
        let chain: Vec<&str> = disk.chain().map(|link| link.path).collect();
        let mut members: BTreeSet<&str> = chain.iter().copied().collect();
        let mut with_child: BTreeSet<&str> = chain.iter().skip(1).copied().collect();
        // A stray link may hang on another one.
        let mut is_growing = true;
        while is_growing {
            is_growing = false;
            for (child, parent) in &strays {
                if members.contains(parent.as_str()) {
                    is_growing |= members.insert(child);
                    with_child.insert(parent);
                }
            }
        }
        // An attached disk that has children is a branch of its own: what the guest writes goes there.
        let is_reverted = with_child.contains(disk.path.as_str());
        let branch_count = members.difference(&with_child).count() + usize::from(is_reverted);
        tree.count = tree.count.max(with_child.len());
        if !with_child.is_empty() {
            tree.branch_count = tree.branch_count.max(branch_count);
        }
    }
    Ok(tree)
}

/// The links in the folders of the disks that no attached disk leads to, and that no other VM uses: each with its parent, where that has
/// not changed since.
fn stray_links(
    storage: &dyn Storage,
    disks: &[VmDisk],
    others: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, Error> {
    let mut known: BTreeSet<&str> = disks.iter().flat_map(VmDisk::chain).map(|link| link.path).collect();
    let paths: Vec<StoragePath> = known.iter().map(|path| StoragePath::new(path)).collect::<Result<_, _>>()?;
    let folders: BTreeSet<StoragePath> = paths.iter().map(StoragePath::folder).collect();
    known.extend(disks.iter().flat_map(|disk| &disk.extents).map(String::as_str));
    let mut links = Vec::new();
    let mut seen = 0;
    for folder in folders {
        for name in storage.list(&folder)? {
            let Ok(path) = folder.join(&name) else { continue };
            let is_disk = name.to_ascii_lowercase().ends_with(".vmdk");
            if !is_disk || known.contains(path.as_str()) || others.contains_key(path.as_str()) || seen == FILES_MAX {
                continue;
            }
            seen += 1;
            // Extents have no descriptor; what cannot be read is no disk that anybody could use.
            let Ok((descriptor, _)) = DiskLayout::read_descriptor(storage, &path) else { continue };
            let Some((cid, hint)) = chain::parent_of(&descriptor) else { continue };
            let Some(parent) = find_parent(storage, &path, &hint)? else { continue };
            // A child whose parent was written to is lost already.
            if DiskLayout::read_descriptor(storage, &parent).is_ok_and(|(descriptor, _)| descriptor.cid() == cid) {
                links.push((path.to_string(), parent.to_string()));
            }
        }
    }
    Ok(links)
}

//! Other VMs that use a disk of this one.

use std::collections::{BTreeMap, BTreeSet};

use vmseal_disk::DiskLayout;
use vmseal_storage::{Kind, Storage, StoragePath};

use crate::chain;
use crate::error::Error;
use crate::inventory::VmDisk;
use crate::vmx::Entries;

/// Other VMs in reach that are looked at.
const NEIGHBOURS_MAX: usize = 256;
/// Folders beside the VM's that are looked into.
const FOLDERS_MAX: usize = 256;

/// Each file that another VM's disks, down to the last parent, consist of, with the VMX of one that uses it.
///
/// In reach are VMs in the folders of this VM and its disks, and in the folders beside this VM's: a linked clone has a folder of its own. What
/// lies outside the storage, or further away in it, cannot be seen.
pub(crate) fn used_files(
    storage: &dyn Storage,
    vmx: &StoragePath,
    disks: &[VmDisk],
) -> Result<BTreeMap<String, String>, Error> {
    let mut used = BTreeMap::new();
    let mut seen = 0;
    for folder in folders(storage, vmx, disks)? {
        // Only the VM's own folder has to be readable.
        let Ok(names) = storage.list(&folder) else { continue };
        for name in names {
            let Ok(other) = folder.join(&name) else { continue };
            if other == *vmx || !name.to_ascii_lowercase().ends_with(".vmx") || seen == NEIGHBOURS_MAX {
                continue;
            }
            if !storage.metadata(&other)?.is_some_and(|metadata| metadata.kind == Kind::File) {
                continue;
            }
            seen += 1;
            // A neighbour that cannot be read is no reason to refuse work on this VM.
            let Ok(attached) = Entries::read(storage, &other).and_then(|entries| entries.disks()) else { continue };
            for (_, path) in attached {
                let ancestors = chain::ancestors(storage, &path);
                for link in core::iter::once(path).chain(ancestors) {
                    let files = DiskLayout::open(storage, &link).map(|layout| layout.files()).unwrap_or_default();
                    for file in files.iter().chain([&link]) {
                        used.insert(file.to_string(), other.to_string());
                    }
                }
            }
        }
    }
    Ok(used)
}

/// Marks the disks that are among `used`.
pub(crate) fn mark_shared(disks: &mut [VmDisk], used: &BTreeMap<String, String>) {
    for disk in disks {
        let links = disk.links.iter().map(|link| &link.path);
        let mut own = core::iter::once(&disk.path).chain(&disk.extents).chain(links);
        disk.shared_with = own.find_map(|file| used.get(file)).cloned();
    }
}

fn folders(storage: &dyn Storage, vmx: &StoragePath, disks: &[VmDisk]) -> Result<BTreeSet<StoragePath>, Error> {
    let of_disks = disks.iter().flat_map(VmDisk::chain).filter_map(|link| StoragePath::new(link.path).ok());
    let mut folders: BTreeSet<StoragePath> = of_disks.map(|path| path.folder()).collect();
    let own = vmx.folder();
    if !own.is_root()
        && let Ok(names) = storage.list(&own.folder())
    {
        for path in names.iter().take(FOLDERS_MAX).filter_map(|name| own.folder().join(name).ok()) {
            if storage.metadata(&path)?.is_some_and(|metadata| metadata.kind == Kind::Folder) {
                folders.insert(path);
            }
        }
    }
    folders.insert(own);
    Ok(folders)
}

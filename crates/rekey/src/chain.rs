//! The disks that a snapshot link depends on.

use vmseal_disk::{DiskLayout, find_parent};
use vmseal_formats::Descriptor;
use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::inventory::Link;
use crate::survey::disk_encryption;

/// ESXi allows 32 snapshots in a chain; hosted products more, but not this many.
const DEPTH_MAX: usize = 256;

/// What lies below a disk.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// The disks below it, nearest first.
    pub(crate) links: Vec<Link>,
    /// The first parent outside the VM's folder, as its child names it: the VM is a linked clone.
    pub(crate) outside: Option<String>,
}

/// Follows the parents of a disk for as long as they lie in the VM's folder.
pub(crate) fn follow(
    storage: &dyn Storage,
    folder: &StoragePath,
    path: &StoragePath,
    descriptor: &Descriptor,
) -> Result<Chain, Error> {
    let mut chain = Chain::default();
    let mut child = path.clone();
    let mut parent = parent_of(descriptor);
    while let Some((cid, hint)) = parent {
        let Some(found) = find_parent(storage, &child, &hint)? else {
            // A parent that only its own hypervisor can find is another VM's, as far as one can tell.
            if is_elsewhere(&hint) {
                chain.outside = Some(hint);
                return Ok(chain);
            }
            let what = format!("its parent {hint} is missing; restore it, or correct parentFileNameHint");
            return Err(Error::Vm { path: child.to_string(), what });
        };
        if !is_inside(&found, folder) {
            chain.outside = Some(found.to_string());
            return Ok(chain);
        }
        if found == *path
            || chain.links.iter().any(|link| link.path == found.as_str())
            || chain.links.len() == DEPTH_MAX
        {
            let what = format!("its chain of parents does not end ({hint}); restore the descriptors from a copy");
            return Err(Error::Vm { path: child.to_string(), what });
        }
        let (descriptor, _) = DiskLayout::read_descriptor(storage, &found)?;
        if descriptor.cid() != cid {
            let what = format!(
                "its parent {hint} has changed since the snapshot (CID {:08x}, expected {cid:08x}); restore one of the two",
                descriptor.cid()
            );
            return Err(Error::Vm { path: child.to_string(), what });
        }
        chain.links.push(Link { path: found.to_string(), encryption: disk_encryption(&descriptor, &found)? });
        parent = parent_of(&descriptor);
        child = found;
    }
    Ok(chain)
}

fn parent_of(descriptor: &Descriptor) -> Option<(u32, String)> {
    let cid = descriptor.parent_cid()?;
    Some((cid, descriptor.parent_hint().unwrap_or_else(|| "without a name".to_owned())))
}

fn is_inside(path: &StoragePath, folder: &StoragePath) -> bool {
    folder.is_root() || path.as_str().strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

/// A name that is more than a file's.
fn is_elsewhere(hint: &str) -> bool {
    hint.contains(['/', '\\'])
}

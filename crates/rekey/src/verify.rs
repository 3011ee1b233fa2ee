//! Checks that a VM can be opened: every key unwraps, every disk is whole, nothing is pending.

use vmseal_keys::KeySource;
use vmseal_storage::{Access, Storage, StoragePath};

use crate::error::Error;
use crate::inventory::{Encryption, Inventory};
use crate::prepare::check_given_phrase;
use crate::survey::survey;
use crate::unlock::{check_nothing_pending, unlock};

/// What was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Disks whose DEK unwraps, and whose extents are whole where the disk is no snapshot link.
    pub encrypted_disks: Vec<String>,
    /// Links below the disks whose DEK unwraps. Their extents are not looked at.
    pub encrypted_links: Vec<String>,
    /// Disks in the clear.
    pub plain_disks: Vec<String>,
    /// VM files whose envelope opens.
    pub sealed_files: Vec<String>,
}

/// Verifies the VM.
///
/// # Errors
/// The first thing that is not right.
pub fn verify(storage: &dyn Storage, vmx: &StoragePath, keys: &mut dyn KeySource) -> Result<Verified, Error> {
    check_nothing_pending(storage, vmx)?;
    let inventory = survey(storage, vmx)?;
    let mut verified = Verified::default();
    let unlocked = match &inventory.encryption {
        Encryption::None => return verify_plain(&inventory, verified),
        Encryption::Foreign { what } => return Err(Error::Vm { path: vmx.to_string(), what: what.clone() }),
        Encryption::Vmseal { .. } => unlock(storage, vmx, keys)?,
    };
    // Whoever gives a recovery password wants to know whether it is the right one.
    check_given_phrase(storage, vmx, keys)?;
    for disk in &inventory.disks {
        let path = StoragePath::new(&disk.path)?;
        for link in disk.chain() {
            match link.encryption {
                Encryption::Foreign { what } => {
                    return Err(Error::Vm { path: link.path.to_owned(), what: what.clone() });
                }
                Encryption::None if link.path == disk.path => verified.plain_disks.push(disk.path.clone()),
                Encryption::None => {}
                Encryption::Vmseal { .. } if link.path == disk.path && disk.links.is_empty() => {
                    unlocked.open_disk(storage, &path, Access::Read, keys)?;
                    verified.encrypted_disks.push(disk.path.clone());
                }
                Encryption::Vmseal { .. } => {
                    unlocked.check_key(storage, &StoragePath::new(link.path)?, keys)?;
                    let list = if link.path == disk.path {
                        &mut verified.encrypted_disks
                    } else {
                        &mut verified.encrypted_links
                    };
                    list.push(link.path.to_owned());
                }
            }
        }
    }
    for file in inventory.files.iter().filter(|file| file.sealed) {
        unlocked.read_file(storage, &StoragePath::new(&file.path)?)?;
        verified.sealed_files.push(file.path.clone());
    }
    Ok(verified)
}

/// A VM in the clear must not hold anything that is encrypted: its keys would be nowhere.
fn verify_plain(inventory: &Inventory, mut verified: Verified) -> Result<Verified, Error> {
    for disk in &inventory.disks {
        if let Some(link) = disk.chain().find(|link| !link.encryption.is_none()) {
            let what = match link.encryption {
                Encryption::Foreign { what } => what.clone(),
                _ => "the disk is encrypted, and the VM that it is attached to is not; detach it, or restore the VMX that has its keys from a copy".to_owned(),
            };
            return Err(Error::Vm { path: link.path.to_owned(), what });
        }
        verified.plain_disks.push(disk.path.clone());
    }
    if let Some(file) = inventory.files.iter().find(|file| file.sealed) {
        let what = "the file is encrypted, and the VM that it belongs to is not; restore the VMX from a copy";
        return Err(Error::Vm { path: file.path.clone(), what: what.to_owned() });
    }
    Ok(verified)
}

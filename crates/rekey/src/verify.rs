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
    /// Disks whose DEK unwraps and whose extents are whole.
    pub encrypted_disks: Vec<String>,
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
        match &disk.encryption {
            Encryption::Foreign { what } => return Err(Error::Vm { path: disk.path.clone(), what: what.clone() }),
            Encryption::None => verified.plain_disks.push(disk.path.clone()),
            Encryption::Vmseal { .. } => {
                unlocked.open_disk(storage, &path, Access::Read, keys)?;
                verified.encrypted_disks.push(disk.path.clone());
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
        if !disk.encryption.is_none() {
            let what = "the disk is encrypted, and the VM that it is attached to is not; restore the VMX from a copy";
            return Err(Error::Vm { path: disk.path.clone(), what: what.to_owned() });
        }
        verified.plain_disks.push(disk.path.clone());
    }
    if let Some(file) = inventory.files.iter().find(|file| file.sealed) {
        let what = "the file is encrypted, and the VM that it belongs to is not; restore the VMX from a copy";
        return Err(Error::Vm { path: file.path.clone(), what: what.to_owned() });
    }
    Ok(verified)
}

//! Opens an encrypted VM with the keys of its provider.

use vmseal_disk::{Disk, DiskCipher, DiskLayout, Encryption};
use vmseal_formats::envelope;
use vmseal_keys::KeySource;
use vmseal_storage::{Access, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::execute::lock_shared;
use crate::inventory::Pending;
use crate::material::{open_bundle, open_dek};
use crate::prepare::check_members;
use crate::secrets::VmSecrets;
use crate::stage::{VM_FILE_LEN_MAX, file_context};
use crate::survey::pending;
use crate::vmx::Entries;

/// A VM whose secrets are open.
#[derive(Debug)]
pub struct Unlocked {
    vmx: StoragePath,
    secrets: VmSecrets,
}

/// Opens the encrypted bundle of a VM. While a shallow recrypt is pending, whatever its phase, the keys of before and after are both needed: each
/// file has either.
///
/// # Errors
/// [`Error::Pending`] where an operation other than a shallow recrypt has to end first; [`Error::NotEncrypted`] where there is nothing to open; [`Error::Disagreement`]; [`Error::WrongKey`]
/// where no key opens it.
pub fn unlock(storage: &dyn Storage, vmx: &StoragePath, keys: &mut dyn KeySource) -> Result<Unlocked, Error> {
    let is_pending = check_usable(storage, vmx)?;
    let entries = Entries::read_vmx(storage, vmx)?;
    let list = entries.bundle().ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    let secrets = open_bundle(list, vmx.as_str(), keys)?;
    match check_members(storage, &entries, vmx, &secrets) {
        // A descriptor that a power cut tore is mended when the recrypt is completed.
        Err(Error::Disk(_)) if is_pending => check_nothing_pending(storage, vmx)?,
        result => result?,
    }
    Ok(Unlocked { vmx: vmx.clone(), secrets })
}

/// Opens a disk of the VM that is in the clear, by the path of its descriptor relative to the storage root.
///
/// # Errors
/// [`Error::Pending`] where an operation other than a shallow recrypt has to end first; [`Error::Disk`] where the disk is encrypted.
pub fn open_plain_disk<'s>(
    storage: &'s dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    access: Access,
) -> Result<Disk<'s>, Error> {
    let lock = (access == Access::ReadWrite).then(|| lock_shared(storage, vmx)).transpose()?;
    check_usable(storage, vmx)?;
    let disk = Disk::open(storage, path, None, access)?;
    Ok(match lock {
        Some(lock) => disk.holding(lock),
        None => disk,
    })
}

/// Whether the VM can be used although something is pending: a shallow recrypt touches no data, and every file is whole before and after it.
/// Anything else has to end first.
fn check_usable(storage: &dyn Storage, vmx: &StoragePath) -> Result<bool, Error> {
    match pending(storage, vmx)? {
        Some(pending) if pending.is_shallow() => Ok(true),
        _ => check_nothing_pending(storage, vmx).map(|()| false),
    }
}

pub(crate) fn check_nothing_pending(storage: &dyn Storage, vmx: &StoragePath) -> Result<(), Error> {
    let Some(Pending { operation, committed, running, .. }) = pending(storage, vmx)? else { return Ok(()) };
    Err(Error::Pending { vmx: vmx.to_string(), operation, committed, running })
}

impl Unlocked {
    /// The secrets of the VM.
    pub fn secrets(&self) -> &VmSecrets {
        &self.secrets
    }

    /// Opens one of the VM's disks, by the path of its descriptor relative to the storage root. A disk in the clear is opened as it is.
    ///
    /// # Errors
    /// [`Error::WrongDisk`] where the disk's keys are another disk's; [`Error::WrongKey`] where no key opens them.
    pub fn open_disk<'s>(
        &self,
        storage: &'s dyn Storage,
        path: &StoragePath,
        access: Access,
        keys: &mut dyn KeySource,
    ) -> Result<Disk<'s>, Error> {
        // Who writes keeps conversions away for as long as the disk is open.
        let lock = match access {
            Access::Read => None,
            Access::ReadWrite => {
                let lock = lock_shared(storage, &self.vmx)?;
                check_usable(storage, &self.vmx)?;
                Some(lock)
            }
        };
        let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
        let cipher = self.cipher(path, Encryption::from_descriptor(&descriptor)?.as_ref(), keys)?;
        let disk = Disk::open(storage, path, cipher, access)?;
        Ok(match lock {
            Some(lock) => disk.holding(lock),
            None => disk,
        })
    }

    /// Checks that the DEK of a disk or link unwraps and is the VM's, whatever its data.
    pub(crate) fn check_key(
        &self,
        storage: &dyn Storage,
        path: &StoragePath,
        keys: &mut dyn KeySource,
    ) -> Result<(), Error> {
        let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
        self.cipher(path, Encryption::from_descriptor(&descriptor)?.as_ref(), keys).map(drop)
    }

    /// The cipher of a disk or link, by its own locator list. Every encrypted one has to be the VM's.
    pub(crate) fn cipher(
        &self,
        path: &StoragePath,
        encryption: Option<&Encryption>,
        keys: &mut dyn KeySource,
    ) -> Result<Option<DiskCipher>, Error> {
        let Some(encryption) = encryption else { return Ok(None) };
        let known = self.secrets.disk_id(path.as_str());
        if !self.secrets.has_disk(encryption.id()) || known.is_some_and(|id| id != encryption.id()) {
            return Err(Error::WrongDisk { path: path.to_string() });
        }
        Ok(Some(DiskCipher::new(&open_dek(encryption, path.as_str(), keys)?, encryption.unit())?))
    }

    /// The content of a VM file (NVRAM), taken out of its envelope.
    ///
    /// # Errors
    /// [`Error::Format`] where the file is damaged or not this VM's.
    pub fn read_file(&self, storage: &dyn Storage, path: &StoragePath) -> Result<Zeroizing<Vec<u8>>, Error> {
        let bytes = storage.read(path, VM_FILE_LEN_MAX)?;
        match self.secrets.file_key(path.as_str()) {
            None if envelope::is_envelope(&bytes) => Err(Error::SealedFile { path: path.to_string(), sealed: true }),
            None => Ok(Zeroizing::new(bytes)),
            Some(key) => envelope::open(key, &file_context(&self.secrets), &bytes)
                .map_err(|source| Error::Format { path: path.to_string(), source }),
        }
    }

    /// The VMX of the VM.
    pub fn vmx(&self) -> &StoragePath {
        &self.vmx
    }
}

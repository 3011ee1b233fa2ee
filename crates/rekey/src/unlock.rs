//! Opens an encrypted VM with the keys of its provider.

use vmseal_disk::{Disk, DiskCipher, Encryption};
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

/// Opens the encrypted bundle of a VM.
///
/// # Errors
/// [`Error::Pending`] where an operation has to end first; [`Error::NotEncrypted`] where there is nothing to open; [`Error::Disagreement`]; [`Error::WrongKey`]
/// where no key opens it.
pub fn unlock(storage: &dyn Storage, vmx: &StoragePath, keys: &mut dyn KeySource) -> Result<Unlocked, Error> {
    check_nothing_pending(storage, vmx)?;
    let entries = Entries::read_vmx(storage, vmx)?;
    let list = entries.bundle().ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    let secrets = open_bundle(list, vmx.as_str(), keys)?;
    check_members(storage, &entries, vmx, &secrets)?;
    Ok(Unlocked { vmx: vmx.clone(), secrets })
}

/// Opens a disk of the VM that is in the clear, with all of its parents, by the path of its descriptor relative to the storage root.
///
/// # Errors
/// [`Error::Pending`] where an operation has to end first; [`Error::Disk`] where the disk or a parent is encrypted, or the chain broken.
pub fn open_plain_disk<'s>(
    storage: &'s dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    access: Access,
) -> Result<Disk<'s>, Error> {
    let lock = (access == Access::ReadWrite).then(|| lock_shared(storage, vmx)).transpose()?;
    check_nothing_pending(storage, vmx)?;
    let disk = Disk::open_chain::<Error>(storage, path, access, &mut |_, _| Ok(None))?;
    Ok(match lock {
        Some(lock) => disk.holding(lock),
        None => disk,
    })
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

    /// Opens one of the VM's disks with all of its parents, by the path of its descriptor relative to the storage root. Each link is opened with
    /// its own keys; writes go to the disk itself, never to a parent. A disk in the clear is opened as it is.
    ///
    /// # Errors
    /// [`Error::WrongDisk`] where the keys of a link are another disk's; [`Error::WrongKey`] where no key opens them; [`Error::Disk`] where the
    /// chain is broken, or some links are encrypted and some are not.
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
                check_nothing_pending(storage, &self.vmx)?;
                Some(lock)
            }
        };
        let disk =
            Disk::open_chain(storage, path, access, &mut |link, encryption| self.cipher(link, encryption, keys))?;
        Ok(match lock {
            Some(lock) => disk.holding(lock),
            None => disk,
        })
    }

    /// Opens what is left of one of the VM's damaged disks, for reading: see [`Disk::open_salvage`].
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk), but for what is wrong with the chain and the extents.
    pub fn open_salvage<'s>(
        &self,
        storage: &'s dyn Storage,
        path: &StoragePath,
        keys: &mut dyn KeySource,
    ) -> Result<Disk<'s>, Error> {
        Disk::open_salvage(storage, path, &mut |link, encryption| self.cipher(link, encryption, keys))
    }

    /// The cipher of a link, by its own locator list. Every encrypted link has to be one of the VM's.
    fn cipher(
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

    /// What one of the VM's encrypted disks says of its encryption, and its DEK, for what enciphers elsewhere.
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk); [`Error::DiskRefused`] for disks in the clear and links of a snapshot.
    pub fn disk_key(
        &self,
        storage: &dyn Storage,
        path: &StoragePath,
        keys: &mut dyn KeySource,
    ) -> Result<(vmseal_disk::Encryption, vmseal_keys::Dek), Error> {
        crate::fill::open_disk(storage, &self.secrets, path, keys)
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

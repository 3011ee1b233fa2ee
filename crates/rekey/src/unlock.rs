//! Opens an encrypted VM with the keys of its provider.

use vmseal_disk::{Disk, DiskCipher, DiskLayout, Encryption, LinkCiphers};
use vmseal_formats::envelope;
use vmseal_keys::{KeyId, KeySource};
use vmseal_storage::{Access, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::execute::hold_disks;
use crate::inventory::{Inventory, Pending};
use crate::material::{open_bundle, open_dek};
use crate::prepare::check_members;
use crate::secrets::VmSecrets;
use crate::stage::{VM_FILE_LEN_MAX, file_context};
use crate::survey::{pending, survey};
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

/// The same of a VM of which files may be missing or damaged, for [`Unlocked::open_salvage`].
///
/// # Errors
/// As [`unlock`], but for what is wrong with the VM's other files.
pub fn unlock_damaged(storage: &dyn Storage, vmx: &StoragePath, keys: &mut dyn KeySource) -> Result<Unlocked, Error> {
    check_nothing_pending(storage, vmx)?;
    let entries = Entries::read_vmx(storage, vmx)?;
    let list = entries.bundle().ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    Ok(Unlocked { vmx: vmx.clone(), secrets: open_bundle(list, vmx.as_str(), keys)? })
}

/// The KEKs that open the VM and, as far as they can be read, its disk `path`.
///
/// # Errors
/// Where the VMX cannot be read.
pub fn key_ids(storage: &dyn Storage, vmx: &StoragePath, path: &StoragePath) -> Result<Vec<KeyId>, Error> {
    let mut ids = Entries::read_vmx(storage, vmx)?.key_list()?.map_or_else(Vec::new, |list| list.key_ids());
    ids.extend(survey(storage, vmx).iter().flat_map(Inventory::key_ids));
    if let Ok((descriptor, _)) = DiskLayout::read_descriptor(storage, path)
        && let Ok(Some(encryption)) = Encryption::from_descriptor(&descriptor)
    {
        ids.extend(encryption.keys().key_ids());
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Opens a disk of the VM that is in the clear, with all of its parents, by the path of its descriptor relative to the storage root.
///
/// # Errors
/// [`Error::Pending`] where an operation other than a shallow recrypt has to end first; [`Error::Disk`] where the disk or a parent is encrypted, or the chain broken.
pub fn open_plain_disk<'s>(
    storage: &'s dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    access: Access,
) -> Result<Disk<'s>, Error> {
    check_usable(storage, vmx)?;
    open_chain(storage, vmx, path, access, &mut |_, _| Ok(None))
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

/// Opens a disk with its parents. Who writes keeps conversions away for as long as the disk is open, and gives it a new content ID at once: the
/// descriptor is a shallow recrypt's from then on.
fn open_chain<'s>(
    storage: &'s dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    access: Access,
    keys: &mut LinkCiphers<'_, Error>,
) -> Result<Disk<'s>, Error> {
    if access == Access::Read {
        return Disk::open_chain(storage, path, access, keys);
    }
    let (disk, lock) = hold_disks(storage, vmx, || {
        check_usable(storage, vmx)?;
        let mut disk = Disk::open_chain(storage, path, access, keys)?;
        disk.change_content_id()?;
        Ok::<_, Error>(disk)
    })?;
    Ok(disk.holding(lock))
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
        open_chain(storage, &self.vmx, path, access, &mut |link, encryption| self.cipher(link, encryption, keys))
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

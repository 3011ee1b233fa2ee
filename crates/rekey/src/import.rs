//! A new disk of a VM, which is written before the VM knows it.
//!
//! 1. [`make_disk`]: an empty disk. Of an encrypted VM it is encrypted from its first byte on: the wrapped DEK is in the descriptor before anything is
//!    written. The VM's bundle does not name it, so that it opens for [`open_new_disk`] alone.
//! 2. [`open_new_disk`]: the disk is written.
//! 3. [`complete_disk`]: the VMX is replaced by one whose bundle names the disk: the commit point.

use vmseal_disk::{DescriptorPlace, Disk, DiskCipher, DiskId, DiskLayout, Encryption, HolePolicy, NewDisk, UnitSize};
use vmseal_formats::{KeyList, Locator};
use vmseal_keys::{Dek, KeyId, KeySource, system_rng};
use vmseal_storage::{Access, Storage, StoragePath};

use crate::adopt::vmx_with_disk;
use crate::error::Error;
use crate::execute::lock;
use crate::fill::{open_idle_in_part, relock};
use crate::material::open_dek;
use crate::secrets::random_id;
use crate::stage::embedded;
use crate::unlock::check_nothing_pending;
use crate::vmx::Entries;

/// What [`make_disk`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportedDisk {
    /// A disk in the clear, of a VM that is not encrypted.
    Plain,
    /// An encrypted one.
    Encrypted,
}

/// Makes an empty disk whose descriptor is `path`. Its DEK is wrapped under the VM's KEK, or under the one with `key_id`.
///
/// # Errors
/// [`Error::DiskRefused`] where the name is taken or the VM is not powered off; [`Error::NotEncrypted`] where a key is named and the VM is in the clear;
/// where the key cannot be had. What was made is removed then.
pub fn make_disk(
    storage: &dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    disk: &NewDisk,
    unit: UnitSize,
    key_id: Option<&KeyId>,
    keys: &mut dyn KeySource,
) -> Result<ImportedDisk, Error> {
    let _lock = lock(storage, vmx)?;
    check_nothing_pending(storage, vmx)?;
    for file in disk.files(path)? {
        if storage.metadata(&file)?.is_some() {
            let what = "it is there already; name another disk".to_owned();
            return Err(Error::DiskRefused { path: file.to_string(), what });
        }
    }
    if Entries::read_vmx(storage, vmx)?.bundle().is_none() {
        if key_id.is_some() {
            return Err(Error::NotEncrypted { vmx: vmx.to_string() });
        }
        return made(
            storage,
            path,
            disk,
            disk.create(storage, path).map_err(Error::Disk).map(|()| ImportedDisk::Plain),
        );
    }
    let (entries, _) = open_idle_in_part(storage, vmx, keys)?;
    let old_bundle = entries.key_list()?.ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    let rng = &mut system_rng();
    let dek = Dek::generate(rng)?;
    let id = DiskId::from_bytes(random_id(rng)?);
    let text = Encryption::dek_text(id, unit, HolePolicy::Zero, &dek);
    let mut list = relock(&old_bundle, &text, path, keys)?;
    if let Some(key_id) = key_id {
        let kek = keys.fetch(key_id)?;
        list.retain(|pair| matches!(pair.locker, Locator::Phrase { .. }));
        let phrases = core::mem::take(&mut list);
        list.push(
            KeyList::lock_under(key_id, &kek, &text, rng)
                .map_err(|source| Error::Format { path: path.to_string(), source })?,
        );
        for pair in phrases.phrase_pairs() {
            list.push(pair.clone());
        }
    }
    let encryption = Encryption::new(id, unit, HolePolicy::Zero, list);
    let result =
        disk.create(storage, path).map_err(Error::Disk).and_then(|()| write_entries(storage, path, &encryption));
    made(storage, path, disk, result.map(|()| ImportedDisk::Encrypted))
}

/// Leaves nothing of a disk that could not be made.
fn made<T>(storage: &dyn Storage, path: &StoragePath, disk: &NewDisk, result: Result<T, Error>) -> Result<T, Error> {
    if result.is_err() {
        for file in disk.files(path)? {
            if storage.metadata(&file)?.is_some() {
                storage.remove(&file)?;
            }
        }
        storage.sync_folder(&path.folder())?;
    }
    result
}

fn write_entries(storage: &dyn Storage, path: &StoragePath, encryption: &Encryption) -> Result<(), Error> {
    let (mut descriptor, place) = DiskLayout::read_descriptor(storage, path)?;
    encryption.write_to(&mut descriptor);
    if Encryption::from_descriptor(&descriptor)?.as_ref() != Some(encryption) {
        let what = "its descriptor cannot hold the entries of an encrypted disk".to_owned();
        return Err(Error::DiskRefused { path: path.to_string(), what });
    }
    match place {
        DescriptorPlace::OwnFile => storage.replace(path, &descriptor.to_bytes())?,
        DescriptorPlace::Embedded { offset_bytes, len_bytes } => {
            let file = storage.open(path, Access::ReadWrite)?;
            file.write_at(&embedded(&descriptor, path, len_bytes)?, offset_bytes)?;
            file.sync()?;
        }
    }
    let layout = DiskLayout::open(storage, path)?;
    Ok(layout.check_unit(encryption.unit())?)
}

/// Opens a disk that [`make_disk`] made, for writing. No operation on the VM begins for as long as it is open.
///
/// # Errors
/// [`Error::DiskRefused`] where the VM knows the disk already; [`Error::WrongKey`].
pub fn open_new_disk<'s>(
    storage: &'s dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<Disk<'s>, Error> {
    let lock = lock(storage, vmx)?;
    check_nothing_pending(storage, vmx)?;
    let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
    let cipher = match Encryption::from_descriptor(&descriptor)? {
        None => None,
        Some(encryption) => {
            let (_, secrets) = open_idle_in_part(storage, vmx, keys)?;
            if secrets.has_disk(encryption.id()) {
                let what = "it is one of the VM's disks already".to_owned();
                return Err(Error::DiskRefused { path: path.to_string(), what });
            }
            Some(DiskCipher::new(&open_dek(&encryption, path.as_str(), keys)?, encryption.unit())?)
        }
    };
    Ok(Disk::open(storage, path, cipher, Access::ReadWrite)?.holding(lock))
}

/// Makes a disk that [`make_disk`] made one of the VM's.
///
/// # Errors
/// As [`open_new_disk`]; where storage fails, the next call completes it.
pub fn complete_disk(
    storage: &dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<(), Error> {
    let _lock = lock(storage, vmx)?;
    let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
    let Some(encryption) = Encryption::from_descriptor(&descriptor)? else { return Ok(()) };
    let (entries, secrets) = open_idle_in_part(storage, vmx, keys)?;
    if secrets.has_disk(encryption.id()) {
        return Ok(());
    }
    let (new_vmx, _) = vmx_with_disk(vmx, &entries, &secrets, path, encryption.id(), keys)?;
    // commit point:
    Ok(storage.replace(vmx, &new_vmx)?)
}

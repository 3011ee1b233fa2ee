//! A disk that something else has enciphered as vmseal does becomes a disk of an encrypted VM: no byte of its data moves.
//!
//! 1. The descriptor is written beside the data, with the DEK wrapped under the VM's KEK. A crash here leaves a descriptor that no VM
//!    knows; remove it and begin again.
//! 2. The VMX is replaced by one whose bundle names the disk: the commit point.

use vmseal_disk::{Disk, DiskCipher, DiskId, DiskLayout, Encryption, HolePolicy, UnitSize};
use vmseal_formats::{CreateType, Extent, NewDescriptor};
use vmseal_keys::{Dek, KeySource, system_rng};
use vmseal_storage::{Access, Storage, StoragePath};

use crate::error::Error;
use crate::execute::lock;
use crate::fill::{open_idle, relock};
use crate::plan::Operation;
use crate::record::Record;
use crate::secrets::random_id;
use crate::stage::new_vmx;
use crate::vmx::Entries;

/// Makes a disk of the encrypted VM, with its descriptor at `path`: the data of `extent`, a flat one, is XTS-AES-256 under `dek`, in data units of
/// 512 bytes. The VM's bundle knows the disk then; attaching it is left to whoever edits the VMX.
///
/// # Errors
/// [`Error::NotEncrypted`], [`Error::Pending`]; [`Error::DiskRefused`] where the VM is not powered off, the name is taken, or the data is in use;
/// [`Error::RecoveryPhraseNeeded`] where the VM has a recovery password that was not given. Nothing is left then.
pub fn adopt(
    storage: &dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    extent: Extent,
    dek: &Dek,
    keys: &mut dyn KeySource,
) -> Result<DiskId, Error> {
    let _lock = lock(storage, vmx)?;
    let (entries, secrets) = open_idle(storage, vmx, keys)?;
    let refused = |path: &StoragePath, what: String| Err(Error::DiskRefused { path: path.to_string(), what });
    if storage.metadata(path)?.is_some() {
        return refused(path, "it is there already; name another file".to_owned());
    }
    if secrets.disk_id(path.as_str()).is_some() {
        let what = format!("{vmx} holds the key of another disk of this name; name another file");
        return refused(path, what);
    }
    let old_bundle = entries.key_list()?.ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    let rng = &mut system_rng();
    let id = DiskId::from_bytes(random_id(rng)?);
    let unit = UnitSize::B512;
    let text = Encryption::dek_text(id, unit, HolePolicy::Zero, dek);
    let encryption = Encryption::new(id, unit, HolePolicy::Zero, relock(&old_bundle, &text, path, keys)?);
    let [a, b, c, d, ..] = random_id(rng)?;
    // Above it lie the content IDs with a meaning of their own.
    let content_id = u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff;
    let mut descriptor = NewDescriptor::new(CreateType::MonolithicFlat, content_id, vec![extent])
        .build()
        .map_err(|source| Error::Format { path: path.to_string(), source })?;
    encryption.write_to(&mut descriptor);
    if Encryption::from_descriptor(&descriptor)?.as_ref() != Some(&encryption) {
        return refused(path, "its descriptor cannot hold the entries of an encrypted disk".to_owned());
    }
    let mut new = secrets.successor(rng)?;
    new.set_disk(path.as_str(), id);
    let mut record = Record::begin(Operation::Encrypt, vmx.as_str(), random_id(rng)?);
    record.new_bundle = Some(relock(&old_bundle, &new.to_bytes(), vmx, keys)?.to_string());
    let new_vmx = new_vmx(entries.dictionary().clone(), &record)?;

    storage.replace(path, &descriptor.to_bytes())?;
    let committed = check(storage, &entries, path, dek).and_then(|()| {
        // commit point:
        Ok(storage.replace(vmx, &new_vmx)?)
    });
    if let Err(error) = committed {
        // What storage shows decides: the replacement may have happened before it failed.
        if Entries::read_vmx(storage, vmx)?.bundle() != record.new_bundle.as_deref() {
            storage.remove(path)?;
            storage.sync_folder(&path.folder())?;
        }
        return Err(error);
    }
    Ok(id)
}

/// The new disk opens, and its files are its own.
fn check(storage: &dyn Storage, entries: &Entries, path: &StoragePath, dek: &Dek) -> Result<(), Error> {
    Disk::open(storage, path, Some(DiskCipher::new(dek, UnitSize::B512)?), Access::Read)?;
    let files = DiskLayout::open(storage, path)?.files();
    let identity = |path: &StoragePath| Ok::<_, Error>(storage.metadata(path)?.and_then(|metadata| metadata.identity));
    for file in &files {
        if storage.in_use(file)? {
            let what = "another program has it open; close that first".to_owned();
            return Err(Error::DiskRefused { path: file.to_string(), what });
        }
        for (_, other) in entries.disks()? {
            for used in DiskLayout::open(storage, &other)?.files() {
                if used == *file || identity(&used)?.is_some_and(|used| identity(file).ok().flatten() == Some(used)) {
                    let what = format!("it belongs to {other} already");
                    return Err(Error::DiskRefused { path: file.to_string(), what });
                }
            }
        }
    }
    Ok(())
}

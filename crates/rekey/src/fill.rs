//! Disks without holes: every data unit that was never written is written, and the descriptor says so (hole policy `fill`).
//!
//! Enciphered zeros over stored zeros change nothing of what is read, so that the first part can be cut off anywhere. When all of it is
//! durable, the descriptor and the wrapped DEK, which is bound to the policy, change together: by a record and its publication, as in a
//! shallow recrypt that keeps the KEK. What is cut off there is completed by `resume` and undone by `rollback`; an undone one leaves a disk
//! that is filled and does not say so.

use vmseal_disk::{Disk, DiskCipher, DiskLayout, Encryption, HolePolicy};
use vmseal_formats::{KeyList, Locator};
use vmseal_keys::{Dek, KeySource, system_rng};
use vmseal_storage::{Access, Storage, StoragePath};

use crate::error::Error;
use crate::execute::{Ending, finish, lock, lock_disks, prepare_and_commit, undo_after};
use crate::inventory::PowerState;
use crate::material::{Material, open_bundle, open_dek};
use crate::plan::Operation;
use crate::power::power_state;
use crate::prepare::check_members;
use crate::progress::{Progress, Watch};
use crate::publish::Changes;
use crate::record::{DiskRecord, Phase, Record};
use crate::secrets::{VmSecrets, random_id};
use crate::stage;
use crate::vmx::Entries;

/// Fills the disk whose descriptor is `path`. Gives how many data units were written; 0 where the disk says already that there are none to
/// write.
///
/// # Errors
/// [`Error::DiskRefused`] where the VM is not powered off, or the disk is no whole encrypted disk; [`Error::Pending`];
/// [`Error::RecoveryPhraseNeeded`] where the DEK is also under a recovery password that was not given; [`Error::FillStopped`],
/// and [`Error::Stopped`] where `resume` has to end it.
pub fn fill(
    storage: &dyn Storage,
    vmx: &StoragePath,
    path: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
) -> Result<u64, Error> {
    let _lock = lock(storage, vmx)?;
    let (entries, secrets) = open_idle(storage, vmx, keys)?;
    let _disks = lock_disks(storage, vmx, Operation::Encrypt)?;
    let (encryption, dek) = open_disk(storage, &secrets, path, keys)?;
    if encryption.holes() == HolePolicy::Fill {
        return Ok(0);
    }
    // Asked for before the work, which may be long.
    let holes = HolePolicy::Fill;
    let text = Encryption::dek_text(encryption.id(), encryption.unit(), holes, &dek);
    let new_keys = relock(encryption.keys(), &text, path, keys)?;
    let mut disk = open_for_work(storage, path, &encryption, &dek, Access::ReadWrite)?;
    let count = disk
        .fill_unwritten(&mut reporter(path, disk.size_bytes(), watch))?
        .ok_or_else(|| Error::FillStopped { path: path.to_string() })?;
    drop(disk);
    let bundle = entries.bundle().map(str::to_owned);
    let mut record = Record::begin(Operation::ShallowRecrypt, vmx.as_str(), random_id(&mut system_rng())?);
    (record.old_bundle, record.new_bundle) = (bundle.clone(), bundle);
    record.disks.push(DiskRecord {
        descriptor: path.to_string(),
        id: encryption.id().to_string(),
        unit: encryption.unit().bytes(),
        old_filled: false,
        new_filled: true,
        old_keys: Some(encryption.keys().to_string()),
        new_keys: Some(new_keys.to_string()),
    });
    let material = Material { old: None, new: Some(secrets), deks: vec![[None, Some(dek)]] };
    let jobs = stage::jobs(storage, &record)?;
    record.staged = stage::staged(storage, &jobs)?;
    record.patches = stage::patches(storage, &record)?;
    let result = record
        .write(storage, &material.record_key(record.operation, Phase::Prepare))
        .and_then(|()| prepare_and_commit(storage, vmx, &mut record, &material, &jobs, Changes::Keep, watch));
    match result {
        Ok(()) => finish(storage, vmx, &record, &material, keys, Ending::Done).map(|_| count),
        Err(Error::Stopped) => Err(Error::Stopped),
        Err(error) => Err(undo_after(storage, vmx, &record, error)),
    }
}

/// Counts the data units of an encrypted disk that were never written.
///
/// # Errors
/// As [`fill`], but for what forbids writing.
pub fn count_unwritten(
    storage: &dyn Storage,
    secrets: &VmSecrets,
    path: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
) -> Result<u64, Error> {
    let (encryption, dek) = open_disk(storage, secrets, path, keys)?;
    if encryption.holes() == HolePolicy::Fill {
        return Ok(0);
    }
    let mut disk = open_for_work(storage, path, &encryption, &dek, Access::Read)?;
    disk.count_unwritten(&mut reporter(path, disk.size_bytes(), watch))?
        .ok_or_else(|| Error::FillStopped { path: path.to_string() })
}

/// What a whole encrypted disk of the VM says, and its DEK.
///
/// # Errors
/// [`Error::WrongDisk`]; [`Error::DiskRefused`] for disks in the clear and snapshot links, which have no bytes for every data unit.
pub(crate) fn open_disk(
    storage: &dyn Storage,
    secrets: &VmSecrets,
    path: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<(Encryption, Dek), Error> {
    let refused = |what: &str| Error::DiskRefused { path: path.to_string(), what: what.to_owned() };
    let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
    let encryption = Encryption::from_descriptor(&descriptor)?
        .ok_or_else(|| refused("the disk is in the clear; encrypt it first, with `vmseal encrypt`"))?;
    if descriptor.parent_cid().is_some() {
        return Err(refused("the disk is a link of a snapshot; consolidate the snapshot first"));
    }
    let known = secrets.disk_id(path.as_str());
    if !secrets.has_disk(encryption.id()) || known.is_some_and(|id| id != encryption.id()) {
        return Err(Error::WrongDisk { path: path.to_string() });
    }
    let dek = open_dek(&encryption, path.as_str(), keys)?;
    Ok((encryption, dek))
}

fn open_for_work<'s>(
    storage: &'s dyn Storage,
    path: &StoragePath,
    encryption: &Encryption,
    dek: &Dek,
    access: Access,
) -> Result<Disk<'s>, Error> {
    for file in DiskLayout::open(storage, path)?.files().iter().filter(|_| access == Access::ReadWrite) {
        if storage.in_use(file)? {
            let what = format!("another program has {file} open; close it first");
            return Err(Error::DiskRefused { path: path.to_string(), what });
        }
    }
    Ok(Disk::open(storage, path, Some(DiskCipher::new(dek, encryption.unit())?), access)?)
}

/// The entries and secrets of an encrypted VM that is powered off and has nothing pending. Its lock is held by the caller.
pub(crate) fn open_idle(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<(Entries, VmSecrets), Error> {
    let (entries, secrets) = open_idle_in_part(storage, vmx, keys)?;
    check_members(storage, &entries, vmx, &secrets)?;
    Ok((entries, secrets))
}

/// The same of a VM whose disks need not all be there.
pub(crate) fn open_idle_in_part(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<(Entries, VmSecrets), Error> {
    if let Some(record) = Record::read(storage, vmx)? {
        let (operation, committed) = (record.claims().operation, record.claims().phase == Phase::Publish);
        return Err(Error::Pending { vmx: vmx.to_string(), operation, committed, running: false });
    }
    let entries = Entries::read_vmx(storage, vmx)?;
    let what = match power_state(storage, vmx, &entries)? {
        PowerState::Off => None,
        PowerState::InUse { file } => Some(format!("another program has {file} open; close it first")),
        PowerState::On { evidence } => Some(format!("the VM is powered on ({evidence} is there); power it off first")),
        PowerState::Suspended { evidence } => Some(format!("the VM is suspended ({evidence}); power it off first")),
    };
    if let Some(what) = what {
        return Err(Error::DiskRefused { path: vmx.to_string(), what });
    }
    let list = entries.bundle().ok_or_else(|| Error::NotEncrypted { vmx: vmx.to_string() })?;
    let secrets = open_bundle(list, vmx.as_str(), keys)?;
    Ok((entries, secrets))
}

/// `plaintext` under the same KEKs and recovery password as `old`.
pub(crate) fn relock(
    old: &KeyList,
    plaintext: &[u8],
    path: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<KeyList, Error> {
    let format = |source| Error::Format { path: path.to_string(), source };
    let mut list = KeyList::new();
    for id in old.key_ids() {
        let kek = keys.fetch(&id)?;
        list.push(KeyList::lock_under(&id, &kek, plaintext, &mut system_rng()).map_err(format)?);
    }
    if old.has_phrase() {
        let mut phrases = old.clone();
        phrases.retain(|pair| matches!(pair.locker, Locator::Phrase { .. }));
        if keys.phrase().is_none() {
            return Err(Error::RecoveryPhraseNeeded);
        }
        phrases.open_with(keys).map_err(|_| Error::RecoveryPhraseWrong)?;
        let phrase = keys.phrase().ok_or(Error::RecoveryPhraseNeeded)?;
        list.push(KeyList::lock_with_phrase(phrase, plaintext, &mut system_rng()).map_err(format)?);
    }
    Ok(list)
}

fn reporter<'w>(
    path: &StoragePath,
    total_bytes: u64,
    watch: &'w mut dyn Watch,
) -> impl FnMut(u64) -> core::ops::ControlFlow<()> + use<'w> {
    let file = path.to_string();
    let mut done_bytes = 0;
    move |step| {
        done_bytes += step;
        watch.progress(&Progress { file: file.clone(), done_bytes, total_bytes })
    }
}

//! The end of a committed operation: each successor takes the place of its file.

use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};
use vmseal_disk::{DescriptorPlace, DiskLayout, Encryption};
use vmseal_formats::Descriptor;
use vmseal_keys::KeySource;
use vmseal_storage::{Access, File, Storage, StoragePath};

use crate::compare;
use crate::error::Error;
use crate::material::Material;
use crate::record::{DiskRecord, Patch, Record, Role, Sample, Staged, staged_path};
use crate::secrets::hex;
use crate::stage::{embedded, has_changed, new_descriptor, new_vmx};
use crate::vmx::Entries;

/// What a sample looks at, at the start of a file and at the first of the guest's bytes.
const SAMPLE_LEN: u64 = 64 << 10;

/// What to do with files that were written, or replaced by a copy, after the commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Put the converted file in their place.
    Discard,
    /// Stop and say which file it is.
    Keep,
}

/// Puts every successor in its place, right after the commit. Returns the files that have changed.
pub(crate) fn publish(storage: &dyn Storage, record: &Record) -> Result<Vec<String>, Error> {
    for staged in &record.staged {
        let target = StoragePath::new(&staged.target)?;
        storage.rename(&staged_path(&target), &target)?;
    }
    for patch in &record.patches {
        write_patch(storage, &patch.target, patch.offset, &patch_bytes(patch)?)?;
    }
    sync(storage, record)
}

/// Does the rest of it after a crash: what is done already is told from what is not by the files themselves.
pub(crate) fn complete(
    storage: &dyn Storage,
    record: &Record,
    material: &Material,
    keys: &mut dyn KeySource,
    changes: Changes,
) -> Result<Vec<String>, Error> {
    for staged in &record.staged {
        match staged.role {
            Role::Descriptor { .. } | Role::Vmx => complete_text(storage, record, staged)?,
            Role::Extent { .. } | Role::File { .. } => {
                if !is_data_to_publish(storage, record, staged)? {
                    continue;
                }
                if changes == Changes::Keep
                    && has_changed(storage, staged)?
                    && !compare::is_conversion(storage, record, staged, material, keys)?
                {
                    return Err(Error::ChangedAfterCommit { path: staged.target.clone(), operation: record.operation });
                }
                let target = StoragePath::new(&staged.target)?;
                storage.rename(&staged_path(&target), &target)?;
            }
        }
    }
    for patch in &record.patches {
        complete_patch(storage, record, patch)?;
    }
    sync(storage, record)
}

fn sync(storage: &dyn Storage, record: &Record) -> Result<Vec<String>, Error> {
    let mut folders = Vec::new();
    for staged in &record.staged {
        let folder = StoragePath::new(&staged.target)?.folder();
        if !folders.contains(&folder) {
            storage.sync_folder(&folder)?;
            folders.push(folder);
        }
    }
    let staged = record.staged.iter().map(|staged| staged.target.clone());
    let in_place = record.in_place.iter().flat_map(|in_place| &in_place.extents).map(|extent| extent.target.clone());
    Ok(staged.chain(in_place).chain(record.patches.iter().map(|patch| patch.target.clone())).collect())
}

/// Whether a file has the keys from before the operation or those from after it.
#[derive(PartialEq, Eq)]
enum Keys {
    After,
    Before,
}

/// A VMX or a descriptor: its keys say whether it is done, and what else was written into it is kept.
fn complete_text(storage: &dyn Storage, record: &Record, staged: &Staged) -> Result<(), Error> {
    let target = StoragePath::new(&staged.target)?;
    let successor = staged_path(&target);
    let there = storage.metadata(&successor)?.is_some();
    if text_keys(storage, record, staged)? == Keys::After {
        if there {
            storage.remove(&successor)?;
        }
        return Ok(());
    }
    if !there || has_changed(storage, staged)? {
        let bytes = match staged.role {
            Role::Descriptor { disk } => {
                let (descriptor, _) = DiskLayout::read_descriptor(storage, &target)?;
                new_descriptor(&descriptor, record.disk(disk)?)?.to_bytes()
            }
            _ => new_vmx(Entries::read_vmx(storage, &target)?.dictionary().clone(), record)?.to_vec(),
        };
        // Not under the successor's name, where an interrupted attempt could not tell a part of it from the whole.
        storage.replace(&target, &bytes)?;
        if there {
            storage.remove(&successor)?;
        }
        return Ok(());
    }
    storage.rename(&successor, &target)?;
    Ok(())
}

fn text_keys(storage: &dyn Storage, record: &Record, staged: &Staged) -> Result<Keys, Error> {
    let target = StoragePath::new(&staged.target)?;
    let keys = match staged.role {
        Role::Descriptor { disk } => descriptor_keys(storage, &target, record.disk(disk)?)?,
        _ => {
            let entries = Entries::read_vmx(storage, &target)?;
            side(entries.bundle(), record.old_bundle.as_deref(), record.new_bundle.as_deref())
        }
    };
    keys.ok_or_else(|| Error::ChangedSince { path: staged.target.clone(), operation: record.operation })
}

fn descriptor_keys(storage: &dyn Storage, path: &StoragePath, disk: &DiskRecord) -> Result<Option<Keys>, Error> {
    let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
    let found = Encryption::from_descriptor(&descriptor)?;
    let expected = |keys: &Option<String>| keys.as_deref().map(|keys| disk.encryption(keys)).transpose();
    Ok(side(found, expected(&disk.old_keys)?, expected(&disk.new_keys)?))
}

fn side<T: PartialEq>(found: Option<T>, old: Option<T>, new: Option<T>) -> Option<Keys> {
    if found == new {
        Some(Keys::After)
    } else if found == old {
        Some(Keys::Before)
    } else {
        None
    }
}

/// Whether an extent or a VM file is still to be published: it is done where the successor is gone and the file is the successor.
fn is_data_to_publish(storage: &dyn Storage, record: &Record, staged: &Staged) -> Result<bool, Error> {
    let target = StoragePath::new(&staged.target)?;
    let successor = staged_path(&target);
    let there = storage.metadata(&successor)?.is_some();
    let path = if there { &successor } else { &target };
    let is_successor = match (&staged.sample, storage.metadata(path)?) {
        (Some(sample), Some(_)) => *sample == take_sample(storage.open(path, Access::Read)?.as_ref(), sample.probe)?,
        _ => false,
    };
    if !is_successor {
        return Err(Error::SuccessorLost { path: staged.target.clone(), operation: record.operation });
    }
    Ok(there)
}

/// A descriptor inside an extent: one that is torn is written as the record has it.
fn complete_patch(storage: &dyn Storage, record: &Record, patch: &Patch) -> Result<(), Error> {
    let path = StoragePath::new(&patch.target)?;
    let Some(disk) = record.disks.iter().find(|disk| disk.descriptor == patch.target) else {
        let what = "a patch belongs to no disk of the operation".to_owned();
        return Err(Error::RecordDamaged { path: patch.target.clone(), what });
    };
    let new = patch_bytes(patch)?;
    if is_torn(storage, patch, disk, &new)? {
        return write_patch(storage, &patch.target, patch.offset, &new);
    }
    match descriptor_keys(storage, &path, disk) {
        // Written also where the new keys are there: a sync that failed or never came may have left them in the system's memory alone.
        Ok(Some(_)) => match DiskLayout::read_descriptor(storage, &path)? {
            (descriptor, DescriptorPlace::Embedded { offset_bytes, len_bytes }) => {
                let bytes = embedded(&new_descriptor(&descriptor, disk)?, &path, len_bytes)?;
                write_patch(storage, &patch.target, offset_bytes, &bytes)
            }
            (_, DescriptorPlace::OwnFile) => {
                Err(Error::ChangedSince { path: patch.target.clone(), operation: record.operation })
            }
        },
        // Neither the old text nor the new one: a write that was cut off.
        Ok(None) | Err(Error::Disk(_) | Error::Format { .. } | Error::RecordDamaged { .. }) => {
            write_patch(storage, &patch.target, patch.offset, &new)
        }
        Err(error) => Err(error),
    }
}

/// Whether what lies there is a mix of the old text and the new one. It may read well and have the new keys all the same.
fn is_torn(storage: &dyn Storage, patch: &Patch, disk: &DiskRecord, new: &[u8]) -> Result<bool, Error> {
    let Ok(mut descriptor) = Descriptor::parse(new) else { return Ok(false) };
    match disk.old_keys.as_deref().map(|keys| disk.encryption(keys)).transpose()? {
        None => Encryption::remove_from(&mut descriptor),
        Some(encryption) => encryption.write_to(&mut descriptor),
    }
    let mut old = descriptor.text().to_vec();
    old.resize(new.len(), 0);
    let mut found = vec![0; new.len()];
    storage.open(&StoragePath::new(&patch.target)?, Access::Read)?.read_at(&mut found, patch.offset)?;
    let is_mix = found.iter().zip(old.iter().zip(new)).all(|(found, (old, new))| found == old || found == new);
    Ok(is_mix && found != old && found != new)
}

fn patch_bytes(patch: &Patch) -> Result<Vec<u8>, Error> {
    Base64::decode_vec(&patch.bytes)
        .map_err(|_| Error::RecordDamaged { path: patch.target.clone(), what: "a patch is not base64".into() })
}

fn write_patch(storage: &dyn Storage, target: &str, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    let file = storage.open(&StoragePath::new(target)?, Access::ReadWrite)?;
    file.write_at(bytes, offset)?;
    file.sync()?;
    Ok(())
}

/// What tells a successor from the file that it replaces: its length, its start, and the first of the guest's bytes, at `probe`.
pub(crate) fn take_sample(file: &dyn File, probe: u64) -> Result<Sample, Error> {
    let len_bytes = file.len()?;
    let mut digest = Sha256::new();
    for offset in [0, probe] {
        let len = SAMPLE_LEN.min(len_bytes.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_at(&mut bytes, offset.min(len_bytes))?;
        digest.update(&bytes);
    }
    Ok(Sample { len_bytes, probe, digest: hex(&digest.finalize()) })
}

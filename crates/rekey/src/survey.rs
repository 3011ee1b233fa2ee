//! Reads a VM from storage into an [`Inventory`]: no key is needed, nothing is written.

use std::collections::BTreeMap;

use vmseal_disk::DiskLayout;
use vmseal_formats::{Descriptor, KeyList, envelope};
use vmseal_keys::KeyId;
use vmseal_storage::{Access, LockMode, Storage, StoragePath};

use crate::chain;
use crate::error::Error;
use crate::execute::lock_path;
use crate::inventory::{Encryption, Inventory, Pending, VmDisk, VmFile};
use crate::journal::JournalFile;
use crate::neighbours;
use crate::plan::Operation;
use crate::power::{guest_memory, power_state};
use crate::record::{Phase, Record};
use crate::snapshots::snapshots;
use crate::vmx::{Entries, PROFILE_NAME};

/// Reads the VM whose VMX is `vmx`.
///
/// # Errors
/// Where a file is missing, cannot be read or is damaged; the message names it.
pub fn survey(storage: &dyn Storage, vmx: &StoragePath) -> Result<Inventory, Error> {
    let entries = Entries::read_vmx(storage, vmx)?;
    let pending = pending(storage, vmx)?;
    // Half-published files do not make a whole VM: only what decides about the way out is told then.
    let committed = pending.as_ref().is_some_and(|pending| pending.committed);
    let mut linked_to = None;
    let mut disks: Vec<VmDisk> = Vec::new();
    for (node, path) in entries.disks()? {
        match disk(storage, &vmx.folder(), node, &path) {
            Ok((disk, outside)) => {
                linked_to = linked_to.or(outside);
                disks.push(disk);
            }
            Err(_) if committed => {}
            Err(error) => return Err(error),
        }
    }
    let files = files(storage, &entries)?;
    let mut others = BTreeMap::new();
    if !committed {
        check_own_files(storage, vmx, &disks, &files)?;
        others = neighbours::used_files(storage, vmx, &disks)?;
        neighbours::mark_shared(&mut disks, &others);
    }
    Ok(Inventory {
        vmx: vmx.to_string(),
        power: power_state(storage, vmx, &entries)?,
        snapshots: snapshots(storage, vmx, &disks, &others)?,
        linked_to,
        encryption: vm_encryption(&entries)?,
        files,
        guest_memory: guest_memory(storage, vmx)?,
        disks,
        pending,
    })
}

/// Reads the disk whose descriptor is `path`, whatever VM it belongs to.
///
/// # Errors
/// As [`survey`].
pub fn survey_disk(storage: &dyn Storage, path: &StoragePath) -> Result<VmDisk, Error> {
    Ok(disk(storage, &path.folder(), String::new(), path)?.0)
}

/// The operation on a VM that was interrupted or is under way, where there is one.
///
/// # Errors
/// [`Error::RecordDamaged`]; [`Error::Storage`].
pub fn pending(storage: &dyn Storage, vmx: &StoragePath) -> Result<Option<Pending>, Error> {
    let Some(record) = Record::read(storage, vmx)? else { return Ok(None) };
    let claims = record.claims();
    let lists = match (claims.operation, claims.phase) {
        (Operation::Decrypt, _) => [&claims.old_bundle, &None],
        (Operation::DeepRecrypt, Phase::Prepare | Phase::Convert | Phase::Revert) => {
            [&claims.new_bundle, &claims.old_bundle]
        }
        _ => [&claims.new_bundle, &None],
    };
    let needed = key_ids(lists.into_iter().flatten());
    let old = claims.disks.iter().filter_map(|disk| disk.old_keys.as_ref());
    let from_key_ids = key_ids(claims.old_bundle.iter().chain(old));
    // Whoever works on the VM holds its lock. Storage that gives none here cannot be worked on either.
    let lock = storage.lock(&lock_path(vmx), LockMode::Shared);
    Ok(Some(Pending {
        record: Record::path(vmx).to_string(),
        operation: claims.operation,
        committed: claims.phase == Phase::Publish,
        converting: match claims.phase {
            Phase::Convert | Phase::Revert => true,
            // With a journal, undoing asks for keys.
            Phase::Prepare => storage.metadata(&JournalFile::path(vmx))?.is_some(),
            Phase::Publish => false,
        },
        running: matches!(lock, Err(vmseal_storage::Error::Locked { .. })),
        key_ids: needed,
        from_key_ids,
    }))
}

/// The KEKs that these locator lists name.
fn key_ids<'l>(lists: impl Iterator<Item = &'l String>) -> Vec<KeyId> {
    let mut ids: Vec<KeyId> = Vec::new();
    for id in lists.filter_map(|list| KeyList::parse(list).ok()).flat_map(|list| list.key_ids()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// Reads one disk; also its parent outside the VM's folder, where it has one.
fn disk(
    storage: &dyn Storage,
    folder: &StoragePath,
    node: String,
    path: &StoragePath,
) -> Result<(VmDisk, Option<String>), Error> {
    let (descriptor, place) = DiskLayout::read_descriptor(storage, path)?;
    let chain = chain::follow(storage, folder, path, &descriptor)?;
    let mut disk = VmDisk {
        path: path.to_string(),
        node,
        capacity_bytes: descriptor.capacity_sectors().saturating_mul(512),
        stored_bytes: 0,
        extents: Vec::new(),
        create_type: descriptor.create_type().to_owned(),
        embedded: chain::is_embedded(place),
        encryption: disk_encryption(&descriptor, path)?,
        unit: vmseal_disk::Encryption::from_descriptor(&descriptor).ok().flatten().map(|encryption| encryption.unit()),
        links: chain.links,
        shared_with: None,
        unsupported: None,
    };
    match DiskLayout::open(storage, path) {
        Ok(layout) => {
            disk.stored_bytes = stored_bytes(storage, &layout)?;
            disk.extents = layout.files().iter().map(StoragePath::to_string).collect();
        }
        Err(vmseal_disk::Error::Unsupported { what, .. }) => disk.unsupported = Some(what),
        // What is wrong with a link's extents does not matter: nothing but its keys is ever touched.
        Err(_) if descriptor.parent_cid().is_some() => {}
        Err(error) => return Err(error.into()),
    }
    Ok((disk, chain.outside))
}

pub(crate) fn disk_encryption(descriptor: &Descriptor, path: &StoragePath) -> Result<Encryption, Error> {
    match vmseal_disk::Encryption::from_descriptor(descriptor) {
        Ok(None) => Ok(Encryption::None),
        Ok(Some(encryption)) => {
            Ok(Encryption::Vmseal { key_ids: encryption.keys().key_ids(), recovery: encryption.keys().has_phrase() })
        }
        Err(vmseal_disk::Error::ForeignEncryption { what }) => Ok(Encryption::Foreign { what }),
        Err(source) => Err(Error::Vm { path: path.to_string(), what: source.to_string() }),
    }
}

/// Bytes on storage of all extents, without holes.
fn stored_bytes(storage: &dyn Storage, layout: &DiskLayout) -> Result<u64, Error> {
    let mut total = 0;
    for path in layout.files() {
        let file = storage.open(&path, Access::Read)?;
        let mut offset = 0;
        while let Some(data) = file.next_data(offset)? {
            total += data.end - data.start;
            offset = data.end;
        }
    }
    Ok(total)
}

fn vm_encryption(entries: &Entries) -> Result<Encryption, Error> {
    if entries.value("encryption.keysafe").is_some() || entries.value("encryption.data").is_some() {
        let what =
            "the VM is encrypted with a password by VMware Workstation or Fusion; remove that encryption there first";
        return Ok(Encryption::Foreign { what: what.to_owned() });
    }
    if entries.bundle().is_some() && entries.value(PROFILE_NAME).is_none() {
        let what = "the VM is encrypted by vSphere; decrypt it there first";
        return Ok(Encryption::Foreign { what: what.to_owned() });
    }
    Ok(match entries.key_list()? {
        None => Encryption::None,
        Some(keys) => Encryption::Vmseal { key_ids: keys.key_ids(), recovery: keys.has_phrase() },
    })
}

/// The VM files with guest data: for now the NVRAM.
fn files(storage: &dyn Storage, entries: &Entries) -> Result<Vec<VmFile>, Error> {
    let path = entries.nvram()?;
    let Some(metadata) = storage.metadata(&path)? else { return Ok(Vec::new()) };
    let sealed = envelope::is_envelope(&read_start(storage, &path)?);
    Ok(vec![VmFile { path: path.to_string(), len_bytes: metadata.len, sealed }])
}

/// The first bytes of a file: enough to tell what it is.
pub(crate) fn read_start(storage: &dyn Storage, path: &StoragePath) -> Result<Vec<u8>, Error> {
    let file = storage.open(path, Access::Read)?;
    let mut start = vec![0; usize::try_from(file.len()?.min(512)).unwrap_or(512)];
    file.read_at(&mut start, 0)?;
    Ok(start)
}

/// Each file of a VM has one part to play: what is converted twice, or under two keys, is lost.
fn check_own_files(storage: &dyn Storage, vmx: &StoragePath, disks: &[VmDisk], files: &[VmFile]) -> Result<(), Error> {
    let mut parts: Vec<(&str, String)> = vec![(vmx.as_str(), "the VMX".to_owned())];
    parts.extend(files.iter().map(|file| (file.path.as_str(), "the NVRAM".to_owned())));
    for disk in disks {
        parts.push((&disk.path, format!("disk {}", disk.node)));
        // The one extent of a disk may be the file that its descriptor lies in.
        let extents = disk.extents.iter().filter(|extent| **extent != disk.path);
        parts.extend(extents.map(|extent| (extent.as_str(), format!("an extent of {}", disk.path))));
    }
    let mut by_path: BTreeMap<&str, &str> = BTreeMap::new();
    let mut by_identity: BTreeMap<u128, &str> = BTreeMap::new();
    for (path, part) in &parts {
        let twice = |other: &str| Error::Vm {
            path: vmx.to_string(),
            what: format!("{path} is used twice, as {other} and as {part}; give each its own file"),
        };
        if let Some(other) = by_path.insert(path, part) {
            return Err(twice(other));
        }
        let identity = storage.metadata(&StoragePath::new(path)?)?.and_then(|metadata| metadata.identity);
        if let Some(other) = identity.and_then(|identity| by_identity.insert(identity, part)) {
            return Err(twice(other));
        }
    }
    Ok(())
}

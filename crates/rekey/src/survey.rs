//! Reads a VM from storage into an [`Inventory`]: no key is needed, nothing is written.

use vmseal_disk::DiskLayout;
use vmseal_formats::{Descriptor, Dictionary, KeyList};
use vmseal_storage::{Access, Kind, Storage, StoragePath};

use crate::chain;
use crate::error::Error;
use crate::inventory::{Encryption, Inventory, Pending, VmDisk, VmFile};
use crate::plan::Operation;
use crate::power::power_state;
use crate::record::{Phase, Record};
use crate::snapshots::snapshots;

/// A VMX or VMSD is a few KiB; none is longer than this.
const DICTIONARY_LEN_MAX: u64 = 4 << 20;
/// Other VMs in the folder that are looked at for disks they share with this one.
const NEIGHBOURS_MAX: usize = 256;
/// The entry of a VMX that says that `encryption.bundle` is vmseal's.
pub(crate) const PROFILE_NAME: &str = "vmseal.profile";
/// The entry that holds the locator list with the wrapped secrets.
pub(crate) const BUNDLE_NAME: &str = "encryption.bundle";

/// Reads the VM whose VMX is `vmx`.
///
/// # Errors
/// Where a file is missing, cannot be read or is damaged; the message names it.
pub fn survey(storage: &dyn Storage, vmx: &StoragePath) -> Result<Inventory, Error> {
    let dictionary = read_dictionary(storage, vmx)?;
    check_is_vmx(&dictionary, vmx)?;
    let pending = pending(storage, vmx)?;
    // Half-published files do not make a whole VM: only what decides about the way out is told then.
    let committed = pending.as_ref().is_some_and(|pending| pending.committed);
    let mut linked_to = None;
    let mut disks: Vec<VmDisk> = Vec::new();
    for (node, name) in disk_names(&dictionary, vmx)? {
        let path = beside(vmx, &name)?;
        if committed && storage.metadata(&path)?.is_none() {
            continue;
        }
        if disks.iter().any(|disk| disk.path == path.as_str()) {
            return Err(Error::Vm {
                path: vmx.to_string(),
                what: format!("{name} is attached twice; remove one of the two entries"),
            });
        }
        let (disk, outside) = disk(storage, &vmx.folder(), node, &path)?;
        linked_to = linked_to.or(outside);
        disks.push(disk);
    }
    mark_shared(storage, vmx, &mut disks)?;
    let on_links = disks.iter().any(|disk| !disk.links.is_empty());
    Ok(Inventory {
        vmx: vmx.to_string(),
        power: power_state(storage, vmx, &dictionary)?,
        snapshots: snapshots(storage, vmx, on_links)?,
        linked_to,
        encryption: vm_encryption(&dictionary, vmx)?,
        files: files(storage, vmx, &dictionary)?,
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

/// Reads and splits a dictionary file.
pub(crate) fn read_dictionary(storage: &dyn Storage, path: &StoragePath) -> Result<Dictionary, Error> {
    Ok(Dictionary::parse(&storage.read(path, DICTIONARY_LEN_MAX)?))
}

/// A file without any entry is no VMX, whatever its name.
fn check_is_vmx(dictionary: &Dictionary, vmx: &StoragePath) -> Result<(), Error> {
    if dictionary.entries().next().is_some() {
        return Ok(());
    }
    Err(Error::Vm {
        path: vmx.to_string(),
        what: "this is no VMX: it has no line of the form name = \"value\"; name the VM's .vmx file".to_owned(),
    })
}

/// A name that a VMX uses, as a path: relative to the folder of the VMX.
pub(crate) fn beside(vmx: &StoragePath, name: &str) -> Result<StoragePath, Error> {
    vmx.sibling(name).map_err(|source| Error::Vm {
        path: vmx.to_string(),
        what: format!(
            "the file {name} cannot be used ({source}); move it into the VM's folder and name it relative to that"
        ),
    })
}

/// `web01.vmsd` for `web01.vmx`.
pub(crate) fn companion(vmx: &StoragePath, extension: &str) -> Result<StoragePath, Error> {
    let name = vmx.file_name();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    beside(vmx, &format!("{stem}.{extension}"))
}

pub(crate) fn text(dictionary: &Dictionary, path: &StoragePath, name: &str) -> Result<Option<String>, Error> {
    dictionary.text(name).map_err(|source| Error::Format { path: path.to_string(), source })
}

/// The disks of a VMX: node and file name, in the order of the entries.
pub(crate) fn disk_names(dictionary: &Dictionary, vmx: &StoragePath) -> Result<Vec<(String, String)>, Error> {
    let mut names = Vec::new();
    for (name, _) in dictionary.entries() {
        let Ok(name) = core::str::from_utf8(&name) else { continue };
        let lower = name.to_ascii_lowercase();
        let Some(node) = lower.strip_suffix(".filename") else { continue };
        if !is_disk_node(node) || names.iter().any(|(known, _)| known == node) {
            continue;
        }
        let is_absent =
            text(dictionary, vmx, &format!("{node}.present"))?.is_some_and(|value| value.eq_ignore_ascii_case("FALSE"));
        if is_absent {
            continue;
        }
        let Some(file) = text(dictionary, vmx, name)? else { continue };
        let device = text(dictionary, vmx, &format!("{node}.deviceType"))?.map(|device| device.to_ascii_lowercase());
        let by_name = file.to_ascii_lowercase().ends_with(".vmdk");
        if device.as_deref().map_or(by_name, |device| device.contains("disk")) {
            names.push((node.to_owned(), file));
        }
    }
    Ok(names)
}

/// `scsi0:1` and the like.
fn is_disk_node(node: &str) -> bool {
    let Some(rest) = ["scsi", "sata", "ide", "nvme"].iter().find_map(|bus| node.strip_prefix(bus)) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.split_once(':').is_some_and(|(bus, slot)| digits(bus) && digits(slot))
}

/// Reads one disk; also its parent outside the VM's folder, where it has one.
fn disk(
    storage: &dyn Storage,
    folder: &StoragePath,
    node: String,
    path: &StoragePath,
) -> Result<(VmDisk, Option<String>), Error> {
    let (descriptor, _) = DiskLayout::read_descriptor(storage, path)?;
    let chain = chain::follow(storage, folder, path, &descriptor)?;
    let mut disk = VmDisk {
        path: path.to_string(),
        node,
        capacity_bytes: descriptor.capacity_sectors().saturating_mul(512),
        stored_bytes: 0,
        extents: Vec::new(),
        create_type: descriptor.create_type().to_owned(),
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

fn vm_encryption(dictionary: &Dictionary, vmx: &StoragePath) -> Result<Encryption, Error> {
    if dictionary.value("encryption.keySafe").is_some() || dictionary.value("encryption.data").is_some() {
        let what =
            "the VM is encrypted with a password by VMware Workstation or Fusion; remove that encryption there first";
        return Ok(Encryption::Foreign { what: what.to_owned() });
    }
    let Some(bundle) = text(dictionary, vmx, BUNDLE_NAME)? else {
        return Ok(Encryption::None);
    };
    if dictionary.value(PROFILE_NAME).is_none() {
        let what = "the VM is encrypted by vSphere; decrypt it there first";
        return Ok(Encryption::Foreign { what: what.to_owned() });
    }
    let keys = KeyList::parse(&bundle).map_err(|source| Error::Format { path: vmx.to_string(), source })?;
    Ok(Encryption::Vmseal { key_ids: keys.key_ids(), recovery: keys.has_phrase() })
}

/// The VM files with guest data: for now the NVRAM.
fn files(storage: &dyn Storage, vmx: &StoragePath, dictionary: &Dictionary) -> Result<Vec<VmFile>, Error> {
    let path = match text(dictionary, vmx, "nvram")? {
        Some(name) if !name.is_empty() => beside(vmx, &name)?,
        _ => companion(vmx, "nvram")?,
    };
    let Some(metadata) = storage.metadata(&path)? else { return Ok(Vec::new()) };
    let head = storage.open(&path, Access::Read)?;
    let mut magic = vec![0; usize::try_from(metadata.len.min(512)).unwrap_or(512)];
    head.read_at(&mut magic, 0)?;
    let sealed = vmseal_formats::envelope::is_envelope(&magic);
    Ok(vec![VmFile { path: path.to_string(), len_bytes: metadata.len, sealed }])
}

/// Finds disks that another VM in the same folder uses.
fn mark_shared(storage: &dyn Storage, vmx: &StoragePath, disks: &mut [VmDisk]) -> Result<(), Error> {
    let mut seen = 0;
    for name in storage.list(&vmx.folder())? {
        if name == vmx.file_name() || !name.to_ascii_lowercase().ends_with(".vmx") || seen == NEIGHBOURS_MAX {
            continue;
        }
        seen += 1;
        let other = vmx.sibling(&name)?;
        if !storage.metadata(&other)?.is_some_and(|metadata| metadata.kind == Kind::File) {
            continue;
        }
        // A neighbour that cannot be read is no reason to refuse work on this VM.
        let Ok(dictionary) = read_dictionary(storage, &other) else { continue };
        for (_, file) in disk_names(&dictionary, &other).unwrap_or_default() {
            let Ok(path) = other.sibling(&file) else { continue };
            let uses =
                |disk: &VmDisk| disk.path == path.as_str() || disk.links.iter().any(|link| link.path == path.as_str());
            for disk in disks.iter_mut().filter(|disk| uses(disk)) {
                disk.shared_with = Some(other.to_string());
            }
        }
    }
    Ok(())
}

fn pending(storage: &dyn Storage, vmx: &StoragePath) -> Result<Option<Pending>, Error> {
    let Some(record) = Record::read(storage, vmx)? else { return Ok(None) };
    let claims = record.claims();
    let list = match claims.operation {
        Operation::Decrypt => &claims.old_bundle,
        _ => &claims.new_bundle,
    };
    let key_ids =
        list.as_deref().and_then(|list| KeyList::parse(list).ok()).map_or_else(Vec::new, |list| list.key_ids());
    Ok(Some(Pending {
        record: Record::path(vmx).to_string(),
        operation: claims.operation,
        committed: claims.phase == Phase::Publish,
        key_ids,
    }))
}

//! The successors of a VM's files: how each is written beside the old one, and takes its place.

use core::ops::ControlFlow;

use base64ct::{Base64, Encoding};
use vmseal_disk::{DescriptorPlace, DiskLayout, Encryption, PieceKind};
use vmseal_formats::{Descriptor, Dictionary, envelope};
use vmseal_keys::{Context, Purpose, system_rng};
use vmseal_storage::{Access, File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::convert::{Conversion, workers};
use crate::error::Error;
use crate::material::Material;
use crate::plan::Operation;
use crate::publish::take_sample;
use crate::record::{DiskRecord, FileRecord, Patch, Record, RecordKey, Role, Staged, staged_path};
use crate::secrets::{VmSecrets, hex};
use crate::vmx::{BUNDLE_NAME, Entries, PROFILE_NAME};

/// NVRAM is at most some hundred KiB; a file of this kind that is longer is something else.
pub(crate) const VM_FILE_LEN_MAX: u64 = 64 << 20;

/// One file to write.
pub(crate) struct Job {
    pub(crate) target: StoragePath,
    pub(crate) len_bytes: u64,
    kind: JobKind,
}

enum JobKind {
    /// An extent of the disk at this index of the record, with the whole layout.
    Extent { disk: usize, layout: std::sync::Arc<DiskLayout> },
    /// The descriptor file of a disk.
    Descriptor { disk: usize },
    /// A VM file.
    File { index: usize },
    /// The VMX.
    Vmx,
}

impl JobKind {
    fn role(&self) -> Role {
        match *self {
            Self::Extent { disk, .. } => Role::Extent { disk },
            Self::Descriptor { disk } => Role::Descriptor { disk },
            Self::File { index } => Role::File { file: index },
            Self::Vmx => Role::Vmx,
        }
    }
}

/// The files that the operation writes, in the order in which they are written and published: data before what describes it, and
/// the VMX last.
pub(crate) fn jobs(storage: &dyn Storage, record: &Record) -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    for (disk, entry) in record.disks.iter().enumerate() {
        let path = StoragePath::new(&entry.descriptor)?;
        if record.operation != Operation::ShallowRecrypt && record.in_place.is_none() {
            let layout = std::sync::Arc::new(DiskLayout::open(storage, &path)?);
            for target in layout.files() {
                let len_bytes = len(storage, &target)?;
                jobs.push(Job { target, len_bytes, kind: JobKind::Extent { disk, layout: layout.clone() } });
            }
        }
        if let (_, DescriptorPlace::OwnFile) = DiskLayout::read_descriptor(storage, &path)? {
            jobs.push(Job { len_bytes: len(storage, &path)?, target: path, kind: JobKind::Descriptor { disk } });
        }
    }
    for (index, file) in record.files.iter().enumerate() {
        let target = StoragePath::new(&file.path)?;
        jobs.push(Job { len_bytes: len(storage, &target)?, target, kind: JobKind::File { index } });
    }
    let target = StoragePath::new(&record.vmx)?;
    jobs.push(Job { len_bytes: len(storage, &target)?, target, kind: JobKind::Vmx });
    Ok(jobs)
}

/// The length of a file; 0 where there is none.
pub(crate) fn len(storage: &dyn Storage, path: &StoragePath) -> Result<u64, Error> {
    Ok(storage.metadata(path)?.map_or(0, |metadata| metadata.len))
}

/// What the record says of jobs that have not begun.
pub(crate) fn staged(storage: &dyn Storage, jobs: &[Job]) -> Result<Vec<Staged>, Error> {
    jobs.iter()
        .map(|job| {
            let path = staged_path(&job.target);
            if storage.metadata(&path)?.is_some() {
                return Err(Error::StagedInTheWay { path: path.to_string() });
            }
            Ok(Staged {
                target: job.target.to_string(),
                role: job.kind.role(),
                source_version: version(storage, &job.target)?,
                done_bytes: 0,
                complete: false,
                sample: None,
            })
        })
        .collect()
}

/// The descriptors inside extents that a shallow recrypt or a conversion in place overwrites.
pub(crate) fn patches(storage: &dyn Storage, record: &Record) -> Result<Vec<Patch>, Error> {
    let mut patches = Vec::new();
    if record.operation != Operation::ShallowRecrypt && record.in_place.is_none() {
        return Ok(patches);
    }
    for entry in &record.disks {
        let path = StoragePath::new(&entry.descriptor)?;
        let (descriptor, place) = DiskLayout::read_descriptor(storage, &path)?;
        if let DescriptorPlace::Embedded { offset_bytes, len_bytes } = place {
            let bytes = embedded(&new_descriptor(&descriptor, entry)?, &path, len_bytes)?;
            patches.push(Patch {
                target: path.to_string(),
                offset: offset_bytes,
                bytes: Base64::encode_string(&bytes),
            });
        }
    }
    Ok(patches)
}

/// Refuses to go on where the VM's files are not those that the record names.
pub(crate) fn check_same(jobs: &[Job], record: &Record) -> Result<(), Error> {
    let same = jobs.len() == record.staged.len()
        && jobs.iter().zip(&record.staged).all(|(job, staged)| job.target.as_str() == staged.target);
    if same { Ok(()) } else { Err(Error::Changed { vmx: record.vmx.clone() }) }
}

/// Whether the file shows that it has changed since its successor was begun. Storage that cannot tell shows nothing.
pub(crate) fn has_changed(storage: &dyn Storage, staged: &Staged) -> Result<bool, Error> {
    Ok(version(storage, &StoragePath::new(&staged.target)?)? != staged.source_version)
}

/// Lets every file begin anew whose successor is gone, or whose source is not certain to be what it was: it was written, replaced by a
/// copy, or lies on storage that cannot tell. Whether the record said that one of them was durable, whole or in part.
pub(crate) fn forget_changed(storage: &dyn Storage, record: &mut Record) -> Result<bool, Error> {
    let mut forgot = false;
    for staged in &mut record.staged {
        let target = StoragePath::new(&staged.target)?;
        let successor = storage.metadata(&staged_path(&target))?;
        let is_whole = match (&successor, &staged.sample) {
            (None, _) => false,
            (Some(successor), Some(sample)) => successor.len == sample.len_bytes,
            (Some(_), None) => true,
        };
        if !is_whole || staged.source_version.is_none() || has_changed(storage, staged)? {
            forgot |= staged.done_bytes > 0 || staged.complete;
            staged.done_bytes = 0;
            staged.complete = false;
            staged.sample = None;
            staged.source_version = version(storage, &target)?;
        }
    }
    Ok(forgot)
}

fn version(storage: &dyn Storage, path: &StoragePath) -> Result<Option<u64>, Error> {
    Ok(storage.metadata(path)?.and_then(|metadata| metadata.version))
}

/// Writes one successor and makes it durable.
pub(crate) fn write(
    storage: &dyn Storage,
    job: &Job,
    index: usize,
    record: &mut Record,
    material: &Material,
    key: &RecordKey,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let path = staged_path(&job.target);
    let there = storage.metadata(&path)?.is_some();
    let target = if there && record.staged[index].done_bytes > 0 {
        storage.open(&path, Access::ReadWrite)?
    } else {
        // What an interrupted attempt left is begun anew.
        if there {
            storage.remove(&path)?;
        }
        record.staged[index].done_bytes = 0;
        record.staged[index].source_version = version(storage, &job.target)?;
        let file = storage.create(&path, Some(&job.target))?;
        // The record must not say that a part of it is durable before its name is.
        storage.sync_folder(&job.target.folder())?;
        file
    };
    match &job.kind {
        JobKind::Extent { disk, layout } => {
            write_extent(storage, job, *disk, layout, index, record, material, key, target.as_ref(), report)?;
        }
        JobKind::Descriptor { disk } => {
            let (descriptor, _) = DiskLayout::read_descriptor(storage, &job.target)?;
            put(target.as_ref(), &new_descriptor(&descriptor, &record.disks[*disk])?.to_bytes())?;
        }
        JobKind::File { index } => {
            let text = convert_file(storage, &record.files[*index], material)?;
            put(target.as_ref(), &text)?;
        }
        JobKind::Vmx => {
            let entries = Entries::read_vmx(storage, &job.target)?;
            put(target.as_ref(), &new_vmx(entries.dictionary().clone(), record)?)?;
        }
    }
    record.staged[index].done_bytes = job.len_bytes;
    record.staged[index].complete = true;
    record.staged[index].sample = match &job.kind {
        JobKind::Extent { layout, .. } => Some(take_sample(target.as_ref(), probe(storage, job, layout)?)?),
        JobKind::File { .. } => Some(take_sample(target.as_ref(), 0)?),
        JobKind::Descriptor { .. } | JobKind::Vmx => None,
    };
    if !matches!(job.kind, JobKind::Extent { .. }) && report(job.len_bytes).is_break() {
        return Err(Error::Stopped);
    }
    Ok(())
}

/// Where the first of the guest's bytes lie in an extent file.
fn probe(storage: &dyn Storage, job: &Job, layout: &DiskLayout) -> Result<u64, Error> {
    let source = storage.open(&job.target, Access::Read)?;
    for piece in layout.pieces(source.as_ref(), &job.target)? {
        let piece = piece?;
        if let PieceKind::Guest { .. } = piece.kind {
            return Ok(piece.file_range.start);
        }
    }
    Ok(0)
}

pub(crate) fn put(target: &dyn File, bytes: &[u8]) -> Result<(), Error> {
    target.write_at(bytes, 0)?;
    target.sync()?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the parts of one conversion, each used once")]
fn write_extent(
    storage: &dyn Storage,
    job: &Job,
    disk: usize,
    layout: &DiskLayout,
    index: usize,
    record: &mut Record,
    material: &Material,
    key: &RecordKey,
    target: &dyn File,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let source = storage.open(&job.target, Access::Read)?;
    // File systems have told wrongly of holes where data was not on disk yet.
    source.sync()?;
    let transform = material.transform(disk, record.disks[disk].unit()?)?;
    let done_bytes = record.staged[index].done_bytes;
    let workers = workers(storage);
    let conversion = Conversion { source: source.as_ref(), target, transform: &transform, done_bytes, workers };
    let mut checkpoint = |durable: u64| {
        record.staged[index].done_bytes = durable;
        record.write(storage, key)
    };
    conversion.run(layout.pieces(source.as_ref(), &job.target)?, &mut checkpoint, report)?;
    if let DescriptorPlace::Embedded { offset_bytes, len_bytes } = layout.descriptor_place() {
        let descriptor = new_descriptor(layout.descriptor(), &record.disks[disk])?;
        target.write_at(&embedded(&descriptor, &job.target, len_bytes)?, offset_bytes)?;
        target.sync()?;
    }
    Ok(())
}

/// The descriptor that a disk will have: the old text, and the new keys or none.
pub(crate) fn new_descriptor(old: &Descriptor, disk: &DiskRecord) -> Result<Descriptor, Error> {
    let mut descriptor = old.clone();
    let encryption = disk.new_keys.as_deref().map(|keys| disk.encryption(keys)).transpose()?;
    match &encryption {
        None => Encryption::remove_from(&mut descriptor),
        Some(encryption) => encryption.write_to(&mut descriptor),
    }
    // Read again: data must never lie under a key that its descriptor does not hold.
    if Encryption::from_descriptor(&descriptor)? != encryption {
        let what = "its descriptor cannot hold the entries of an encrypted disk; simplify it by hand".to_owned();
        return Err(Error::Vm { path: disk.descriptor.clone(), what });
    }
    Ok(descriptor)
}

/// A descriptor as it lies inside an extent: the text, and zeros to the end of its room.
pub(crate) fn embedded(descriptor: &Descriptor, path: &StoragePath, room: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = descriptor.text().to_vec();
    let needed = bytes.len() as u64;
    if needed > room {
        return Err(Error::DescriptorRoom { path: path.to_string(), room, needed });
    }
    bytes.resize(usize::try_from(room).unwrap_or(bytes.len()), 0);
    Ok(bytes)
}

/// The associated data of a VM file's envelope: it belongs to this VM.
pub(crate) fn file_context(secrets: &VmSecrets) -> Vec<u8> {
    Context::new(Purpose::VmFile, &secrets.vm_id).to_bytes()
}

/// Takes a VM file out of its envelope, puts it into one, or both.
fn convert_file(storage: &dyn Storage, file: &FileRecord, material: &Material) -> Result<Zeroizing<Vec<u8>>, Error> {
    let format = |source| Error::Format { path: file.path.clone(), source };
    let mut bytes = Zeroizing::new(storage.read(&StoragePath::new(&file.path)?, VM_FILE_LEN_MAX)?);
    let no_key = || Error::BundleContent { what: format!("it has no key for {}", file.path) };
    if file.from_sealed {
        let secrets = material.old.as_ref().ok_or_else(no_key)?;
        let key = secrets.file_key(&file.path).ok_or_else(no_key)?;
        bytes = envelope::open(key, &file_context(secrets), &bytes).map_err(format)?;
    }
    if file.to_sealed {
        let secrets = material.new.as_ref().ok_or_else(no_key)?;
        let key = secrets.file_key(&file.path).ok_or_else(no_key)?;
        let key_info = format!("vmseal/{}", hex(&secrets.vm_id));
        bytes = Zeroizing::new(
            envelope::seal(key, &key_info, &file_context(secrets), &bytes, &mut system_rng()).map_err(format)?,
        );
    }
    Ok(bytes)
}

/// The VMX with its new bundle, or without one.
pub(crate) fn new_vmx(mut dictionary: Dictionary, record: &Record) -> Result<Zeroizing<Vec<u8>>, Error> {
    match &record.new_bundle {
        Some(list) => {
            dictionary.set(PROFILE_NAME, b"1");
            dictionary.set(BUNDLE_NAME, list.as_bytes());
        }
        None => {
            dictionary.remove(BUNDLE_NAME);
            dictionary.remove(PROFILE_NAME);
        }
    }
    // Read again: the keys of everything else hang on this one entry.
    if dictionary.value(BUNDLE_NAME).map(|bundle| bundle.to_vec())
        != record.new_bundle.as_ref().map(|list| list.as_bytes().to_vec())
    {
        let what = "it cannot hold the encrypted bundle; simplify it by hand".to_owned();
        return Err(Error::Vm { path: record.vmx.clone(), what });
    }
    Ok(dictionary.to_bytes())
}

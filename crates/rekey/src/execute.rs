//! Executes a plan, and completes or undoes what was interrupted.
//!
//! Every operation takes the same way:
//!
//! 1. The record is made durable in phase `prepare`, with every new key in its wrapped form. A crash before this
//!    leaves nothing; from here on, until step 4, recovery can undo everything: the VM's own files are untouched.
//! 2. The successor of each file is written beside it, and made durable. A crash leaves some of them; recovery goes on at the last
//!    checkpoint, or removes them. Extents that are converted in place have none.
//! 3. The VM's files are looked at again: where one has changed meanwhile, or the VM was started, everything is undone.
//!    Data that is converted in place is converted now, in phase `convert` of the record: undoing means converting back, in phase `revert`
//!    (`in_place.rs`).
//! 4. The record is replaced by one in phase `publish`: the commit point.
//! 5. Each successor takes the place of its file by an atomic rename; descriptors inside an extent are overwritten by what the
//!    record holds. A crash leaves some done; recovery does the rest, and repeating a step does no harm.
//! 6. The record is removed. A crash before leaves nothing to do but this.

use core::ops::ControlFlow;

use vmseal_disk::{DiskLayout, Encryption};
use vmseal_keys::KeySource;
use vmseal_storage::{LockMode, Storage, StoragePath};

use crate::convert_in_place;
use crate::error::Error;
use crate::inventory::PowerState;
use crate::journal::JournalFile;
use crate::material::Material;
use crate::plan::{KekChange, Operation, Plan, Step, Strategy, plan};
use crate::power::power_state;
use crate::prepare;
use crate::progress::{Progress, Watch};
use crate::publish::{self, Changes};
use crate::record::{Phase, Record, Unverified, staged_path};
use crate::refusal::{Reason, Refusal};
use crate::rules::reasons_to_stop;
use crate::stage::{self, Job};
use crate::survey::survey;
use crate::vmx::Entries;

/// What is appended to the name of the VMX for the lock that one operation holds.
const LOCK_SUFFIX: &str = ".vmseal-lock";
/// What is appended to it for the lock that everybody shares who has a disk of the VM open. Whoever converts data holds it alone; a shallow recrypt,
/// which touches none, goes on beside them.
const USE_SUFFIX: &str = ".disks.vmseal-lock";

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The operation.
    pub operation: Operation,
    /// How it ended.
    pub ending: Ending,
    /// The files that were replaced, relative to the storage root.
    pub files: Vec<String>,
    /// How an interrupted shallow recrypt ended that had to be completed first, where there was one.
    pub finished_first: Option<Ending>,
    /// Encrypted disks that the VM's bundle names and that are not attached: their DEKs are wrapped under the KEK that they had.
    pub detached: Vec<String>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// In one go.
    Done,
    /// Completed after an interruption before its commit point.
    Resumed,
    /// Completed after an interruption behind its commit point.
    Completed,
    /// Undone after an interruption: the VM is as it was before.
    RolledBack,
}

/// Executes `plan`.
///
/// A shallow recrypt that was planned while another one lay interrupted completes that one, as [`resume`] does; the outcome's ending says so. Where
/// a KEK of another provider is wanted the VM is recrypted once more, and [`Outcome::finished_first`] says so.
///
/// # Errors
/// After any error but [`Error::Stopped`] and [`Error::Incomplete`] the VM is as it was before. Those two leave an
/// operation that [`resume`] completes; [`rollback`] undoes a stopped one.
pub fn execute(
    storage: &dyn Storage,
    planned: &Plan,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
) -> Result<Outcome, Error> {
    let vmx = StoragePath::new(planned.vmx())?;
    let _lock = lock(storage, &vmx)?;
    let mut inventory = survey(storage, &vmx)?;
    if let Some(pending) = &mut inventory.pending {
        // Whoever holds the lock is this call.
        pending.running = false;
    }
    if plan(&inventory, &planned.request)? != *planned {
        return Err(Error::Changed { vmx: vmx.to_string() });
    }
    let _disks = lock_disks(storage, &vmx, planned.operation())?;
    if !matches!(planned.steps().first(), Some(Step::FinishRecrypt { .. })) {
        return execute_locked(storage, planned, &vmx, keys, watch);
    }
    let finished = resume_locked(storage, &vmx, keys, watch, Changes::Keep)?;
    if matches!(planned.kek(), KekChange::Pending { .. }) {
        return Ok(finished);
    }
    // Only now can everything be seen.
    let next = plan(&survey(storage, &vmx)?, &planned.request)?;
    let outcome = execute_locked(storage, &next, &vmx, keys, watch)?;
    Ok(Outcome { finished_first: Some(finished.ending), ..outcome })
}

fn execute_locked(
    storage: &dyn Storage,
    planned: &Plan,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
) -> Result<Outcome, Error> {
    let (mut record, material) = prepare::begin(storage, planned, keys)?;
    record.in_place = convert_in_place::planned(storage, planned, &record)?;
    let jobs = stage::jobs(storage, &record)?;
    record.staged = stage::staged(storage, &jobs)?;
    record.patches = stage::patches(storage, &record)?;
    check_room(storage, planned)?;
    // From here on there is something to undo.
    let result = record
        .write(storage, &material.record_key(record.operation, Phase::Prepare))
        .and_then(|()| prepare_and_commit(storage, vmx, &mut record, &material, &jobs, Changes::Keep, watch));
    match result {
        Ok(()) => finish(storage, vmx, &record, &material, keys, Ending::Done),
        Err(Error::Stopped) => Err(Error::Stopped),
        Err(error) => Err(undo_after(storage, vmx, &record, error)),
    }
}

/// Completes the operation on `vmx` that was interrupted. `changes` says what happens to files that were written after the commit point.
///
/// # Errors
/// [`Error::NothingPending`]; [`Error::RecordForged`] where the record was not made with the VM's keys; [`Error::ChangedAfterCommit`];
/// [`Error::Refused`] where the rules of the operation do not hold any more; otherwise as for [`execute`], but nothing is undone.
pub fn resume(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
    changes: Changes,
) -> Result<Outcome, Error> {
    let _lock = lock(storage, vmx)?;
    resume_locked(storage, vmx, keys, watch, changes)
}

fn resume_locked(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
    changes: Changes,
) -> Result<Outcome, Error> {
    let unverified = read_record(storage, vmx)?;
    let material = Material::open(unverified.claims(), keys)?;
    let key = material.record_key(unverified.claims().operation, unverified.claims().phase);
    let mut record = unverified.verify(&key)?;
    let _disks = lock_disks(storage, vmx, record.operation)?;
    if record.phase == Phase::Publish {
        check_power(storage, vmx, &record)?;
        let files = publish::complete(storage, &record, &material, keys, changes)?;
        remove_record(storage, vmx)?;
        return Ok(Outcome {
            operation: record.operation,
            ending: Ending::Completed,
            files,
            finished_first: None,
            detached: detached(&record, &material),
        });
    }
    check_still_allowed(storage, vmx, &record)?;
    if record.phase == Phase::Revert {
        return put_back(storage, vmx, &mut record, &material, changes, watch);
    }
    let jobs = stage::jobs(storage, &record)?;
    stage::check_same(&jobs, &record)?;
    let forgot = stage::forget_changed(storage, &mut record)?;
    record.patches = stage::patches(storage, &record)?;
    if forgot {
        // Before one of them is begun anew: a crash would leave a part of it, and a record that calls it complete.
        record.write(storage, &key)?;
    }
    prepare_and_commit(storage, vmx, &mut record, &material, &jobs, changes, watch)?;
    finish(storage, vmx, &record, &material, keys, Ending::Resumed)
}

/// Undoes the operation on `vmx` that was interrupted before its commit point. Keys are asked for only where there is the journal of a conversion
/// in place, and data may have to be put back: what is removed otherwise are unfinished successors, and only where the VM still has the keys from before.
///
/// # Errors
/// [`Error::NothingPending`]; [`Error::Committed`] where it can only be completed; [`Error::ChangedSince`] and [`Error::SuccessorLost`] where the
/// VM is not what it was when the operation began; where data has to be put back, as for [`resume`].
pub fn rollback(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
    watch: &mut dyn Watch,
    changes: Changes,
) -> Result<Outcome, Error> {
    let _lock = lock(storage, vmx)?;
    let unverified = read_record(storage, vmx)?;
    let record = unverified.claims();
    if record.phase == Phase::Publish {
        return Err(Error::Committed { vmx: vmx.to_string(), operation: record.operation });
    }
    check_keys_from_before(storage, vmx, record)?;
    let _disks = lock_disks(storage, vmx, record.operation)?;
    // A journal is made at the very end of this phase. Where there is one, a record that somebody turned back to `prepare` would lose data.
    let record = if record.phase != Phase::Prepare || storage.metadata(&JournalFile::path(vmx))?.is_some() {
        let material = Material::open(record, keys)?;
        let key = material.record_key(record.operation, record.phase);
        let mut record = unverified.verify(&key)?;
        if record.phase != Phase::Prepare {
            check_still_allowed(storage, vmx, &record)?;
            return put_back(storage, vmx, &mut record, &material, changes, watch);
        }
        record
    } else {
        record.clone()
    };
    for staged in record.staged.iter().filter(|staged| staged.done_bytes > 0 || staged.complete) {
        let successor = staged_path(&StoragePath::new(&staged.target)?);
        // Where it is gone and the file has changed, it may have been put in the file's place: then its keys are in the record alone.
        if storage.metadata(&successor)?.is_none() && stage::has_changed(storage, staged)? {
            return Err(Error::SuccessorLost { path: staged.target.clone(), operation: record.operation });
        }
    }
    undo(storage, vmx, &record)?;
    Ok(rolled_back(&record))
}

/// The record of what is pending. Whoever wrote or removed it may have died before that was durable: a power cut must not bring back an earlier
/// state once something was done by this one.
fn read_record(storage: &dyn Storage, vmx: &StoragePath) -> Result<Unverified, Error> {
    let unverified = Record::read(storage, vmx)?;
    storage.sync_folder(&vmx.folder())?;
    unverified.ok_or_else(|| Error::NothingPending { vmx: vmx.to_string() })
}

fn rolled_back(record: &Record) -> Outcome {
    Outcome {
        operation: record.operation,
        ending: Ending::RolledBack,
        files: Vec::new(),
        finished_first: None,
        detached: Vec::new(),
    }
}

/// Puts converted data back, then removes the rest.
fn put_back(
    storage: &dyn Storage,
    vmx: &StoragePath,
    record: &mut Record,
    material: &Material,
    changes: Changes,
    watch: &mut dyn Watch,
) -> Result<Outcome, Error> {
    let total_bytes = convert_in_place::bytes(storage, record)?;
    let mut done_bytes = 0;
    let mut report = |step: u64| {
        done_bytes += step;
        watch.progress(&Progress { file: vmx.to_string(), done_bytes: done_bytes.min(total_bytes), total_bytes })
    };
    let operation = record.operation;
    convert_in_place::revert(storage, vmx, record, material, changes, &mut report)
        .map_err(|error| interrupted(operation, error))?;
    undo(storage, vmx, record)?;
    Ok(rolled_back(record))
}

fn interrupted(operation: Operation, error: Error) -> Error {
    match error {
        Error::Storage(_) | Error::Disk(_) => Error::Interrupted { operation, source: Box::new(error) },
        other => other,
    }
}

/// Keeps other operations on the VM away, in this process and others, until the lock is dropped.
///
/// # Errors
/// [`vmseal_storage::Error::Locked`] where one is at work.
pub fn lock(storage: &dyn Storage, vmx: &StoragePath) -> Result<Box<dyn vmseal_storage::Lock>, Error> {
    let lock = storage.lock(&lock_path(vmx), LockMode::Exclusive)?;
    storage.clean_up(&Record::path(vmx))?;
    let disks = vmx.with_suffix(USE_SUFFIX);
    if storage.metadata(&disks)?.is_some() {
        // What a killed process left goes with whoever takes it over; who holds it still keeps it.
        drop(storage.lock(&disks, LockMode::Exclusive));
    }
    Ok(lock)
}

/// Keeps away what converts the VM's data, for as long as a disk of it is open. Whoever opens one for writing gives `open` what is to be done
/// while no operation at all is at work.
///
/// # Errors
/// [`vmseal_storage::Error::Locked`] where an operation is at work; what `open` fails with.
pub fn hold_disks<T, E: From<Error>>(
    storage: &dyn Storage,
    vmx: &StoragePath,
    open: impl FnOnce() -> Result<T, E>,
) -> Result<(T, Box<dyn vmseal_storage::Lock>), E> {
    let lock = |path: &StoragePath| storage.lock(path, LockMode::Shared).map_err(Error::Storage);
    let _operations = lock(&lock_path(vmx))?;
    let disks = lock(&vmx.with_suffix(USE_SUFFIX))?;
    Ok((open()?, disks))
}

/// Keeps away whoever would open a disk of the VM while its data is converted.
pub(crate) fn lock_disks(
    storage: &dyn Storage,
    vmx: &StoragePath,
    operation: Operation,
) -> Result<Option<Box<dyn vmseal_storage::Lock>>, Error> {
    if operation == Operation::ShallowRecrypt {
        return Ok(None);
    }
    match storage.lock(&vmx.with_suffix(USE_SUFFIX), LockMode::Exclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(vmseal_storage::Error::Locked { holder, .. }) => {
            Err(Refusal { operation, vmx: vmx.to_string(), reasons: vec![Reason::Served { holder }] }.into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn lock_path(vmx: &StoragePath) -> StoragePath {
    vmx.with_suffix(LOCK_SUFFIX)
}

/// Steps 2 to 4.
pub(crate) fn prepare_and_commit(
    storage: &dyn Storage,
    vmx: &StoragePath,
    record: &mut Record,
    material: &Material,
    jobs: &[Job],
    changes: Changes,
    watch: &mut dyn Watch,
) -> Result<(), Error> {
    let key = material.record_key(record.operation, Phase::Prepare);
    let total_bytes = jobs.iter().map(|job| job.len_bytes).sum::<u64>() + convert_in_place::bytes(storage, record)?;
    let mut done_bytes: u64 = record.staged.iter().map(|staged| staged.done_bytes).sum();
    for (index, job) in jobs.iter().enumerate() {
        if record.staged[index].complete {
            continue;
        }
        let file = job.target.to_string();
        let mut report = |step: u64| {
            done_bytes += step;
            watch.progress(&Progress { file: file.clone(), done_bytes: done_bytes.min(total_bytes), total_bytes })
        };
        stage::write(storage, job, index, record, material, &key, &mut report)?;
    }
    for (index, staged) in record.staged.iter().enumerate() {
        if stage::has_changed(storage, staged)? {
            let path = jobs[index].target.to_string();
            return Err(Error::ChangedMeanwhile { path, operation: record.operation });
        }
        storage.sync_folder(&jobs[index].target.folder())?;
    }
    for (new, old) in stage::patches(storage, record)?.iter().zip(&record.patches) {
        if new != old {
            return Err(Error::ChangedMeanwhile { path: old.target.clone(), operation: record.operation });
        }
    }
    check_power(storage, vmx, record)?;
    let file = vmx.to_string();
    let mut report = |step: u64| {
        done_bytes += step;
        watch.progress(&Progress { file: file.clone(), done_bytes: done_bytes.min(total_bytes), total_bytes })
    };
    let operation = record.operation;
    convert_in_place::convert(storage, vmx, record, material, &key, changes, &mut report)
        .map_err(|error| if record.phase == Phase::Prepare { error } else { interrupted(operation, error) })?;
    // The last point at which a request to stop is heard.
    let last = Progress { file: vmx.to_string(), done_bytes: total_bytes, total_bytes };
    if let ControlFlow::Break(()) = watch.progress(&last) {
        return Err(Error::Stopped);
    }
    record.phase = Phase::Publish;
    // commit point:
    record.write(storage, &material.record_key(record.operation, Phase::Publish))
}

/// Steps 5 and 6.
pub(crate) fn finish(
    storage: &dyn Storage,
    vmx: &StoragePath,
    record: &Record,
    material: &Material,
    keys: &mut dyn KeySource,
    ending: Ending,
) -> Result<Outcome, Error> {
    let published = match record.in_place {
        None => publish::publish(storage, record),
        // Small files may have been edited while the data was converted.
        Some(_) => publish::complete(storage, record, material, keys, Changes::Keep),
    };
    let files = published
        .and_then(|files| remove_record(storage, vmx).map(|()| files))
        .map_err(|source| Error::Incomplete { operation: record.operation, source: Box::new(source) })?;
    Ok(Outcome {
        operation: record.operation,
        ending,
        files,
        finished_first: None,
        detached: detached(record, material),
    })
}

fn detached(record: &Record, material: &Material) -> Vec<String> {
    if record.operation == Operation::Encrypt {
        return Vec::new();
    }
    let converted = |name: &str| record.disks.iter().any(|disk| disk.descriptor == name);
    let names = material.new.iter().flat_map(|secrets| secrets.disk_names());
    names.filter(|name| !converted(name)).map(str::to_owned).collect()
}

/// Undoes a failed operation, unless its commit point was passed.
pub(crate) fn undo_after(storage: &dyn Storage, vmx: &StoragePath, record: &Record, error: Error) -> Error {
    // What storage shows decides, not what this process believes: the replacement of the record may have happened before it failed.
    match Record::read(storage, vmx) {
        Ok(Some(found)) if found.claims().phase == Phase::Publish => {
            Error::Incomplete { operation: record.operation, source: Box::new(error) }
        }
        Ok(Some(found)) if found.claims().phase != Phase::Prepare => interrupted(record.operation, error),
        Ok(_) => match undo(storage, vmx, record) {
            Ok(()) => error,
            Err(source) => Error::UndoFailed { cause: error.to_string(), source: Box::new(source) },
        },
        Err(source) => Error::UndoFailed { cause: error.to_string(), source: Box::new(source) },
    }
}

/// Removes the unfinished successors, then the record.
fn undo(storage: &dyn Storage, vmx: &StoragePath, record: &Record) -> Result<(), Error> {
    for staged in &record.staged {
        let path = staged_path(&StoragePath::new(&staged.target)?);
        if storage.metadata(&path)?.is_some() {
            storage.remove(&path)?;
        }
        // Also where an interrupted attempt removed it: the record must not go before it.
        storage.sync_folder(&path.folder())?;
    }
    remove_record(storage, vmx)
}

/// Nothing is pending any longer. The record goes last: until then recovery knows what is to be done.
fn remove_record(storage: &dyn Storage, vmx: &StoragePath) -> Result<(), Error> {
    JournalFile::remove(storage, vmx)?;
    Record::remove(storage, vmx)
}

fn check_power(storage: &dyn Storage, vmx: &StoragePath, record: &Record) -> Result<(), Error> {
    let operation = record.operation;
    let is_shallow = operation == Operation::ShallowRecrypt;
    let state = power_state(storage, vmx, &Entries::read_vmx(storage, vmx)?)?;
    let reasons = match state {
        PowerState::Off => return Ok(()),
        PowerState::Suspended { .. } if is_shallow => return Ok(()),
        PowerState::InUse { file: evidence } | PowerState::On { evidence } if is_shallow => {
            let targets = record.patches.iter().map(|patch| patch.target.clone());
            targets.map(|disk| Reason::EmbeddedDescriptor { evidence: evidence.clone(), disk }).collect()
        }
        PowerState::InUse { file } => vec![Reason::InUse { file }],
        PowerState::On { evidence } => vec![Reason::PoweredOn { evidence }],
        PowerState::Suspended { evidence } => vec![Reason::Suspended { evidence }],
    };
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Refusal { operation, vmx: vmx.to_string(), reasons }.into())
}

/// The VM could be used while its operation lay interrupted: what was done then decides whether it can go on. Data that was written
/// meanwhile is no obstacle: conversions whose source has changed begin anew.
fn check_still_allowed(storage: &dyn Storage, vmx: &StoragePath, record: &Record) -> Result<(), Error> {
    check_keys_from_before(storage, vmx, record)?;
    let mut inventory = survey(storage, vmx)?;
    let is_planned = |path: &str| record.disks.iter().any(|entry| entry.descriptor == path);
    inventory.disks.retain(|disk| disk.chain().any(|link| is_planned(link.path)));
    let reasons = reasons_to_stop(&inventory, record.operation);
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Refusal { operation: record.operation, vmx: vmx.to_string(), reasons }.into())
}

fn check_keys_from_before(storage: &dyn Storage, vmx: &StoragePath, record: &Record) -> Result<(), Error> {
    let changed = |path: &str| Err(Error::ChangedSince { path: path.to_owned(), operation: record.operation });
    if Entries::read_vmx(storage, vmx)?.bundle() != record.old_bundle.as_deref() {
        return changed(vmx.as_str());
    }
    for disk in &record.disks {
        let (descriptor, _) = DiskLayout::read_descriptor(storage, &StoragePath::new(&disk.descriptor)?)?;
        let expected = disk.old_keys.as_deref().map(|keys| disk.encryption(keys)).transpose()?;
        if Encryption::from_descriptor(&descriptor)? != expected {
            return changed(&disk.descriptor);
        }
    }
    Ok(())
}

/// Refuses before the first byte what would fail at the last.
fn check_room(storage: &dyn Storage, planned: &Plan) -> Result<(), Error> {
    let Some(available_bytes) = storage.free_bytes()? else { return Ok(()) };
    let (needed_bytes, in_place) = (planned.room_bytes(), planned.strategy() != Strategy::Copy);
    if available_bytes < needed_bytes {
        return Err(Error::NoRoom { operation: planned.operation(), needed_bytes, available_bytes, in_place });
    }
    Ok(())
}

//! The data of an operation, converted where it lies: forward, and back again.

use core::ops::ControlFlow;
use std::sync::Arc;

use vmseal_disk::DiskLayout;
use vmseal_storage::{Access, Storage, StoragePath};

use crate::convert::workers;
use crate::error::Error;
use crate::in_place::{Direction, Pass, Target};
use crate::journal::JournalFile;
use crate::material::Material;
use crate::plan::{Plan, Strategy};
use crate::publish::Changes;
use crate::record::{Frontier, InPlace, InPlaceExtent, Phase, Record, RecordKey};
use crate::recover::Recovered;
use crate::stage::len;

/// Numbers of the passes over the data, which the slots of the journal carry.
const FORWARD: u32 = 0;
const BACK: u32 = 1;

/// What the record says of a conversion in place, where the plan asks for one and there is data.
pub(crate) fn planned(storage: &dyn Storage, plan: &Plan, record: &Record) -> Result<Option<InPlace>, Error> {
    let Strategy::InPlace(journal) = plan.strategy() else { return Ok(None) };
    if plan.operation() == crate::Operation::ShallowRecrypt {
        return Ok(None);
    }
    let mut extents = Vec::new();
    for (disk, entry) in record.disks.iter().enumerate() {
        for target in DiskLayout::open(storage, &StoragePath::new(&entry.descriptor)?)?.files() {
            extents.push(InPlaceExtent { target: target.to_string(), disk });
        }
    }
    Ok(Some(InPlace { journal, zone_bytes: plan.zone_bytes(), extents, limit: None }))
}

/// The bytes on storage that are converted in place, holes included.
pub(crate) fn bytes(storage: &dyn Storage, record: &Record) -> Result<u64, Error> {
    let mut total = 0;
    for extent in record.in_place.iter().flat_map(|in_place| &in_place.extents) {
        total += len(storage, &StoragePath::new(&extent.target)?)?;
    }
    Ok(total)
}

/// Converts all data, from where an earlier attempt stopped. The record is in phase `convert` before the first byte changes.
pub(crate) fn convert(
    storage: &dyn Storage,
    vmx: &StoragePath,
    record: &mut Record,
    material: &Material,
    key: &RecordKey,
    changes: Changes,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let Some(in_place) = record.in_place.clone() else { return Ok(()) };
    let targets = open(storage, record, &in_place, material)?;
    let pass = pass(storage, &in_place, &targets, Direction::Forward, None);
    let journal_key = record.journal_key(key)?;
    let (journal, from) = if record.phase == Phase::Prepare {
        let journal = JournalFile::create(storage, vmx, journal_key, in_place.shape())?;
        (journal, Recovered { reached: Frontier::default(), generation: 0 })
    } else {
        let journal = JournalFile::open(storage, vmx, journal_key, in_place.shape(), FORWARD)?;
        let recovered = recover(&pass, &journal, changes)?;
        (journal, recovered)
    };
    let mut progress = progress(&targets, from.reached, report);
    let begins = record.phase == Phase::Prepare;
    let mut start = || {
        record.phase = Phase::Convert;
        let written = record.write(storage, key);
        if written.is_err() {
            // No data has changed.
            record.phase = Phase::Prepare;
        }
        written
    };
    let start: Option<&mut dyn FnMut() -> Result<(), Error>> = if begins { Some(&mut start) } else { None };
    pass.run(&journal, from.reached, from.generation, start, &mut progress)
}

/// Puts back what was converted. Afterwards the record is in phase `prepare`.
pub(crate) fn revert(
    storage: &dyn Storage,
    vmx: &StoragePath,
    record: &mut Record,
    material: &Material,
    changes: Changes,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let key = material.record_key(record.operation, Phase::Revert);
    if let Some(mut in_place) = record.in_place.clone() {
        let targets = open(storage, record, &in_place, material)?;
        let shape = in_place.shape();
        let (journal, from) = if record.phase == Phase::Convert {
            let forward = pass(storage, &in_place, &targets, Direction::Forward, None);
            let mut journal = JournalFile::open(storage, vmx, record.journal_key(&key)?, shape, FORWARD)?;
            let recovered = recover(&forward, &journal, changes)?;
            in_place.limit = Some(recovered.reached);
            journal.set_pass(BACK);
            (journal, Recovered { reached: Frontier::default(), ..recovered })
        } else {
            let back = pass(storage, &in_place, &targets, Direction::Back, in_place.limit);
            let journal = JournalFile::open(storage, vmx, record.journal_key(&key)?, shape, BACK)?;
            let recovered = recover(&back, &journal, changes)?;
            (journal, recovered)
        };
        let back = pass(storage, &in_place, &targets, Direction::Back, in_place.limit);
        let mut progress = progress(&targets, from.reached, report);
        let begins = record.phase == Phase::Convert;
        let mut start = || {
            record.phase = Phase::Revert;
            record.in_place = Some(in_place.clone());
            record.write(storage, &key)
        };
        let start: Option<&mut dyn FnMut() -> Result<(), Error>> = if begins { Some(&mut start) } else { None };
        back.run(&journal, from.reached, from.generation, start, &mut progress)?;
        if let Some(in_place) = &mut record.in_place {
            in_place.limit = None;
        }
    }
    record.phase = Phase::Prepare;
    record.write(storage, &key)
}

fn recover(pass: &Pass<'_>, journal: &JournalFile, changes: Changes) -> Result<Recovered, Error> {
    pass.recover(journal, changes)?.ok_or(Error::JournalDamaged { what: "neither of its two parts is whole" })
}

fn pass<'a>(
    storage: &dyn Storage,
    in_place: &InPlace,
    targets: &'a [Target],
    direction: Direction,
    limit: Option<Frontier>,
) -> Pass<'a> {
    let runs_max = in_place.shape().runs_max();
    Pass { targets, direction, limit, zone_bytes: in_place.zone_bytes, runs_max, workers: workers(storage) }
}

fn open(storage: &dyn Storage, record: &Record, in_place: &InPlace, material: &Material) -> Result<Vec<Target>, Error> {
    let mut layouts: Vec<(usize, Arc<DiskLayout>)> = Vec::new();
    let mut targets = Vec::with_capacity(in_place.extents.len());
    for extent in &in_place.extents {
        let disk = record.disk(extent.disk)?;
        let layout = match layouts.iter().find(|(index, _)| *index == extent.disk) {
            Some((_, layout)) => layout.clone(),
            None => {
                let layout = Arc::new(DiskLayout::open(storage, &StoragePath::new(&disk.descriptor)?)?);
                layouts.push((extent.disk, layout.clone()));
                layout
            }
        };
        let path = StoragePath::new(&extent.target)?;
        if !layout.files().contains(&path) {
            return Err(Error::Changed { vmx: record.vmx.clone() });
        }
        let file = storage.open(&path, Access::ReadWrite)?;
        // File systems have told wrongly of holes where data was not on disk yet.
        file.sync()?;
        let (len_bytes, unit) = (file.len()?, disk.unit()?);
        let transform = material.transform(extent.disk, unit)?;
        targets.push(Target { path, file, len_bytes, layout, unit, transform });
    }
    Ok(targets)
}

/// Reports the bytes of storage that were passed since the last report, holes included.
fn progress<'r>(
    targets: &[Target],
    from: Frontier,
    report: &'r mut dyn FnMut(u64) -> ControlFlow<()>,
) -> impl FnMut(Frontier) -> ControlFlow<()> + 'r {
    let lens: Vec<u64> = targets.iter().map(|target| target.len_bytes).collect();
    let passed = move |at: Frontier| lens.iter().take(at.file as usize).sum::<u64>() + at.offset;
    let mut reported = passed(from);
    move |reached| {
        let step = passed(reached).saturating_sub(reported);
        reported += step;
        report(step)
    }
}

//! Faults of storage at any operation, in operations and in their recovery, nested: nothing is ever lost.
//!
//! Each run is made from one number. `VMSEAL_CRASH_RUNS` sets how many there are, `VMSEAL_CRASH_SEED` the first; a failure names its number.

use core::ops::ControlFlow;
use std::collections::BTreeMap;

use vmseal_disk::UnitSize;
use vmseal_keys::TestKeys;
use vmseal_rekey::{
    Changes, Ending, Error, Journal, Outcome, Progress, Request, Strategy, Unwatched, execute, pending, plan, resume,
    rollback, survey, verify,
};
use vmseal_storage::testing::{FolderOrder, Simulated, Tearing};
use vmseal_storage::{Storage, StoragePath};

use crate::testing::{path, vmx};

mod damage;
mod faults;
mod shapes;

use damage::{JOURNAL, State};
use faults::{Counts, Fault, is_of_storage};
use shapes::Shape;

/// A small generator (SplitMix64): a run has to be made from its number alone.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// All runs.
struct Campaign {
    keys: TestKeys,
    shapes: Vec<Shape>,
    /// How much each kind of operation does without a fault.
    counts: BTreeMap<String, Counts>,
    /// How often there was what.
    seen: BTreeMap<&'static str, u64>,
}

/// What one run does.
struct Case {
    shape: usize,
    storage: Simulated,
    tearing: Tearing,
    request: Request,
    unit: UnitSize,
    is_decryption: bool,
}

impl Campaign {
    fn new() -> Self {
        let mut keys = TestKeys::new();
        let shapes = Shape::all(&mut keys);
        Self { keys, shapes, counts: BTreeMap::new(), seen: BTreeMap::new() }
    }

    fn case(&self, random: &mut Random, seed: u64) -> Case {
        let number = random.below(self.shapes.len() as u64) as usize;
        let shape = &self.shapes[number];
        let (unit, encrypted) = &shape.encrypted[random.below(shape.encrypted.len() as u64) as usize];
        let what = if shape.is_chain { 3 } else { random.below(4) };
        let (from, request) = match what {
            0 => (&shape.plain, Request::encrypt(&TestKeys::provider("test")).unit_size(*unit)),
            1 => (encrypted, Request::deep_recrypt()),
            2 => (encrypted, Request::decrypt()),
            _ => (encrypted, Request::shallow_recrypt().provider(&TestKeys::provider("other"))),
        };
        let storage = from.snapshot(seed);
        let strategies = [Strategy::Copy, Strategy::InPlace(Journal::Digests), Strategy::InPlace(Journal::Data)];
        let strategy = strategies[random.below(3) as usize];
        // A journal of digests is for storage that writes sectors whole.
        let tears = strategy != Strategy::InPlace(Journal::Digests) && random.below(2) == 0;
        let tearing = if tears { Tearing::Byte } else { Tearing::Sector };
        storage.set_tearing(tearing);
        if random.below(2) == 0 {
            storage.set_folder_order(FolderOrder::Any);
        }
        let request = request.strategy(strategy).memory_bytes(random.below(4) << 17);
        Case { shape: number, storage, tearing, request, unit: *unit, is_decryption: what == 2 }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// One run.
    fn run(&mut self, seed: u64) {
        let mut random = Random(seed);
        let case = self.case(&mut random, seed);
        let counts = self.counts(&case);
        let storage = &case.storage;
        let was_plain = survey(storage, &vmx()).unwrap().encryption.is_none();
        let names = names(storage);
        let mut ended: Option<Outcome> = None;
        // The first fault is somewhere in the operation, the others somewhere in what is left of it.
        for nested in 0..=random.below(5) {
            let fault = Fault::set(storage, &mut random, counts, nested > 0);
            let undo = nested > 0 && random.below(3) == 0;
            let result = attempt(storage, &mut self.keys, &case.request, undo, Some(fault));
            let crashed = fault.clear(storage);
            let error = match result {
                Ok(outcome) if !crashed => {
                    ended = Some(outcome);
                    break;
                }
                Ok(_) => None,
                Err(error) => Some(error),
            };
            self.count(fault.name());
            let is_pending = pending(storage, &vmx()).unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_some();
            if !crashed {
                let error = error.unwrap();
                assert!(is_of_storage(&error), "seed {seed}: {error} after {fault:?} in {:?}", case.request);
                let says_so = error.kind() == vmseal_rekey::ErrorKind::Resumable;
                if nested == 0 {
                    assert!(
                        is_pending == says_so || matches!(error, Error::Incomplete { .. }),
                        "seed {seed}: pending: {is_pending}; {error}"
                    );
                }
                if !is_pending && !says_so && nested == 0 {
                    let is_plain = survey(storage, &vmx()).unwrap().encryption.is_none();
                    assert_eq!(is_plain, was_plain, "seed {seed}: {error} in {:?}", case.request);
                }
                match random.below(4) {
                    0 => storage.restart(),
                    1 => storage.restart_program(),
                    // The same program tries again.
                    _ => {}
                }
            }
            if pending(storage, &vmx()).unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_none() {
                break;
            }
            let is_known = matches!(fault, Fault::Stop(_) | Fault::Read) || crashed && fault == Fault::Cut;
            if is_known && nested == 0 && random.below(8) == 0 {
                let state = if crashed { State::Crashed } else { State::Whole };
                let shape = &self.shapes[case.shape];
                damage::check(storage, shape, &mut self.keys, &mut random, (state, case.tearing), seed);
                if storage.metadata(&path(JOURNAL)).unwrap().is_some() {
                    self.count("damaged journals");
                }
                self.count("damaged records");
            }
        }
        for _ in 0..2 {
            if pending(storage, &vmx()).unwrap().is_some() {
                let undo = random.below(2) == 0;
                let outcome = attempt(storage, &mut self.keys, &case.request, undo, None);
                ended = Some(
                    outcome.unwrap_or_else(|error| panic!("seed {seed}: {error}: {error:?} in {:?}", case.request)),
                );
            } else if ended.is_none() && random.below(2) == 0 {
                // Where the last step failed, asking again makes it durable.
                let outcome = resume(storage, &vmx(), &mut self.keys, &mut Unwatched, Changes::Keep);
                assert!(matches!(outcome, Err(Error::NothingPending { .. })), "seed {seed}");
                storage.restart();
                assert!(pending(storage, &vmx()).unwrap().is_none(), "seed {seed}: it came back");
            }
            // What is there now is durable as well, but for what failed in the last step.
            if random.below(4) == 0 {
                break;
            }
            storage.restart();
            assert!(ended.is_none() || pending(storage, &vmx()).unwrap().is_none(), "seed {seed}: it came back");
        }
        self.check(&case, seed, was_plain, ended.as_ref(), &names);
    }

    fn counts(&mut self, case: &Case) -> Counts {
        let kind = format!("{} {:?} {:?}", self.shapes[case.shape].name, case.unit, case.request);
        if let Some(counts) = self.counts.get(&kind) {
            return *counts;
        }
        let copy = case.storage.snapshot(0);
        let mut reports = 0;
        let planned = plan(&survey(&copy, &vmx()).unwrap(), &case.request).unwrap();
        let mut watch = |_: &Progress| {
            reports += 1;
            ControlFlow::Continue(())
        };
        execute(&copy, &planned, &mut self.keys, &mut watch).unwrap();
        let (operations, reads, writes, syncs) = (copy.operations(), copy.reads(), copy.writes(), copy.syncs());
        let counts = Counts { operations, reads, writes, syncs, reports };
        self.shapes[case.shape].check(&copy, &mut self.keys);
        self.counts.insert(kind, counts);
        counts
    }

    fn check(
        &mut self,
        case: &Case,
        seed: u64,
        was_plain: bool,
        ended: Option<&Outcome>,
        names_before: &[StoragePath],
    ) {
        let storage = &case.storage;
        assert!(pending(storage, &vmx()).unwrap().is_none(), "seed {seed}: something is pending");
        let is_plain = survey(storage, &vmx()).unwrap().encryption.is_none();
        match ended.map(|outcome| outcome.ending) {
            Some(Ending::RolledBack) => assert_eq!(is_plain, was_plain, "seed {seed}: {:?}", case.request),
            Some(_) => assert_eq!(is_plain, case.is_decryption, "seed {seed}: {:?}", case.request),
            // Cut before there was anything to go on with, or after everything was done.
            None => {}
        }
        if !is_plain {
            verify(storage, &vmx(), &mut self.keys).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        assert_eq!(names(storage), names_before, "seed {seed}: {:?}", case.request);
        self.shapes[case.shape].check(storage, &mut self.keys);
    }
}

fn names(storage: &Simulated) -> Vec<StoragePath> {
    let mut names = storage.paths();
    names.retain(|path| !path.file_name().ends_with(".vmseal-tmp"));
    names.sort();
    names
}

/// Executes, or goes on with, what is pending, until it has ended or something is in its way.
fn attempt(
    storage: &Simulated,
    keys: &mut TestKeys,
    request: &Request,
    undo: bool,
    fault: Option<Fault>,
) -> Result<Outcome, Error> {
    let mut left = match fault {
        Some(Fault::Stop(report)) => report,
        _ => u64::MAX,
    };
    let mut watch = |_: &Progress| {
        let stop = left == 0;
        left = left.saturating_sub(1);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    if pending(storage, &vmx())?.is_none() {
        let planned = plan(&survey(storage, &vmx())?, request)?;
        return execute(storage, &planned, keys, &mut watch);
    }
    if undo {
        match rollback(storage, &vmx(), keys, &mut watch, Changes::Keep) {
            Err(Error::Committed { .. }) => {}
            other => return other,
        }
    }
    resume(storage, &vmx(), keys, &mut watch, Changes::Keep)
}

/// A number that the environment has.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn faults_of_storage_lose_nothing() {
    let (first, count) = (number("VMSEAL_CRASH_SEED", 1), number("VMSEAL_CRASH_RUNS", 4_000));
    let start = std::time::Instant::now();
    let mut campaign = Campaign::new();
    let mut failed = Vec::new();
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| campaign.run(seed));
        if std::panic::catch_unwind(run).is_err() {
            println!("again with VMSEAL_CRASH_SEED={seed} VMSEAL_CRASH_RUNS=1, after {} runs", seed - first + 1);
            failed.push(seed);
        }
        if failed.len() == 10 {
            break;
        }
    }
    println!("{count} runs from seed {first}, {} kinds of operation, {:?}", campaign.counts.len(), start.elapsed());
    for (what, times) in &campaign.seen {
        println!("{times:>8} {what}");
    }
    assert!(failed.is_empty(), "these runs failed: {failed:?}");
    assert!(campaign.seen["power cuts"] * 4 >= count, "{:?}", campaign.seen);
    assert!(campaign.shapes.iter().any(|shape| shape.encrypted.iter().any(|(unit, _)| *unit == UnitSize::B4096)));
}

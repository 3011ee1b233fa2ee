//! Power cuts at any operation on storage, in operations and in their recovery, nested: nothing is ever lost.
//!
//! Each run is made from one number. `VMSEAL_CRASH_RUNS` sets how many there are, `VMSEAL_CRASH_SEED` the first; a failure names its number.

use vmseal_disk::UnitSize;
use vmseal_keys::TestKeys;
use vmseal_rekey::{
    Changes, Ending, Error, Journal, Outcome, Request, Strategy, Unwatched, execute, pending, plan, resume, rollback,
    survey, verify,
};
use vmseal_storage::StoragePath;
use vmseal_storage::testing::{FolderOrder, Simulated, Tearing};

use crate::testing::{assert_content, encrypt_with, make_small, run, vmx};

/// A small generator (SplitMix64): a run has to be made from its number alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The states that runs begin with.
struct Bases {
    keys: TestKeys,
    plain: Simulated,
    encrypted: [Simulated; 2],
}

impl Bases {
    fn new() -> Self {
        let mut keys = TestKeys::new();
        let plain = Simulated::new(0);
        make_small(&plain);
        let encrypted = [UnitSize::B512, UnitSize::B4096].map(|unit| {
            let storage = plain.snapshot(1);
            encrypt_with(&storage, &mut keys, unit);
            storage.settle();
            storage
        });
        plain.settle();
        Self { keys, plain, encrypted }
    }
}

/// What one run does.
struct Case {
    base: Simulated,
    request: Request,
}

fn case(bases: &Bases, random: &mut Random, seed: u64) -> Case {
    let unit = [UnitSize::B512, UnitSize::B4096][random.below(2) as usize];
    let encrypted = &bases.encrypted[usize::from(unit == UnitSize::B4096)];
    let (from, request) = match random.below(4) {
        0 => (&bases.plain, Request::encrypt(&TestKeys::provider("test")).unit_size(unit)),
        1 => (encrypted, Request::deep_recrypt()),
        2 => (encrypted, Request::decrypt()),
        _ => (encrypted, Request::shallow_recrypt().provider(&TestKeys::provider("other"))),
    };
    let base = from.snapshot(seed);
    let strategy = [Strategy::Copy, Strategy::InPlace(Journal::Digests), Strategy::InPlace(Journal::Data)]
        [random.below(3) as usize];
    // A journal of digests is for storage that writes sectors whole.
    if strategy != Strategy::InPlace(Journal::Digests) && random.below(2) == 0 {
        base.set_tearing(Tearing::Byte);
    }
    if random.below(2) == 0 {
        base.set_folder_order(FolderOrder::Any);
    }
    let request = request.strategy(strategy).memory_bytes(random.below(4) << 17);
    Case { base, request }
}

/// Executes, or goes on with, what is pending, until the power is cut or it has ended.
fn attempt(storage: &Simulated, keys: &mut TestKeys, request: &Request, undo: bool) -> Result<Outcome, Error> {
    if pending(storage, &vmx())?.is_none() {
        let planned = plan(&survey(storage, &vmx())?, request)?;
        return execute(storage, &planned, keys, &mut Unwatched);
    }
    if undo {
        match rollback(storage, &vmx(), keys, &mut Unwatched, Changes::Keep) {
            Err(Error::Committed { .. }) => {}
            other => return other,
        }
    }
    resume(storage, &vmx(), keys, &mut Unwatched, Changes::Keep)
}

/// One run. Returns how often the power was cut.
fn run_one(bases: &mut Bases, lengths: &mut std::collections::BTreeMap<String, u64>, seed: u64) -> u64 {
    let mut random = Random(seed);
    let Case { base: storage, request, .. } = case(bases, &mut random, seed);
    let keys = &mut bases.keys;
    // How many operations it takes without a fault: known once for each kind.
    let kind = format!("{request:?}");
    let length = *lengths.entry(kind).or_insert_with(|| {
        let copy = storage.snapshot(0);
        run(&copy, &request, keys);
        copy.operations()
    });
    let at_first = survey(&storage, &vmx()).unwrap().encryption.is_none();
    let mut names: Vec<StoragePath> = storage.paths();
    names.sort();
    let mut cuts = 0;
    let mut ended: Option<Outcome> = None;
    // The first cut is somewhere in the operation, the others somewhere in what is left of it; some follow quickly.
    for nested in 0..=random.below(4) {
        let limit = if nested > 0 && random.below(2) == 0 { 12 } else { length };
        storage.crash_at(Some(storage.operations() + random.below(limit.max(1))));
        let undo = nested > 0 && random.below(3) == 0;
        let result = attempt(&storage, keys, &request, undo);
        if storage.has_crashed() {
            cuts += 1;
            storage.restart();
            ended = None;
            if pending(&storage, &vmx()).unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_none() {
                break;
            }
            if nested > 0 && random.below(4) == 0 {
                // The next attempt may come from a program that ended without a power cut in between.
                storage.restart_program();
            }
            continue;
        }
        storage.crash_at(None);
        match result {
            Ok(outcome) => ended = Some(outcome),
            Err(error) => panic!("seed {seed}: {error} in {request:?}"),
        }
        break;
    }
    storage.crash_at(None);
    if ended.is_none() && pending(&storage, &vmx()).unwrap_or_else(|error| panic!("seed {seed}: {error}")).is_some() {
        let undo = random.below(2) == 0;
        ended = Some(attempt(&storage, keys, &request, undo).unwrap_or_else(|error| {
            panic!("seed {seed}: {error}: {:?} in {request:?}", std::error::Error::source(&error))
        }));
    }
    // What is there now is durable as well.
    if random.below(2) == 0 {
        storage.restart();
    }
    check(&storage, keys, seed, &request, at_first, ended.as_ref(), &names);
    cuts
}

fn check(
    storage: &Simulated,
    keys: &mut TestKeys,
    seed: u64,
    request: &Request,
    was_plain: bool,
    ended: Option<&Outcome>,
    names: &[StoragePath],
) {
    assert!(pending(storage, &vmx()).unwrap().is_none(), "seed {seed}: something is pending");
    let is_plain = survey(storage, &vmx()).unwrap().encryption.is_none();
    match ended.map(|outcome| outcome.ending) {
        Some(Ending::RolledBack) => assert_eq!(is_plain, was_plain, "seed {seed}: {request:?}"),
        Some(_) => {
            let operation = format!("{request:?}");
            let wanted = operation.contains("Decrypt");
            assert_eq!(is_plain, wanted, "seed {seed}: {request:?}");
        }
        // Cut before there was anything to go on with, or after everything was done.
        None => {}
    }
    assert_content(storage, keys);
    if !is_plain {
        let verified = verify(storage, &vmx(), keys).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(verified.encrypted_disks.len(), 2, "seed {seed}");
    }
    let mut left: Vec<StoragePath> = storage.paths();
    left.sort();
    left.retain(|path| !path.file_name().ends_with(".vmseal-tmp"));
    assert_eq!(left, names, "seed {seed}: {request:?}");
}

#[test]
fn power_cuts_lose_nothing() {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let (first, count) = (number("VMSEAL_CRASH_SEED", 1), number("VMSEAL_CRASH_RUNS", 3_000));
    let mut bases = Bases::new();
    let mut lengths = std::collections::BTreeMap::new();
    let mut cuts = 0;
    for seed in first..first + count {
        cuts += run_one(&mut bases, &mut lengths, seed);
    }
    println!("{count} runs from seed {first}, {cuts} power cuts, {} kinds of operation", lengths.len());
    assert!(cuts >= count, "{cuts}");
}

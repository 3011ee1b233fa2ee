//! Flipped bits in what recovery goes by, tried on copies of a VM whose operation is interrupted.

use vmseal_keys::TestKeys;
use vmseal_rekey::{Changes, Error, Unwatched, resume, rollback};
use vmseal_storage::testing::{Simulated, Tearing};
use vmseal_storage::{Storage, StoragePath};

use super::{Random, Shape};
use crate::testing::{path, vmx};

pub(crate) const RECORD: &str = "vms/web01/web01.vmx.vmseal";
pub(crate) const JOURNAL: &str = "vms/web01/web01.vmx.vmseal-journal";

/// Every file but those that were about to take another's place.
pub(crate) fn files(storage: &Simulated) -> Vec<(StoragePath, Vec<u8>)> {
    let paths = storage.paths().into_iter().filter(|path| !path.file_name().ends_with(".vmseal-tmp"));
    paths.map(|path| (path.clone(), storage.read(&path, 64 << 20).unwrap())).collect()
}

fn recover(storage: &Simulated, keys: &mut TestKeys, undo: bool) -> Result<(), Error> {
    if undo {
        rollback(storage, &vmx(), keys, &mut Unwatched, Changes::Keep).map(drop)
    } else {
        resume(storage, &vmx(), keys, &mut Unwatched, Changes::Keep).map(drop)
    }
}

/// How an interrupted conversion in place stood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// It was stopped, or a read failed: both parts of its journal are whole.
    Whole,
    /// One part may be torn.
    Crashed,
}

/// Damages each part of the journal, then both, and the record.
pub(crate) fn check(
    storage: &Simulated,
    shape: &Shape,
    keys: &mut TestKeys,
    random: &mut Random,
    (state, tearing): (State, Tearing),
    seed: u64,
) {
    let record = String::from_utf8(storage.read(&path(RECORD), 1 << 20).unwrap()).unwrap();
    let undo = random.below(2) == 0;
    let converts = ["convert", "revert"].iter().any(|phase| record.contains(&format!("\"phase\":\"{phase}\"")));
    if converts {
        let slot_len = storage.metadata(&path(JOURNAL)).unwrap().unwrap().len / 2;
        let flip = |copy: &Simulated, slot: u64, at: u64, mask: u64| {
            copy.flip(&path(JOURNAL), slot * slot_len + at, 1 << (mask % 8)).unwrap();
        };
        // Passes differ while undoing begins, when only one part counts.
        let passes: Vec<u8> = (0..2)
            .map(|slot| storage.read(&path(JOURNAL), 64 << 20).unwrap()[(slot * slot_len + 24) as usize])
            .collect();
        let mut whole = 0;
        for slot in 0..2 {
            let copy = storage.snapshot(seed + slot);
            // The header and the runs that follow are what every slot has.
            flip(&copy, slot, random.below(120), random.next());
            let before = files(&copy);
            match recover(&copy, keys, undo) {
                Ok(()) => {
                    copy.restart();
                    shape.check(&copy, keys);
                    whole += 1;
                }
                Err(Error::JournalDamaged { .. }) => {
                    assert!(
                        state == State::Crashed || passes[0] != passes[1],
                        "seed {seed}: slot {slot} is damaged, and all is lost"
                    );
                    assert!(files(&copy) == before, "seed {seed}");
                }
                // The content of torn sectors was in that part alone.
                Err(Error::NeitherOldNorNew { .. }) if tearing == Tearing::Byte && state == State::Crashed => {
                    whole += 1
                }
                Err(error) => panic!("seed {seed}: {error} with slot {slot} damaged"),
            }
        }
        assert!(whole > 0, "seed {seed}: one damaged slot loses the VM, whichever it is");
        let copy = storage.snapshot(seed);
        for slot in 0..2 {
            flip(&copy, slot, random.below(96), random.next());
        }
        let before = files(&copy);
        for undo in [false, true] {
            let error = recover(&copy, keys, undo).unwrap_err();
            assert!(matches!(error, Error::JournalDamaged { .. }), "seed {seed}: {error}");
        }
        assert!(files(&copy) == before, "seed {seed}");
    }
    let copy = storage.snapshot(seed);
    copy.flip(&path(RECORD), random.below(record.len() as u64), 1 << random.below(8)).unwrap();
    let before = files(&copy);
    let error = recover(&copy, keys, false).unwrap_err();
    assert!(files(&copy) == before, "seed {seed}: {error}");
    if converts {
        let error = recover(&copy, keys, true).unwrap_err();
        assert!(files(&copy) == before, "seed {seed}: {error}");
    }
}

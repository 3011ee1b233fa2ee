//! Conversions in place, stopped at each report and completed or undone.

use core::ops::ControlFlow;

use vmseal_disk::UnitSize;
use vmseal_keys::TestKeys;
use vmseal_rekey::{Changes, Ending, Error, Journal, Progress, Request, Strategy, Unwatched, execute, plan, resume};
use vmseal_rekey::{rollback, survey, verify};
use vmseal_storage::{Memory, Storage};

use crate::testing::{assert_content, files, make, run, vmx};

fn in_place(request: Request, journal: Journal) -> Request {
    // Zones of 512 KiB: several in each disk.
    request.strategy(Strategy::InPlace(journal)).memory_bytes(0)
}

fn requests(journal: Journal, unit: UnitSize) -> [Request; 3] {
    let test = TestKeys::provider("test");
    [
        in_place(Request::encrypt(&test).unit_size(unit), journal),
        in_place(Request::deep_recrypt().provider(&TestKeys::provider("other")), journal),
        in_place(Request::decrypt(), journal),
    ]
}

#[test]
fn a_life_in_place_ends_as_it_began() {
    for journal in [Journal::Digests, Journal::Data] {
        for unit in [UnitSize::B512, UnitSize::B4096] {
            let storage = Memory::new();
            make(&storage);
            let at_first = files(&storage);
            let mut keys = TestKeys::new();
            for request in requests(journal, unit) {
                let before = files(&storage);
                run(&storage, &request, &mut keys);
                assert_content(&storage, &mut keys);
                assert_ne!(files(&storage), before);
                assert_eq!(storage.paths().len(), at_first.len(), "nothing is left");
            }
            assert_eq!(files(&storage), at_first);
        }
    }
}

/// Stops `request` at the report with the number `at`; whether it was stopped there.
fn stop_at(storage: &dyn Storage, request: &Request, keys: &mut TestKeys, at: usize) -> bool {
    let planned = plan(&survey(storage, &vmx()).unwrap(), request).unwrap();
    let mut reports = 0;
    let mut watch = |_: &Progress| {
        reports += 1;
        if reports >= at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match execute(storage, &planned, keys, &mut watch) {
        Ok(_) => false,
        Err(Error::Stopped) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_was_stopped_in_place_is_completed_or_undone() {
    for (journal, unit) in [(Journal::Digests, UnitSize::B4096), (Journal::Data, UnitSize::B512)] {
        for step in 0..3 {
            let mut stops = 0;
            for at in 1.. {
                let storage = Memory::new();
                make(&storage);
                let mut keys = TestKeys::new();
                let requests = requests(journal, unit);
                for request in &requests[..step] {
                    run(&storage, request, &mut keys);
                }
                let before = files(&storage);
                if !stop_at(&storage, &requests[step], &mut keys, at) {
                    break;
                }
                stops += 1;
                // Undone, and stopped once more on the way back.
                let mut once = 0;
                let mut watch = |_: &Progress| {
                    once += 1;
                    if once == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let undone = rollback(&storage, &vmx(), &mut keys, &mut watch, Changes::Keep);
                if let Err(error) = undone {
                    assert!(matches!(error, Error::Stopped), "{error}");
                    // A pending undoing is what `resume` completes.
                    let outcome = resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
                    assert_eq!(outcome.ending, Ending::RolledBack);
                }
                assert_eq!(files(&storage), before);
                assert!(stop_at(&storage, &requests[step], &mut keys, at));
                let outcome = resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
                assert_eq!(outcome.ending, Ending::Resumed);
                assert_content(&storage, &mut keys);
                if step < 2 {
                    verify(&storage, &vmx(), &mut keys).unwrap();
                }
            }
            assert!(stops > 4, "{stops}");
        }
    }
}

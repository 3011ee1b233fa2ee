//! What somebody can do who can write to the storage and has no key: recovery refuses it, and leaves the folder as it is.

use core::ops::ControlFlow;

use vmseal_keys::TestKeys;
use vmseal_rekey::{
    Changes, Ending, Error, Journal, Outcome, Progress, Request, Strategy, Unwatched, execute, plan, resume, rollback,
    survey, unlock,
};
use vmseal_storage::{Access, Memory, Storage};

use crate::testing::{assert_content, encrypt, files, make, path, vmx};

const RECORD: &str = "vms/web01/web01.vmx.vmseal";
const JOURNAL: &str = "vms/web01/web01.vmx.vmseal-journal";

fn read(storage: &Memory, name: &str) -> Vec<u8> {
    storage.read(&path(name), 64 << 20).unwrap()
}

fn put(storage: &Memory, name: &str, bytes: &[u8]) {
    storage.replace(&path(name), bytes).unwrap();
}

fn in_place(request: Request) -> Request {
    request.strategy(Strategy::InPlace(Journal::Digests)).memory_bytes(0)
}

/// Executes `request` in place and stops it at the report with the number `at`.
fn stop(storage: &Memory, keys: &mut TestKeys, request: &Request, at: usize) {
    let planned = plan(&survey(storage, &vmx()).unwrap(), request).unwrap();
    let mut reports = 0;
    let mut watch = |_: &Progress| {
        reports += 1;
        if reports >= at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(matches!(execute(storage, &planned, keys, &mut watch), Err(Error::Stopped)));
}

/// An encrypted VM in the middle of `request`, converted in place.
fn interrupted(request: &Request, at: usize) -> (Memory, TestKeys) {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    stop(&storage, &mut keys, request, at);
    (storage, keys)
}

fn go_on(storage: &Memory, keys: &mut TestKeys) -> Result<Outcome, Error> {
    resume(storage, &vmx(), keys, &mut Unwatched, Changes::Keep)
}

fn undo(storage: &Memory, keys: &mut TestKeys) -> Result<Outcome, Error> {
    rollback(storage, &vmx(), keys, &mut Unwatched, Changes::Keep)
}

/// Both ways of recovery fail with what `is_expected` knows, and change nothing.
fn assert_refused(storage: &Memory, keys: &mut TestKeys, what: &str, is_expected: impl Fn(&Error) -> bool) {
    let before = files(storage);
    for (way, result) in [("resume", go_on(storage, keys)), ("undo", undo(storage, keys))] {
        match result {
            Err(error) if is_expected(&error) => {}
            other => panic!("{what}: {way}: {other:?}"),
        }
        assert!(files(storage) == before, "{what}: {way} changed the folder");
    }
}

#[test]
fn a_journal_that_is_not_this_operations_is_refused() {
    let request = in_place(Request::deep_recrypt());
    let (storage, mut keys) = interrupted(&request, 10);
    let (late_record, late) = (read(&storage, RECORD), read(&storage, JOURNAL));
    let slot = late.len() / 2;
    let (other_vm, _) = interrupted(&request, 10);
    let zeros = vec![0; late.len()];
    let cases = [
        ("another VM's journal", read(&other_vm, JOURNAL)),
        ("an empty journal", Vec::new()),
        ("a journal cut off", late[..slot.min(100)].to_vec()),
        ("zeros", zeros),
    ];
    for (what, journal) in cases {
        put(&storage, JOURNAL, &journal);
        assert_refused(&storage, &mut keys, what, |error| matches!(error, Error::JournalDamaged { .. }));
    }
    storage.remove(&path(JOURNAL)).unwrap();
    assert_refused(&storage, &mut keys, "no journal", |error| {
        matches!(error, Error::Storage(_) | Error::Interrupted { .. } | Error::JournalDamaged { .. })
    });
    // Without the record's authentication the phase cannot be turned back so that undoing would only remove files.
    let turned = String::from_utf8(late_record.clone()).unwrap().replacen("\"convert\"", "\"prepare\"", 1);
    put(&storage, JOURNAL, &late);
    put(&storage, RECORD, turned.as_bytes());
    assert_refused(&storage, &mut keys, "a record turned back", |error| matches!(error, Error::RecordForged { .. }));
    // Another shape, another extent, a path that leads out.
    let text = String::from_utf8(late_record.clone()).unwrap();
    for (from, to) in [
        ("\"zone_bytes\":32768", "\"zone_bytes\":65536"),
        ("\",\"disk\":0}", "\",\"disk\":1}"),
        ("\"extents\":[{\"target\":\"vms/", "\"extents\":[{\"target\":\"../"),
        ("\"journal\":\"digests\"", "\"journal\":\"data\""),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        put(&storage, RECORD, text.replacen(from, to, 1).as_bytes());
        assert_refused(&storage, &mut keys, to, |error| matches!(error, Error::RecordForged { .. }));
    }
    put(&storage, RECORD, &late_record);
    go_on(&storage, &mut keys).unwrap();
    assert_content(&storage, &mut keys);
}

#[test]
fn an_older_journal_of_the_same_operation_is_refused() {
    let request = in_place(Request::deep_recrypt());
    let (storage, mut keys) = interrupted(&request, 6);
    let early = read(&storage, JOURNAL);
    // It goes on and is stopped later.
    let mut reports = 0;
    let mut watch = |_: &Progress| {
        reports += 1;
        if reports >= 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = resume(&storage, &vmx(), &mut keys, &mut watch, Changes::Keep);
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    let late = read(&storage, JOURNAL);
    assert_ne!(early, late);
    put(&storage, JOURNAL, &early);
    let result = go_on(&storage, &mut keys);
    assert!(matches!(result, Err(Error::JournalOutdated { .. })), "{result:?}");
    // Recovery wrote nothing but what was there, so that the right journal still serves.
    put(&storage, JOURNAL, &late);
    assert_eq!(go_on(&storage, &mut keys).unwrap().ending, Ending::Resumed);
    assert_content(&storage, &mut keys);
}

#[test]
fn a_wrapped_key_of_another_disk_is_refused() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    let (descriptor, _) = vmseal_disk::DiskLayout::read_descriptor(&storage, &path("vms/web01/sparse.vmdk")).unwrap();
    let other = vmseal_disk::Encryption::from_descriptor(&descriptor).unwrap().unwrap();
    let flat = path("vms/web01/flat.vmdk");
    let (mut descriptor, _) = vmseal_disk::DiskLayout::read_descriptor(&storage, &flat).unwrap();
    let own = vmseal_disk::Encryption::from_descriptor(&descriptor).unwrap().unwrap();
    // The key list alone, under the disk's own ID: the ID inside the wrapping is another.
    own.with_keys(other.keys().clone()).write_to(&mut descriptor);
    storage.replace(&flat, &descriptor.to_bytes()).unwrap();
    let unlocked = unlock(&storage, &vmx(), &mut keys);
    let opened = unlocked.map(|unlocked| unlocked.open_disk(&storage, &flat, Access::Read, &mut keys).map(drop));
    assert!(matches!(opened, Err(Error::WrongDisk { .. }) | Ok(Err(Error::WrongDisk { .. }))), "{opened:?}");
    let before = files(&storage);
    for request in [Request::shallow_recrypt(), Request::deep_recrypt(), Request::decrypt()] {
        let planned = plan(&survey(&storage, &vmx()).unwrap(), &request).unwrap();
        let error = execute(&storage, &planned, &mut keys, &mut Unwatched).unwrap_err();
        assert!(matches!(error, Error::WrongDisk { .. }), "{error}");
        assert!(files(&storage) == before);
    }
}

/// The known limit of docs/threat-model.md, held fast so that the page stays true.
#[test]
fn what_a_genuine_record_does_that_is_put_back() {
    // Of a decryption that was undone before data changed, or that copies: it is followed, and said.
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    let decrypt = Request::decrypt();
    stop(&storage, &mut keys, &decrypt, 3);
    let record = read(&storage, RECORD);
    undo(&storage, &mut keys).unwrap();
    put(&storage, RECORD, &record);
    let outcome = go_on(&storage, &mut keys).unwrap();
    assert_eq!((outcome.ending, outcome.operation), (Ending::Resumed, vmseal_rekey::Operation::Decrypt));
    assert_content(&storage, &mut keys);
    // Of one in place, with its journal.
    let (storage, mut keys) = interrupted(&in_place(Request::decrypt()), 10);
    let (record, journal) = (read(&storage, RECORD), read(&storage, JOURNAL));
    undo(&storage, &mut keys).unwrap();
    put(&storage, RECORD, &record);
    put(&storage, JOURNAL, &journal);
    // It is followed from the place where it stopped; what lies before that was put back, and is noise to the guest now.
    assert_eq!(go_on(&storage, &mut keys).unwrap().ending, Ending::Resumed);
    let is_whole =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_content(&storage, &mut keys))).is_ok();
    assert!(!is_whole, "better than docs/threat-model.md says");
}

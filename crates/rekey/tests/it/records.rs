//! Records that nobody who has the keys wrote: none is followed.

use vmseal_keys::TestKeys;
use vmseal_rekey::{Changes, Error, ErrorKind, Request, Unwatched, resume, survey};
use vmseal_storage::{Memory, Storage};

use crate::engine::{stop_at, undo};
use crate::testing::{assert_content, encrypt, files, make, path, vmx};

const RECORD: &str = "vms/web01/web01.vmx.vmseal";

/// An encrypted VM with the record of an interrupted deep recrypt.
fn interrupted() -> (Memory, TestKeys, String) {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    stop_at(&storage, &Request::deep_recrypt(), &mut keys, 3);
    let record = String::from_utf8(storage.read(&path(RECORD), 1 << 20).unwrap()).unwrap();
    (storage, keys, record)
}

#[test]
fn an_edited_record_is_not_followed() {
    let edits = [
        // CVE-2021-4122: a faked "crashed decryption" must not write plaintext.
        ("\"operation\":\"deep-recrypt\"", "\"operation\":\"decrypt\""),
        ("\"phase\":\"prepare\"", "\"phase\":\"publish\""),
        ("\"unit\":512", "\"unit\":4096"),
        ("\"to_sealed\":true", "\"to_sealed\":false"),
        ("\"done_bytes\":0", "\"done_bytes\":1048576"),
        ("\"complete\":false", "\"complete\":true"),
        ("flat-flat.vmdk", "flat-flet.vmdk"),
    ];
    for (from, to) in edits {
        let (storage, mut keys, record) = interrupted();
        let edited = record.replacen(from, to, 1);
        assert_ne!(edited, record, "{from}");
        storage.replace(&path(RECORD), edited.as_bytes()).unwrap();
        let before = files(&storage);
        let error = resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap_err();
        // What the wrapped keys themselves contradict is noticed even before the record's own authentication.
        let contradicted = to.contains("unit") && error.kind() == ErrorKind::Damaged;
        assert!(contradicted || matches!(error, Error::RecordForged { .. }), "{to}: {error}");
        assert_eq!(files(&storage), before, "{to}");
        storage.replace(&path(RECORD), record.as_bytes()).unwrap();
        resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
        assert_content(&storage, &mut keys);
    }
}

#[test]
fn a_damaged_record_is_named_and_left_alone() {
    for cut in [0, 1, 100] {
        let (storage, mut keys, record) = interrupted();
        for damaged in [
            record[..record.len() - 1 - cut].to_owned(),
            record[cut + 1..].to_owned(),
            record.replacen("\"version\":2", "\"version\":1", 1),
            record.replacen("web01.vmx", "other.vmx", 1),
            String::new(),
        ] {
            storage.replace(&path(RECORD), damaged.as_bytes()).unwrap();
            let before = files(&storage);
            for result in
                [resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep), undo(&storage, &mut keys)]
            {
                assert!(matches!(result, Err(Error::RecordDamaged { .. })), "{damaged}");
            }
            assert!(survey(&storage, &vmx()).is_err());
            assert_eq!(files(&storage), before);
        }
    }
}

#[test]
fn a_record_of_an_earlier_generation_is_not_followed() {
    let (storage, mut keys, record) = interrupted();
    resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
    // Put back when the VM has other keys: its locator lists are not those of the VM any more.
    storage.replace(&path(RECORD), record.as_bytes()).unwrap();
    let before = files(&storage);
    let error = resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap_err();
    assert!(matches!(error, Error::ChangedSince { .. }), "{error}");
    assert_eq!(files(&storage), before);
    // Nor is it undone: the keys of the VM are not those from before it.
    assert!(matches!(undo(&storage, &mut keys), Err(Error::ChangedSince { .. })));
    assert_eq!(files(&storage), before);
    storage.remove(&path(RECORD)).unwrap();
    assert_content(&storage, &mut keys);
}

#[test]
fn a_record_of_another_vm_is_not_followed() {
    let (_, _, record) = interrupted();
    let (storage, mut keys, _) = interrupted();
    storage.replace(&path(RECORD), record.as_bytes()).unwrap();
    let before = files(&storage);
    assert!(resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).is_err());
    assert_eq!(files(&storage), before);
}

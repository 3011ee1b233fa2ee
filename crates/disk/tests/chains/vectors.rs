//! The disks of the formats' vectors: what they hold as the guest sees it, parents included. They are made by hand, and confirmed by QEMU.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use vmseal_disk::Error;
use vmseal_storage::{Access, LocalDir};

use crate::links::{Keys, path, read_all};

fn vectors() -> (LocalDir, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/tests/vectors/vmdk");
    let list = std::fs::read(folder.join("vectors.json")).unwrap();
    (LocalDir::open(folder).unwrap(), serde_json::from_slice(&list).unwrap())
}

#[test]
fn every_vector_reads_as_it_should() {
    let (storage, list) = vectors();
    let mut count = 0;
    for case in list["valid"].as_array().unwrap() {
        let Some(wanted) = case["raw_sha256"].as_str() else { continue };
        let name = case["file"].as_str().unwrap();
        if name.starts_with("esxi-encrypted") {
            let error = Keys::default().try_open(&storage, &path(name), Access::Read).unwrap_err();
            assert!(matches!(error, Error::ForeignEncryption { .. }), "{error}");
            continue;
        }
        let disk = Keys::default().open(&storage, &path(name), Access::Read);
        let found = Sha256::digest(read_all(&disk)).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(found, wanted, "{name}");
        count += 1;
    }
    assert!(count >= 13, "{count}");
}

#[test]
fn chains_and_extents_that_are_bad_are_refused() {
    let (storage, list) = vectors();
    let mut count = 0;
    for case in list["invalid"].as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let opened = Keys::default().try_open(&storage, &path(name), Access::Read);
        // Found when it is read.
        let is_later = ["bad/sparse-gte-outside.vmdk", "bad/stream-bad-deflate.vmdk"].contains(&name);
        let is_refused = match opened {
            Err(_) => true,
            Ok(disk) => is_later && disk.read_at(&mut vec![0; disk.size_bytes() as usize], 0).is_err(),
        };
        // The kind of a disk follows from its extents.
        assert!(is_refused || name == "bad/unknown-create-type.vmdk", "{case}");
        count += 1;
    }
    assert!(count > 40, "{count}");
}

//! The descriptors and sparse headers of `tests/vectors/vmdk`.

use crate::cases::{OneKey, Vectors, check_error, hex, text};
use serde_json::Value;
use vmseal_formats::sparse_header::SECTOR_LEN;
use vmseal_formats::{Compression, CreateType, Descriptor, Error, KeyDict, SparseHeader};

/// The descriptor of a file, alone or embedded, and the bytes that it was read from.
fn descriptor(file: &[u8]) -> Result<(Descriptor, Vec<u8>), Error> {
    if !file.starts_with(b"KDMV") {
        return Ok((Descriptor::parse(file)?, file.to_vec()));
    }
    let header = SparseHeader::parse(file)?;
    header.check_file_len(file.len() as u64)?;
    let range = header.descriptor_range().unwrap();
    let bytes = &file[range.start as usize..range.end as usize];
    Ok((Descriptor::parse(bytes)?, bytes.to_vec()))
}

fn pairs(entries: impl Iterator<Item = (String, String)>) -> Value {
    entries.map(|(name, value)| Value::from(vec![name, value])).collect()
}

fn check_descriptor(case: &Value, descriptor: &Descriptor) {
    let expect = &case["expect"];
    assert_eq!(descriptor.version(), expect["version"].as_u64().unwrap() as u32, "{case}");
    assert_eq!(format!("{:08x}", descriptor.cid()), text(&expect["cid"]), "{case}");
    assert_eq!(format!("{:08x}", descriptor.parent_cid().unwrap_or(u32::MAX)), text(&expect["parent_cid"]), "{case}");
    assert_eq!(descriptor.create_type(), text(&expect["create_type"]), "{case}");
    assert!(descriptor.kind().is_some(), "{case}");
    assert_eq!(descriptor.capacity_sectors(), expect["capacity_sectors"].as_u64().unwrap(), "{case}");
    for (name, field) in [
        ("encoding", "encoding"),
        ("isNativeSnapshot", "is_native_snapshot"),
        ("parentFileNameHint", "parent_file_name_hint"),
        ("changeTrackPath", "change_track_path"),
    ] {
        if let Some(wanted) = expect[field].as_str() {
            assert_eq!(descriptor.header(name).as_deref(), Some(wanted), "{case}");
        }
    }
    assert_eq!(descriptor.parent_hint().map_or(Value::Null, Value::from), expect["parent_file_name_hint"], "{case}");
    for other in expect["other_header"].as_array().into_iter().flatten() {
        assert_eq!(descriptor.header(text(&other[0])).as_deref(), other[1].as_str(), "{case}");
    }
    assert_eq!(pairs(descriptor.ddb_entries()), expect["ddb"], "{case}");
    let extents = expect["extents"].as_array().unwrap();
    assert_eq!(descriptor.extents().len(), extents.len(), "{case}");
    for (extent, wanted) in descriptor.extents().iter().zip(extents) {
        assert_eq!(extent.access.name(), text(&wanted["access"]), "{case}");
        assert_eq!(extent.sector_count, wanted["sectors"].as_u64().unwrap(), "{case}");
        assert_eq!(extent.kind.name(), text(&wanted["type"]), "{case}");
        assert_eq!(extent.file.as_deref(), wanted["file"].as_str(), "{case}");
        assert_eq!(extent.offset_sectors, wanted["offset"].as_u64().unwrap_or(0), "{case}");
        let extra = wanted["extra"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        assert_eq!(extent.extra, extra, "{case}");
    }
}

#[test]
fn every_descriptor_says_what_was_written_into_it() {
    let vectors = Vectors::of("vmdk");
    for case in vectors.cases("valid") {
        let (descriptor, bytes) = descriptor(&vectors.file(case)).unwrap_or_else(|error| panic!("{case}: {error}"));
        check_descriptor(case, &descriptor);
        assert_eq!(descriptor.to_bytes(), bytes, "{case}");
        if let Some(embedded) = case.get("embedded_descriptor") {
            assert_eq!(descriptor.text().len() as u64, embedded["text_len"].as_u64().unwrap());
        }

        let mut edited = descriptor.clone();
        edited.set_header("encryptionKeys.vmseal", "vmware:key/list/()");
        edited.set_ddb("vmseal.version", "1");
        assert_ne!(edited.text(), descriptor.text());
        edited.remove_header("encryptionKeys.vmseal");
        edited.remove_ddb("vmseal.version");
        assert_eq!(edited.to_bytes(), bytes, "{case}");
    }
}

#[test]
fn every_sparse_header_says_what_was_written_into_it() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("valid").iter().filter(|case| case.get("sparse_header").is_some()) {
        let file = vectors.file(case);
        let header = SparseHeader::parse(&file).unwrap();
        assert_eq!(header.to_bytes(), file[..SECTOR_LEN], "{case}");
        let wanted = &case["sparse_header"];
        let number = |name: &str| match &wanted[name] {
            Value::String(hex) => u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
            number => number.as_u64().unwrap(),
        };
        assert_eq!(u64::from(header.flags), number("flags"));
        assert_eq!(u64::from(header.version), number("version"));
        assert_eq!(header.capacity_sectors, number("capacity"));
        assert_eq!(header.grain_sectors, number("grain_size"));
        assert_eq!(header.descriptor_offset_sectors, number("descriptor_offset"));
        assert_eq!(header.descriptor_sectors, number("descriptor_size"));
        assert_eq!(u64::from(header.gtes_per_gt), number("num_gtes_per_gt"));
        assert_eq!(header.redundant_gd_sector, number("rgd_offset"));
        assert_eq!(header.gd_sector, number("gd_offset"));
        assert_eq!(header.overhead_sectors, number("overhead"));
        assert_eq!(header.unclean_shutdown, number("unclean_shutdown") != 0);
        assert_eq!(header.compression == Compression::Deflate, number("compress_algorithm") == 1);
        count += 1;
    }
    assert!(count > 0);
}

/// What is wrong with a disk as a whole, of which this crate sees one file: `vmseal-disk` has these cases.
const OF_THE_DISK: [&str; 4] = ["path", "chain_cycle", "chain_cid_mismatch", "not_found"];
/// What shows when grains are read.
const OF_GRAINS: [&str; 3] =
    ["bad/sparse-gte-outside.vmdk", "bad/stream-no-footer.vmdk", "bad/stream-bad-deflate.vmdk"];

#[test]
fn every_invalid_descriptor_and_header_is_refused() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("invalid") {
        let (file, wanted) = (vectors.file(case), text(&case["error"]));
        if OF_THE_DISK.contains(&wanted) || OF_GRAINS.contains(&text(&case["file"])) {
            assert!(descriptor(&file).is_ok(), "{case}");
        } else if wanted == "unknown_create_type" {
            let (descriptor, _) = descriptor(&file).unwrap();
            assert_eq!(CreateType::from_name(descriptor.create_type()), None);
        } else {
            check_error(case, descriptor(&file));
        }
        count += 1;
    }
    assert!(count > 40);
}

#[test]
fn an_encrypted_disk_of_esxi_is_told_and_its_key_list_opens() {
    let vectors = Vectors::of("vmdk");
    let mut count = 0;
    for case in vectors.cases("valid") {
        let (descriptor, _) = descriptor(&vectors.file(case)).unwrap();
        assert_eq!(descriptor.is_esxi_encrypted(), case.get("kek_hex").is_some(), "{case}");
        if !descriptor.is_esxi_encrypted() {
            assert!(descriptor.encryption_keys().unwrap().is_none());
            continue;
        }
        let list = descriptor.encryption_keys().unwrap().unwrap();
        let id = list.key_ids().remove(0);
        assert_eq!(descriptor.header("keyID").as_deref(), Some(id.key()));
        let opened = list.open_with(&mut OneKey(id, hex(&case["kek_hex"]))).unwrap();
        assert_eq!(opened.plaintext.as_slice(), text(&case["pair_plaintext"]).as_bytes());
        let key = KeyDict::parse(&opened.plaintext).unwrap();
        assert_eq!(key.expose(), hex(&case["dek_hex"]));
        count += 1;
    }
    assert!(count > 0);
}

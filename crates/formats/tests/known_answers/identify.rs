//! Every file of `tests/vectors` is what its folder says.

use vmseal_formats::{FileKind, START_LEN, identify};

use crate::cases::{Vectors, text};

#[test]
fn every_valid_file_is_recognised() {
    let mut count = 0;
    for (format, list) in
        [("vmx", "valid"), ("vmdk", "valid"), ("envelope", "valid"), ("envelope", "keystores"), ("encobj", "valid")]
    {
        let vectors = Vectors::of(format);
        for case in vectors.cases(list) {
            let file = vectors.file(case);
            let found = identify(&file[..file.len().min(START_LEN)]);
            let wanted = match (format, list) {
                ("vmx", _) => FileKind::Vmx,
                ("vmdk", _) if case.get("sparse_header").is_some() => FileKind::SparseExtent,
                ("vmdk", _) => FileKind::VmdkDescriptor,
                ("envelope", "valid") => FileKind::Envelope { offset_bytes: case["offset"].as_u64().unwrap() as usize },
                ("envelope", _) if text(&case["file"]).ends_with("nomode.info") => continue,
                ("envelope", _) => FileKind::Keystore,
                _ => FileKind::EncryptedObject,
            };
            assert_eq!(found, wanted, "{case}");
            count += 1;
        }
    }
    assert!(count > 40);
    let vmdk = Vectors::of("vmdk");
    let kind = |name: &str| identify(&vmdk.named(name)[..700]);
    assert_eq!(kind("esxi-chain/vm.vmsd"), FileKind::Vmsd);
    assert_eq!(kind("esxi-chain/vm-000001-delta.vmdk"), FileKind::CowdExtent);
    assert_eq!(kind("esxi-encrypted/enc-flat.vmdk"), FileKind::Unknown);
}

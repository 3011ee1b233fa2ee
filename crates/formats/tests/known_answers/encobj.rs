//! The encrypted objects of `tests/vectors/encobj`.

use vmseal_formats::encobj::{self, EncObjHeader};
use vmseal_formats::vmem;

use crate::cases::{Vectors, check_error, hex, sha256, text};

#[test]
fn every_object_decrypts() {
    let vectors = Vectors::of("encobj");
    let mut expanded = 0;
    for case in vectors.cases("valid") {
        let file = vectors.file(case);
        let header = EncObjHeader::parse(&file).unwrap();
        assert_eq!(u64::from(header.version), case["version"].as_u64().unwrap());
        assert_eq!(header.logical_len, case["logical_size"].as_u64().unwrap());
        assert_eq!(header.page_count(), case["pages"].as_u64().unwrap());
        let data = encobj::decrypt_unauthenticated(&hex(&case["key_hex"]), &file).unwrap();
        assert_eq!(sha256(&data), text(&case["plaintext_sha256"]), "{case}");
        if let Some(wanted) = case["flat_sha256"].as_str() {
            let flat = vmem::expand(&data, 1 << 20).unwrap();
            assert_eq!((sha256(&flat).as_str(), Some(flat.len() as u64)), (wanted, case["flat_len"].as_u64()));
            assert!(vmem::expand(&data, flat.len() - 1).is_err());
            expanded += 1;
        }
        if text(&case["file"]).ends_with(".vmsn") {
            assert!(encobj::is_snapshot(&data));
        }
    }
    assert!(expanded > 0);
}

#[test]
fn every_damaged_object_is_refused() {
    let vectors = Vectors::of("encobj");
    for case in vectors.cases("invalid") {
        let result = encobj::decrypt_unauthenticated(&hex(&case["key_hex"]), &vectors.file(case));
        if text(&case["error"]) == "undetected" {
            assert!(result.is_ok(), "a wrong key cannot be noticed");
        } else {
            check_error(case, result);
        }
    }
}

//! The envelopes of `tests/vectors/envelope`.

use crate::cases::{Vectors, check_error, hex, sha256, text};
use serde_json::Value;
use vmseal_formats::envelope::{self, AttributeValue, Opener};
use vmseal_formats::{Dictionary, Error, Keystore};
use vmseal_keys::FileKey;

fn key(case: &Value) -> FileKey {
    FileKey::from_slice(&hex(&case["key_hex"])).unwrap()
}

fn offset(case: &Value) -> usize {
    case["offset"].as_u64().unwrap() as usize
}

#[test]
fn every_envelope_opens_whole_and_in_pieces() {
    let vectors = Vectors::of("envelope");
    for case in vectors.cases("valid") {
        let file = vectors.file(case);
        assert_eq!(envelope::find(&file), Some(offset(case)), "{case}");
        let bytes = &file[offset(case)..];
        let header = envelope::describe(bytes).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(header.key_info(), text(&case["key_info"]));
        assert_eq!(header.iv(), hex(&case["iv_hex"]).as_slice());
        assert_eq!(header.key_hash(), hex(&case["key_hash_hex"]).as_slice());
        let aad = hex(&case["aad_hex"]);
        let data = envelope::open(&key(case), &aad, bytes).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(sha256(&data), text(&case["plaintext_sha256"]));

        let mut opener = Opener::new(&key(case), &aad, &header).unwrap();
        let mut sink = Vec::new();
        let mut opened = [0; 777];
        for piece in bytes[header.raw().len()..].chunks(opened.len()) {
            let len = opener.update(piece, &mut opened).unwrap();
            sink.extend_from_slice(&opened[..len]);
        }
        let len = opener.finish().unwrap();
        assert_eq!(len, case["plaintext_len"].as_u64().unwrap());
        assert_eq!(&sink[..len as usize], data.as_slice());
    }
}

#[test]
fn every_attribute_type_is_read() {
    let vectors = Vectors::of("envelope");
    let mut count = 0;
    for case in vectors.cases("valid") {
        let Some(wanted) = case["attributes"].as_object() else { continue };
        let header = envelope::describe(&vectors.file(case)).unwrap();
        for (name, wanted) in wanted {
            let found = header.attributes().iter().find(|attribute| attribute.name == *name).unwrap();
            let same = match &found.value {
                AttributeValue::Unsigned(number) => wanted.to_string().trim_matches('"') == number.to_string(),
                AttributeValue::Signed(number) => wanted.to_string().trim_matches('"') == number.to_string(),
                AttributeValue::Float(number) => wanted.as_f64() == Some(*number),
                AttributeValue::Text(bytes) | AttributeValue::Bytes(bytes) => text(wanted).as_bytes() == bytes,
            };
            assert!(same, "{name}: {wanted} {found:?}");
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn every_invalid_envelope_is_refused() {
    let vectors = Vectors::of("envelope");
    for case in vectors.cases("invalid") {
        let file = vectors.file(case);
        check_error(case, envelope::open(&key(case), &hex(&case["aad_hex"]), &file[offset(case)..]));
    }
}

#[test]
fn a_wrong_key_is_told_before_anything_is_decrypted() {
    let vectors = Vectors::of("envelope");
    let case = &vectors.cases("valid")[0];
    let header = envelope::describe(&vectors.file(case)).unwrap();
    assert!(matches!(Opener::new(&FileKey::from_bytes(&[1; 32]).unwrap(), b"", &header), Err(Error::WrongKey { .. })));
}

#[test]
fn every_keystore_gives_its_key_or_says_why_not() {
    let vectors = Vectors::of("envelope");
    for case in vectors.cases("keystores") {
        let result = Keystore::parse(&Dictionary::parse(&vectors.file(case)));
        if case.get("error").is_some() {
            check_error(case, result);
            continue;
        }
        let keystore = result.unwrap();
        assert_eq!(keystore.key_id(), text(&case["key_id"]));
        assert_eq!(keystore.key().expose().as_slice(), hex(&case["key_hex"]));
    }
}

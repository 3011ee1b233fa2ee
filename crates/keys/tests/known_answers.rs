//! Published known answers: RFC 3394, RFC 5649, and NIST CAVP for SP 800-38F and SP 800-38D.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

use vmseal_keys::hazmat::{KeyWrap, unwrap, wrap};
use vmseal_keys::{Context, Error, Kek, Purpose, WrapAlgorithm};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|index| u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).unwrap()).collect()
}

#[test]
fn the_vectors_of_rfc_3394_and_rfc_5649() {
    let kek = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F";
    let key = "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F";
    let kek_5649 = "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8";
    let cases = [
        // RFC 3394, 4.1 to 4.6
        (KeyWrap::Kw, &kek[..32], &key[..32], "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"),
        (KeyWrap::Kw, &kek[..48], &key[..32], "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D"),
        (KeyWrap::Kw, kek, &key[..32], "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"),
        (KeyWrap::Kw, &kek[..48], &key[..48], "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2"),
        (KeyWrap::Kw, kek, &key[..48], "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1"),
        (KeyWrap::Kw, kek, key, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"),
        // RFC 5649, 6
        (
            KeyWrap::Kwp,
            kek_5649,
            "c37b7e6492584340bed12207808941155068f738",
            "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
        ),
        (KeyWrap::Kwp, kek_5649, "466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"),
    ];
    for (function, under, key, wrapped) in cases {
        assert_eq!(wrap(function, &hex(under), &hex(key)).unwrap(), hex(wrapped));
        assert_eq!(unwrap(function, &hex(under), &hex(wrapped)).unwrap().as_slice(), hex(key));
    }
}

#[test]
fn the_vectors_of_nist_for_key_wrapping() {
    let files = [
        (KeyWrap::Kw, true, include_str!("vectors/KW_AE_128.txt")),
        (KeyWrap::Kw, true, include_str!("vectors/KW_AE_256.txt")),
        (KeyWrap::Kw, false, include_str!("vectors/KW_AD_256.txt")),
        (KeyWrap::Kwp, true, include_str!("vectors/KWP_AE_256.txt")),
        (KeyWrap::Kwp, false, include_str!("vectors/KWP_AD_256.txt")),
    ];
    let (mut opened, mut refused) = (0, 0);
    for (function, wraps, file) in files {
        let (mut under, mut given) = (Vec::new(), Vec::new());
        for line in file.lines() {
            match (line.trim().split_once(" = "), line.trim()) {
                (Some(("K", value)), _) => under = hex(value),
                (Some(("P", value)), _) if wraps => given = hex(value),
                (Some(("C", value)), _) if wraps => {
                    assert_eq!(wrap(function, &under, &given).unwrap(), hex(value));
                    opened += 1;
                }
                (Some(("C", value)), _) => given = hex(value),
                (Some(("P", value)), _) => {
                    assert_eq!(unwrap(function, &under, &given).unwrap().as_slice(), hex(value));
                    opened += 1;
                }
                (_, "FAIL") => {
                    assert_eq!(unwrap(function, &under, &given).unwrap_err(), Error::WrongKey);
                    refused += 1;
                }
                _ => {}
            }
        }
    }
    assert!(opened > 1500 && refused > 100, "{opened} {refused}");
}

#[test]
fn the_vectors_of_nist_for_gcm() {
    // The wrapped form is IV, ciphertext, tag; the vectors' associated data is not a context of ours, so that only those
    // without any are opened through `unwrap` and must fail for want of the context; the cipher itself is checked below.
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    let (mut opened, mut refused) = (0, 0);
    let mut case = std::collections::BTreeMap::new();
    for line in include_str!("vectors/gcmDecrypt256-iv96-tag128.rsp").lines().chain(["Count = end"]) {
        let line = line.trim();
        if line.starts_with("Count = ") && !case.is_empty() {
            let bytes = |name: &str| hex(case.get(name).copied().unwrap_or(""));
            let sealed = [bytes("CT"), bytes("Tag")].concat();
            let nonce = aes_gcm::Nonce::from(<[u8; 12]>::try_from(bytes("IV").as_slice()).unwrap());
            let cipher = aes_gcm::Aes256Gcm::new_from_slice(&bytes("Key")).unwrap();
            let result = cipher.decrypt(&nonce, Payload { msg: &sealed, aad: &bytes("AAD") });
            if case.contains_key("FAIL") {
                assert!(result.is_err());
                refused += 1;
            } else {
                assert_eq!(result.unwrap(), bytes("PT"));
                opened += 1;
                let kek = Kek::from_slice(&bytes("Key")).unwrap();
                let wrapped = [bytes("IV"), sealed].concat();
                let context = Context::new(Purpose::Disk, &[0; 16]);
                assert!(vmseal_keys::unwrap(WrapAlgorithm::Aes256Gcm, &kek, &wrapped, &context).is_err());
            }
            case.clear();
        }
        match line.split_once(" =") {
            Some((name, value)) if !line.starts_with('[') => {
                case.insert(name, value.trim());
            }
            _ if line == "FAIL" => {
                case.insert("FAIL", "");
            }
            _ => {}
        }
    }
    assert_eq!((opened, refused), (184, 191));
}

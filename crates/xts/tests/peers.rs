//! Against two independent implementations: xts-mode and OpenSSL.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failing test")]

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use proptest::collection::vec;
use proptest::prelude::*;
use vmseal_xts::{Error, XtsAes128, XtsAes256};
use xts_mode::{Xts128, get_tweak_default};

/// A run as OpenSSL does it: unit by unit.
fn openssl(key: &[u8], encrypt: bool, data: &[u8], unit_size: usize, first_unit: u128) -> Vec<u8> {
    let cipher = if key.len() == 64 { Cipher::aes_256_xts() } else { Cipher::aes_128_xts() };
    let mut output = Vec::new();
    for (index, unit) in data.chunks(unit_size).enumerate() {
        let tweak = (first_unit + index as u128).to_le_bytes();
        let mut context = CipherCtx::new().unwrap();
        if encrypt {
            context.encrypt_init(Some(cipher), Some(key), Some(&tweak)).unwrap();
        } else {
            context.decrypt_init(Some(cipher), Some(key), Some(&tweak)).unwrap();
        }
        context.cipher_update_vec(unit, &mut output).unwrap();
    }
    output
}

fn xts_mode(key: &[u8; 64], data: &[u8], unit_size: usize, first_unit: u128) -> Vec<u8> {
    use aes::cipher::KeyInit;
    let aes = |key: &[u8]| aes::Aes256::new_from_slice(key).unwrap();
    let xts = Xts128::new(aes(&key[..32]), aes(&key[32..]));
    let mut output = data.to_vec();
    for (index, unit) in output.chunks_mut(unit_size).enumerate() {
        xts.encrypt_sector(unit, get_tweak_default(first_unit + index as u128));
    }
    output
}

/// Numbers around every carry, up to where a run of `count` units still fits.
fn first_unit(count: usize) -> impl Strategy<Value = u128> {
    let last = u128::MAX - (count as u128).saturating_sub(1);
    prop_oneof![
        any::<u128>().prop_map(move |unit| unit.min(last)),
        (0u128..200).prop_map(|near| (1 << 32) - 100 + near),
        (0u128..200).prop_map(|near| (1 << 64) - 100 + near),
        (0u128..200).prop_map(move |near| last - near),
        0u128..10,
    ]
}

fn run() -> impl Strategy<Value = (Vec<u8>, usize, u128)> {
    let unit_size = prop_oneof![Just(512usize), Just(4096), Just(16), (1usize..300).prop_map(|blocks| blocks * 16)];
    (unit_size, 0usize..20_000).prop_flat_map(|(unit_size, len)| {
        let rest = len % unit_size;
        let len = if rest != 0 && rest < 16 { len - rest } else { len };
        (vec(any::<u8>(), len), Just(unit_size), first_unit(len.div_ceil(unit_size)))
    })
}

fn key() -> impl Strategy<Value = [u8; 64]> {
    any::<[[u8; 32]; 2]>().prop_filter("halves differ", |halves| halves[0] != halves[1]).prop_map(|halves| {
        let mut key = [0; 64];
        key[..32].copy_from_slice(&halves[0]);
        key[32..].copy_from_slice(&halves[1]);
        key
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_run_is_what_the_peers_make_of_it((data, unit_size, first_unit) in run(), key in key()) {
        let xts = XtsAes256::new(&key).unwrap();
        let mut sealed = data.clone();
        xts.encrypt_units(&mut sealed, unit_size, first_unit).unwrap();
        prop_assert!(sealed == openssl(&key, true, &data, unit_size, first_unit));
        prop_assert!(sealed == xts_mode(&key, &data, unit_size, first_unit));
        let mut copied = vec![0; data.len()];
        xts.encrypt_units_to(&data, &mut copied, unit_size, first_unit).unwrap();
        prop_assert!(copied == sealed);
        let mut opened = data.clone();
        xts.decrypt_units(&mut opened, unit_size, first_unit).unwrap();
        prop_assert!(opened == openssl(&key, false, &data, unit_size, first_unit));
        xts.decrypt_units_to(&sealed, &mut copied, unit_size, first_unit).unwrap();
        prop_assert!(copied == data);
    }

    #[test]
    fn aes_128_is_what_openssl_makes_of_it((data, unit_size, first_unit) in run(), key in key()) {
        let key: &[u8; 32] = key[16..48].try_into().unwrap();
        prop_assume!(key[..16] != key[16..]);
        let mut sealed = data.clone();
        XtsAes128::new(key).unwrap().encrypt_units(&mut sealed, unit_size, first_unit).unwrap();
        prop_assert!(sealed == openssl(key, true, &data, unit_size, first_unit));
    }

    #[test]
    fn transcrypting_is_decrypting_and_encrypting((data, unit_size, first_unit) in run(), old in key(), new in key()) {
        let (old, new) = (XtsAes256::new(&old).unwrap(), XtsAes256::new(&new).unwrap());
        let mut sealed = data.clone();
        old.encrypt_units(&mut sealed, unit_size, first_unit).unwrap();
        old.transcrypt_units(&new, &mut sealed, unit_size, first_unit).unwrap();
        new.decrypt_units(&mut sealed, unit_size, first_unit).unwrap();
        prop_assert!(sealed == data);
    }

    #[test]
    fn a_run_in_parts_is_the_run((data, unit_size, first_unit) in run(), key in key(), cut in any::<prop::sample::Index>()) {
        let xts = XtsAes256::new(&key).unwrap();
        let mut whole = data.clone();
        xts.encrypt_units(&mut whole, unit_size, first_unit).unwrap();
        let cut = cut.index(data.len().div_ceil(unit_size) + 1);
        let (mut first, mut second) = (data.clone(), Vec::new());
        second.extend(first.drain((cut * unit_size).min(first.len())..));
        xts.encrypt_units(&mut first, unit_size, first_unit).unwrap();
        xts.encrypt_units(&mut second, unit_size, first_unit.wrapping_add(cut as u128)).unwrap();
        prop_assert!([first, second].concat() == whole);
    }
}

#[test]
fn misuse_is_an_error_and_changes_nothing() {
    let mut key = [0; 64];
    key[0] = 1;
    let xts = XtsAes256::new(&key).unwrap();
    let cases = [
        (512, 0, 0, Error::UnitSize),
        (512, 8, 0, Error::UnitSize),
        (512, 24, 0, Error::UnitSize),
        (512 + 15, 512, 0, Error::ShortUnit),
        (15, 512, 0, Error::ShortUnit),
        (1024, 512, u128::MAX, Error::UnitNumber),
        (512 + 16, 512, u128::MAX, Error::UnitNumber),
    ];
    for (len, unit_size, first_unit, error) in cases {
        let mut data = vec![7; len];
        assert_eq!(xts.encrypt_units(&mut data, unit_size, first_unit), Err(error));
        assert_eq!(xts.decrypt_units(&mut data, unit_size, first_unit), Err(error));
        assert_eq!(xts.transcrypt_units(&xts, &mut data, unit_size, first_unit), Err(error));
        assert_eq!(data, vec![7; len]);
    }
    let mut last = [7; 512];
    xts.encrypt_units(&mut last, 512, u128::MAX).unwrap();
    assert_eq!(xts.encrypt_units_to(&last, &mut [0; 496], 512, 0), Err(Error::OutputLength));
    assert_eq!(xts.encrypt_units(&mut [], 512, u128::MAX), Ok(()));
    assert_eq!(XtsAes256::new_from_slice(&key[..63]).unwrap_err(), Error::KeyLength);
}

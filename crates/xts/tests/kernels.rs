//! Every kernel against OpenSSL and so against every other, at sizes around each of its borders.
//!
//! A kernel that this CPU does not run is left out and named on standard error; where `VMSEAL_EXPECT_KERNEL` names it, that is a failure.

#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used, reason = "a failing test")]

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vmseal_xts::{Kernel, XtsAes128, XtsAes256};

/// Whether `kernel` runs here; says so where it does not.
fn runs(kernel: Kernel) -> bool {
    if kernel.is_available() {
        return true;
    }
    let expected = std::env::var("VMSEAL_EXPECT_KERNEL").is_ok_and(|name| name == kernel.name());
    assert!(!expected, "kernel {} is expected here, and this CPU does not run it", kernel.name());
    eprintln!("NOT RUN: kernel {}: this CPU does not run it", kernel.name());
    false
}

/// Unit by unit.
fn openssl(key: &[u8], encrypt: bool, data: &[u8], unit_size: usize, first_unit: u128) -> Vec<u8> {
    let cipher = if key.len() == 64 { Cipher::aes_256_xts() } else { Cipher::aes_128_xts() };
    let mut context = CipherCtx::new().unwrap();
    let mut output = Vec::new();
    for (index, unit) in data.chunks(unit_size).enumerate() {
        let tweak = (first_unit + index as u128).to_le_bytes();
        if encrypt {
            context.encrypt_init(Some(cipher), Some(key), Some(&tweak)).unwrap();
        } else {
            context.decrypt_init(Some(cipher), Some(key), Some(&tweak)).unwrap();
        }
        context.cipher_update_vec(unit, &mut output).unwrap();
    }
    output
}

#[derive(Clone, Debug)]
struct Case {
    key: [u8; 64],
    other_key: [u8; 64],
    len: usize,
    unit_size: usize,
    first_unit: u128,
    /// Where in a buffer the data starts, and where the output does: every alignment.
    offsets: (usize, usize),
    seed: u64,
}

impl Case {
    fn data(&self) -> Vec<u8> {
        let mut state = self.seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..self.len).map(|_| next()).collect()
    }
}

fn key() -> impl Strategy<Value = [u8; 64]> {
    any::<[[u8; 32]; 2]>().prop_filter("halves differ", |halves| halves[0][..16] != halves[1][..16]).prop_map(
        |halves| {
            let mut key = [0; 64];
            key[..32].copy_from_slice(&halves[0]);
            key[32..].copy_from_slice(&halves[1]);
            key
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let unit_size = prop_oneof![
        4 => Just(512usize),
        3 => Just(4096),
        1 => Just(16),
        1 => Just(1024),
        3 => (1usize..48).prop_map(|blocks| blocks * 16),
        2 => (100usize..700).prop_map(|blocks| blocks * 16),
    ];
    // Around the borders of passes (256 bytes), chunks (512) and groups (128 units), and anywhere.
    let len = prop_oneof![
        3 => (1usize..600, -40isize..40).prop_map(|(chunks, by)| (chunks * 256).saturating_add_signed(by)),
        3 => 16usize..3000,
        1 => 16usize..200_000,
    ];
    (unit_size, len, key(), key(), any::<u64>(), (0usize..80, 0usize..80), any::<u128>(), 0usize..6, 0u128..300)
        .prop_map(|(unit_size, len, key, other_key, seed, offsets, anywhere, near, by)| {
            let rest = len % unit_size;
            let len = if rest != 0 && rest < 16 { (len - rest).max(16) } else { len.max(16) };
            let last = u128::MAX - (len.div_ceil(unit_size) as u128 - 1);
            let first_unit = match near {
                0 => by,
                1 => (1 << 32) - 150 + by,
                2 => (1 << 64) - 150 + by,
                3 => last - by,
                4 => last,
                _ => anywhere.min(last),
            };
            Case { key, other_key, len, unit_size, first_unit, offsets, seed }
        })
}

/// Calls in place and out of place, at the offsets of a case.
fn check(kernel: Kernel, case: &Case) {
    let Case { key, other_key, len, unit_size, first_unit, offsets, .. } = case.clone();
    let plain = case.data();
    let sealed = openssl(&key, true, &plain, unit_size, first_unit);
    let xts = XtsAes256::with_kernel(kernel, &key).unwrap().unwrap();
    let other = XtsAes256::with_kernel(kernel, &other_key).unwrap().unwrap();

    let mut buffer = vec![0xee; offsets.0 + len + 64];
    let range = offsets.0..offsets.0 + len;
    buffer[range.clone()].copy_from_slice(&plain);
    xts.encrypt_units(&mut buffer[range.clone()], unit_size, first_unit).unwrap();
    assert!(buffer[range.clone()] == sealed, "encrypting in place");
    xts.decrypt_units(&mut buffer[range.clone()], unit_size, first_unit).unwrap();
    assert!(buffer[range.clone()] == plain, "decrypting in place");

    let mut output = vec![0xee; offsets.1 + len + 64];
    let to = offsets.1..offsets.1 + len;
    xts.encrypt_units_to(&buffer[range.clone()], &mut output[to.clone()], unit_size, first_unit).unwrap();
    assert!(output[to.clone()] == sealed, "encrypting out of place");
    assert!(buffer[range.clone()] == plain, "the input stays");
    xts.decrypt_units_to(&sealed, &mut output[to.clone()], unit_size, first_unit).unwrap();
    assert!(output[to.clone()] == plain, "decrypting out of place");

    buffer[range.clone()].copy_from_slice(&sealed);
    xts.transcrypt_units(&other, &mut buffer[range.clone()], unit_size, first_unit).unwrap();
    assert!(buffer[range.clone()] == openssl(&other_key, true, &plain, unit_size, first_unit), "transcrypting");

    let around = |buffer: &[u8], range: std::ops::Range<usize>| {
        buffer[..range.start].iter().chain(&buffer[range.end..]).all(|byte| *byte == 0xee)
    };
    assert!(around(&buffer, range) && around(&output, to), "bytes beside the data have changed");

    let short_key = key[16..48].try_into().unwrap();
    let xts = XtsAes128::with_kernel(kernel, short_key).unwrap();
    let Ok(xts) = xts else { return };
    let mut data = plain.clone();
    xts.encrypt_units(&mut data, unit_size, first_unit).unwrap();
    assert!(data == openssl(short_key, true, &plain, unit_size, first_unit), "AES-128");
    xts.decrypt_units(&mut data, unit_size, first_unit).unwrap();
    assert!(data == plain, "AES-128 back");
}

fn differential(kernel: Kernel) {
    if !runs(kernel) {
        return;
    }
    assert_eq!(XtsAes256::with_kernel(kernel, &std::array::from_fn(|i| i as u8)).unwrap().unwrap().kernel(), kernel);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&case(), |case| {
            check(kernel, &case);
            Ok(())
        })
        .unwrap();
    // Every length up to some chunks, as one unit and in sectors.
    let key = std::array::from_fn(|index| index as u8);
    let other_key = std::array::from_fn(|index| index as u8 ^ 0x5a);
    for len in (16usize..1200).chain(2030..2080) {
        for (unit_size, first_unit) in [(len.next_multiple_of(16), u128::MAX), (512, (1 << 64) - 2), (48, 7)] {
            if len % unit_size == 0 || len % unit_size >= 16 {
                let offsets = (len % 64, len % 7);
                check(kernel, &Case { key, other_key, len, unit_size, first_unit, offsets, seed: len as u64 });
            }
        }
    }
}

#[test]
fn portable_is_what_openssl_makes_of_it() {
    differential(Kernel::Portable);
}

#[test]
fn aes_ni_is_what_openssl_makes_of_it() {
    differential(Kernel::AesNi);
}

#[test]
fn vaes_256_is_what_openssl_makes_of_it() {
    differential(Kernel::Vaes256);
}

#[test]
fn vaes_512_is_what_openssl_makes_of_it() {
    differential(Kernel::Vaes512);
}

#[test]
fn runs_too_long_for_the_cache_are_the_same() {
    let key = std::array::from_fn(|index| index as u8);
    let other_key = std::array::from_fn(|index| index as u8 ^ 0x5a);
    for kernel in Kernel::ALL.into_iter().filter(|kernel| runs(*kernel)) {
        for (unit_size, len) in
            [(512, (1 << 20) + 300), (4096, 3 << 20), (4160, 700_000), (528, 600_000), (1 << 20, 2 << 20)]
        {
            let case = Case { key, other_key, len, unit_size, first_unit: (1 << 64) - 9, offsets: (3, 0), seed: 5 };
            check(kernel, &case);
        }
    }
}

#[test]
fn the_expected_kernel_is_the_one_that_runs() {
    let found = XtsAes256::new(&std::array::from_fn(|index| index as u8)).unwrap().kernel();
    assert_eq!(found, Kernel::detect());
    match std::env::var("VMSEAL_EXPECT_KERNEL") {
        Ok(name) => {
            assert_eq!(found.name(), name, "VMSEAL_EXPECT_KERNEL names another kernel than the fastest one here")
        }
        Err(_) => eprintln!("the fastest kernel here is {}; VMSEAL_EXPECT_KERNEL expects none", found.name()),
    }
}

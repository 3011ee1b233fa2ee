//! Runs on several threads are the run on one.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failing test")]

use std::num::NonZeroUsize;

use vmseal_xts::parallel::{Job, Threads, Workers};
use vmseal_xts::{Error, XtsAes256};

fn ciphers() -> (XtsAes256, XtsAes256) {
    let cipher = |by: u8| XtsAes256::new(&std::array::from_fn(|index| index as u8 ^ by)).unwrap();
    (cipher(0), cipher(0x5a))
}

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

#[test]
fn parts_are_the_whole() {
    let (xts, other) = ciphers();
    for threads in [1, 2, 3, 8] {
        let threads = Threads::new(NonZeroUsize::new(threads).unwrap());
        for len in [16, 512, 100_000, 300 << 10, (1 << 20) + 512, (3 << 20) + 512 * 3 + 17] {
            for (unit_size, first_unit) in [(512, (1 << 64) - 3), (4096, 0), (1 << 20, 1), (8 << 20, 2)] {
                let plain = counting(len);
                let mut wanted = plain.clone();
                xts.encrypt_units(&mut wanted, unit_size, first_unit).unwrap();
                let mut data = plain.clone();
                xts.encrypt_units_parallel(&mut data, unit_size, first_unit, &threads).unwrap();
                assert!(data == wanted);
                let mut copied = vec![0; len];
                xts.encrypt_units_to_parallel(&plain, &mut copied, unit_size, first_unit, &threads).unwrap();
                assert!(copied == wanted);
                xts.decrypt_units_to_parallel(&wanted, &mut copied, unit_size, first_unit, &threads).unwrap();
                assert!(copied == plain);
                xts.transcrypt_units_parallel(&other, &mut data, unit_size, first_unit, &threads).unwrap();
                other.decrypt_units_parallel(&mut data, unit_size, first_unit, &threads).unwrap();
                assert!(data == plain);
            }
        }
    }
}

/// A pool that works on the last job first, and on no more than it is told to.
struct Backwards(usize);

impl Workers for Backwards {
    fn count(&self) -> usize {
        4
    }

    fn run(&self, jobs: Vec<Job<'_>>) {
        jobs.into_iter().rev().take(self.0).for_each(|job| job());
    }
}

#[test]
fn the_callers_own_pool_does_the_work() {
    let (xts, _) = ciphers();
    let (mut data, mut wanted) = (counting(4 << 20), counting(4 << 20));
    xts.encrypt_units_parallel(&mut data, 512, 9, &Backwards(usize::MAX)).unwrap();
    xts.encrypt_units(&mut wanted, 512, 9).unwrap();
    assert!(data == wanted);
}

#[test]
fn a_pool_that_loses_a_job_is_noticed() {
    let (xts, _) = ciphers();
    assert_eq!(xts.encrypt_units_parallel(&mut counting(4 << 20), 512, 9, &Backwards(3)), Err(Error::Workers));
}

#[test]
fn misuse_is_an_error_and_changes_nothing() {
    let (xts, other) = ciphers();
    let threads = Threads::available();
    let mut data = counting(1 << 20);
    assert_eq!(xts.encrypt_units_parallel(&mut data, 24, 0, &threads), Err(Error::UnitSize));
    assert_eq!(xts.decrypt_units_parallel(&mut data, 512, u128::MAX, &threads), Err(Error::UnitNumber));
    assert_eq!(xts.transcrypt_units_parallel(&other, &mut data[..515], 512, 0, &threads), Err(Error::ShortUnit));
    assert_eq!(xts.encrypt_units_to_parallel(&[0; 32], &mut data, 512, 0, &threads), Err(Error::OutputLength));
    assert!(data == counting(1 << 20));
}

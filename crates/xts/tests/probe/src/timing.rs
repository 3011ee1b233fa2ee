//! The method of dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", 2016): the times of two classes of secrets,
//! one fixed and one random, taken in random order, are compared by Welch's t-test.

use core::arch::x86_64::{__rdtscp, _mm_lfence};
use std::hint::black_box;

use vmseal_xts::{Kernel, XtsAes256};

/// Calls of one measurement.
const SAMPLES: usize = 60_000;
/// Secrets of each class, so that both classes lie in as many places.
const SECRETS: usize = 32;
const LEN: usize = 1024;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = (self.next() >> 32) as u8);
    }
}

fn cycles(work: impl FnOnce()) -> u64 {
    let mut processor = 0;
    // SAFETY: every x86-64 that runs these tests reads its time-stamp counter.
    unsafe {
        _mm_lfence();
        let start = __rdtscp(&mut processor);
        _mm_lfence();
        work();
        let end = __rdtscp(&mut processor);
        _mm_lfence();
        end.wrapping_sub(start)
    }
}

/// The t of the two classes, of the times under the 90th percentile: what is beyond is the system's.
fn welch(samples: &mut [(bool, u64)]) -> f64 {
    samples.sort_by_key(|(_, time)| *time);
    let kept = &samples[..samples.len() * 9 / 10];
    let moments = |class: bool| {
        let times: Vec<f64> = kept.iter().filter(|sample| sample.0 == class).map(|sample| sample.1 as f64).collect();
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        (mean, times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0) / count)
    };
    let ((mean, error), (other_mean, other_error)) = (moments(false), moments(true));
    (mean - other_mean) / (error + other_error).sqrt().max(f64::MIN_POSITIVE)
}

fn measure(random: &mut Random, mut work: impl FnMut(bool, usize) -> u64) -> f64 {
    let mut samples: Vec<(bool, u64)> = (0..SAMPLES)
        .map(|_| {
            let choice = random.next();
            let class = choice >> 17 & 1 == 1;
            (class, work(class, (choice >> 33) as usize % SECRETS))
        })
        .collect();
    welch(&mut samples)
}

/// Prints a line for each kind of secret: its name and t. The last is a comparison that ends at the first difference, which must be found.
pub fn run(kernel: Kernel) {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64 | 1);
    let mut random = Random(seed);
    let mut key = |fixed: bool| {
        let mut key: [u8; 64] = std::array::from_fn(|index| index as u8);
        if !fixed {
            random.fill(&mut key);
        }
        XtsAes256::with_kernel(kernel, &key).unwrap().unwrap()
    };
    // Made in turns, so that neither class has the better places in memory.
    let (fixed, other): (Vec<_>, Vec<_>) = (0..SECRETS).map(|_| (key(true), key(false))).unzip();
    let mut random = Random(seed ^ 0x5555);
    let mut pool = |fixed: bool| {
        let mut data = [0u8; LEN];
        if !fixed {
            random.fill(&mut data);
        }
        data
    };
    let (zeros, noise): (Vec<_>, Vec<_>) = (0..SECRETS).map(|_| (pool(true), pool(false))).unzip();
    let mut random = Random(seed ^ 0x3333);
    let mut data = [0u8; LEN];

    let t = measure(&mut random, |class, index| {
        data = if class { noise[index] } else { zeros[index] };
        cycles(|| fixed[0].encrypt_units(black_box(&mut data), 512, 5).unwrap())
    });
    println!("data-encrypt {t:.2}");
    let t = measure(&mut random, |class, index| {
        data = if class { noise[index] } else { zeros[index] };
        cycles(|| fixed[0].decrypt_units(black_box(&mut data), 512, 5).unwrap())
    });
    println!("data-decrypt {t:.2}");
    let t = measure(&mut random, |class, index| {
        data = zeros[index];
        let xts = if class { &other[index] } else { &fixed[index] };
        // Once before: the schedule is in the cache then.
        xts.encrypt_units(black_box(&mut data), 512, 5).unwrap();
        cycles(|| xts.encrypt_units(black_box(&mut data), 512, 5).unwrap())
    });
    println!("key {t:.2}");
    let t = measure(&mut random, |class, index| {
        let secret = if class { &noise[index] } else { &zeros[index] };
        cycles(|| {
            black_box(secret.iter().zip(&zeros[0]).take_while(|(a, b)| black_box(a) == black_box(b)).count());
        })
    });
    println!("leak {t:.2}");
}

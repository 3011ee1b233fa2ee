//! Measures: every contestant of a case in turns, many times, so that what else the machine does meets all of them alike.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use vmseal_xts::Kernel;
use vmseal_xts::parallel::Threads;

use crate::limits::{self, Width};
use crate::peers::{AwsLc, Gcrypt, OneUnitACall, OpenSsl, Peer, Vmseal, XtsMode};

pub const UNIT_SIZES: [usize; 2] = [512, 4096];
pub const LENS: [usize; 3] = [64 << 10, 1 << 20, 256 << 20];
/// A sample takes as many passes as make this many bytes.
const SAMPLE_LEN: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Encrypt,
    Decrypt,
    Transcrypt,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Encrypt, Self::Decrypt, Self::Transcrypt];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Transcrypt => "transcrypt",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub operation: Operation,
    pub len: usize,
    pub unit_size: usize,
    pub threads: usize,
}

impl Case {
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for threads in [1, 2] {
            for operation in Operation::ALL {
                for len in LENS {
                    for unit_size in UNIT_SIZES {
                        cases.push(Self { operation, len, unit_size, threads });
                    }
                }
            }
        }
        cases
    }
}

/// Bytes a nanosecond (GB/s), by contestant.
#[derive(Clone, Debug, Default)]
pub struct Results(pub BTreeMap<String, f64>);

impl Results {
    pub fn speed(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(f64::NAN)
    }

    /// The most that AES of the widest registers allows.
    pub fn limit(&self) -> f64 {
        Width::ALL.iter().map(|width| self.speed(&limit_name(*width))).fold(f64::NAN, f64::max)
    }

    pub fn best_peer(&self) -> f64 {
        ["OpenSSL", "AWS-LC", "libgcrypt", "xts-mode"].iter().map(|name| self.speed(name)).fold(f64::NAN, f64::max)
    }
}

pub fn limit_name(width: Width) -> String {
    format!("limit of {} bits", width.bits())
}

type Work = Box<dyn FnMut(&mut [u8]) + Send>;

/// One contestant: for each thread what it does with its bytes.
struct Contestant {
    name: String,
    work: Vec<Work>,
    speeds: Vec<f64>,
}

fn key(by: u8) -> [u8; 64] {
    std::array::from_fn(|index| (index as u8).wrapping_mul(7) ^ by)
}

fn contestant<P: Peer + Send + 'static>(name: &str, case: Case, make: impl Fn(&[u8; 64]) -> P) -> Contestant {
    let work = (0..case.threads).map(|_| {
        let (mut peer, mut to) = (make(&key(0)), make(&key(0x55)));
        let unit_size = case.unit_size;
        let work: Work = match case.operation {
            Operation::Encrypt => Box::new(move |data| peer.encrypt(data, unit_size)),
            Operation::Decrypt => Box::new(move |data| peer.decrypt(data, unit_size)),
            Operation::Transcrypt => Box::new(move |data| peer.transcrypt(&mut to, data, unit_size)),
        };
        work
    });
    Contestant { name: name.into(), work: work.collect(), speeds: Vec::new() }
}

fn plain(name: String, case: Case, work: impl Fn(&mut [u8]) + Clone + Send + 'static) -> Contestant {
    let work = (0..case.threads).map(|_| Box::new(work.clone()) as Work);
    Contestant { name, work: work.collect(), speeds: Vec::new() }
}

fn contestants(case: Case) -> Vec<Contestant> {
    let mut all = Vec::new();
    for width in Width::ALL.into_iter().filter(|width| width.is_available()) {
        all.push(plain(limit_name(width), case, move |data| width.rounds_of(data.len())));
    }
    if case.len > LENS[1] {
        for ahead in [0, 2048] {
            all.push(plain(format!("memory, {ahead} ahead"), case, move |data| limits::update(data, ahead)));
        }
    }
    all.push(contestant("vmseal", case, Vmseal::new));
    if case.operation != Operation::Transcrypt {
        all.push(contestant("vmseal, one unit a call", case, |key| OneUnitACall(Vmseal::new(key))));
    }
    for kernel in Kernel::ALL {
        if case.threads == 1 && case.len == LENS[0] && Vmseal::on(kernel, &key(0)).is_some() {
            let make = move |key: &[u8; 64]| Vmseal::on(kernel, key).unwrap();
            all.push(contestant(&format!("vmseal on {}", kernel.name()), case, make));
        }
    }
    all.push(contestant("OpenSSL", case, OpenSsl::new));
    all.push(contestant("AWS-LC", case, AwsLc::new));
    all.push(contestant("libgcrypt", case, Gcrypt::new));
    if case.len <= LENS[1] && case.threads == 1 {
        all.push(contestant("xts-mode", case, XtsMode::new));
    }
    all
}

/// Measures a case. `buffer` is as long as the longest.
pub fn measure(case: Case, buffer: &mut [u8]) -> Results {
    let mut contestants = contestants(case);
    // Small buffers: each thread has its own. A large one is shared out.
    let per_thread = if case.len > LENS[1] { case.len / case.threads } else { case.len };
    // Making a thread takes as long as 200 KiB do: a sample of threads is longer.
    let sample_len = if case.threads == 1 { SAMPLE_LEN } else { 8 * SAMPLE_LEN };
    let (passes, rounds) = if case.len > LENS[1] { (1, 15) } else { (sample_len / case.len, 25) };
    for _ in 0..rounds {
        for contestant in &mut contestants {
            let slow = contestant.name == "xts-mode";
            if slow && contestant.speeds.len() >= 7 {
                continue;
            }
            let passes = if slow { (passes / 16).max(1) } else { passes };
            let parts = buffer.chunks_mut(per_thread);
            let start = Instant::now();
            if case.threads == 1 {
                parts
                    .zip(&mut contestant.work)
                    .for_each(|(data, work)| (0..passes).for_each(|_| work(black_box(data))));
            } else {
                std::thread::scope(|scope| {
                    for (data, work) in parts.zip(&mut contestant.work) {
                        scope.spawn(move || (0..passes).for_each(|_| work(black_box(data))));
                    }
                });
            }
            let time = start.elapsed().as_nanos() as f64;
            contestant.speeds.push((per_thread * case.threads * passes) as f64 / time);
        }
    }
    let mut results =
        Results(contestants.into_iter().map(|contestant| (contestant.name, typical(contestant.speeds))).collect());
    if case.len > LENS[1] && case.threads == 2 {
        results.0.insert("vmseal, in parallel".into(), in_parallel(case, buffer));
    }
    results
}

/// The parallel variant of the crate itself, which cuts one buffer for its threads.
fn in_parallel(case: Case, buffer: &mut [u8]) -> f64 {
    let (vmseal, to) = (Vmseal::new(&key(0)).0, Vmseal::new(&key(0x55)).0);
    let threads = Threads::new(NonZeroUsize::new(case.threads).unwrap());
    let data = &mut buffer[..case.len];
    let speeds = (0..15).map(|_| {
        let start = Instant::now();
        match case.operation {
            Operation::Encrypt => vmseal.encrypt_units_parallel(data, case.unit_size, 0, &threads),
            Operation::Decrypt => vmseal.decrypt_units_parallel(data, case.unit_size, 0, &threads),
            Operation::Transcrypt => vmseal.transcrypt_units_parallel(&to, data, case.unit_size, 0, &threads),
        }
        .unwrap();
        case.len as f64 / start.elapsed().as_nanos() as f64
    });
    typical(speeds.collect())
}

/// The median of the five fastest samples: whatever else runs on the machine only ever makes one slower.
fn typical(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(|a, b| b.total_cmp(a));
    speeds[speeds.len().min(5) / 2]
}

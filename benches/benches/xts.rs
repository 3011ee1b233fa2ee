//! Criterion's view of the same cases, for changes over time: `cargo bench --bench xts -- --baseline before`. Ratios are those of the bench
//! `figures`, which lets the contestants take turns.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vmseal_benches::figures::{LENS, UNIT_SIZES};
use vmseal_benches::limits::Width;
use vmseal_benches::peers::{AwsLc, Gcrypt, OneUnitACall, OpenSsl, Peer, Vmseal, XtsMode};

fn peer<P: Peer>(criterion: &mut Criterion, name: &str, buffer: &mut [u8], make: impl Fn(&[u8; 64]) -> P) {
    let key = |by: u8| std::array::from_fn(|index| index as u8 ^ by);
    for len in LENS {
        if name == "xts-mode" && len > LENS[1] {
            continue;
        }
        let data = &mut buffer[..len];
        for unit_size in UNIT_SIZES {
            let (mut from, mut to) = (make(&key(0)), make(&key(0x55)));
            let mut group = criterion.benchmark_group(format!("{} KiB, units of {unit_size}", len >> 10));
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{name}/encrypt"), |bench| {
                bench.iter(|| from.encrypt(black_box(data), unit_size))
            });
            group.bench_function(format!("{name}/decrypt"), |bench| {
                bench.iter(|| from.decrypt(black_box(data), unit_size))
            });
            group.bench_function(format!("{name}/transcrypt"), |bench| {
                bench.iter(|| from.transcrypt(&mut to, black_box(data), unit_size));
            });
        }
    }
}

fn all(criterion: &mut Criterion) {
    let mut buffer = vec![1; LENS[2]];
    for width in Width::ALL.into_iter().filter(|width| width.is_available()) {
        let mut group = criterion.benchmark_group("issue limit");
        group.throughput(Throughput::Bytes(LENS[1] as u64));
        group.bench_function(format!("{} bits", width.bits()), |bench| {
            bench.iter(|| width.rounds_of(black_box(LENS[1])))
        });
    }
    peer(criterion, "vmseal", &mut buffer, Vmseal::new);
    peer(criterion, "vmseal, one unit a call", &mut buffer, |key| OneUnitACall(Vmseal::new(key)));
    peer(criterion, "OpenSSL", &mut buffer, OpenSsl::new);
    peer(criterion, "AWS-LC", &mut buffer, AwsLc::new);
    peer(criterion, "libgcrypt", &mut buffer, Gcrypt::new);
    peer(criterion, "xts-mode", &mut buffer, XtsMode::new);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = all
}
criterion_main!(benches);

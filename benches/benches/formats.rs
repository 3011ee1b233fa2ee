//! Criterion's view of the formats, for changes over time: `cargo bench --bench formats -- --baseline before`. Ratios are those of the bench
//! `figures`, which lets the contestants take turns.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vmseal_benches::formats::{Envelope, LENS, Whole, pbkdf2, pbkdf2_openssl, split, vmx};
use vmseal_formats::Dictionary;
use vmseal_keys::kdf::PassKdf;

fn texts(criterion: &mut Criterion) {
    let text = vmx();
    let mut group = criterion.benchmark_group("VMX of 4 KiB");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse", |bench| bench.iter(|| Dictionary::parse(black_box(text.as_bytes()))));
    group.bench_function("lines and =", |bench| bench.iter(|| split(black_box(&text)).len()));
}

fn phrases(criterion: &mut Criterion) {
    for kdf in [PassKdf::Pbkdf2HmacSha1, PassKdf::Pbkdf2HmacSha256] {
        let mut group = criterion.benchmark_group(kdf.name());
        group.bench_function("vmseal", |bench| bench.iter(|| pbkdf2(kdf, 10_000)));
        group.bench_function("OpenSSL", |bench| bench.iter(|| pbkdf2_openssl(kdf, 10_000)));
    }
}

fn envelopes(criterion: &mut Criterion) {
    for len in LENS {
        let mut group = criterion.benchmark_group(format!("AES-256-GCM, {} MiB", len >> 20));
        group.throughput(Throughput::Bytes(len as u64));
        let mut envelope = Envelope::of(len);
        group.bench_function("envelope, in pieces", |bench| bench.iter(|| envelope.extract()));
        let mut sealed = vec![1; len];
        let [first, ..] = Whole::all();
        let tag = first.seal(&mut sealed);
        for mut peer in Whole::all() {
            group.bench_function(format!("{}, one call", peer.name()), |bench| {
                bench.iter_batched_ref(|| sealed.clone(), |data| peer.open(data, &tag), BatchSize::PerIteration);
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = texts, phrases, envelopes
}
criterion_main!(benches);

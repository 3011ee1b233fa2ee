use std::hint::black_box;
use std::time::Instant;
use vmseal_benches::limits::{self, Width};
use vmseal_benches::peers::*;
use vmseal_xts::Kernel;

fn time(len: usize, f: &mut dyn FnMut()) -> f64 {
    let n = ((4 << 20) / len).max(1);
    let t = Instant::now();
    for _ in 0..n { f(); }
    (len * n) as f64 / t.elapsed().as_secs_f64() / 1e9
}
fn main() {
    let key: [u8; 64] = std::array::from_fn(|i| i as u8);
    let len: usize = std::env::var("LEN").ok().and_then(|s| s.parse().ok()).unwrap_or(65536);
    let rounds: usize = std::env::var("R").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    let peers = true;
    let mut buf = vec![1u8; len];
    let mut cases: Vec<(String, Box<dyn FnMut(&mut [u8])>)> = vec![];
    for w in Width::ALL { cases.push((format!("limit {w:?}"), Box::new(move |d| w.rounds_of(d.len())))); }
    if len > 1<<20 { for a in [0, 2048, 8192, 16384] { cases.push((format!("mem ahead {a}"), Box::new(move |d| limits::update(d, a)))); } }
    for unit in [512usize, 4096] {
        for k in Kernel::ALL { let mut v = Vmseal::on(k, &key).unwrap(); let mut w = Vmseal::on(k, &key).unwrap();
            cases.push((format!("{k:?} enc {unit}"), Box::new(move |d| v.encrypt(d, unit))));
            cases.push((format!("{k:?} dec {unit}"), Box::new(move |d| w.decrypt(d, unit))));
        }
        { let mut v = Vmseal::new(&key); let mut w = Vmseal::new(&key); cases.push((format!("transcrypt {unit}"), Box::new(move |d| v.transcrypt(&mut w, d, unit)))); }
        { let mut v = OneUnitACall(Vmseal::new(&key)); cases.push((format!("one unit {unit}"), Box::new(move |d| v.encrypt(d, unit)))); }
        if peers {
        { let mut v = OpenSsl::new(&key); cases.push((format!("openssl {unit}"), Box::new(move |d| v.encrypt(d, unit)))); }
        { let mut v = AwsLc::new(&key); cases.push((format!("awslc {unit}"), Box::new(move |d| v.encrypt(d, unit)))); }
        { let mut v = Gcrypt::new(&key); cases.push((format!("gcrypt {unit}"), Box::new(move |d| v.encrypt(d, unit)))); }
        { let mut v = XtsMode::new(&key); cases.push((format!("xtsmode {unit}"), Box::new(move |d| v.encrypt(d, unit)))); }
        }
    }
    let mut res = vec![vec![]; cases.len()];
    for _ in 0..rounds { for (i, (_, f)) in cases.iter_mut().enumerate() { res[i].push(time(len, &mut || f(black_box(&mut buf)))); } }
    let mut lim = 0.0;
    for (i, (n, _)) in cases.iter().enumerate() { res[i].sort_by(f64::total_cmp); let med = res[i][rounds / 2]; let max = res[i][rounds - 1]; if n == "limit Zmm" { lim = med; }
        println!("{n:24} median {med:7.2} max {max:7.2}  {:5.1} % of zmm", med / if lim > 0.0 { lim } else { 1.0 } * 100.0); }
}

fn main() {
    let mut v = vmseal_benches::peers::OneUnitACall(vmseal_benches::peers::Vmseal::new(&std::array::from_fn(|i| i as u8)));
    let mut d = vec![0u8; 65536];
    for _ in 0..100000 { vmseal_benches::peers::Peer::encrypt(&mut v, &mut d, 512); }
}

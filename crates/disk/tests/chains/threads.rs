//! Readers beside each other, and a writer now and then, as a block server has them.

use std::sync::RwLock;

use vmseal_disk::{HolePolicy, UnitSize};
use vmseal_storage::{Access, Memory};

use crate::links::{Grains, Keys, Kind, NewLink, path};

/// Every block holds its own number and a version, throughout.
fn block(number: u64, version: u8) -> Vec<u8> {
    (0..4096).map(|index: u64| (index as u8).wrapping_mul(3) ^ number as u8 ^ version).collect()
}

#[test]
fn readers_see_whole_blocks_while_others_are_written() {
    const BLOCKS: u64 = 4096;
    let storage = Memory::new();
    let mut keys = Keys::default();
    let mut parent: Option<String> = None;
    for name in ["a", "bb", "ccc"] {
        let mut new = NewLink::new(name, Kind::Monolithic, BLOCKS * 8, parent.as_deref());
        // Small grains: many tables.
        new.grain_sectors = 8;
        new.encryption = Some((UnitSize::B4096, HolePolicy::Zero));
        new.make(&storage, &mut keys, &Grains::new());
        let mut disk = keys.open(&storage, &path(&format!("{name}.vmdk")), Access::ReadWrite);
        for number in (0..BLOCKS).filter(|number| number % 3 == name.len() as u64 - 1) {
            disk.write_at(&block(number, 0), number * 4096).unwrap();
        }
        disk.flush().unwrap();
        parent = Some(format!("{name}.vmdk"));
    }
    let disk = RwLock::new(keys.open(&storage, &path("ccc.vmdk"), Access::ReadWrite));
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut state = seed + 1;
                for _ in 0..4000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let number = (state >> 33) % BLOCKS;
                    let mut bytes = vec![0xaa; 4096];
                    disk.read().unwrap().read_at(&mut bytes, number * 4096).unwrap();
                    assert!((0..3).any(|version| bytes == block(number, version)), "{number}");
                }
            });
        }
        for version in 1..3 {
            for number in (0..BLOCKS).step_by(5) {
                disk.write().unwrap().write_at(&block(number, version), number * 4096).unwrap();
            }
            disk.write().unwrap().flush().unwrap();
        }
    });
}

//! Random chains against a vector of bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use vmseal_disk::{Disk, HolePolicy, UnitSize};
use vmseal_storage::{Access, Memory, Storage, StoragePath};

use crate::links::{Grains, Keys, Kind, NewLink, path, read_all};

#[derive(Clone, Debug)]
enum Change {
    Discard,
    Reopen,
    Write(u8),
}

#[derive(Clone, Debug)]
struct Link {
    kind: Kind,
    sectors: u64,
    grain_sectors: u64,
    zeroed_grains: bool,
    unit: UnitSize,
    holes: HolePolicy,
    changes: Vec<(Change, Index, usize)>,
}

fn links() -> impl Strategy<Value = Link> {
    let change = prop_oneof![
        4 => any::<u8>().prop_map(Change::Write),
        3 => Just(Change::Discard),
        1 => Just(Change::Reopen),
    ];
    (
        select(Kind::ALL.as_slice()),
        1_u64..900,
        select([8_u64, 16, 128].as_slice()),
        any::<bool>(),
        select([UnitSize::B512, UnitSize::B4096].as_slice()),
        prop_oneof![3 => Just(HolePolicy::Zero), 1 => Just(HolePolicy::Fill)],
        vec((change, any::<Index>(), 1_usize..90_000), 0..6),
    )
        .prop_map(|(kind, sectors, grain_sectors, zeroed_grains, unit, holes, changes)| {
            // Grains of a sector cannot have larger data units.
            let unit = if kind == Kind::Cowd { UnitSize::B512 } else { unit };
            Link { kind, sectors, grain_sectors, zeroed_grains, unit, holes, changes }
        })
}

fn pattern(start: usize, end: usize, byte: u8) -> Vec<u8> {
    (start..end).map(|index| (index % 251) as u8 ^ (index >> 9) as u8 ^ byte).collect()
}

fn range(model: &[u8], at: &Index, len: usize) -> core::ops::Range<usize> {
    let start = at.index(model.len());
    start..model.len().min(start + len)
}

/// Grains of a link that is not written, and what they make of the model.
fn grains(link: &Link, new: &NewLink<'_>, model: &mut [u8]) -> Grains {
    let grain_len = new.grain_len() as usize;
    let mut grains = Grains::new();
    for (change, at, len) in &link.changes {
        let range = range(model, at, *len);
        for grain in range.start / grain_len..=(range.end - 1) / grain_len {
            let here = grain * grain_len..((grain + 1) * grain_len).min(model.len());
            let content = match change {
                Change::Write(byte) => Some(pattern(here.start, here.end, *byte)),
                Change::Discard if link.kind == Kind::SeSparse => None,
                // A grain of which the first part is stored zeros.
                Change::Discard | Change::Reopen => {
                    let mut content = pattern(here.start, here.end, 1);
                    content[..(here.end - here.start).min(1024)].fill(0);
                    Some(content)
                }
            };
            match &content {
                Some(content) => model[here.clone()].copy_from_slice(content),
                None => model[here.clone()].fill(0),
            }
            grains.insert(grain as u64, content);
        }
    }
    grains
}

/// Everything that is passed over is zeros, and the ranges ascend.
fn check_next_data(disk: &Disk<'_>, model: &[u8]) -> Result<(), TestCaseError> {
    let mut at = 0;
    while let Some(data) = disk.next_data(at).unwrap() {
        prop_assert!(data.start >= at && data.end > data.start && data.end <= model.len() as u64);
        prop_assert!(model[at as usize..data.start as usize].iter().all(|byte| *byte == 0), "before {data:?}");
        at = data.end;
    }
    prop_assert!(model[at as usize..].iter().all(|byte| *byte == 0), "behind {at}");
    Ok(())
}

fn contents(storage: &Memory, except: &str) -> Vec<(StoragePath, Vec<u8>)> {
    let parents = storage.paths().into_iter().filter(|path| !path.as_str().starts_with(except));
    parents.map(|path| (path.clone(), storage.read(&path, 64 << 20).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_chain_is_what_its_links_make_of_it(links in vec(links(), 1..6), is_encrypted: bool) {
        let storage = Memory::new();
        let mut keys = Keys::default();
        let mut model: Vec<u8> = Vec::new();
        let mut parent: Option<String> = None;
        for (depth, link) in links.iter().enumerate() {
            let mut new = NewLink::new(&format!("l{depth}-{}", "x".repeat(depth)), link.kind, link.sectors, parent.as_deref());
            new.grain_sectors = link.grain_sectors;
            new.zeroed_grains = link.zeroed_grains;
            new.encryption = is_encrypted.then_some((link.unit, link.holes));
            // A flat link hides its parents.
            if link.kind == Kind::Flat {
                model.clear();
            }
            model.resize(link.sectors as usize * 512, 0);
            let initial = if link.kind.is_written() { Grains::new() } else { grains(link, &new, &mut model) };
            new.make(&storage, &mut keys, &initial);
            let link_path = path(&format!("{}.vmdk", new.name));
            let below = contents(&storage, &new.name);
            if link.kind.is_written() {
                let mut disk = keys.open(&storage, &link_path, Access::ReadWrite);
                for (change, at, len) in &link.changes {
                    let range = range(&model, at, *len);
                    match change {
                        Change::Write(byte) => {
                            let data = pattern(range.start, range.end, *byte);
                            disk.write_at(&data, range.start as u64).unwrap();
                            model[range].copy_from_slice(&data);
                        }
                        Change::Discard => {
                            disk.discard(range.start as u64, range.len() as u64).unwrap();
                            model[range].fill(0);
                        }
                        Change::Reopen => {
                            disk.flush().unwrap();
                            drop(disk);
                            disk = keys.open(&storage, &link_path, Access::ReadWrite);
                        }
                    }
                    prop_assert!(read_all(&disk) == model, "{change:?} {at:?} {len} of link {depth}");
                    check_next_data(&disk, &model)?;
                }
                disk.flush().unwrap();
            } else {
                prop_assert!(keys.try_open(&storage, &link_path, Access::ReadWrite).is_err());
            }
            prop_assert!(contents(&storage, &new.name) == below, "a parent of link {depth} was changed");
            let disk = keys.open(&storage, &link_path, Access::Read);
            prop_assert!(read_all(&disk) == model, "link {depth}");
            check_next_data(&disk, &model)?;
            // Reads that begin and end anywhere.
            for (_, at, len) in &link.changes {
                let range = range(&model, at, *len);
                let mut bytes = vec![0xaa; range.len()];
                disk.read_at(&mut bytes, range.start as u64).unwrap();
                prop_assert!(bytes == model[range.clone()], "{range:?} of link {depth}");
                let mut bytes = vec![0xaa; range.len()];
                let lost = keys.salvage(&storage, &link_path).salvage_read(&mut bytes, range.start as u64).unwrap();
                prop_assert!(lost.is_empty() && bytes == model[range], "{lost:?}");
            }
            parent = Some(link_path.to_string());
        }
    }
}

#[test]
fn thirty_two_links_are_read_through() {
    for is_encrypted in [false, true] {
        let storage = Memory::new();
        let mut keys = Keys::default();
        let mut model = vec![0; 40 * 65_536];
        let mut parent: Option<String> = None;
        for depth in 0..32_usize {
            let mut new =
                NewLink::new(&format!("l{depth}-{}", "x".repeat(depth)), Kind::Monolithic, 40 * 128, parent.as_deref());
            new.encryption = is_encrypted.then_some((UnitSize::B512, HolePolicy::Zero));
            new.make(&storage, &mut keys, &Grains::new());
            let link_path = path(&format!("{}.vmdk", new.name));
            let mut disk = keys.open(&storage, &link_path, Access::ReadWrite);
            let start = depth * 65_536 + 1000;
            let data = pattern(start, start + 70_000, depth as u8);
            disk.write_at(&data, start as u64).unwrap();
            model[start..start + 70_000].copy_from_slice(&data);
            disk.flush().unwrap();
            assert!(read_all(&disk) == model, "{depth}");
            parent = Some(link_path.to_string());
        }
    }
}

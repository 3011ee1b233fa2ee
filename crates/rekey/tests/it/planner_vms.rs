//! The survey, the planner and the engine on generated VMs that lie on storage: what is legal leaves the guest's bytes as they were and a VM
//! that verifies, and what is not is refused for exactly its reasons.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;
use vmseal_disk::{DiskLayout, NewDisk, NewDiskType, UnitSize};
use vmseal_keys::TestKeys;
use vmseal_rekey::{
    Disks, Journal, Operation, Request, Strategy as Way, Unwatched, execute, open_plain_disk, plan, survey, unlock,
    verify,
};
use vmseal_storage::{Access, Memory, Storage};

use crate::planner_oracle::{TABLE, is_refused, name};
use crate::testing::{path, vmx};

const FOLDER: &str = "vms/web01";
const SIZE: u64 = 192 << 10;

/// Who else uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    No,
    /// A VM in the same folder has it attached.
    Attached,
    /// A linked clone in the same folder hangs on it.
    CloneHere,
    /// A linked clone in a folder of its own does.
    CloneBeside,
}

#[derive(Clone, Debug)]
struct DiskModel {
    disk_type: NewDiskType,
    bus: &'static str,
    /// Links on top of it; the last is attached.
    depth: usize,
    /// Whether a link hangs on it that nothing leads to: another branch.
    has_stray: bool,
    sharing: Sharing,
    is_foreign: bool,
    /// Whether the links' descriptors are encrypted too.
    links_are_encrypted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    /// The VM's files alone.
    Files,
    /// The first disk too.
    First,
    All,
    /// All, and the VMX was put back from before: encrypted disks on a plain VM.
    Stripped,
    /// All, and the first disk's descriptor was put back from before a shallow recrypt.
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Off,
    VmxLock,
    DiskLock,
    LinkLock,
    Swap,
    ProcessSwap,
    SuspendFile,
    SuspendEntry,
}

#[derive(Clone, Debug)]
struct Model {
    disks: Vec<DiskModel>,
    state: State,
    power: Power,
    /// Snapshots and branches of the VMSD: none, one branch, two, and one that was reverted.
    vmsd: usize,
    /// Whether the last disk hangs on one in another folder.
    is_clone: bool,
    has_memory_file: bool,
    unit: UnitSize,
}

#[derive(Clone, Debug)]
struct Wish {
    operation: Operation,
    only_last: bool,
    way: Way,
    to_other: bool,
}

prop_compose! {
    fn disk_model()(
        disk_type in select(vec![
            NewDiskType::MonolithicFlat, NewDiskType::MonolithicSparse, NewDiskType::TwoGbMaxExtentFlat,
            NewDiskType::TwoGbMaxExtentSparse, NewDiskType::Vmfs,
        ]),
        bus in prop_oneof![6 => Just("scsi"), 2 => Just("sata"), 1 => Just("nvme"), 1 => Just("ide")],
        depth in prop_oneof![6 => Just(0_usize), 2 => Just(1), 1 => Just(2)],
        has_stray in prop::bool::weighted(0.08),
        sharing in prop_oneof![
            12 => Just(Sharing::No), 1 => Just(Sharing::Attached), 1 => Just(Sharing::CloneHere), 1 => Just(Sharing::CloneBeside)
        ],
        is_foreign in prop::bool::weighted(0.06),
        links_are_encrypted in any::<bool>(),
    ) -> DiskModel {
        let is_foreign = is_foreign && disk_type != NewDiskType::MonolithicSparse;
        DiskModel { disk_type, bus, depth, has_stray, sharing, is_foreign, links_are_encrypted }
    }
}

prop_compose! {
    fn model()(
        disks in prop::collection::vec(disk_model(), 1..4),
        state in prop_oneof![
            3 => Just(State::Plain), 1 => Just(State::Files), 1 => Just(State::First), 6 => Just(State::All),
            1 => Just(State::Stripped), 2 => Just(State::Mixed),
        ],
        power in prop_oneof![
            8 => Just(Power::Off), 1 => Just(Power::VmxLock), 1 => Just(Power::DiskLock), 1 => Just(Power::LinkLock), 1 => Just(Power::Swap),
            1 => Just(Power::ProcessSwap), 1 => Just(Power::SuspendFile), 1 => Just(Power::SuspendEntry),
        ],
        vmsd in prop_oneof![6 => Just(0_usize), 2 => Just(1), 1 => Just(2), 1 => Just(3)],
        is_clone in prop::bool::weighted(0.08),
        has_memory_file in prop::bool::weighted(0.1),
        unit in select(vec![UnitSize::B512, UnitSize::B4096]),
    ) -> Model {
        Model { disks, state, power, vmsd, is_clone, has_memory_file, unit }
    }
}

prop_compose! {
    fn wish()(
        operation in select(TABLE.map(|(operation, _)| operation).to_vec()),
        only_last in any::<bool>(),
        way in select(vec![Way::Copy, Way::InPlace(Journal::Digests), Way::InPlace(Journal::Data)]),
        to_other in any::<bool>(),
    ) -> Wish {
        Wish { operation, only_last, way, to_other }
    }
}

fn content(index: usize) -> Vec<u8> {
    (0..SIZE / 2).map(|at| (at * (index as u64 * 2 + 3) % 251) as u8 ^ (at >> 9) as u8).collect()
}

fn base(index: usize) -> String {
    format!("d{index}.vmdk")
}

fn link(index: usize, level: usize) -> String {
    format!("d{index}-00000{level}.vmdk")
}

fn in_folder(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

impl DiskModel {
    /// The name of the descriptor that the VMX leads to.
    fn attached(&self, index: usize) -> String {
        if self.depth == 0 { base(index) } else { link(index, self.depth) }
    }

    fn is_embedded(&self) -> bool {
        self.disk_type == NewDiskType::MonolithicSparse
    }
}

/// A sparse disk without content of its own that hangs on `parent`, which lies at `hint` from it.
fn make_child(storage: &Memory, child: &str, parent: &str, hint: &str) {
    if storage.metadata(&path(child)).unwrap().is_none() {
        NewDisk::new(NewDiskType::TwoGbMaxExtentSparse, SIZE).create(storage, &path(child)).unwrap();
    }
    let (descriptor, _) = DiskLayout::read_descriptor(storage, &path(parent)).unwrap();
    let text = String::from_utf8(storage.read(&path(child), 1 << 20).unwrap()).unwrap();
    let own = format!("parentCID={:08x}\nparentFileNameHint=\"{hint}\"", descriptor.cid());
    assert!(text.contains("parentCID=ffffffff"));
    storage.replace(&path(child), text.replace("parentCID=ffffffff", &own).as_bytes()).unwrap();
}

impl Model {
    /// Whether the disk, and with it its links where they are, is encrypted.
    fn is_encrypted(&self, index: usize) -> bool {
        let disk = &self.disks[index];
        !disk.is_foreign
            && match self.state {
                State::Plain | State::Files => false,
                State::First => index == 0,
                State::All | State::Stripped | State::Mixed => true,
            }
    }

    fn has_encrypted_link(&self, index: usize, level: usize) -> bool {
        if level == 0 {
            return self.is_encrypted(index);
        }
        let disk = &self.disks[index];
        !disk.is_foreign && disk.links_are_encrypted && self.is_encrypted(index)
    }

    fn vm_is_encrypted(&self) -> bool {
        !matches!(self.state, State::Plain | State::Stripped)
    }

    /// The VM on storage.
    fn make(&self, keys: &mut TestKeys) -> Memory {
        let storage = Memory::new();
        for folder in ["vms", FOLDER, "vms/golden", "vms/clone"] {
            storage.create_folder(&path(folder)).unwrap();
        }
        let mut vmx_text = "displayName = \"web01\"\n".to_owned();
        let mut encrypted = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            // At first every link is a whole disk, attached, so that each gets a DEK of its own.
            let at = path(&in_folder(&base(index)));
            let mut opened = NewDisk::new(disk.disk_type, SIZE).create_and_open(&storage, &at).unwrap();
            opened.write_at(&content(index), SIZE / 4).unwrap();
            opened.flush().unwrap();
            drop(opened);
            for level in 0..=disk.depth {
                let name = if level == 0 { base(index) } else { link(index, level) };
                if level > 0 {
                    NewDisk::new(NewDiskType::TwoGbMaxExtentSparse, SIZE)
                        .create(&storage, &path(&in_folder(&name)))
                        .unwrap();
                }
                vmx_text.push_str(&format!("scsi{index}:{level}.fileName = \"{name}\"\n"));
                if self.has_encrypted_link(index, level) {
                    encrypted.push(name);
                }
            }
        }
        storage.replace(&vmx(), vmx_text.as_bytes()).unwrap();
        storage.replace(&path(&in_folder("web01.nvram")), &content(9)[..9000]).unwrap();
        let plain_vmx = storage.read(&vmx(), 1 << 20).unwrap();
        let run = |request: &Request, keys: &mut TestKeys| {
            let planned = plan(&survey(&storage, &vmx()).unwrap(), request).unwrap();
            execute(&storage, &planned, keys, &mut Unwatched).unwrap();
        };
        if self.state != State::Plain {
            let disks = if encrypted.is_empty() { Disks::None } else { Disks::Only(encrypted) };
            run(&Request::encrypt(&TestKeys::provider("test")).disks(disks).unit_size(self.unit), keys);
        }
        if self.state == State::Mixed {
            let first = path(&in_folder(&base(0)));
            let saved = storage.read(&first, 4 << 20).unwrap();
            run(&Request::shallow_recrypt(), keys);
            storage.replace(&first, &saved).unwrap();
        }
        // Now they become what they are.
        let mut text = if self.state == State::Stripped {
            String::from_utf8(plain_vmx).unwrap()
        } else {
            String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap().to_vec()).unwrap()
        };
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.is_foreign {
                let at = path(&in_folder(&base(index)));
                let old = String::from_utf8(storage.read(&at, 1 << 20).unwrap()).unwrap();
                storage.replace(&at, format!("{old}ddb.iofilters = \"vmwarevmcrypt\"\n").as_bytes()).unwrap();
            }
            for level in 0..=disk.depth {
                let name = if level == 0 { base(index) } else { link(index, level) };
                let entry = format!("scsi{index}:{level}.fileName = \"{name}\"\n");
                assert!(text.contains(&entry));
                let is_attached = level == disk.depth;
                let new = format!("{}{index}:0.fileName = \"{name}\"\n", disk.bus);
                text = text.replace(&entry, if is_attached { &new } else { "" });
                if level > 0 {
                    let parent = if level == 1 { base(index) } else { link(index, level - 1) };
                    make_child(&storage, &in_folder(&name), &in_folder(&parent), &parent);
                }
            }
            let of_base = in_folder(&base(index));
            if disk.has_stray {
                make_child(&storage, &in_folder(&format!("d{index}-stray.vmdk")), &of_base, &base(index));
            }
            let neighbour = |vmx: String, disk: &str| {
                storage.replace(&path(&vmx), format!("scsi0:0.fileName = \"{disk}\"\n").as_bytes()).unwrap();
            };
            let clone = format!("clone{index}.vmdk");
            match disk.sharing {
                Sharing::No => {}
                Sharing::Attached => neighbour(in_folder(&format!("other{index}.vmx")), &base(index)),
                Sharing::CloneHere => {
                    make_child(&storage, &in_folder(&clone), &of_base, &base(index));
                    neighbour(in_folder(&format!("other{index}.vmx")), &clone);
                }
                Sharing::CloneBeside => {
                    let hint = format!("../web01/{}", base(index));
                    make_child(&storage, &format!("vms/clone/{clone}"), &of_base, &hint);
                    neighbour(format!("vms/clone/other{index}.vmx"), &clone);
                }
            }
        }
        if self.is_clone {
            let golden = "vms/golden/golden.vmdk";
            NewDisk::new(NewDiskType::Vmfs, SIZE).create(&storage, &path(golden)).unwrap();
            make_child(&storage, &in_folder("clone.vmdk"), golden, "../golden/golden.vmdk");
            text.push_str("scsi9:0.fileName = \"clone.vmdk\"\n");
        }
        if self.power == Power::SuspendEntry {
            text.push_str("checkpoint.vmState = \"web01-5.vmss\"\n");
        }
        storage.replace(&vmx(), text.as_bytes()).unwrap();
        let evidence = match self.power {
            Power::Off | Power::SuspendEntry => None,
            Power::VmxLock => Some("web01.vmx.lck".to_owned()),
            Power::DiskLock => Some(format!("{}.lck", self.disks[0].attached(0))),
            Power::LinkLock => Some(format!("{}.lck", base(0))),
            Power::Swap => Some("web01-3f.vswp".to_owned()),
            Power::ProcessSwap => Some("vmx-web01-3f-1.vswp".to_owned()),
            Power::SuspendFile => Some("web01-3f.vmss".to_owned()),
        };
        let memory = self.has_memory_file.then(|| "web01-3f.vmem".to_owned());
        for name in evidence.into_iter().chain(memory) {
            storage.replace(&path(&in_folder(&name)), b"").unwrap();
        }
        let vmsd = match self.vmsd {
            0 => "",
            1 => "snapshot.current = \"2\"\nsnapshot0.uid = \"1\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n",
            2 => {
                "snapshot.current = \"3\"\nsnapshot0.uid = \"1\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\nsnapshot2.uid = \"3\"\nsnapshot2.parent = \"1\"\n"
            }
            _ => "snapshot.current = \"1\"\nsnapshot0.uid = \"1\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n",
        };
        if !vmsd.is_empty() {
            storage.replace(&path(&in_folder("web01.vmsd")), vmsd.as_bytes()).unwrap();
        }
        storage
    }

    fn branches(&self) -> usize {
        let listed = [0, 1, 2, 2][self.vmsd];
        let of_disk = |disk: &DiskModel| match (disk.depth, disk.has_stray) {
            (0, false) => 0,
            (_, false) => 1,
            (_, true) => 2,
        };
        self.disks.iter().map(of_disk).max().unwrap_or(0).max(listed)
    }

    /// What the rules say, from the model alone.
    fn expected(&self, wish: &Wish) -> BTreeSet<String> {
        let mut reasons = BTreeSet::new();
        let mut add = |condition: bool, reason: String| {
            if condition {
                reasons.insert(reason);
            }
        };
        let operation = wish.operation;
        let (shallow, encrypt) = (operation == Operation::ShallowRecrypt, operation == Operation::Encrypt);
        let is_suspended = matches!(self.power, Power::SuspendFile | Power::SuspendEntry);
        let is_on = self.power != Power::Off && !is_suspended;
        let last = self.disks.len() - 1;
        add(is_on && is_refused(operation, 0), "powered on".to_owned());
        add(is_suspended && is_refused(operation, 1), "suspended".to_owned());
        add(self.branches() == 1 && is_refused(operation, 2), "snapshots".to_owned());
        add(self.branches() > 1 && is_refused(operation, 3), "branches".to_owned());
        add(self.is_clone && is_refused(operation, 4), "clone".to_owned());
        add(!self.vm_is_encrypted() && !encrypt, "not encrypted".to_owned());
        add(self.vm_is_encrypted() && encrypt && !wish.only_last, "already encrypted".to_owned());
        add(self.vm_is_encrypted() && encrypt && wish.only_last && wish.to_other, "other provider".to_owned());
        add(self.has_memory_file && encrypt && self.branches() == 0 && self.power == Power::Off, "memory".to_owned());
        add(self.state == State::Stripped && encrypt, "foreign file".to_owned());
        for (index, disk) in self.disks.iter().enumerate() {
            let attached = in_folder(&disk.attached(index));
            let chain = 0..=disk.depth;
            let name_of = |level: usize| in_folder(&if level == 0 { base(index) } else { link(index, level) });
            let is_taken = if encrypt {
                !wish.only_last || index == last
            } else {
                disk.is_foreign || chain.clone().any(|level| self.has_encrypted_link(index, level))
            };
            add(is_taken && disk.sharing != Sharing::No, format!("shared {attached}"));
            add(is_taken && disk.is_foreign, format!("foreign {}", in_folder(&base(index))));
            add(shallow && is_on && disk.bus == "ide", format!("ide {attached}"));
            let is_patched = disk.is_embedded() && self.is_encrypted(index);
            add(shallow && is_on && is_patched, format!("embedded {}", in_folder(&base(index))));
            for level in chain.filter(|level| self.has_encrypted_link(index, *level)) {
                add(self.state == State::Stripped, format!("encrypted on plain {}", name_of(level)));
            }
            let is_encrypted = self.has_encrypted_link(index, disk.depth);
            let is_told = self.vm_is_encrypted() && encrypt && wish.only_last && index == last && is_encrypted;
            add(is_told, format!("disk encrypted {attached}"));
        }
        reasons
    }

    fn request(&self, wish: &Wish) -> Request {
        let provider = TestKeys::provider(if wish.to_other { "other" } else { "test" });
        let last = self.disks.len() - 1;
        let request = match wish.operation {
            Operation::Encrypt if wish.only_last => {
                Request::encrypt(&provider).disks(Disks::Only(vec![self.disks[last].attached(last)]))
            }
            Operation::Encrypt => Request::encrypt(&provider),
            Operation::Decrypt => Request::decrypt(),
            Operation::ShallowRecrypt => Request::shallow_recrypt().provider(&provider),
            Operation::DeepRecrypt => Request::deep_recrypt().provider(&provider),
        };
        request.unit_size(self.unit).strategy(wish.way).memory_bytes(128 << 10)
    }

    /// The guest's bytes of each disk that is whole, and the data of each that is not, byte for byte as it lies.
    fn data(&self, storage: &Memory, keys: &mut TestKeys) -> Vec<Vec<u8>> {
        let mut data = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.is_foreign {
                continue;
            }
            let at = path(&in_folder(&base(index)));
            if disk.depth > 0 {
                // The links' data, wherever the descriptor is not: behind it in the one file.
                for name in storage.list(&path(FOLDER)).unwrap() {
                    let is_extent = name.starts_with(&format!("d{index}-")) && name.ends_with(".vmdk");
                    if !(is_extent || disk.is_embedded() && name == base(index)) {
                        continue;
                    }
                    let bytes = storage.read(&path(&in_folder(&name)), 32 << 20).unwrap();
                    if !bytes.starts_with(b"# Disk DescriptorFile") {
                        data.push(bytes.get(21 * 512..).unwrap_or_default().to_vec());
                    }
                }
                continue;
            }
            let mut bytes = vec![1; SIZE as usize];
            if survey(storage, &vmx()).unwrap().encryption.is_none() {
                open_plain_disk(storage, &vmx(), &at, Access::Read).unwrap().read_at(&mut bytes, 0).unwrap();
            } else {
                let vm = unlock(storage, &vmx(), keys).unwrap();
                vm.open_disk(storage, &at, Access::Read, keys).unwrap().read_at(&mut bytes, 0).unwrap();
            }
            assert!(bytes[SIZE as usize / 4..][..content(index).len()] == content(index)[..]);
            data.push(bytes);
        }
        data
    }
}

/// A VM with nothing in the way, and something to be done with it.
fn quiet() -> impl Strategy<Value = (Model, Wish)> {
    (model(), wish(), any::<bool>()).prop_map(|(mut model, mut wish, has_all)| {
        for disk in &mut model.disks {
            (disk.depth, disk.has_stray, disk.sharing, disk.is_foreign) = (0, false, Sharing::No, false);
        }
        (model.power, model.vmsd, model.is_clone, model.has_memory_file) = (Power::Off, 0, false, false);
        if model.state == State::Stripped {
            model.state = State::All;
        }
        if (model.state == State::Plain) != (wish.operation == Operation::Encrypt) {
            model.state = if wish.operation == Operation::Encrypt { State::Plain } else { State::All };
        }
        wish.only_last &= !has_all;
        (model, wish)
    })
}

fn check(model: &Model, wish: &Wish) -> Result<(), TestCaseError> {
    let mut keys = TestKeys::new();
    let storage = model.make(&mut keys);
    let inventory = survey(&storage, &vmx()).unwrap();
    prop_assert_eq!(inventory.has_mixed_keys(), model.state == State::Mixed && (model.is_encrypted(0)));
    let expected = model.expected(wish);
    let planned = match plan(&inventory, &model.request(wish)) {
        Err(refusal) => {
            let found: BTreeSet<String> = refusal.reasons.iter().map(name).collect();
            prop_assert_eq!(found, expected);
            return Ok(());
        }
        Ok(planned) => planned,
    };
    prop_assert!(expected.is_empty(), "planned in spite of {:?}", expected);
    let before = model.data(&storage, &mut keys);
    let names: Vec<_> = storage.paths();
    let outcome = execute(&storage, &planned, &mut keys, &mut Unwatched).unwrap();
    prop_assert_eq!(outcome.operation, wish.operation);
    prop_assert_eq!(storage.paths(), names, "nothing is left behind");
    prop_assert!(model.data(&storage, &mut keys) == before, "the guest's bytes");
    let after = survey(&storage, &vmx()).unwrap();
    prop_assert!(after.pending.is_none());
    let has_foreign = model.disks.iter().any(|disk| disk.is_foreign);
    if !has_foreign {
        let verified = verify(&storage, &vmx(), &mut keys).unwrap();
        let encrypted = verified.encrypted_disks.len() + verified.encrypted_links.len();
        let links = after.disks.iter().map(|disk| 1 + disk.links.len()).sum::<usize>();
        match wish.operation {
            Operation::Decrypt => prop_assert_eq!((encrypted, verified.sealed_files.len()), (0, 0)),
            Operation::Encrypt if !wish.only_last => {
                prop_assert_eq!((encrypted, verified.sealed_files.len()), (links, 1))
            }
            _ => prop_assert!(verified.sealed_files.len() == 1),
        }
    }
    let wanted = TestKeys::provider(if wish.to_other { "other" } else { "test" });
    if matches!(wish.operation, Operation::ShallowRecrypt | Operation::DeepRecrypt) {
        // One KEK for everything, and none that there was.
        let after = after.keys();
        prop_assert_eq!(after.len(), 1);
        prop_assert_eq!(after[0].key_id.provider(), &wanted);
        prop_assert!(inventory.keys().iter().all(|key| key.key_id != after[0].key_id));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 400, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn any_vm_is_refused_for_exactly_its_reasons(model in model(), wish in wish()) {
        check(&model, &wish)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 400, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_legal_keeps_the_guests_bytes_and_verifies((model, wish) in quiet()) {
        prop_assert!(model.expected(&wish).is_empty());
        check(&model, &wish)?;
    }
}

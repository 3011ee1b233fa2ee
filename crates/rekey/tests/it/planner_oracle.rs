//! The planner against a second reading of the rules, on inventories of every kind: what is legal is planned, and what is not is refused for
//! exactly the reasons that the table and the lines under it give.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;
use vmseal_keys::{KeyId, TestKeys};
use vmseal_rekey::{
    Disks, Encryption, Inventory, KekChange, Link, Operation, Pending, PowerState, Reason, Request, Snapshots, Step,
    VmDisk, VmFile, plan,
};

/// What the table says of an operation in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Allowed,
    Refused,
}
use Rule::{Allowed, Refused};

/// The rows of the table; columns: powered on, suspended, snapshots on one branch, on several, linked clone.
pub(crate) const TABLE: [(Operation, [Rule; 5]); 4] = [
    (Operation::Encrypt, [Refused, Refused, Refused, Refused, Refused]),
    (Operation::Decrypt, [Refused, Refused, Refused, Refused, Refused]),
    (Operation::ShallowRecrypt, [Allowed, Allowed, Allowed, Refused, Refused]),
    (Operation::DeepRecrypt, [Refused, Refused, Refused, Refused, Refused]),
];

/// One cell of the table, by the state's column.
pub(crate) fn is_refused(operation: Operation, column: usize) -> bool {
    TABLE.iter().any(|(row, cells)| *row == operation && cells[column] == Refused)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    Ours(&'static str),
    Foreign,
}

impl State {
    fn encryption(self) -> Encryption {
        match self {
            Self::Plain => Encryption::None,
            Self::Ours(provider) => Encryption::Vmseal { key_ids: vec![key(provider)], recovery: false },
            Self::Foreign => Encryption::Foreign { what: "somebody else's".to_owned() },
        }
    }
}

fn key(provider: &str) -> KeyId {
    KeyId::new(TestKeys::provider(provider), "1").unwrap()
}

#[derive(Clone, Debug)]
struct DiskFacts {
    is_ide: bool,
    /// The disk itself, then the links below it: state, and whether the descriptor lies inside an extent.
    chain: Vec<(State, bool)>,
    is_shared: bool,
    is_unsupported: bool,
}

#[derive(Clone, Copy, Debug)]
struct PendingFacts {
    operation: Operation,
    committed: bool,
    running: bool,
    converting: bool,
    provider: &'static str,
}

#[derive(Clone, Debug)]
struct Facts {
    vm: State,
    power: usize,
    snapshots: usize,
    is_clone: bool,
    has_memory_file: bool,
    nvram_is_sealed: Option<bool>,
    disks: Vec<DiskFacts>,
    pending: Option<PendingFacts>,
}

#[derive(Clone, Debug)]
struct Wish {
    operation: Operation,
    provider: Option<&'static str>,
    /// All, none, or those with these indexes; 9 is none that there is.
    disks: Result<bool, Vec<usize>>,
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![2 => Just(State::Plain), 4 => Just(State::Ours("test")), 1 => Just(State::Ours("other")), 1 => Just(State::Foreign)]
}

prop_compose! {
    fn disk_facts(deep: bool)(
        is_ide in prop::bool::weighted(0.2),
        chain in prop::collection::vec((state(), prop::bool::weighted(0.3)), if deep { 1..4 } else { 1..2 }),
        is_shared in prop::bool::weighted(0.15),
        is_unsupported in prop::bool::weighted(0.1),
    ) -> DiskFacts {
        DiskFacts { is_ide, chain, is_shared, is_unsupported }
    }
}

prop_compose! {
    fn pending_facts()(
        operation in select(TABLE.map(|(operation, _)| operation).to_vec()),
        committed in any::<bool>(),
        running in prop::bool::weighted(0.2),
        converting in prop::bool::weighted(0.2),
        provider in select(vec!["test", "other"]),
    ) -> PendingFacts {
        let converting = converting && !committed && operation != Operation::ShallowRecrypt;
        PendingFacts { operation, committed, running, converting, provider }
    }
}

prop_compose! {
    fn facts()(
        vm in state(),
        power in prop_oneof![4 => Just(0_usize), 1 => Just(1), 1 => Just(2), 1 => Just(3)],
        snapshots in prop_oneof![3 => Just(0_usize), 1 => Just(1), 1 => Just(2)],
    )(
        is_clone in prop::bool::weighted(0.15),
        has_memory_file in prop::bool::weighted(0.2),
        nvram_is_sealed in prop::option::of(any::<bool>()),
        disks in prop::collection::vec(disk_facts(snapshots > 0), 0..4),
        pending in prop::option::weighted(0.25, pending_facts()),
        vm in Just(vm), power in Just(power), snapshots in Just(snapshots),
    ) -> Facts {
        Facts { vm, power, snapshots, is_clone, has_memory_file, nvram_is_sealed, disks, pending }
    }
}

prop_compose! {
    fn wish()(
        operation in select(TABLE.map(|(operation, _)| operation).to_vec()),
        provider in prop::option::of(select(vec!["test", "other"])),
        disks in prop_oneof![
            3 => Just(Ok(true)),
            1 => Just(Ok(false)),
            3 => prop::collection::btree_set(select(vec![0_usize, 1, 2, 9]), 1..3).prop_map(|set| Err(set.into_iter().collect())),
        ],
    ) -> Wish {
        Wish { operation, provider, disks }
    }
}

impl Facts {
    fn inventory(&self) -> Inventory {
        let disk = |(index, disk): (usize, &DiskFacts)| VmDisk {
            path: format!("vms/d{index}.0"),
            node: format!("{}0:{index}", if disk.is_ide { "ide" } else { "scsi" }),
            capacity_bytes: 1 << 20,
            stored_bytes: 1000,
            extents: Vec::new(),
            create_type: "vmfs".to_owned(),
            embedded: disk.chain[0].1,
            encryption: disk.chain[0].0.encryption(),
            unit: None,
            links: disk
                .chain
                .iter()
                .enumerate()
                .skip(1)
                .map(|(level, (state, embedded))| Link {
                    path: format!("vms/d{index}.{level}"),
                    embedded: *embedded,
                    encryption: state.encryption(),
                })
                .collect(),
            shared_with: disk.is_shared.then(|| "vms/other.vmx".to_owned()),
            unsupported: disk.is_unsupported.then(|| "of a kind that is not read".to_owned()),
        };
        let evidence = "e".to_owned();
        Inventory {
            vmx: "vms/web01.vmx".to_owned(),
            power: match self.power {
                0 => PowerState::Off,
                1 => PowerState::On { evidence },
                2 => PowerState::InUse { file: evidence },
                _ => PowerState::Suspended { evidence },
            },
            snapshots: match self.snapshots {
                0 => Snapshots::None,
                1 => Snapshots::OneBranch { count: 2 },
                _ => Snapshots::SeveralBranches { count: 3, branch_count: 2 },
            },
            linked_to: self.is_clone.then(|| "golden.vmdk".to_owned()),
            encryption: self.vm.encryption(),
            files: self
                .nvram_is_sealed
                .map(|sealed| VmFile { path: "vms/web01.nvram".to_owned(), len_bytes: 10, sealed })
                .into_iter()
                .collect(),
            guest_memory: self.has_memory_file.then(|| "vms/web01.vmem".to_owned()).into_iter().collect(),
            disks: self.disks.iter().enumerate().map(disk).collect(),
            pending: self.pending.map(|pending| Pending {
                record: "vms/web01.vmx.vmseal".to_owned(),
                operation: pending.operation,
                committed: pending.committed,
                converting: pending.converting,
                running: pending.running,
                key_ids: vec![key(pending.provider)],
                from_key_ids: vec![key("test")],
            }),
        }
    }

    /// The paths of the descriptors that `wanted` holds of.
    fn links(&self, wanted: impl Fn(State, bool) -> bool) -> Vec<String> {
        let disks = self.disks.iter().enumerate();
        let links = disks.flat_map(|(index, disk)| {
            disk.chain.iter().enumerate().map(move |(level, link)| (format!("vms/d{index}.{level}"), *link))
        });
        links.filter(|(_, (state, embedded))| wanted(*state, *embedded)).map(|(path, _)| path).collect()
    }
}

impl Wish {
    fn request(&self) -> Request {
        let request = match self.operation {
            Operation::Encrypt => Request::encrypt(&TestKeys::provider(self.provider.unwrap_or("test"))),
            Operation::Decrypt => Request::decrypt(),
            Operation::ShallowRecrypt => Request::shallow_recrypt(),
            Operation::DeepRecrypt => Request::deep_recrypt(),
        };
        let request = match self.provider {
            Some(provider) if self.operation != Operation::Decrypt => request.provider(&TestKeys::provider(provider)),
            _ => request,
        };
        request.disks(match &self.disks {
            Ok(true) => Disks::All,
            Ok(false) => Disks::None,
            // By the name from the VMX, and by that from the storage's root.
            Err(indexes) => Disks::Only(
                indexes.iter().map(|index| format!("{}d{index}.0", if index % 2 == 0 { "vms/" } else { "" })).collect(),
            ),
        })
    }

    /// Whether the disk is worked on.
    fn takes(&self, index: usize, disk: &DiskFacts) -> bool {
        match (self.operation, &self.disks) {
            (Operation::Encrypt, Ok(all)) => *all,
            (Operation::Encrypt, Err(indexes)) => indexes.contains(&index),
            _ => disk.chain.iter().any(|(state, _)| *state != State::Plain),
        }
    }
}

/// What may end a shallow recrypt that was interrupted: another one, and only that.
fn finishes(facts: &Facts, wish: &Wish) -> Option<PendingFacts> {
    let shallow = Operation::ShallowRecrypt;
    facts.pending.filter(|pending| wish.operation == shallow && pending.operation == shallow && !pending.running)
}

/// The second reading of the rules.
fn expected(facts: &Facts, wish: &Wish) -> BTreeSet<String> {
    let mut reasons = BTreeSet::new();
    let mut add = |condition: bool, reason: String| {
        if condition {
            reasons.insert(reason);
        }
    };
    let operation = wish.operation;
    let is_on = facts.power == 1 || facts.power == 2;
    let shallow = operation == Operation::ShallowRecrypt;
    // A shallow recrypt of a running VM does not write where its hypervisor writes.
    for path in facts.links(|state, embedded| embedded && state != State::Plain) {
        add(shallow && is_on, format!("embedded {path}"));
    }
    if let Some(pending) = finishes(facts, wish)
        && pending.committed
        && wish.provider.is_none_or(|provider| provider == pending.provider)
    {
        return reasons;
    }
    let mut add = |condition: bool, reason: String| {
        if condition {
            reasons.insert(reason);
        }
    };
    add(facts.pending.is_some() && finishes(facts, wish).is_none(), "pending".to_owned());
    // The table.
    add(facts.power == 1 && is_refused(operation, 0), "powered on".to_owned());
    add(facts.power == 2 && is_refused(operation, 0), "in use".to_owned());
    add(facts.power == 3 && is_refused(operation, 1), "suspended".to_owned());
    add(facts.snapshots == 1 && is_refused(operation, 2), "snapshots".to_owned());
    add(facts.snapshots == 2 && is_refused(operation, 3), "branches".to_owned());
    add(facts.is_clone && is_refused(operation, 4), "clone".to_owned());
    for (index, disk) in facts.disks.iter().enumerate() {
        add(shallow && is_on && disk.is_ide, format!("ide vms/d{index}.0"));
        let takes = wish.takes(index, disk);
        add(takes && disk.is_shared, format!("shared vms/d{index}.0"));
        add(takes && disk.is_unsupported && !shallow, format!("unsupported vms/d{index}.0"));
        for (level, (state, _)) in disk.chain.iter().enumerate() {
            add(takes && *state == State::Foreign, format!("foreign vms/d{index}.{level}"));
        }
    }
    // What is encrypted already, by whom, and what is not.
    add(facts.vm == State::Foreign, "foreign vm".to_owned());
    add(facts.vm == State::Plain && operation != Operation::Encrypt, "not encrypted".to_owned());
    for path in facts.links(|state, _| matches!(state, State::Ours(_))) {
        add(facts.vm == State::Plain, format!("encrypted on plain {path}"));
    }
    if operation == Operation::Encrypt {
        add(facts.disks.is_empty() && wish.disks == Ok(true), "no disks".to_owned());
        add(facts.has_memory_file && facts.snapshots == 0 && facts.power == 0, "memory".to_owned());
        add(facts.nvram_is_sealed == Some(true) && facts.vm == State::Plain, "foreign file".to_owned());
        for index in wish.disks.as_ref().err().into_iter().flatten() {
            add(*index >= facts.disks.len(), format!("unknown {index}"));
            let is_encrypted = facts.disks.get(*index).is_some_and(|disk| matches!(disk.chain[0].0, State::Ours(_)));
            add(is_encrypted && matches!(facts.vm, State::Ours(_)), format!("disk encrypted vms/d{index}.0"));
        }
        if let State::Ours(own) = facts.vm {
            add(wish.disks.is_ok(), "already encrypted".to_owned());
            let wanted = wish.provider.unwrap_or("test");
            add(wish.disks.is_err() && wanted != own, "other provider".to_owned());
        }
    }
    reasons
}

/// A reason in short, with what it is about.
pub(crate) fn name(reason: &Reason) -> String {
    match reason {
        Reason::AlreadyEncrypted { .. } => "already encrypted".to_owned(),
        Reason::DiskAlreadyEncrypted { disk } => format!("disk encrypted {disk}"),
        Reason::EmbeddedDescriptor { disk, .. } => format!("embedded {disk}"),
        Reason::EncryptedDiskOnPlainVm { disk } => format!("encrypted on plain {disk}"),
        Reason::ForeignDisk { disk, .. } => format!("foreign {disk}"),
        Reason::ForeignVm { .. } => "foreign vm".to_owned(),
        Reason::ForeignFile { .. } => "foreign file".to_owned(),
        Reason::GuestMemory { .. } => "memory".to_owned(),
        Reason::IdeWhilePoweredOn { disk, .. } => format!("ide {disk}"),
        Reason::InUse { .. } => "in use".to_owned(),
        Reason::LinkedClone { .. } => "clone".to_owned(),
        Reason::NoDisks => "no disks".to_owned(),
        Reason::NotEncrypted => "not encrypted".to_owned(),
        Reason::OtherProvider { .. } => "other provider".to_owned(),
        Reason::Pending { .. } => "pending".to_owned(),
        Reason::PoweredOn { .. } => "powered on".to_owned(),
        Reason::SeveralBranches { .. } => "branches".to_owned(),
        Reason::SharedDisk { disk, .. } => format!("shared {disk}"),
        Reason::Snapshots { .. } => "snapshots".to_owned(),
        Reason::Suspended { .. } => "suspended".to_owned(),
        Reason::UnsupportedDisk { disk, .. } => format!("unsupported {disk}"),
        Reason::UnknownDisk { name, .. } => {
            format!("unknown {}", name.chars().find(char::is_ascii_digit).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_is_legal_is_planned_and_the_rest_refused_for_its_reasons(facts in facts(), wish in wish()) {
        let inventory = facts.inventory();
        let expected = expected(&facts, &wish);
        let planned = match plan(&inventory, &wish.request()) {
            Err(refusal) => {
                let names: Vec<String> = refusal.reasons.iter().map(name).collect();
                let found: BTreeSet<String> = names.iter().cloned().collect();
                prop_assert_eq!(found.len(), names.len(), "a reason is given twice: {:?}", names);
                prop_assert_eq!(found, expected);
                return Ok(());
            }
            Ok(planned) => planned,
        };
        prop_assert!(expected.is_empty(), "planned in spite of {:?}", expected);
        let mut steps = planned.steps();
        if let Some(pending) = finishes(&facts, &wish) {
            prop_assert_eq!(&steps[0], &Step::FinishRecrypt { committed: pending.committed });
            if wish.provider.is_none_or(|provider| provider == pending.provider) {
                prop_assert_eq!(steps.len(), 1);
                prop_assert_eq!(planned.kek(), &KekChange::Pending { key_id: key(pending.provider) });
                return Ok(());
            }
            steps = &steps[1..];
        }
        // The VMX comes last, and every file that is worked on once.
        let encrypted = wish.operation != Operation::Decrypt;
        let last = Step::ReplaceVmx { path: "vms/web01.vmx".to_owned(), to_encrypted: encrypted };
        prop_assert_eq!(steps.last(), Some(&last));
        let rewrapped: Vec<String> = steps.iter().filter_map(|step| match step {
            Step::RewrapDisk { path } => Some(path.clone()),
            _ => None,
        }).collect();
        let converted: Vec<String> = steps.iter().filter_map(|step| match step {
            Step::ConvertDisk { path, .. } => Some(path.clone()),
            _ => None,
        }).collect();
        if wish.operation == Operation::ShallowRecrypt {
            prop_assert_eq!(rewrapped, facts.links(|state, _| state != State::Plain));
            prop_assert!(converted.is_empty() && planned.convert_bytes() == 0);
        } else {
            let disks = facts.disks.iter().enumerate().filter(|(index, disk)| wish.takes(*index, disk));
            let paths: Vec<String> = disks.map(|(index, _)| format!("vms/d{index}.0")).collect();
            prop_assert_eq!(&converted, &paths);
            prop_assert!(rewrapped.is_empty());
        }
        let State::Ours(own) = facts.vm else {
            prop_assert_eq!(planned.kek(), &KekChange::New { provider: TestKeys::provider(wish.provider.unwrap_or("test")) });
            return Ok(());
        };
        match wish.operation {
            Operation::Encrypt => prop_assert_eq!(planned.kek(), &KekChange::Keep { key_id: key(own) }),
            Operation::Decrypt => {
                let drops = matches!(planned.kek(), KekChange::Drop { key_ids } if key_ids.contains(&key(own)));
                prop_assert!(drops);
            }
            _ => {
                let provider = TestKeys::provider(wish.provider.unwrap_or(own));
                prop_assert_eq!(planned.kek(), &KekChange::New { provider });
            }
        }
    }
}

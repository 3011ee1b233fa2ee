//! The table of vSphere's rules, row by row and column by column.

use proptest::prelude::*;
use vmseal_keys::{KeyId, TestKeys};
use vmseal_rekey::{
    Disks, Encryption, Inventory, KekChange, Operation, PowerState, Reason, Refusal, Request, Snapshots, Step, VmDisk,
    VmFile, plan,
};

fn vmseal() -> Encryption {
    let key_ids = vec![KeyId::new(TestKeys::provider("test"), "1").unwrap()];
    Encryption::Vmseal { key_ids, recovery: false }
}

fn disk(path: &str, node: &str, encryption: Encryption) -> VmDisk {
    VmDisk {
        path: path.to_owned(),
        node: node.to_owned(),
        capacity_bytes: 1 << 30,
        stored_bytes: 1 << 20,
        extents: vec![path.replace(".vmdk", "-flat.vmdk")],
        create_type: "vmfs".to_owned(),
        embedded: false,
        encryption,
        unit: None,
        links: Vec::new(),
        shared_with: None,
        unsupported: None,
    }
}

fn inventory(encrypted: bool) -> Inventory {
    let encryption = || if encrypted { vmseal() } else { Encryption::None };
    Inventory {
        vmx: "web01.vmx".to_owned(),
        power: PowerState::Off,
        snapshots: Snapshots::None,
        linked_to: None,
        encryption: encryption(),
        files: vec![VmFile { path: "web01.nvram".to_owned(), len_bytes: 1 << 16, sealed: encrypted }],
        guest_memory: Vec::new(),
        disks: vec![disk("a.vmdk", "scsi0:0", encryption()), disk("b.vmdk", "scsi0:1", encryption())],
        pending: None,
    }
}

fn request(operation: Operation) -> Request {
    match operation {
        Operation::Encrypt => Request::encrypt(&TestKeys::provider("test")),
        Operation::Decrypt => Request::decrypt(),
        Operation::ShallowRecrypt => Request::shallow_recrypt(),
        Operation::DeepRecrypt => Request::deep_recrypt(),
    }
}

const OPERATIONS: [Operation; 4] =
    [Operation::Encrypt, Operation::Decrypt, Operation::ShallowRecrypt, Operation::DeepRecrypt];

fn refusal(operation: Operation, change: impl Fn(&mut Inventory)) -> Option<Refusal> {
    let mut inventory = inventory(operation != Operation::Encrypt);
    change(&mut inventory);
    plan(&inventory, &request(operation)).err()
}

/// One column of the table: in this state a shallow recrypt is allowed or not, and everything else is refused for the one reason.
fn column(change: impl Fn(&mut Inventory), shallow_allowed: bool, reason: fn(&Reason) -> bool) {
    for operation in OPERATIONS {
        let allowed = shallow_allowed && operation == Operation::ShallowRecrypt;
        match refusal(operation, &change) {
            None => assert!(allowed, "{operation} is allowed"),
            Some(refusal) => {
                assert!(!allowed, "{refusal}");
                assert!(refusal.reasons.len() == 1 && reason(&refusal.reasons[0]), "{refusal}");
            }
        }
    }
}

#[test]
fn powered_off_and_without_snapshots_everything_is_allowed() {
    for operation in OPERATIONS {
        assert_eq!(refusal(operation, |_| {}), None);
    }
}

#[test]
fn powered_on() {
    let on = |inventory: &mut Inventory| inventory.power = PowerState::On { evidence: "x.lck".to_owned() };
    column(on, true, |reason| matches!(reason, Reason::PoweredOn { .. }));
    let ide = |inventory: &mut Inventory| {
        on(inventory);
        inventory.disks[0].node = "ide0:0".to_owned();
    };
    let refused = refusal(Operation::ShallowRecrypt, ide).unwrap();
    assert!(matches!(refused.reasons[..], [Reason::IdeWhilePoweredOn { .. }]), "{refused}");
}

#[test]
fn suspended() {
    let suspended =
        |inventory: &mut Inventory| inventory.power = PowerState::Suspended { evidence: "x.vmss".to_owned() };
    column(suspended, true, |reason| matches!(reason, Reason::Suspended { .. }));
}

#[test]
fn snapshots_on_one_branch() {
    let one = |inventory: &mut Inventory| inventory.snapshots = Snapshots::OneBranch { count: 3 };
    column(one, true, |reason| matches!(reason, Reason::Snapshots { count: 3 }));
}

#[test]
fn snapshots_on_several_branches() {
    let several =
        |inventory: &mut Inventory| inventory.snapshots = Snapshots::SeveralBranches { count: 3, branch_count: 2 };
    column(several, false, |reason| matches!(reason, Reason::SeveralBranches { .. }));
}

#[test]
fn linked_clones_and_shared_disks() {
    let linked = |inventory: &mut Inventory| inventory.linked_to = Some("/golden/golden.vmdk".to_owned());
    column(linked, false, |reason| matches!(reason, Reason::LinkedClone { .. }));
    let shared = |inventory: &mut Inventory| inventory.disks[1].shared_with = Some("other.vmx".to_owned());
    column(shared, false, |reason| matches!(reason, Reason::SharedDisk { .. }));
}

#[test]
fn the_state_of_encryption_decides() {
    for operation in [Operation::Decrypt, Operation::ShallowRecrypt, Operation::DeepRecrypt] {
        let refused = plan(&inventory(false), &request(operation)).unwrap_err();
        assert_eq!(refused.reasons, [Reason::NotEncrypted]);
    }
    let refused = plan(&inventory(true), &request(Operation::Encrypt)).unwrap_err();
    assert!(refused.reasons.iter().any(|reason| matches!(reason, Reason::AlreadyEncrypted { .. })));
    // An encrypted disk on a plain VM: its keys would be nowhere.
    let mut attached = inventory(false);
    attached.disks[0].encryption = vmseal();
    let refused = plan(&attached, &request(Operation::Encrypt)).unwrap_err();
    assert!(matches!(refused.reasons[..], [Reason::EncryptedDiskOnPlainVm { .. }]));
    for operation in OPERATIONS {
        let foreign = |inventory: &mut Inventory| inventory.encryption = Encryption::Foreign { what: "x".to_owned() };
        assert!(
            refusal(operation, foreign)
                .unwrap()
                .reasons
                .iter()
                .any(|reason| matches!(reason, Reason::ForeignVm { .. }))
        );
    }
}

#[test]
fn a_plan_says_what_is_done_and_what_it_costs() {
    let steps = |encrypted: bool, request: &Request| plan(&inventory(encrypted), request).unwrap();
    let encrypt = steps(false, &request(Operation::Encrypt));
    assert_eq!(encrypt.convert_bytes(), (2 << 20) + (1 << 16));
    assert_eq!(encrypt.wrapped_key_count(), 3);
    assert!(matches!(encrypt.kek(), KekChange::New { .. }));
    assert!(matches!(encrypt.steps().last(), Some(Step::ReplaceVmx { to_encrypted: true, .. })));
    let shallow = steps(true, &request(Operation::ShallowRecrypt));
    assert_eq!((shallow.convert_bytes(), shallow.wrapped_key_count()), (0, 3));
    let decrypt = steps(true, &request(Operation::Decrypt));
    assert!(matches!(decrypt.kek(), KekChange::Drop { key_ids } if key_ids.len() == 1));
    let none = steps(false, &request(Operation::Encrypt).disks(Disks::None));
    assert_eq!(none.convert_bytes(), 1 << 16);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Every reason is told at once: a state is refused for exactly the reasons that each of its parts is refused for alone.
    #[test]
    fn reasons_add_up(
        operation in proptest::sample::select(OPERATIONS.as_slice()),
        power in 0..3,
        snapshots in 0..3,
        linked in any::<bool>(),
        shared in any::<bool>(),
        foreign in any::<bool>(),
        ide in any::<bool>(),
    ) {
        type Change = Box<dyn Fn(&mut Inventory)>;
        let parts: [(bool, Change); 7] = [
            (power == 1, Box::new(move |inventory| inventory.power = PowerState::On { evidence: "e".to_owned() })),
            (power == 2, Box::new(|inventory| inventory.power = PowerState::Suspended { evidence: "e".to_owned() })),
            (snapshots == 1, Box::new(|inventory| inventory.snapshots = Snapshots::OneBranch { count: 1 })),
            (snapshots == 2, Box::new(|inventory| inventory.snapshots = Snapshots::SeveralBranches { count: 2, branch_count: 2 })),
            (linked, Box::new(|inventory| inventory.linked_to = Some("p".to_owned()))),
            (shared, Box::new(|inventory| inventory.disks[0].shared_with = Some("o.vmx".to_owned()))),
            (foreign, Box::new(|inventory| inventory.disks[1].encryption = Encryption::Foreign { what: "w".to_owned() })),
        ];
        let start = || {
            let mut inventory = inventory(operation != Operation::Encrypt);
            if ide {
                inventory.disks[0].node = "ide0:0".to_owned();
            }
            inventory
        };
        let mut whole = start();
        let mut expected = Vec::new();
        for (_, part) in parts.iter().filter(|(wanted, _)| *wanted) {
            part(&mut whole);
            let mut alone = start();
            part(&mut alone);
            expected.extend(plan(&alone, &request(operation)).err().into_iter().flat_map(|refusal| refusal.reasons));
        }
        let found = plan(&whole, &request(operation)).err().map(|refusal| refusal.reasons).unwrap_or_default();
        prop_assert_eq!(found.len(), expected.len());
        for reason in &expected {
            prop_assert!(found.contains(reason), "{} is missing", reason);
        }
    }
}

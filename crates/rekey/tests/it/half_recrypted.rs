//! A shallow recrypt that is half done: both keys are named, the VM can be used, and issuing it again completes it.

use vmseal_disk::DiskLayout;
use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, ProviderName, TestKeys};
use vmseal_rekey::{
    Ending, Error, Inventory, KekChange, Operation, PowerState, Reason, Request, Step, Unwatched, Warning, execute,
    open_plain_disk, pending, plan, resume, survey, unlock, verify,
};
use vmseal_storage::testing::Simulated;
use vmseal_storage::{Access, Memory, Storage};

use crate::testing::{SIZE, assert_content, content, encrypt, make, path, run, vmx};

fn other() -> ProviderName {
    TestKeys::provider("other")
}

/// The VM with the power cut at each operation of a shallow recrypt to the provider `other` that leaves something pending.
fn interrupted(mut check: impl FnMut(Simulated, &mut TestKeys, &KeyId)) {
    let mut keys = TestKeys::new();
    let base = Simulated::new(0);
    make(&base);
    encrypt(&base, &mut keys);
    base.settle();
    let old = survey(&base, &vmx()).unwrap().encryption.key_ids()[0].clone();
    let request = Request::shallow_recrypt().provider(&other());
    let whole = base.snapshot(0);
    run(&whole, &request, &mut keys);
    let [mut prepared, mut committed] = [0, 0];
    for at in 0..whole.operations() {
        let storage = base.snapshot(at + 1);
        storage.crash_at(Some(at));
        let planned = survey(&storage, &vmx()).map(|inventory| plan(&inventory, &request).unwrap());
        let Ok(planned) = planned else { continue };
        let _ = execute(&storage, &planned, &mut keys, &mut Unwatched);
        storage.restart();
        match pending(&storage, &vmx()).unwrap() {
            None => continue,
            Some(pending) if pending.committed => committed += 1,
            Some(_) => prepared += 1,
        }
        check(storage, &mut keys, &old);
    }
    assert!(prepared > 10 && committed > 5, "{prepared} before the commit, {committed} behind it");
}

/// Whether the power cut tore the descriptor inside the sparse disk: that alone has to be mended first.
fn is_torn(storage: &dyn Storage, inventory: &Inventory, keys: &mut TestKeys) -> bool {
    let sparse = path("vms/web01/sparse.vmdk");
    let is_open = unlock(storage, &vmx(), keys)
        .and_then(|vm| vm.open_disk(storage, &sparse, Access::Read, keys).map(drop))
        .is_ok();
    !is_open && inventory.pending.as_ref().unwrap().committed
}

#[test]
fn both_keys_are_named_and_the_vm_can_be_used() {
    let mut torn = 0;
    interrupted(|storage, keys, old| {
        let inventory = survey(&storage, &vmx()).unwrap();
        let pending = inventory.pending.as_ref().unwrap();
        assert_eq!(pending.from_key_ids, std::slice::from_ref(old));
        let [new] = &pending.key_ids[..] else { panic!("{pending:?}") };
        assert_eq!(new.provider(), &other());
        let [Warning::HalfRecrypted { from, to, running: false }] = &inventory.warnings()[..] else {
            panic!("{:?}", inventory.warnings())
        };
        assert!(from == &pending.from_key_ids && to == &pending.key_ids);
        let text = inventory.warnings()[0].to_string();
        assert!(text.contains(&old.to_string()) && text.contains(&new.to_string()), "{text}");
        assert!(text.contains("No snapshot operation") && text.contains("`recrypt`, issued again"), "{text}");
        assert!(inventory.key_ids().contains(old) && inventory.key_ids().contains(new));
        // Each file is under one of the two.
        for key in inventory.keys() {
            assert!(key.key_id == *old || key.key_id == *new, "{key:?}");
        }
        for request in [Request::decrypt(), Request::deep_recrypt(), Request::encrypt(&other())] {
            let refusal = plan(&inventory, &request).unwrap_err();
            let is_pending = |reason: &Reason| {
                matches!(reason, Reason::Pending { operation: Operation::ShallowRecrypt, running: false, .. })
            };
            assert!(refusal.reasons.iter().any(is_pending), "{refusal}");
        }
        assert!(matches!(verify(&storage, &vmx(), keys), Err(Error::Pending { .. })));
        if is_torn(&storage, &inventory, keys) {
            torn += 1;
        } else {
            assert_content(&storage, keys);
            // And written to: what is written stays, whatever becomes of the recrypt.
            let text = b"written while it was half done";
            for name in ["flat", "sparse"] {
                let disk = path(&format!("vms/web01/{name}.vmdk"));
                let vm = unlock(&storage, &vmx(), keys).unwrap();
                let mut disk = vm.open_disk(&storage, &disk, Access::ReadWrite, keys).unwrap();
                disk.write_at(text, 512).unwrap();
                disk.flush().unwrap();
            }
            run(&storage, &Request::shallow_recrypt(), keys);
            for name in ["flat", "sparse"] {
                let disk = path(&format!("vms/web01/{name}.vmdk"));
                let mut bytes = vec![0; text.len()];
                let vm = unlock(&storage, &vmx(), keys).unwrap();
                vm.open_disk(&storage, &disk, Access::Read, keys).unwrap().read_at(&mut bytes, 512).unwrap();
                assert_eq!(bytes, text);
            }
            return;
        }
        // A torn descriptor is mended.
        run(&storage, &Request::shallow_recrypt(), keys);
        assert_content(&storage, keys);
    });
    assert!(torn <= 1, "{torn} of the points leave a VM that cannot be used");
}

#[test]
fn issuing_it_again_completes_it() {
    let mut endings = Vec::new();
    interrupted(|storage, keys, old| {
        let inventory = survey(&storage, &vmx()).unwrap();
        let pending = inventory.pending.clone().unwrap();
        for request in [Request::shallow_recrypt(), Request::shallow_recrypt().provider(&other())] {
            let planned = plan(&inventory, &request).unwrap();
            assert_eq!(planned.steps(), [Step::FinishRecrypt { committed: pending.committed }]);
            assert_eq!(planned.kek(), &KekChange::Pending { key_id: pending.key_ids[0].clone() });
            assert!(matches!(planned.warnings(), [Warning::HalfRecrypted { .. }]));
        }
        let outcome = run(&storage, &Request::shallow_recrypt(), keys);
        assert_eq!(outcome.ending, if pending.committed { Ending::Completed } else { Ending::Resumed });
        assert_eq!((outcome.operation, outcome.finished_first), (Operation::ShallowRecrypt, None));
        endings.push(outcome.ending);
        let inventory = survey(&storage, &vmx()).unwrap();
        let keys_after = inventory.keys();
        assert!(keys_after.len() == 1 && keys_after[0].key_id == pending.key_ids[0], "{keys_after:?}, not {old}");
        assert_eq!(
            keys_after[0].files,
            ["web01.vmx", "sparse.vmdk", "flat.vmdk"].map(|name| format!("vms/web01/{name}"))
        );
        assert!(inventory.warnings().is_empty() && inventory.pending.is_none());
        verify(&storage, &vmx(), keys).unwrap();
        assert_content(&storage, keys);
    });
    assert!(endings.contains(&Ending::Completed) && endings.contains(&Ending::Resumed));
}

#[test]
fn a_key_of_another_provider_is_had_after_it_is_completed() {
    interrupted(|storage, keys, old| {
        let request = Request::shallow_recrypt().provider(&TestKeys::provider("test"));
        let inventory = survey(&storage, &vmx()).unwrap();
        let committed = inventory.pending.as_ref().unwrap().committed;
        let planned = plan(&inventory, &request).unwrap();
        assert!(planned.steps().len() > 1 && matches!(planned.steps()[0], Step::FinishRecrypt { .. }));
        let outcome = run(&storage, &request, keys);
        let first = if committed { Ending::Completed } else { Ending::Resumed };
        assert_eq!((outcome.ending, outcome.finished_first), (Ending::Done, Some(first)));
        let keys_after = survey(&storage, &vmx()).unwrap().keys();
        let [key] = &keys_after[..] else { panic!("{keys_after:?}") };
        assert!(key.key_id.provider().as_str() == "test" && key.key_id != *old);
        verify(&storage, &vmx(), keys).unwrap();
        assert_content(&storage, keys);
    });
}

/// A plan that was made before the interruption, or after its end, is none for what is there now.
#[test]
fn a_plan_from_before_is_not_executed() {
    let mut tried = false;
    interrupted(|storage, keys, _| {
        if std::mem::replace(&mut tried, true) {
            return;
        }
        let planned = plan(&survey(&storage, &vmx()).unwrap(), &Request::shallow_recrypt()).unwrap();
        run(&storage, &Request::shallow_recrypt(), keys);
        assert!(matches!(execute(&storage, &planned, keys, &mut Unwatched), Err(Error::Changed { .. })));
    });
}

#[test]
fn a_running_vm_is_not_written_under_its_hypervisor() {
    interrupted(|storage, keys, _| {
        storage.replace(&path("vms/web01/web01.vmx.lck"), b"").unwrap();
        let inventory = survey(&storage, &vmx()).unwrap();
        assert!(matches!(inventory.power, PowerState::On { .. }));
        // Where the sparse disk's descriptor is torn, only the executor knows of it.
        let refused = match plan(&inventory, &Request::shallow_recrypt()) {
            Err(refusal) => refusal,
            Ok(planned) => match execute(&storage, &planned, keys, &mut Unwatched) {
                Err(Error::Refused(refusal)) => refusal,
                other => panic!("{other:?}"),
            },
        };
        let disk = "vms/web01/sparse.vmdk";
        assert!(
            matches!(&refused.reasons[..], [Reason::EmbeddedDescriptor { disk: found, .. }] if found == disk),
            "{refused}"
        );
        let error = resume(&storage, &vmx(), keys, &mut Unwatched, vmseal_rekey::Changes::Keep).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        storage.remove(&path("vms/web01/web01.vmx.lck")).unwrap();
        run(&storage, &Request::shallow_recrypt(), keys);
        assert_content(&storage, keys);
    });
}

#[test]
fn plain_disks_of_the_vm_can_be_used_too() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    let only = vmseal_rekey::Disks::Only(vec!["flat.vmdk".to_owned()]);
    run(&storage, &Request::encrypt(&TestKeys::provider("test")).disks(only), &mut keys);
    crate::engine::stop_at(&storage, &Request::shallow_recrypt(), &mut keys, 1);
    let mut bytes = vec![0; SIZE];
    let disk = open_plain_disk(&storage, &vmx(), &path("vms/web01/sparse.vmdk"), Access::Read).unwrap();
    disk.read_at(&mut bytes, 70_000).unwrap();
    assert!(bytes == content("sparse"));
}

/// Keys without one of them.
struct Without<'k>(&'k mut TestKeys, KeyId);

impl KeySource for Without<'_> {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        self.0.create(provider)
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        if *id == self.1 { Err(KeySourceError::UnknownKey(id.clone())) } else { self.0.fetch(id) }
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        None
    }
}

/// An encrypted VM one of whose files was put back from before a shallow recrypt. Returns the old KEK and the new one.
fn mixed(storage: &Memory, keys: &mut TestKeys, file: &str) -> [KeyId; 2] {
    make(storage);
    encrypt(storage, keys);
    let old = survey(storage, &vmx()).unwrap().encryption.key_ids()[0].clone();
    let saved = storage.read(&path(file), 4 << 20).unwrap();
    run(storage, &Request::shallow_recrypt().provider(&other()), keys);
    let new = survey(storage, &vmx()).unwrap().encryption.key_ids()[0].clone();
    storage.replace(&path(file), &saved).unwrap();
    [old, new]
}

#[test]
fn mixed_keys_without_a_record_are_named_and_brought_together() {
    for file in ["vms/web01/flat.vmdk", "vms/web01/web01.vmx", "vms/web01/sparse.vmdk"] {
        for request in [Request::shallow_recrypt(), Request::deep_recrypt()] {
            let storage = Memory::new();
            let mut keys = TestKeys::new();
            let [old, new] = mixed(&storage, &mut keys, file);
            let inventory = survey(&storage, &vmx()).unwrap();
            assert!(inventory.has_mixed_keys() && inventory.pending.is_none());
            let [Warning::MixedKeys { keys: found }] = &inventory.warnings()[..] else {
                panic!("{:?}", inventory.warnings())
            };
            let of = |id: &KeyId| found.iter().find(|key| key.key_id == *id).unwrap().files.clone();
            assert_eq!(of(&old), [file]);
            assert!(of(&new).len() == 2 && !of(&new).contains(&file.to_owned()));
            assert!(inventory.warnings()[0].to_string().contains("No snapshot operation"));
            // The VM is usable, and whole.
            assert_content(&storage, &mut keys);
            verify(&storage, &vmx(), &mut keys).unwrap();
            // Without one of the keys nothing begins.
            for missing in [&old, &new] {
                let planned = plan(&inventory, &request).unwrap();
                assert!(matches!(planned.warnings(), [Warning::MixedKeys { .. }]));
                let mut part = Without(&mut keys, missing.clone());
                let error = execute(&storage, &planned, &mut part, &mut Unwatched).unwrap_err();
                assert!(matches!(&error, Error::WrongKey { key_ids, .. } if key_ids.contains(missing)), "{error}");
                assert_eq!(survey(&storage, &vmx()).unwrap(), inventory);
            }
            run(&storage, &request, &mut keys);
            let inventory = survey(&storage, &vmx()).unwrap();
            assert!(!inventory.has_mixed_keys() && inventory.keys().len() == 1 && inventory.warnings().is_empty());
            assert!(![&old, &new].contains(&&inventory.keys()[0].key_id));
            assert_content(&storage, &mut keys);
            verify(&storage, &vmx(), &mut keys).unwrap();
        }
    }
}

#[test]
fn a_link_that_a_hypervisor_made_with_the_old_key_is_found_and_brought_along() {
    let storage = Memory::new();
    let mut keys = TestKeys::new();
    make(&storage);
    encrypt(&storage, &mut keys);
    // The child is a copy of its parent's descriptor, keys included, from before the recrypt.
    let base = path("vms/web01/flat.vmdk");
    let (descriptor, _) = DiskLayout::read_descriptor(&storage, &base).unwrap();
    let text = String::from_utf8(descriptor.to_bytes().to_vec()).unwrap();
    let parent = format!("parentCID={:08x}\nparentFileNameHint=\"flat.vmdk\"", descriptor.cid());
    let child = text.replace("parentCID=ffffffff", &parent).replace("flat-flat.vmdk", "flat-000001-delta.vmdk");
    run(&storage, &Request::shallow_recrypt(), &mut keys);
    storage.replace(&path("vms/web01/flat-000001.vmdk"), child.as_bytes()).unwrap();
    storage.replace(&path("vms/web01/flat-000001-delta.vmdk"), &[0; 1 << 20]).unwrap();
    let text = String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap()).unwrap();
    storage.replace(&vmx(), text.replace("\"flat.vmdk\"", "\"flat-000001.vmdk\"").as_bytes()).unwrap();
    let inventory = survey(&storage, &vmx()).unwrap();
    let [Warning::MixedKeys { keys: found }] = &inventory.warnings()[..] else { panic!("{:?}", inventory.warnings()) };
    assert_eq!(found.iter().map(|key| key.files.len()).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(found[1].files, ["vms/web01/flat-000001.vmdk"]);
    run(&storage, &Request::shallow_recrypt(), &mut keys);
    let inventory = survey(&storage, &vmx()).unwrap();
    assert_eq!(inventory.keys().len(), 1, "{:?}", inventory.keys());
    let verified = verify(&storage, &vmx(), &mut keys).unwrap();
    assert_eq!(verified.encrypted_links, ["vms/web01/flat.vmdk"]);
}

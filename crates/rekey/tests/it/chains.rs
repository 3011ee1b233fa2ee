//! Snapshot chains: a shallow recrypt wraps every link's key anew.

use vmseal_disk::DiskLayout;
use vmseal_formats::{CreateType, Extent, ExtentKind, NewDescriptor, StreamWriter};
use vmseal_keys::TestKeys;
use vmseal_rekey::{Reason, Request, Snapshots, Step, plan, survey};
use vmseal_storage::{Memory, Storage};

use crate::testing::{encrypt, make, path, run, vmx};

/// Gives the encrypted flat disk a child in the clear, as a hypervisor does that takes a snapshot.
fn snapshot(storage: &Memory) {
    let base = path("vms/web01/flat.vmdk");
    let (descriptor, _) = DiskLayout::read_descriptor(storage, &base).unwrap();
    let child = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID={:08x}\ncreateType=\"vmfsSparse\"\n\
         parentFileNameHint=\"flat.vmdk\"\nRW 2048 VMFSSPARSE \"flat-000001-delta.vmdk\"\n",
        descriptor.cid()
    );
    storage.replace(&path("vms/web01/flat-000001.vmdk"), child.as_bytes()).unwrap();
    let text = String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap()).unwrap();
    storage.replace(&vmx(), text.replace("\"flat.vmdk\"", "\"flat-000001.vmdk\"").as_bytes()).unwrap();
}

#[test]
fn every_link_of_a_chain_gets_the_new_kek() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    snapshot(&storage);
    let inventory = survey(&storage, &vmx()).unwrap();
    assert_eq!(inventory.snapshots, Snapshots::OneBranch { count: 1 });
    let old = inventory.encryption.key_ids().to_vec();
    let planned = plan(&inventory, &Request::shallow_recrypt()).unwrap();
    let rewrapped: Vec<_> = planned.steps().iter().filter(|step| matches!(step, Step::RewrapDisk { .. })).collect();
    assert_eq!(rewrapped.len(), 2, "{rewrapped:?}");
    run(&storage, &Request::shallow_recrypt(), &mut keys);
    let inventory = survey(&storage, &vmx()).unwrap();
    let base = &inventory.disks.iter().find(|disk| disk.node == "scsi0:0").unwrap().links[0];
    assert_eq!(base.path, "vms/web01/flat.vmdk");
    assert_eq!(base.encryption.key_ids(), inventory.encryption.key_ids());
    assert_ne!(inventory.encryption.key_ids(), old);
    let refusal = plan(&inventory, &Request::deep_recrypt()).unwrap_err();
    assert!(refusal.reasons.contains(&Reason::Snapshots { count: 1 }), "{refusal}");
}

#[test]
fn a_chain_that_is_broken_or_does_not_end_is_an_error() {
    let cases = [
        ("parentCID=", "parentCID=1", "has changed since the snapshot"),
        ("\"flat.vmdk\"", "\"gone.vmdk\"", "its parent gone.vmdk is missing"),
    ];
    for (from, to, message) in cases {
        let storage = Memory::new();
        make(&storage);
        snapshot(&storage);
        let child = path("vms/web01/flat-000001.vmdk");
        let text = String::from_utf8(storage.read(&child, 1 << 20).unwrap()).unwrap();
        let text = if from == "parentCID=" {
            let line = text.lines().find(|line| line.starts_with(from)).unwrap().to_owned();
            text.replace(&line, "parentCID=11111111")
        } else {
            text.replace(from, to)
        };
        storage.replace(&child, text.as_bytes()).unwrap();
        let error = survey(&storage, &vmx()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let storage = Memory::new();
    make(&storage);
    snapshot(&storage);
    // The base names its child as its parent.
    let base = path("vms/web01/flat.vmdk");
    let text = String::from_utf8(storage.read(&base, 1 << 20).unwrap()).unwrap();
    let text = text.replace("parentCID=ffffffff", "parentCID=00000007\nparentFileNameHint=\"flat-000001.vmdk\"");
    storage.replace(&base, text.as_bytes()).unwrap();
    let error = survey(&storage, &vmx()).unwrap_err().to_string();
    assert!(error.contains("does not end"), "{error}");
}

#[test]
fn a_stream_optimized_disk_is_seen_and_refused() {
    let storage = Memory::new();
    make(&storage);
    let extent = Extent::new(ExtentKind::Sparse, 2048, Some("flat.vmdk"));
    let descriptor = NewDescriptor::new(CreateType::StreamOptimized, 7, vec![extent]).build().unwrap();
    let (writer, mut bytes) = StreamWriter::new(2048, 128, &descriptor).unwrap();
    bytes.extend(writer.finish().unwrap());
    storage.replace(&path("vms/web01/flat.vmdk"), &bytes).unwrap();
    let inventory = survey(&storage, &vmx()).unwrap();
    let refusal = plan(&inventory, &Request::encrypt(&TestKeys::provider("test"))).unwrap_err();
    let is_it = |reason: &Reason| matches!(reason, Reason::UnsupportedDisk { disk, what } if disk == "vms/web01/flat.vmdk" && what.contains("streamOptimized"));
    assert!(refusal.reasons.len() == 1 && is_it(&refusal.reasons[0]), "{refusal}");
}

//! What happens to a VM between the commit of an operation and its completion.

use crate::kill::{Operation, kill_published};
use crate::testing::{DISKS, TestVm, copy_folder, snapshot};

fn append(vm: &TestVm, name: &str, text: &str) {
    let path = vm.folder().join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(text.as_bytes());
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_vm_that_was_started_meanwhile_is_not_replaced_under_its_hypervisor() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    kill_published(&vm, Operation::Encrypt, 0);
    std::fs::create_dir(vm.folder().join("web01.vmx.lck")).unwrap();
    vm.fails(&["resume", "VM"], 3, "powered on");
    std::fs::remove_dir(vm.folder().join("web01.vmx.lck")).unwrap();
    vm.ok(&["resume", "VM"]);
    vm.assert_whole();
}

#[test]
fn what_the_guest_wrote_after_the_commit_is_not_overwritten_unasked() {
    use std::os::unix::fs::FileExt;
    let mut vm = TestVm::with_disks(&DISKS[..1]);
    kill_published(&vm, Operation::Encrypt, 0);
    let flat = std::fs::File::options().write(true).open(vm.folder().join("flat-flat.vmdk")).unwrap();
    flat.write_all_at(b"written after the commit", 4096).unwrap();
    drop(flat);
    let ran = vm.fails(&["resume", "VM"], 3, "flat-flat.vmdk was changed");
    assert!(ran.stderr.contains("--discard-changes"));
    vm.fails(&["resume", "VM", "--rollback"], 3, "cannot be undone");
    // The way to keep it: the disk is still the plain one.
    let kept = std::fs::read(vm.folder().join("flat-flat.vmdk")).unwrap();
    assert_eq!(&kept[4096..4120], b"written after the commit");
    vm.ok(&["resume", "VM", "--discard-changes"]);
    vm.assert_whole();
    vm.disks.clear();
}

#[test]
fn edits_of_the_vmx_and_the_descriptors_after_the_commit_are_kept() {
    for operation in [Operation::Encrypt, Operation::ShallowRecrypt] {
        let vm = TestVm::with_disks(&DISKS[..2]);
        if operation == Operation::ShallowRecrypt {
            vm.ok(&["encrypt", "VM", "--provider", "house"]);
        }
        kill_published(&vm, operation, 0);
        append(&vm, "web01.vmx", "\nannotation = \"edited meanwhile\"\n");
        let descriptor = std::fs::read_to_string(vm.folder().join("flat.vmdk")).unwrap();
        let descriptor = descriptor.replace("ddb.adapterType = \"ide\"", "ddb.adapterType = \"pvscsi\"");
        std::fs::write(vm.folder().join("flat.vmdk"), descriptor).unwrap();
        vm.ok(&["resume", "VM"]);
        vm.assert_whole();
        let text = |name: &str| String::from_utf8_lossy(&snapshot(&vm.folder())[name]).into_owned();
        assert!(text("web01.vmx").contains("edited meanwhile") && text("flat.vmdk").contains("pvscsi"));
    }
}

#[test]
fn a_lost_successor_is_never_taken_for_a_published_one() {
    for operation in [Operation::Encrypt, Operation::Decrypt, Operation::DeepRecrypt] {
        let vm = TestVm::with_disks(&DISKS[..2]);
        if operation != Operation::Encrypt {
            vm.ok(&["encrypt", "VM", "--provider", "house"]);
        }
        kill_published(&vm, operation, 0);
        let successor = vm.folder().join("flat-flat.vmdk.vmseal-new");
        let bytes = std::fs::read(&successor).unwrap();
        std::fs::remove_file(&successor).unwrap();
        vm.fails(&["resume", "VM"], 5, "flat-flat.vmdk: the converted file");
        std::fs::write(&successor, &bytes[..bytes.len() - 512]).unwrap();
        vm.fails(&["resume", "VM"], 5, "missing or damaged");
        std::fs::write(&successor, &bytes).unwrap();
        vm.ok(&["resume", "VM"]);
        vm.assert_whole();
    }
}

#[test]
fn successors_lost_before_the_commit_are_made_again() {
    for at in [40, 60, 80] {
        let vm = TestVm::with_disks(&DISKS[..2]);
        assert!(crate::kill::kill_at(&vm, Operation::Encrypt, at));
        for name in snapshot(&vm.folder()).keys().filter(|name| name.ends_with(".vmseal-new")) {
            std::fs::remove_file(vm.folder().join(name)).unwrap();
        }
        vm.run(&["resume", "VM"]);
        vm.assert_whole();
    }
}

#[test]
fn a_folder_that_was_copied_is_completed_where_it_is() {
    for (operation, published) in
        [(Operation::Encrypt, 0), (Operation::Encrypt, 2), (Operation::DeepRecrypt, 0), (Operation::Decrypt, 3)]
    {
        let vm = TestVm::with_disks(&DISKS[..2]);
        if operation != Operation::Encrypt {
            vm.ok(&["encrypt", "VM", "--provider", "house"]);
        }
        kill_published(&vm, operation, published);
        let copy = vm.root.path().join("copy");
        copy_folder(&vm.folder(), &copy);
        std::fs::remove_dir_all(vm.folder()).unwrap();
        // Without the times, as by a tool that does not keep them.
        std::fs::create_dir(vm.folder()).unwrap();
        for (name, bytes) in snapshot(&copy) {
            std::fs::write(vm.folder().join(name), bytes).unwrap();
        }
        vm.ok(&["resume", "VM"]);
        vm.assert_whole();
    }
}

#[test]
fn a_descriptor_torn_at_any_sector_does_not_stop_the_completion() {
    for sectors in 1..6 {
        let vm = TestVm::with_disks(&DISKS[..2]);
        vm.ok(&["encrypt", "VM", "--provider", "house"]);
        vm.ok(&["provider", "create", "native", "another-provider-with-a-long-name"]);
        vm.ok(&["recrypt", "VM", "--provider", "another-provider-with-a-long-name"]);
        vm.ok(&["recrypt", "VM", "--provider", "house"]);
        let old = std::fs::read(vm.folder().join("sparse.vmdk")).unwrap();
        kill_published(&vm, Operation::ShallowRecrypt, 0);
        let record = std::fs::read_to_string(vm.folder().join("web01.vmx.vmseal")).unwrap();
        let record: serde_json::Value = serde_json::from_str(record.lines().next().unwrap()).unwrap();
        let patch = record["patches"][0]["bytes"].as_str().unwrap();
        let patch = <base64ct::Base64 as base64ct::Encoding>::decode_vec(patch).unwrap();
        let mut torn = old.clone();
        // The last sectors of the new text over the old one, which may have another length.
        torn[512..512 + sectors * 512].copy_from_slice(&patch[..sectors * 512]);
        std::fs::write(vm.folder().join("sparse.vmdk"), torn).unwrap();
        vm.ok(&["resume", "VM"]);
        vm.assert_whole();
    }
}

#[test]
fn a_rollback_of_a_record_that_was_made_to_look_uncommitted_drops_no_key() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    kill_published(&vm, Operation::Encrypt, 1);
    let path = vm.folder().join("web01.vmx.vmseal");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, record.replace("\"phase\":\"publish\"", "\"phase\":\"prepare\"")).unwrap();
    vm.fails(&["resume", "VM"], 5, "not written with this VM's keys");
    vm.fails(&["resume", "VM", "--rollback"], 5, "missing or damaged");
    std::fs::write(&path, record).unwrap();
    vm.ok(&["resume", "VM"]);
    vm.assert_whole();
}

#[test]
fn what_was_not_allowed_at_first_is_not_allowed_when_it_is_resumed() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    assert!(crate::kill::kill_at(&vm, Operation::ShallowRecrypt, 12));
    let vmsd = vm.folder().join("web01.vmsd");
    std::fs::write(&vmsd, "snapshot0.uid = \"1\"\nsnapshot1.uid = \"2\"\n").unwrap();
    vm.fails(&["resume", "VM"], 3, "2 branches");
    std::fs::remove_file(&vmsd).unwrap();
    vm.ok(&["resume", "VM"]);
    vm.assert_whole();
}

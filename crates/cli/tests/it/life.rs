//! The life of a VM: encrypted, recrypted, decrypted.

use crate::testing::{DISKS, TestVm, qemu, qemu_bytes, snapshot};

#[test]
fn a_vm_goes_through_its_life_and_is_what_it_was() {
    for unit in ["512", "4096"] {
        let vm = TestVm::new();
        let at_first = snapshot(&vm.folder());
        vm.ok(&["encrypt", "VM", "--provider", "house", "--data-unit", unit]);
        vm.assert_whole();
        let encrypted = snapshot(&vm.folder());
        for (name, _) in DISKS {
            assert!(qemu_bytes(&vm.folder().join(name)) != vm.disks[name], "{name} is in the clear");
        }

        vm.ok(&["recrypt", "VM"]);
        vm.assert_whole();
        let shallow = snapshot(&vm.folder());
        // The descriptors and the VMX alone have changed; of the sparse disk only its embedded descriptor.
        let changed: Vec<_> = shallow.keys().filter(|name| shallow[*name] != encrypted[*name]).collect();
        assert_eq!(changed, ["flat.vmdk", "sparse.vmdk", "split-flat.vmdk", "split-sparse.vmdk", "web01.vmx"]);
        assert_eq!(shallow["sparse.vmdk"][21 * 512..], encrypted["sparse.vmdk"][21 * 512..]);

        vm.ok(&["recrypt", "VM", "--deep"]);
        vm.assert_whole();
        let deep = snapshot(&vm.folder());
        assert!(deep["flat-flat.vmdk"] != shallow["flat-flat.vmdk"]);

        vm.ok(&["decrypt", "VM"]);
        vm.assert_whole();
        for (name, bytes) in snapshot(&vm.folder()) {
            assert!(bytes == at_first[&name], "{name} is not what it was at first");
        }
        for (name, subformat) in DISKS {
            if subformat.ends_with("Sparse") {
                qemu("qemu-img", &["check", "-q"], &[&vm.folder().join(name)]);
            }
            assert!(qemu_bytes(&vm.folder().join(name)) == vm.disks[name], "{name}");
        }
    }
}

#[test]
fn names_identities_and_holes_stay() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let vm = TestVm::new();
    let flat = vm.folder().join("flat-flat.vmdk");
    std::fs::set_permissions(&flat, std::fs::Permissions::from_mode(0o640)).unwrap();
    let names: Vec<_> = snapshot(&vm.folder()).into_keys().collect();
    let blocks = std::fs::metadata(&flat).unwrap().blocks();
    let lines = |name: &str| {
        let bytes = std::fs::read(vm.folder().join(name)).unwrap();
        String::from_utf8_lossy(&bytes).split('\0').next().unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (descriptor, vmx) = (lines("flat.vmdk"), lines("web01.vmx"));
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    assert_eq!(snapshot(&vm.folder()).into_keys().collect::<Vec<_>>(), names);
    let metadata = std::fs::metadata(&flat).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    // A thin disk stays thin: what a file system needs besides is some blocks.
    assert!(metadata.blocks() <= blocks + 16, "{} {blocks}", metadata.blocks());
    assert!(metadata.blocks() * 512 < metadata.len() * 3 / 4);
    // Every line that was there is there still, in its order.
    for (before, after) in [(descriptor, lines("flat.vmdk")), (vmx, lines("web01.vmx"))] {
        let mut rest = after.iter();
        for line in &before {
            assert!(rest.any(|other| other == line), "{line:?} is gone");
        }
    }
    assert_eq!(lines("vmware.log"), ["a log stays as it is"]);
}

#[test]
fn disks_are_chosen_one_by_one() {
    let vm = TestVm::new();
    vm.ok(&["encrypt", "VM", "--provider", "house", "--disks", "none"]);
    vm.assert_whole();
    let inspection: serde_json::Value = serde_json::from_str(&vm.ok(&["inspect", "VM", "--json"]).stdout).unwrap();
    let encrypted = |value: &serde_json::Value| {
        let disks = value["vms"][0]["disks"].as_array().unwrap().iter();
        disks
            .filter(|disk| disk["encryption"] == "vmseal")
            .map(|disk| disk["path"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(inspection["vms"][0]["encryption"], "vmseal");
    assert_eq!(inspection["vms"][0]["files"][0]["encrypted"], true);
    assert!(encrypted(&inspection).is_empty());

    vm.ok(&["encrypt", "VM", "--provider", "house", "--disks", "flat.vmdk,split-sparse.vmdk"]);
    vm.assert_whole();
    let inspection = serde_json::from_str(&vm.ok(&["inspect", "VM", "--json"]).stdout).unwrap();
    assert_eq!(encrypted(&inspection), ["flat.vmdk", "split-sparse.vmdk"]);
    vm.fails(&["encrypt", "VM", "--provider", "house", "--disks", "flat.vmdk"], 3, "already encrypted");
    vm.ok(&["recrypt", "VM", "--deep"]);
    vm.assert_whole();
    vm.ok(&["decrypt", "VM"]);
    vm.assert_whole();
}

#[test]
fn a_recovery_password_opens_what_the_provider_cannot() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let (right, wrong) = (vm.root.path().join("right"), vm.root.path().join("wrong"));
    std::fs::write(&right, "correct horse\n").unwrap();
    std::fs::write(&wrong, "incorrect horse\n").unwrap();
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    vm.ok(&["encrypt", "VM", "--provider", "house", "--recovery-password-file", right]);
    vm.ok(&["recrypt", "VM"]);
    vm.fails(&["recrypt", "VM", "--deep"], 4, "recovery password");
    vm.ok(&["recrypt", "VM", "--deep", "--recovery-password-file", right]);
    std::fs::remove_dir_all(vm.home().join("providers")).unwrap();
    vm.fails(&["decrypt", "VM"], 4, "not at hand");
    vm.fails(&["decrypt", "VM", "--recovery-password-file", wrong], 4, "wrong");
    vm.ok(&["decrypt", "VM", "--recovery-password-file", right]);
    vm.assert_whole();
}

#[test]
fn a_provider_with_a_password_needs_it() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let (right, wrong) = (vm.root.path().join("right"), vm.root.path().join("wrong"));
    std::fs::write(&right, "correct horse").unwrap();
    std::fs::write(&wrong, "incorrect horse").unwrap();
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    vm.ok(&["provider", "create", "native", "safe", "--password-file", right]);
    vm.fails(&["encrypt", "VM", "--provider", "safe"], 4, "--provider-password-file");
    vm.fails(&["encrypt", "VM", "--provider", "safe", "--provider-password-file", wrong], 4, "wrong");
    vm.ok(&["encrypt", "VM", "--provider", "safe", "--provider-password-file", right]);
    vm.fails(&["verify", "VM"], 4, "--provider-password-file");
    vm.ok(&["recrypt", "VM", "--provider", "house", "--provider-password-file", right]);
    vm.assert_whole();
}

#[test]
fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let vm = TestVm::new();
    let before = snapshot(&vm.folder());
    let ran = vm.ok(&["encrypt", "VM", "--provider", "house", "--dry-run"]);
    assert!(ran.stdout.contains("encrypt flat.vmdk") && ran.stdout.contains("Nothing was changed"), "{}", ran.stdout);
    let ran = vm.ok(&["encrypt", "VM", "--provider", "house", "--dry-run", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&plan["operation"], &plan["strategy"]), (&"encrypt".into(), &"copy".into()));
    let bytes = |name: &str| plan[name].as_u64().unwrap();
    assert!(bytes("room_bytes") > bytes("convert_bytes"), "{plan}");
    assert_eq!(plan["steps"].as_array().unwrap().len(), DISKS.len() + 2);
    assert!(snapshot(&vm.folder()) == before);
}

#[test]
fn a_recovery_password_is_enough_where_the_providers_own_is_forgotten() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let files = ["safe", "recovery", "wrong"].map(|name| {
        let path = vm.root.path().join(name);
        std::fs::write(&path, name).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let [safe, recovery, wrong] = files.each_ref().map(String::as_str);
    vm.ok(&["provider", "create", "native", "safe", "--password-file", safe]);
    let keys = ["--provider-password-file", safe, "--recovery-password-file", recovery];
    vm.ok(&[&["encrypt", "VM", "--provider", "safe"][..], &keys].concat());
    vm.ok(&[&["verify", "VM"][..], &keys].concat());
    // Whether a recovery password is right can be found out while the provider is still there.
    let wrong_recovery = ["--provider-password-file", safe, "--recovery-password-file", wrong];
    vm.fails(&[&["verify", "VM"][..], &wrong_recovery].concat(), 4, "not the one that the VM has");
    // Away from the provider whose password is forgotten, to another one.
    vm.ok(&["recrypt", "VM", "--provider", "house", "--recovery-password-file", recovery]);
    vm.ok(&["recrypt", "VM", "--provider", "safe", "--provider-password-file", safe]);
    // And with the state folder gone.
    std::fs::remove_dir_all(vm.home()).unwrap();
    vm.fails(&["decrypt", "VM", "--recovery-password-file", wrong], 4, "nor by a recovery password");
    vm.ok(&["decrypt", "VM", "--recovery-password-file", recovery]);
    vm.ok(&["verify", "VM"]);
    assert!(vm.guest_bytes_plain() == vm.disks);
}

#[test]
fn a_disk_that_is_not_attached_is_named_after_a_recrypt() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), vmx.replace("scsi0:1.fileName", "# scsi0:1.fileName")).unwrap();
    for args in [&["recrypt", "VM"][..], &["recrypt", "VM", "--deep"]] {
        let ran = vm.ok(args);
        assert!(ran.stderr.contains("sparse.vmdk is not attached"), "{}", ran.stderr);
    }
}

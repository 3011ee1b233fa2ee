//! What is refused, and how: the message, the exit status, and a VM that is exactly as before.

use crate::testing::{DISKS, TestVm};

fn encrypt<'a>() -> [&'a str; 4] {
    ["encrypt", "VM", "--provider", "house"]
}

#[test]
fn a_running_vm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let locks = ["web01.vmx.lck", "flat.vmdk.lck", "web01.vswp"];
    for lock in locks {
        std::fs::write(vm.folder().join(lock), "").unwrap();
        vm.fails(&encrypt(), 3, "powered on");
        std::fs::remove_file(vm.folder().join(lock)).unwrap();
    }
    vm.ok(&encrypt());
    std::fs::create_dir(vm.folder().join("web01.vmx.lck")).unwrap();
    vm.fails(&["recrypt", "VM", "--deep"], 3, "powered on (web01.vmx.lck is there)");
    vm.fails(&["decrypt", "VM"], 3, "powered on");
    // A shallow recrypt is allowed.
    vm.ok(&["recrypt", "VM"]);
    std::fs::remove_dir(vm.folder().join("web01.vmx.lck")).unwrap();
    vm.assert_whole();
}

#[test]
fn a_running_vm_with_an_ide_disk() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap().replace("scsi0:0", "ide0:0");
    std::fs::write(vm.vmx(), vmx).unwrap();
    vm.ok(&encrypt());
    std::fs::write(vm.folder().join("web01.vmx.lck"), "").unwrap();
    vm.fails(&["recrypt", "VM"], 3, "IDE");
}

#[test]
fn a_suspended_vm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    std::fs::write(vm.folder().join("web01.vmss"), "").unwrap();
    vm.fails(&encrypt(), 3, "suspended");
}

const ONE_BRANCH: &str = "snapshot.lastUID = \"2\"\nsnapshot.current = \"2\"\nsnapshot.numSnapshots = \"2\"\n\
    snapshot0.uid = \"1\"\nsnapshot0.displayName = \"a\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n";
const TWO_BRANCHES: &str = "snapshot.current = \"3\"\nsnapshot0.uid = \"1\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n\
    snapshot2.uid = \"3\"\nsnapshot2.parent = \"1\"\n";

#[test]
fn snapshots() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let vmsd = vm.folder().join("web01.vmsd");
    std::fs::write(&vmsd, ONE_BRANCH).unwrap();
    vm.fails(&encrypt(), 3, "2 snapshots");
    std::fs::write(&vmsd, "").unwrap();
    vm.ok(&encrypt());
    std::fs::write(&vmsd, ONE_BRANCH).unwrap();
    vm.fails(&["recrypt", "VM", "--deep"], 3, "2 snapshots");
    vm.fails(&["decrypt", "VM"], 3, "2 snapshots");
    vm.ok(&["recrypt", "VM"]);
    std::fs::write(&vmsd, TWO_BRANCHES).unwrap();
    vm.fails(&["recrypt", "VM"], 3, "2 branches");
    std::fs::remove_file(&vmsd).unwrap();
    vm.assert_whole();
}

#[test]
fn a_snapshot_that_the_list_has_lost() {
    // A child as ESXi makes it: its extent is of a type that is not read, and does not have to be.
    let vm = TestVm::with_disks(&DISKS[..1]);
    let parent = std::fs::read_to_string(vm.folder().join("flat.vmdk")).unwrap();
    let cid = parent.lines().find_map(|line| line.strip_prefix("CID=")).unwrap();
    let child = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID={cid}\ncreateType=\"vmfsSparse\"\n\
         parentFileNameHint=\"flat.vmdk\"\nRW 4133 VMFSSPARSE \"flat-000001-delta.vmdk\"\n"
    );
    std::fs::write(vm.folder().join("flat-000001.vmdk"), child).unwrap();
    std::fs::write(vm.folder().join("flat-000001-delta.vmdk"), "COWD").unwrap();
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap().replace("flat.vmdk", "flat-000001.vmdk");
    std::fs::write(vm.vmx(), vmx).unwrap();
    let ran = vm.fails(&encrypt(), 3, "1 snapshot;");
    assert!(ran.stderr.contains("VMFSSPARSE"), "every reason is listed: {}", ran.stderr);
}

#[test]
fn a_linked_clone() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let descriptor = std::fs::read_to_string(vm.folder().join("flat.vmdk")).unwrap();
    let descriptor = descriptor
        .replace("parentCID=ffffffff", "parentCID=12345678")
        .replace("createType=", "parentFileNameHint=\"/vmfs/volumes/1/golden/golden.vmdk\"\ncreateType=");
    std::fs::write(vm.folder().join("flat.vmdk"), descriptor).unwrap();
    vm.fails(&encrypt(), 3, "linked clone of /vmfs/volumes/1/golden/golden.vmdk");
}

#[test]
fn a_disk_that_another_vm_uses() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    std::fs::copy(vm.vmx(), vm.folder().join("other.vmx")).unwrap();
    vm.fails(&encrypt(), 3, "flat.vmdk is used by other.vmx too");
}

#[test]
fn a_vm_without_disks_and_disks_that_are_not_there() {
    let vm = TestVm::with_disks(&[]);
    vm.fails(&encrypt(), 3, "has no disk");
    vm.ok(&["encrypt", "VM", "--provider", "house", "--disks", "none"]);
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.fails(
        &["encrypt", "VM", "--provider", "house", "--disks", "flut.vmdk"],
        3,
        "no disk flut.vmdk; it has flat.vmdk",
    );
    std::fs::rename(vm.folder().join("flat-flat.vmdk"), vm.folder().join("away")).unwrap();
    vm.fails(&encrypt(), 5, "flat-flat.vmdk is not there");
    std::fs::rename(vm.folder().join("flat.vmdk"), vm.folder().join("away too")).unwrap();
    vm.fails(&encrypt(), 5, "flat.vmdk is not there");
}

#[test]
fn an_extent_that_is_cut_off() {
    let vm = TestVm::new();
    let flat = vm.folder().join("flat-flat.vmdk");
    let len = std::fs::metadata(&flat).unwrap().len();
    std::fs::File::options().write(true).open(&flat).unwrap().set_len(len - 512).unwrap();
    vm.fails(&encrypt(), 5, "flat-flat.vmdk has 2115584 bytes, and its descriptor says 2116096");
    std::fs::File::options().write(true).open(&flat).unwrap().set_len(len).unwrap();
    let sparse = vm.folder().join("split-sparse-s001.vmdk");
    let whole = std::fs::read(&sparse).unwrap();
    std::fs::write(&sparse, &whole[..whole.len() - (128 << 10)]).unwrap();
    vm.fails(&encrypt(), 5, "split-sparse-s001.vmdk");
    std::fs::write(&sparse, &whole[..100]).unwrap();
    vm.fails(&encrypt(), 5, "split-sparse-s001.vmdk");
}

#[test]
fn a_second_encryption_and_operations_on_a_plain_vm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.fails(&["decrypt", "VM"], 3, "not encrypted");
    vm.fails(&["recrypt", "VM"], 3, "not encrypted");
    vm.fails(&["resume", "VM"], 3, "nothing is pending");
    vm.fails(&["resume", "VM", "--rollback"], 3, "nothing is pending");
    vm.ok(&encrypt());
    vm.fails(&encrypt(), 3, "already encrypted");
    vm.assert_whole();
}

#[test]
fn a_wrong_provider() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.fails(&["encrypt", "VM", "--provider", "nowhere"], 4, "no key provider nowhere");
    vm.fails(&["encrypt", "VM", "--provider", ""], 2, "provider's name");
    vm.ok(&encrypt());
    vm.fails(&["recrypt", "VM", "--provider", "nowhere"], 4, "no key provider nowhere");
    // Another provider of the same name has other keys.
    std::fs::rename(vm.home(), vm.root.path().join("away")).unwrap();
    vm.fails(&["decrypt", "VM"], 4, "not at hand");
    vm.ok(&["provider", "create", "native", "house"]);
    vm.fails(&["decrypt", "VM"], 4, "not at hand");
    vm.fails(&["verify", "VM"], 4, "house/1-");
}

#[test]
fn files_that_are_no_vm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.fails(&["inspect", "/nowhere/web01.vmx"], 1, "/nowhere");
    std::fs::write(vm.folder().join("empty.vmx"), "").unwrap();
    let empty = vm.folder().join("empty.vmx");
    vm.fails(&["inspect", empty.to_str().unwrap()], 5, "no VMX");
    let folder = vm.folder();
    vm.fails(&["encrypt", folder.to_str().unwrap(), "--provider", "house"], 2, "folder");
    vm.fails(&["encrypt", "VM"], 2, "--provider");
    std::fs::write(vm.folder().join("flat.vmdk"), [0xff; 2000]).unwrap();
    vm.fails(&encrypt(), 5, "flat.vmdk");
}

#[test]
fn files_that_are_links() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    std::fs::rename(vm.folder().join("flat-flat.vmdk"), vm.folder().join("data.img")).unwrap();
    std::os::unix::fs::symlink("data.img", vm.folder().join("flat-flat.vmdk")).unwrap();
    let ran = vm.run(&encrypt());
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("not a link to it"), "{}", ran.stderr);
    assert!(std::fs::read(vm.folder().join("data.img")).unwrap() == vm.disks["flat.vmdk"]);
    assert!(vm.guest_bytes() == vm.disks);
    assert!(
        std::fs::read_dir(vm.folder()).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains(".vmseal"))
    );
}

#[test]
fn encryption_of_others_is_named_and_left_alone() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), format!("encryption.keySafe = \"vmware:key/list/()\"\nencryption.data = \"x\"\n{vmx}"))
        .unwrap();
    vm.fails(&encrypt(), 3, "Workstation");
    std::fs::write(vm.vmx(), &vmx).unwrap();
    let descriptor = vm.folder().join("flat.vmdk");
    let text = std::fs::read_to_string(&descriptor).unwrap();
    let text = text.trim_end_matches('\0');
    std::fs::write(&descriptor, format!("{text}ddb.iofilters = \"vmwarevmcrypt\"\n")).unwrap();
    vm.fails(&encrypt(), 3, "encrypted by VMware vSphere");
    assert!(vm.ok(&["inspect", "VM"]).stdout.contains("encrypted by VMware vSphere"));
}

#[test]
fn a_refusal_is_a_json_document_where_programs_read() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    std::fs::write(vm.folder().join("web01.vmx.lck"), "").unwrap();
    std::fs::write(vm.folder().join("web01.vmsd"), ONE_BRANCH).unwrap();
    let ran = vm.fails(&["encrypt", "VM", "--provider", "house", "--json"], 3, "");
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["error"]["status"], 3);
    assert_eq!(document["error"]["reasons"].as_array().unwrap().len(), 2);
}

#[test]
fn a_name_cannot_steer_the_terminal() {
    let vm = TestVm::with_disks(&[]);
    for name in ["a|1B[31m.vmdk", "a|0Ab.vmdk"] {
        std::fs::write(vm.vmx(), format!("scsi0:0.fileName = \"{name}\"\n")).unwrap();
        let ran = vm.fails(&["inspect", "VM"], 5, "cannot be the name of a file");
        assert!(!ran.stderr.contains('\u{1b}') && ran.stderr.trim_end().lines().count() == 1, "{}", ran.stderr);
    }
}

#[test]
fn one_file_in_two_parts() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    let attach = |name: &str| std::fs::write(vm.vmx(), format!("{vmx}\nscsi0:7.fileName = \"{name}\"\n")).unwrap();
    attach("./flat.vmdk");
    vm.fails(&encrypt(), 5, "flat.vmdk is used twice");
    std::fs::copy(vm.folder().join("flat.vmdk"), vm.folder().join("copy.vmdk")).unwrap();
    attach("copy.vmdk");
    vm.fails(&encrypt(), 5, "flat-flat.vmdk is used twice, as an extent of flat.vmdk and as an extent of copy.vmdk");
    std::fs::remove_file(vm.folder().join("copy.vmdk")).unwrap();
    std::fs::hard_link(vm.folder().join("flat.vmdk"), vm.folder().join("copy.vmdk")).unwrap();
    vm.fails(&encrypt(), 5, "is used twice");
    std::fs::write(vm.vmx(), format!("{vmx}\nscsi0:0.fileName = \"other.vmdk\"\n")).unwrap();
    vm.fails(&encrypt(), 5, "scsi0:0.fileName is given twice, in lines");
}

#[test]
fn another_vm_with_the_same_extent() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    std::fs::copy(vm.folder().join("flat.vmdk"), vm.folder().join("theirs.vmdk")).unwrap();
    std::fs::write(vm.folder().join("other.vmx"), "scsi0:0.fileName = \"theirs.vmdk\"\n").unwrap();
    vm.fails(&encrypt(), 3, "flat.vmdk is used by other.vmx too");
}

#[test]
fn keys_of_what_is_not_attached_are_not_dropped_unasked() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    vm.ok(&encrypt());
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), vmx.replace("scsi0:1.fileName", "# scsi0:1.fileName")).unwrap();
    vm.fails(&["decrypt", "VM"], 3, "the keys of sparse.vmdk, not attached now");
    // A deep recrypt keeps them.
    vm.ok(&["recrypt", "VM", "--deep"]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), vmx.replace("# scsi0:1.fileName", "scsi0:1.fileName")).unwrap();
    vm.assert_whole();
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), vmx.replace("nvram = \"web01.nvram\"", "nvram = \"other.nvram\"")).unwrap();
    vm.fails(&["decrypt", "VM"], 3, "the keys of web01.nvram");
    vm.ok(&["decrypt", "VM", "--forget-detached"]);
    assert!(vm.guest_bytes() == vm.disks);
}

#[test]
fn a_disk_in_the_place_of_another_of_the_same_vm() {
    let vm = TestVm::with_disks(&[("flat.vmdk", "monolithicFlat"), ("flat-b.vmdk", "monolithicFlat")]);
    vm.ok(&encrypt());
    let text = std::fs::read_to_string(vm.folder().join("flat.vmdk")).unwrap();
    std::fs::write(vm.folder().join("flat-b.vmdk"), text.replace("flat-flat.vmdk", "flat-b-flat.vmdk")).unwrap();
    for operation in [&["verify", "VM"][..], &["decrypt", "VM"], &["recrypt", "VM"]] {
        vm.fails(operation, 5, "flat-b.vmdk holds the keys of another disk");
    }
}

#[test]
fn an_nvram_that_does_not_go_with_the_vm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let plain = std::fs::read(vm.folder().join("web01.nvram")).unwrap();
    vm.ok(&encrypt());
    let sealed = std::fs::read(vm.folder().join("web01.nvram")).unwrap();
    std::fs::write(vm.folder().join("web01.nvram"), &plain).unwrap();
    vm.fails(&["verify", "VM"], 5, "web01.nvram is not encrypted, and the VM's bundle has a key for it");
    std::fs::write(vm.folder().join("web01.nvram"), &sealed).unwrap();
    vm.ok(&["decrypt", "VM"]);
    std::fs::write(vm.folder().join("web01.nvram"), &sealed).unwrap();
    vm.fails(&encrypt(), 3, "web01.nvram is an encrypted envelope");
}

#[test]
fn bytes_that_would_stay_in_the_clear() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let flat = vm.folder().join("flat-flat.vmdk");
    let mut bytes = std::fs::read(&flat).unwrap();
    bytes.extend_from_slice(&[7; 1024]);
    std::fs::write(&flat, &bytes).unwrap();
    vm.fails(&encrypt(), 5, "belongs to no extent");
    std::fs::write(&flat, &bytes[..bytes.len() - 1024]).unwrap();
    for name in ["web01-3f2a.vmem", "web01-Snapshot1.vmsn"] {
        std::fs::write(vm.folder().join(name), "memory").unwrap();
        vm.fails(&encrypt(), 3, name);
        std::fs::remove_file(vm.folder().join(name)).unwrap();
    }
    std::fs::write(vm.folder().join("web01-3f2a.vmss"), "memory").unwrap();
    vm.fails(&encrypt(), 3, "suspended");
}

#[test]
fn recovery_passwords_that_would_open_a_part_only() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    let files = ["first", "second"].map(|name| {
        let path = vm.root.path().join(name);
        std::fs::write(&path, name).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let part = |disk: &'static str| ["encrypt", "VM", "--provider", "house", "--disks", disk];
    let with = |args: &[&'static str], file: usize| {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--recovery-password-file".to_owned(), files[file].clone()]);
        args
    };
    let run = |args: Vec<String>| vm.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(with(&part("flat.vmdk"), 0)).status, 0);
    let ran = run(with(&part("sparse.vmdk"), 1));
    assert!(ran.status == 4 && ran.stderr.contains("not the one that the VM has"), "{}", ran.stderr);
    assert_eq!(run(with(&["recrypt", "VM", "--deep"], 1)).status, 4);
    assert_eq!(run(with(&part("sparse.vmdk"), 0)).status, 0);
    vm.assert_whole();
}

#[test]
fn hostile_files_cost_neither_time_nor_memory() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let begin = std::time::Instant::now();
    let many: String = (0..40_000).map(|index| format!("scsi0:{index}.fileName = \"q.vmdk\"\n")).collect();
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), &many).unwrap();
    vm.fails(&["inspect", "VM"], 5, "more than 1024 disks");
    // A neighbour's and a list of snapshots.
    std::fs::rename(vm.vmx(), vm.folder().join("other.vmx")).unwrap();
    std::fs::write(vm.vmx(), vmx).unwrap();
    let snapshots: String = (0..40_000).map(|index| format!("snapshot{index}.uid = \"{index}\"\n")).collect();
    std::fs::write(vm.folder().join("web01.vmsd"), snapshots).unwrap();
    vm.fails(&encrypt(), 3, "40000 snapshots on 40000 branches");
    let cycle = "snapshot0.uid = \"1\"\nsnapshot0.parent = \"2\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n";
    std::fs::write(vm.folder().join("web01.vmsd"), cycle).unwrap();
    vm.fails(&encrypt(), 5, "is its own ancestor");
    // Generous: what was wrong before took minutes. It is the work that is meant, not this machine's speed.
    assert!(begin.elapsed().as_secs() < 60);
}

#[test]
fn a_disk_that_qemu_has_open() {
    use std::io::Write;
    let vm = TestVm::with_disks(&DISKS[..2]);
    for disk in ["flat.vmdk", "sparse.vmdk"] {
        let mut qemu = std::process::Command::new("qemu-io")
            .args(["-f", "vmdk"])
            .arg(vm.folder().join(disk))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // It has opened the image once it has taken its locks.
        for _ in 0..500 {
            if vm.run(&["inspect", "VM"]).stdout.contains("is open in QEMU") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        vm.fails(&encrypt(), 3, "is open in QEMU");
        qemu.stdin.take().unwrap().write_all(b"quit\n").unwrap();
        qemu.wait().unwrap();
    }
    vm.ok(&encrypt());
    vm.assert_whole();
}

#[test]
fn what_is_no_vm_and_disks_that_are_not_named() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    for disk in ["flat.vmdk", "sparse.vmdk"] {
        let path = vm.folder().join(disk);
        vm.fails(
            &["encrypt", path.to_str().unwrap(), "--provider", "house", "--disks", "none"],
            5,
            "this is a disk, and no VM",
        );
    }
    for disks in ["", "flat.vmdk,", ","] {
        vm.fails(&["encrypt", "VM", "--provider", "house", "--disks", disks], 2, "empty name");
    }
    let ran = vm.ok(&["encrypt", "VM", "--provider", "house", "--disks", "flat.vmdk"]);
    assert!(ran.stderr.contains("Still in the clear: sparse.vmdk"), "{}", ran.stderr);
}

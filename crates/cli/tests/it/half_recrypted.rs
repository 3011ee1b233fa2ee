//! Shallow recrypts that are half done, mixed keys, and recrypts of VMs that run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::kill::{Operation, kill_published};
use crate::testing::{DISKS, TestVm};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn encrypted(disks: usize) -> TestVm {
    let vm = TestVm::with_disks(&DISKS[..disks]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    vm
}

#[test]
fn both_keys_are_told_and_recrypt_again_completes_it() {
    let vm = encrypted(2);
    let old =
        json(&vm.ok(&["inspect", "VM", "--json"]).stdout)["vms"][0]["key_ids"][0]["key"].as_str().unwrap().to_owned();
    kill_published(&vm, Operation::ShallowRecrypt, 1);
    let document = json(&vm.ok(&["inspect", "VM", "--json"]).stdout);
    let report = &document["vms"][0];
    let keys = report["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2, "{report}");
    let of_old = keys.iter().find(|key| key["key"] == old.as_str()).unwrap();
    let of_new = keys.iter().find(|key| key["key"] != old.as_str()).unwrap();
    assert_eq!(of_old["files"].as_array().unwrap().len() + of_new["files"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(report["pending"]["from_key_ids"][0]["key"], old.as_str());
    assert_eq!(report["pending"]["key_ids"][0]["key"], of_new["key"]);
    assert!(report["warnings"][0].as_str().unwrap().contains("No snapshot operation"), "{report}");
    let new = of_new["key"].as_str().unwrap().to_owned();
    let text = vm.ok(&["inspect", "VM"]).stdout;
    for part in ["WARNING", &format!("key         house/{old}: "), &format!("key         house/{new}: ")] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The guest's bytes can be read meanwhile.
    assert!(vm.guest_bytes() == vm.disks);
    for operation in [&["recrypt", "VM", "--deep"][..], &["decrypt", "VM"], &["encrypt", "VM", "--provider", "house"]] {
        vm.fails(operation, 3, "an interrupted shallow recrypt has to end first");
    }
    vm.fails(&["verify", "VM"], 7, "shallow recrypt");
    let plan = vm.ok(&["recrypt", "VM", "--dry-run"]).stdout;
    for part in
        ["complete the interrupted shallow recrypt", &new, "warning: a shallow recrypt from house/", "bytes of room"]
    {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    let plan = json(&vm.ok(&["recrypt", "VM", "--dry-run", "--json"]).stdout);
    assert_eq!(plan["steps"], serde_json::json!([{ "step": "finish-recrypt", "committed": true }]));
    assert!(plan["kek"]["change"] == "pending" && plan["room_bytes"].as_u64().unwrap() > 0, "{plan}");
    let ran = vm.ok(&["recrypt", "VM"]);
    assert!(
        ran.stdout.contains("The interrupted shallow recrypt was already committed; it is complete now."),
        "{}",
        ran.stdout
    );
    let report = &json(&vm.ok(&["inspect", "VM", "--json"]).stdout)["vms"][0];
    assert!(report["keys"].as_array().unwrap().len() == 1 && report["keys"][0]["key"] == new.as_str(), "{report}");
    assert!(report["warnings"].as_array().unwrap().is_empty());
    vm.assert_whole();
}

#[test]
fn a_key_of_another_provider_after_an_interruption() {
    let vm = encrypted(1);
    vm.ok(&["provider", "create", "native", "lab"]);
    kill_published(&vm, Operation::ShallowRecrypt, 0);
    let document = json(&vm.ok(&["recrypt", "VM", "--provider", "lab", "--json"]).stdout);
    assert!(document["finished_first"] == "completed" && document["ending"] == "done", "{document}");
    let report = &json(&vm.ok(&["inspect", "VM", "--json"]).stdout)["vms"][0];
    assert!(report["keys"].as_array().unwrap().len() == 1 && report["keys"][0]["provider"] == "lab", "{report}");
    vm.assert_whole();
}

#[test]
fn mixed_keys_are_told_and_brought_together() {
    let vm = encrypted(2);
    let descriptor = vm.folder().join("flat.vmdk");
    let old = std::fs::read(&descriptor).unwrap();
    vm.ok(&["recrypt", "VM"]);
    std::fs::write(&descriptor, &old).unwrap();
    let text = vm.ok(&["inspect", "VM"]).stdout;
    assert!(text.contains("WARNING     the VM's files are under different keys (house/"), "{text}");
    let ran = vm.ok(&["recrypt", "VM", "--dry-run"]);
    assert!(ran.stdout.contains("warning: the VM's files are under different keys"), "{}", ran.stdout);
    vm.ok(&["recrypt", "VM"]);
    assert!(!vm.ok(&["inspect", "VM"]).stdout.contains("WARNING"));
    vm.assert_whole();
}

#[test]
fn an_encrypted_disk_on_a_vm_in_the_clear() {
    let vm = encrypted(2);
    let other = vm.folder().join("other");
    std::fs::create_dir(&other).unwrap();
    for name in ["flat.vmdk", "flat-flat.vmdk"] {
        std::fs::copy(vm.folder().join(name), other.join(name)).unwrap();
    }
    let plain = other.join("plain.vmx");
    std::fs::write(&plain, "scsi0:0.fileName = \"flat.vmdk\"\n").unwrap();
    let plain = plain.to_str().unwrap();
    let message = "flat.vmdk is encrypted, and the VM that it is attached to is not";
    for operation in [
        &["encrypt", plain, "--provider", "house"][..],
        &["decrypt", plain],
        &["recrypt", plain],
        &["encrypt", plain, "--provider", "house", "--disks", "none"],
    ] {
        vm.fails(operation, 3, message);
    }
    vm.fails(&["verify", plain], 5, "the disk is encrypted, and the VM that it is attached to is not");
    let report = vm.ok(&["inspect", plain]).stdout;
    assert!(report.contains(&format!("WARNING     {message}")), "{report}");
    let report = json(&vm.ok(&["inspect", plain, "--json"]).stdout);
    assert!(report["vms"][0]["warnings"][0].as_str().unwrap().starts_with(message), "{report}");
}

/// A `qemu-io` that has a disk open, and answers one command after the other.
struct Qemu {
    process: std::process::Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Qemu {
    fn open(vm: &TestVm, disk: &str) -> Self {
        let mut process = Command::new("qemu-io")
            .args(["-f", "vmdk"])
            .arg(vm.folder().join(disk))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut qemu = Self { process, answers };
        qemu.read(0);
        qemu
    }

    /// The hexadecimal lines of one sector.
    fn read(&mut self, offset: u64) -> Vec<String> {
        self.command(&format!("read -v {offset} 512"))
    }

    fn command(&mut self, command: &str) -> Vec<String> {
        self.process.stdin.as_mut().unwrap().write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut lines = Vec::new();
        loop {
            let line = self.answers.next().unwrap().unwrap();
            // The last line of an answer tells of its speed.
            if line.contains("ops/sec") || line.contains("ops; ") {
                return lines;
            }
            lines.push(line);
        }
    }

    fn quit(mut self) {
        self.process.stdin.take().unwrap().write_all(b"quit\n").unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn a_shallow_recrypt_does_not_disturb_a_program_that_has_the_disk_open() {
    let vm = encrypted(1);
    let mut qemu = Qemu::open(&vm, "flat.vmdk");
    let before = qemu.read(4096);
    assert!(vm.ok(&["inspect", "VM"]).stdout.contains("is open in QEMU"));
    let ran = vm.ok(&["recrypt", "VM"]);
    assert!(ran.stderr.contains("warning: the VM runs"), "{}", ran.stderr);
    let strip = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter_map(|line| line.strip_prefix("qemu-io> ").map(str::to_owned).or(Some(line))).collect()
    };
    assert_eq!(strip(qemu.read(4096)), strip(before));
    // The first write changes the content ID in the descriptor that QEMU has open.
    qemu.command("write -P 7 1M 512");
    qemu.quit();
    let report = json(&vm.ok(&["inspect", "VM", "--json"]).stdout);
    assert_eq!(report["vms"][0]["keys"].as_array().unwrap().len(), 1, "the old keys are not back: {report}");
    vm.ok(&["verify", "VM"]);
    let mut bytes = vm.guest_bytes().remove("flat.vmdk").unwrap();
    let wanted = &vm.disks["flat.vmdk"];
    assert!(bytes[1 << 20..][..512] != wanted[1 << 20..][..512]);
    bytes[1 << 20..][..512].copy_from_slice(&wanted[1 << 20..][..512]);
    assert!(bytes == *wanted);
}

#[test]
fn a_descriptor_inside_a_file_that_a_program_writes_is_left_alone() {
    let vm = encrypted(2);
    let qemu = Qemu::open(&vm, "sparse.vmdk");
    vm.fails(&["recrypt", "VM"], 3, "the descriptor of sparse.vmdk lies inside the file that it writes to");
    vm.fails(
        &["recrypt", "VM", "--dry-run"],
        3,
        "the descriptor of sparse.vmdk lies inside the file that it writes to",
    );
    qemu.quit();
    vm.ok(&["recrypt", "VM"]);
    vm.assert_whole();
}

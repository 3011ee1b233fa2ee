//! A full disk, and two processes at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::testing::{DISKS, TestVm, copy_folder, snapshot};

/// A file system of its own, which ends with the value. The tests run as root, as the project's `./test` does.
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn new(len: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={len}"), "tmpfs"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(status.success(), "a tmpfs is needed for a disk that is full; run the tests as root");
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let output = Command::new("df").args(["--output=avail", "-B1"]).arg(self.path()).output().unwrap();
        let digits: String = String::from_utf8(output.stdout).unwrap().chars().filter(char::is_ascii_digit).collect();
        // The heading of the column, `Avail`, has no digit.
        let free: u64 = digits.parse().unwrap();
        let filler = self.path().join("filler");
        let len = free.saturating_sub(left).max(1).to_string();
        let _ = Command::new("fallocate").args(["-l", &len]).arg(&filler).status();
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_disk_that_has_no_room_is_seen_before_the_first_byte() {
    let small = SmallDisk::new(24 << 20);
    let vm = TestVm::inside(small.path(), &DISKS[..2]);
    small.fill(1 << 20);
    vm.fails(&["encrypt", "VM", "--provider", "house"], 1, "make room");
    vm.assert_whole();
}

#[test]
fn a_disk_that_is_full_in_the_middle_leaves_the_vm_as_it_was() {
    // Room for the first conversion is there, and then taken away bit by bit: each time another write is the one that fails.
    let mut failed = 0;
    for left in (0..48).map(|step| step * (36 << 10)) {
        let small = SmallDisk::new(16 << 20);
        let vm = TestVm::inside(small.path(), &DISKS[..1]);
        let before = snapshot(&vm.folder());
        // The command measures the room when it begins: the limit on file sizes fails later, in the middle of a write.
        let limit = format!("ulimit -f {}; trap '' XFSZ; exec \"$0\" \"$@\"", left >> 9 >> 1);
        let command = vm.command(&["encrypt", "VM", "--provider", "house"]);
        let output = Command::new("bash")
            .arg("-c")
            .arg(limit)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if output.status.success() {
            vm.assert_whole();
            continue;
        }
        failed += 1;
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(snapshot(&vm.folder()) == before, "at {left}: {}", String::from_utf8_lossy(&output.stderr));
        vm.assert_whole();
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn a_disk_that_fills_up_by_another_hand_leaves_the_vm_as_it_was() {
    let mut failed = 0;
    for room in [200 << 10, 600 << 10, 1000 << 10, 1400 << 10] {
        let small = SmallDisk::new(24 << 20);
        let vm = TestVm::inside(small.path(), &DISKS[..2]);
        let before = snapshot(&vm.folder());
        let mut child = vm.command(&["encrypt", "VM", "--provider", "house"]).stderr(Stdio::piped()).spawn().unwrap();
        // Takes the room while the command is at work.
        let filler = small.fill(room);
        let status = child.wait().unwrap();
        std::fs::remove_file(&filler).ok();
        if !status.success() {
            failed += 1;
            assert!(snapshot(&vm.folder()) == before);
        }
        vm.assert_whole();
    }
    // Whether the filler wins the race is the machine's to decide; that the VM is whole is not.
    println!("{failed} of 4 were full");
}

#[test]
fn of_two_processes_one_is_refused_and_the_vm_is_whole() {
    for _ in 0..5 {
        let vm = TestVm::new();
        let start = || {
            let mut command = vm.command(&["encrypt", "VM", "--provider", "house"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let outputs = [start(), start()].map(|child| child.wait_with_output().unwrap());
        let mut statuses = outputs.each_ref().map(|output| output.status.code().unwrap());
        statuses.sort_unstable();
        // The later one meets the lock, or a VM that is encrypted already or has changed under its plan.
        assert!(statuses == [0, 3] || statuses == [0, 1], "{statuses:?} {outputs:?}");
        vm.assert_whole();
    }
}

#[test]
fn a_file_that_changes_during_the_conversion_is_noticed() {
    use std::os::unix::fs::FileExt;
    let vm = TestVm::with_disks(&DISKS[..1]);
    let at_first = vm.root.path().join("at-first");
    copy_folder(&vm.folder(), &at_first);
    let flat = vm.folder().join("flat-flat.vmdk");
    let mut noticed = 0;
    for _ in 0..50 {
        let mut command = vm.command(&["encrypt", "VM", "--provider", "house"]);
        let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if vm.folder().join("flat-flat.vmdk.vmseal-new").exists() {
                // The same byte: the content stays, and still somebody has written.
                let file = std::fs::File::options().write(true).open(&flat).unwrap();
                file.write_all_at(&vm.disks["flat.vmdk"][..1], 0).unwrap();
            }
        }
        match child.wait().unwrap().code() {
            Some(1) => {
                noticed += 1;
                vm.assert_whole();
            }
            // It was quicker than we were, and our last write may have hit the new file: back to the start.
            Some(0) => {
                std::fs::remove_dir_all(vm.folder()).unwrap();
                copy_folder(&at_first, &vm.folder());
            }
            other => panic!("{other:?}"),
        }
        if noticed == 3 {
            return;
        }
    }
    panic!("noticed {noticed} times only");
}

//! Raw images out of disks and into them.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::testing::{SIZE, TestVm, qemu, snapshot};

fn encrypted() -> TestVm {
    let vm = TestVm::new();
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    vm
}

fn at(vm: &TestVm, name: &str) -> String {
    vm.root.path().join(name).to_str().unwrap().to_owned()
}

fn disk(vm: &TestVm, name: &str) -> String {
    vm.folder().join(name).to_str().unwrap().to_owned()
}

fn json(vm: &TestVm, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&vm.ok(args).stdout).unwrap()
}

#[test]
fn every_disk_is_exported_and_comes_back() {
    let vm = encrypted();
    for (name, content) in vm.disks.clone() {
        let (raw, digests) = (at(&vm, &format!("{name}.raw")), at(&vm, &format!("{name}.digests")));
        let report = json(&vm, &["disk", "export", &disk(&vm, &name), "-o", &raw, "--digests", &digests, "--json"]);
        assert!(std::fs::read(&raw).unwrap() == content, "{name}");
        assert_eq!(report["image_bytes"], SIZE as u64);
        // To standard output it is the same.
        assert!(vm.command(&["disk", "export", &disk(&vm, &name), "-o", "-"]).output().unwrap().stdout == content);
        let back = disk(&vm, &format!("back-{name}"));
        vm.ok(&["disk", "import", &raw, "-o", &back, "--vm", "VM", "--digests", &digests, "--data-unit", "4096"]);
        let again = at(&vm, "again.raw");
        let second = json(&vm, &["disk", "export", &back, "-o", &again, "--force", "--json"]);
        assert!(std::fs::read(&again).unwrap() == content, "{name}");
        assert_eq!(second["digest"], report["digest"]);
    }
    vm.ok(&["verify", "VM"]);
    // Nothing in the clear came to the folder.
    for (name, bytes) in snapshot(&vm.folder()) {
        for content in vm.disks.values() {
            for sector in [&content[..512], &content[1 << 20..][..512]] {
                assert!(!bytes.windows(512).any(|window| window == sector), "{name}");
            }
        }
    }
}

#[test]
fn what_is_there_or_does_not_fit_is_refused() {
    let vm = encrypted();
    let (raw, digests, map) = (at(&vm, "a.raw"), at(&vm, "a.digests"), at(&vm, "a.map"));
    let flat = disk(&vm, "flat.vmdk");
    vm.ok(&["disk", "export", &flat, "-o", &raw, "--digests", &digests]);
    vm.fails(&["disk", "export", &flat, "-o", &raw], 3, "is there already");
    vm.fails(&["disk", "export", &flat, "-o", &at(&vm, "b.raw"), "--digests", &digests], 3, "is there already");
    assert!(!Path::new(&at(&vm, "b.raw")).exists());
    vm.fails(&["disk", "export", &flat, "-o", &at(&vm, "b.raw"), "--salvage"], 2, "--map");
    vm.fails(&["disk", "export", &disk(&vm, "none.vmdk"), "-o", &at(&vm, "b.raw")], 5, "none.vmdk");
    vm.fails(&["disk", "import", &raw, "-o", &flat, "--vm", "VM"], 3, "is there already");
    vm.fails(&["disk", "import", "-", "-o", &disk(&vm, "new.vmdk"), "--vm", "VM"], 2, "size");
    vm.fails(
        &["disk", "import", &raw, "-o", &disk(&vm, "new.vmdk"), "--vm", "VM", "--key-id", "house/no-such-key"],
        4,
        "no-such-key",
    );
    std::fs::write(at(&vm, "odd.raw"), [1; 700]).unwrap();
    vm.fails(
        &["disk", "import", &at(&vm, "odd.raw"), "-o", &disk(&vm, "new.vmdk"), "--vm", "VM"],
        5,
        "multiple of 512",
    );
    std::fs::write(&map, "0x0 + 1\n0x0 0x200 x\n").unwrap();
    vm.fails(&["disk", "import", &raw, "-o", &flat, "--vm", "VM", "--map", &map], 3, "line 2");
    // An image that is not what was exported is noticed before it is a disk.
    let file = std::fs::OpenOptions::new().write(true).open(&raw).unwrap();
    file.write_all_at(b"damage", 1 << 20).unwrap();
    let refused = vm.run(&["disk", "import", &raw, "-o", &disk(&vm, "new.vmdk"), "--vm", "VM", "--digests", &digests]);
    assert_eq!(refused.status, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("byte 1048576"), "{}", refused.stderr);
    vm.ok(&["verify", "VM"]);
}

#[test]
fn changes_since_an_export_are_exported_alone_and_applied() {
    let vm = encrypted();
    let flat = disk(&vm, "flat.vmdk");
    let (full, first) = (at(&vm, "full.raw"), at(&vm, "first.digests"));
    vm.ok(&["disk", "export", &flat, "-o", &full, "--digests", &first]);
    vm.ok(&["disk", "import", &full, "-o", &disk(&vm, "copy.vmdk"), "--vm", "VM"]);
    // The guest writes one block, and zeros another.
    let mut content = vm.disks["flat.vmdk"].clone();
    content[5000..5010].copy_from_slice(b"new words!");
    content[(1 << 20)..(2 << 20)].fill(0);
    std::fs::write(&full, &content).unwrap();
    let everything = at(&vm, "everything.map");
    std::fs::write(&everything, format!("0x0 + 1\n0x0 0x{SIZE:X} +\n")).unwrap();
    vm.ok(&["disk", "import", &full, "-o", &flat, "--vm", "VM", "--map", &everything]);
    let (changes, map) = (at(&vm, "changes.raw"), at(&vm, "changes.map"));
    let report =
        json(&vm, &["disk", "export", &flat, "-o", &changes, "--changed-since", &first, "--map", &map, "--json"]);
    assert_eq!(report["image_bytes"], 2 << 20);
    assert_eq!(report["unchanged_bytes"], SIZE as u64 - (2 << 20));
    vm.ok(&["disk", "import", &changes, "-o", &disk(&vm, "copy.vmdk"), "--vm", "VM", "--map", &map]);
    let after = at(&vm, "after.raw");
    vm.ok(&["disk", "export", &disk(&vm, "copy.vmdk"), "-o", &after]);
    assert!(std::fs::read(&after).unwrap() == content);
    // Of another disk's digests nothing is believed.
    let other = at(&vm, "small.raw");
    std::fs::write(&other, [7; 4096]).unwrap();
    vm.ok(&["disk", "import", &other, "-o", &disk(&vm, "small.vmdk"), "--vm", "VM"]);
    let small = disk(&vm, "small.vmdk");
    vm.fails(
        &["disk", "export", &small, "-o", &at(&vm, "x.raw"), "--changed-since", &first, "--map", &at(&vm, "x.map")],
        3,
        "digest list is of a disk of",
    );
}

#[test]
fn a_lost_disk_is_restored_under_the_key_that_it_had() {
    let vm = encrypted();
    let (raw, sparse) = (at(&vm, "sparse.raw"), disk(&vm, "sparse.vmdk"));
    vm.ok(&["disk", "export", &sparse, "-o", &raw]);
    let inspected = vm.ok(&["inspect", "VM"]).stdout;
    let id = inspected
        .split_whitespace()
        .find(|word| word.starts_with("house/"))
        .unwrap()
        .trim_end_matches([',', ')', ';', '.'])
        .to_owned();
    std::fs::remove_file(&sparse).unwrap();
    vm.ok(&["disk", "import", &raw, "-o", &sparse, "--vm", "VM", "--key-id", &id]);
    vm.assert_whole();
    assert!(vm.ok(&["inspect", "VM"]).stdout.contains(&id));
}

/// Kills the command at some moments until it gets through, and lets it go on.
fn killed_and_taken_up(vm: &TestVm, args: &[&str]) {
    for delay in [5, 15, 30, 50, 80] {
        let mut child = vm.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            return;
        }
    }
    vm.ok(args);
}

#[test]
fn an_export_and_an_import_that_were_killed_go_on() {
    let vm = encrypted();
    let (raw, back, again) = (at(&vm, "flat.raw"), disk(&vm, "back.vmdk"), at(&vm, "again.raw"));
    killed_and_taken_up(&vm, &["disk", "export", &disk(&vm, "flat.vmdk"), "-o", &raw]);
    assert!(std::fs::read(&raw).unwrap() == vm.disks["flat.vmdk"]);
    killed_and_taken_up(&vm, &["disk", "import", &raw, "-o", &back, "--vm", "VM", "--type", "twoGbMaxExtentFlat"]);
    vm.ok(&["disk", "export", &back, "-o", &again]);
    assert!(std::fs::read(&again).unwrap() == vm.disks["flat.vmdk"]);
    vm.ok(&["verify", "VM"]);
    let left: Vec<String> = snapshot(&vm.folder()).into_keys().filter(|name| name.contains("vmseal-import")).collect();
    assert!(left.is_empty(), "{left:?}");
    let left: Vec<PathBuf> = std::fs::read_dir(vm.root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_str().unwrap().contains("vmseal-part")), "{left:?}");
}

#[test]
fn what_can_be_read_of_a_damaged_disk_is_saved_with_a_map_of_the_rest() {
    let vm = encrypted();
    let sparse = vm.folder().join("split-flat.vmdk");
    let extent = vm.folder().join("split-flat-f001.vmdk");
    let len = std::fs::metadata(&extent).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&extent).unwrap().set_len(len - (64 << 10)).unwrap();
    let (raw, map) = (at(&vm, "saved.raw"), at(&vm, "saved.map"));
    let sparse = sparse.to_str().unwrap();
    assert_ne!(vm.run(&["disk", "export", sparse, "-o", &raw]).status, 0);
    let ran = vm.ok(&["disk", "export", sparse, "-o", &raw, "--salvage", "--map", &map, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    // What is lost is told in blocks of 4096 bytes, as a medium loses it.
    let unreadable = report["unreadable_bytes"].as_u64().unwrap();
    assert!((64 << 10..(64 << 10) + 4096).contains(&unreadable), "{report}");
    let (saved, content) = (std::fs::read(&raw).unwrap(), &vm.disks["split-flat.vmdk"]);
    let lost = SIZE - unreadable as usize;
    assert!(saved[..lost] == content[..lost] && saved[lost..].iter().all(|byte| *byte == 0));
    let map = std::fs::read_to_string(&map).unwrap();
    assert!(map.contains(&format!("0x{lost:X}  0x{unreadable:X}  -")), "{map}");
    assert!(ran.stderr.contains("could not be read"), "{}", ran.stderr);
}

#[test]
fn a_disk_in_the_clear_is_exported_and_imported_too() {
    let vm = TestVm::new();
    let (raw, back) = (at(&vm, "flat.raw"), disk(&vm, "back.vmdk"));
    vm.ok(&["disk", "export", &disk(&vm, "flat.vmdk"), "-o", &raw]);
    vm.ok(&["disk", "import", &raw, "-o", &back, "--vm", "VM"]);
    assert!(
        qemu("qemu-img", &["compare", "-f", "raw", "-F", "vmdk"], &[Path::new(&raw), Path::new(&back)])
            .contains("identical")
    );
}

//! LUKS both ways: QEMU and cryptsetup open encrypted disks by the headers that the command writes, and disks that they made become a VM's.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmseal_keys::Dek;

use crate::testing::{DISKS, SIZE, TestVm, content, qemu, qemu_bytes, snapshot};

const SECTOR: usize = 512;
const PASSWORD: &str = "Z\u{fc}rich 1";

/// A VM, encrypted where that is wanted, and beside its folder a password file.
fn vm(disks: &[(&str, &str)], encrypt: &[&str]) -> TestVm {
    let vm = TestVm::with_disks(disks);
    std::fs::write(file(&vm, "pw"), PASSWORD).unwrap();
    std::fs::write(file(&vm, "wrong"), "wrong").unwrap();
    if !encrypt.is_empty() {
        vm.ok(&[&["encrypt", "VM", "--provider", "house"], encrypt].concat());
    }
    vm
}

/// A file outside of the VM's folder.
fn file(vm: &TestVm, name: &str) -> PathBuf {
    vm.root.path().join(name)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn header(vm: &TestVm, disk: &str, more: &[&str]) -> serde_json::Value {
    let (disk, out, password) = (text(&vm.folder().join(disk)), text(&file(vm, "header")), text(&file(vm, "pw")));
    let args = ["disk", "luks-header", &disk, "-o", &out, "--password-file", &password, "--json"];
    serde_json::from_str(&vm.ok(&[&args, more].concat()).stdout).unwrap()
}

fn secret(vm: &TestVm) -> String {
    format!("secret,id=password,file={}", text(&file(vm, "pw")))
}

/// What QEMU reads by the options that the command gave.
#[track_caller]
fn qemu_reads(vm: &TestVm, report: &serde_json::Value) -> Vec<u8> {
    let raw = file(vm, "raw");
    let options = report["image_options"].as_str().unwrap();
    qemu("qemu-img", &["convert", "--object", &secret(vm), "--image-opts", options, "-O", "raw"], &[&raw]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

fn cryptsetup(folder: &Path, arguments: &str) -> (bool, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new("cryptsetup")
        .args(arguments.split(' '))
        .current_dir(folder)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("cryptsetup is needed (`./test` installs cryptsetup-bin): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[track_caller]
fn cryptsetup_ok(folder: &Path, arguments: &str) -> String {
    let (ok, text) = cryptsetup(folder, arguments);
    assert!(ok, "{arguments}: {text}");
    text
}

#[test]
fn qemu_reads_every_byte_of_a_filled_disk_and_writes_what_the_vm_reads() {
    let mut vm = vm(&DISKS, &["--disks", "all"]);
    for (disk, _) in DISKS {
        let report = header(&vm, disk, &["--fill", "--force"]);
        assert!(report["filled_units"].as_u64().unwrap() > 100, "{report}");
        assert_eq!((&report["unwritten_units"], &report["hole_policy"]), (&0.into(), &"fill".into()), "{disk}");
        let mode = std::fs::metadata(file(&vm, "header")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(qemu_reads(&vm, &report) == vm.disks[disk], "{disk}");
        // QEMU writes by the same header.
        let options = report["image_options"].as_str().unwrap();
        let write = ["--object", &secret(&vm), "--image-opts", options, "-c", "write -P 0x5a 1000000 3000"];
        qemu("qemu-io", &write, &[]);
        vm.disks.get_mut(disk).unwrap()[1_000_000..1_003_000].fill(0x5a);
    }
    vm.assert_whole();
    // A shallow recrypt leaves the header good; the policy stays through both kinds of recrypt.
    let report = header(&vm, "sparse.vmdk", &["--force"]);
    vm.ok(&["recrypt", "VM"]);
    assert!(qemu_reads(&vm, &report) == vm.disks["sparse.vmdk"]);
    vm.ok(&["recrypt", "VM", "--deep"]);
    assert!(qemu_reads(&vm, &report) != vm.disks["sparse.vmdk"]);
    for (disk, _) in &DISKS[..2] {
        let report = header(&vm, disk, &["--force"]);
        assert_eq!((&report["unwritten_units"], &report["hole_policy"]), (&0.into(), &"fill".into()), "{disk}");
        assert!(qemu_reads(&vm, &report) == vm.disks[*disk], "{disk}");
    }
    vm.assert_whole();
    vm.ok(&["decrypt", "VM"]);
    for (disk, _) in DISKS {
        assert!(qemu_bytes(&vm.folder().join(disk)) == vm.disks[disk], "{disk}");
    }
}

#[test]
fn what_was_never_written_is_counted_and_noise_to_qemu() {
    let vm = vm(&DISKS[..2], &["--disks", "all"]);
    let before = snapshot(&vm.folder());
    for (disk, _) in &DISKS[..2] {
        let report = header(&vm, disk, &["--force"]);
        let count = report["unwritten_units"].as_u64().unwrap();
        assert_eq!(report["hole_policy"], "zero");
        let (read, ours) = (qemu_reads(&vm, &report), &vm.disks[*disk]);
        let units = read.chunks(SECTOR).zip(ours.chunks(SECTOR));
        let differing: Vec<_> = units.filter(|(read, ours)| read != ours).collect();
        assert_eq!(differing.len() as u64, count, "{disk}");
        assert!(count > 100 && differing.iter().all(|(_, ours)| ours.iter().all(|byte| *byte == 0)), "{disk}");
    }
    assert!(before == snapshot(&vm.folder()), "a header changes nothing of the VM");
    let flat = text(&vm.folder().join("flat.vmdk"));
    let (out, password) = (text(&file(&vm, "again")), text(&file(&vm, "pw")));
    let ran = vm.ok(&["disk", "luks-header", &flat, "-o", &out, "--password-file", &password]);
    assert!(
        ran.stderr.contains("noise to QEMU and dm-crypt") && ran.stdout.contains("cryptsetup open --header"),
        "{ran:?}"
    );
}

#[test]
fn cryptsetup_opens_both_versions_with_their_password_alone() {
    let vm = vm(&DISKS[..1], &["--disks", "all"]);
    let root = vm.root.path();
    let (dek, ..) = crate::secrets::disk_keys(&vm, "flat.vmdk");
    for version in [1, 2] {
        let more: &[&str] = if version == 1 { &[] } else { &["--luks2", "--force"] };
        let report = header(&vm, "flat.vmdk", more);
        assert_eq!(report["version"], version);
        let dump = cryptsetup_ok(root, "luksDump header");
        assert!(dump.contains(&format!("Version:       \t{version}")), "{dump}");
        let test = "open --test-passphrase --header header vm/flat-flat.vmdk --key-file";
        cryptsetup_ok(root, &format!("{test} pw"));
        assert!(!cryptsetup(root, &format!("{test} wrong")).0);
        cryptsetup_ok(root, "luksDump -q --dump-volume-key --key-file pw --volume-key-file mk header");
        assert!(std::fs::read(root.join("mk")).unwrap() == dek.expose());
        std::fs::remove_file(root.join("mk")).unwrap();
    }
}

#[test]
fn a_header_is_refused_where_it_would_not_fit_or_not_be_safe() {
    let vm = vm(&DISKS[..2], &["--disks", "flat.vmdk", "--data-unit", "4096"]);
    let (out, password) = (text(&file(&vm, "header")), text(&file(&vm, "pw")));
    let disk = |name: &str| text(&vm.folder().join(name));
    let fails = |disk: &str, more: &[&str], status, message: &str| {
        let args = ["disk", "luks-header", disk, "--password-file", &password];
        vm.fails(&[&args, more].concat(), status, message);
    };
    let flat = disk("flat.vmdk");
    fails(&flat, &["-o", &out], 3, "numbers larger ones in steps of 512");
    fails(&flat, &["-o", &out, "--luks2", "--fill"], 3, "numbers larger ones in steps of 512");
    fails(&disk("sparse.vmdk"), &["-o", &out], 3, "in the clear");
    let password_path = file(&vm, "pw");
    fails(&flat, &["-o", &text(&password_path)], 3, "--force");
    fails(&flat, &["-o", &text(&password_path), "--force"], 3, "no LUKS header");
    fails(&text(&password_path), &["-o", &out], 2, "--vm");
    fails(&text(&password_path), &["-o", &out, "--vm", &text(&vm.vmx())], 2, "outside of the VM's folder");
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_disk_in_use_is_not_filled() {
    let vm = vm(&DISKS[..2], &["--disks", "all"]);
    let (flat, out, password) = (vm.folder().join("flat.vmdk"), text(&file(&vm, "header")), text(&file(&vm, "pw")));
    let flat = text(&flat);
    let args = ["disk", "luks-header", &flat, "-o", &out, "--password-file", &password, "--fill"];
    let lock = vm.folder().join("web01.vmx.lck");
    std::fs::write(&lock, "").unwrap();
    vm.fails(&args, 3, "powered on");
    std::fs::remove_file(&lock).unwrap();
    assert!(!Path::new(&out).exists());
    // The recovery password is asked for before the work.
    let (vm, recovery) = (self::vm(&DISKS[..2], &[]), "recovery");
    std::fs::write(file(&vm, recovery), "open sesame").unwrap();
    let recovery = text(&file(&vm, recovery));
    vm.ok(&["encrypt", "VM", "--provider", "house", "--recovery-password-file", &recovery]);
    let (flat, out, password) =
        (text(&vm.folder().join("sparse.vmdk")), text(&file(&vm, "header")), text(&file(&vm, "pw")));
    let args = ["disk", "luks-header", &flat, "-o", &out, "--password-file", &password, "--fill"];
    vm.fails(&args, 4, "recovery password");
    let wrong = text(&file(&vm, "wrong"));
    vm.fails(&[&args[..], &["--recovery-password-file", &wrong]].concat(), 4, "recovery password");
    vm.ok(&[&args[..], &["--recovery-password-file", &recovery]].concat());
    vm.assert_whole();
    // And it opens the disk still, without the provider.
    std::fs::remove_dir_all(vm.home()).unwrap();
    vm.ok(&["verify", "VM", "--recovery-password-file", &recovery]);
}

/// Writes content through QEMU into an image, by the LUKS1 header in `header` beside it.
fn write_by_header(vm: &TestVm, image: &Path, offset: usize, plain: &[u8]) {
    let raw = file(vm, "plain");
    std::fs::write(&raw, plain).unwrap();
    let target = format!(
        "driver=luks,key-secret=password,file.driver=raw,file.offset={offset},file.size={},file.file.driver=file,file.file.filename={},header.driver=file,header.filename={}",
        plain.len(),
        text(image),
        text(&file(vm, "h1")),
    );
    let args = ["convert", "-n", "-f", "raw", "--object", &secret(vm), "--target-image-opts"];
    qemu("qemu-img", &args, &[&raw, Path::new(&target)]);
    std::fs::remove_file(raw).unwrap();
}

fn import(vm: &TestVm, image: &str, more: &[&str]) -> serde_json::Value {
    let (image, out, password) =
        (text(&vm.folder().join(image)), text(&vm.folder().join("new.vmdk")), text(&file(vm, "pw")));
    let args = ["disk", "import-luks", &image, "--vm", "VM", "-o", &out, "--password-file", &password, "--json"];
    serde_json::from_str(&vm.ok(&[&args, more].concat()).stdout).unwrap()
}

#[test]
fn luks_disks_of_qemu_and_cryptsetup_become_disks_of_the_vm_as_they_lie() {
    // Nothing is left unwritten: QEMU would read noise there, and zeros are read here.
    let plain: Vec<u8> =
        content(7).iter().enumerate().map(|(index, byte)| byte ^ (index / SECTOR % 255 + 1) as u8).collect();
    for kind in ["qemu", "luks1", "luks2", "luks2 detached"] {
        let mut vm = vm(&DISKS[..1], &["--disks", "all"]);
        let root = vm.root.path().to_owned();
        let image = vm.folder().join("data.luks");
        let mut options = Vec::new();
        if kind == "qemu" {
            let raw = file(&vm, "plain");
            std::fs::write(&raw, &plain).unwrap();
            let args = ["convert", "-f", "raw", "-O", "luks", "--object", &secret(&vm), "-o"];
            qemu("qemu-img", &[&args[..], &["key-secret=password,iter-time=10"]].concat(), &[&raw, &image]);
        } else {
            let dek = Dek::generate(&mut vmseal_keys::system_rng()).unwrap();
            std::fs::write(root.join("mk"), dek.expose()).unwrap();
            let format = "luksFormat -q --cipher aes-xts-plain64 --key-size 512 --key-file pw --volume-key-file mk --pbkdf-force-iterations 1000";
            std::fs::File::create(&image).unwrap().set_len((SIZE + (20 << 20)) as u64).unwrap();
            cryptsetup_ok(&root, &format!("{format} --type luks1 --header h1 vm/data.luks"));
            let offset = match kind {
                "luks1" => {
                    cryptsetup_ok(&root, &format!("{format} --type luks1 vm/data.luks"));
                    2 << 20
                }
                "luks2" => {
                    let luks2 = "--type luks2 --sector-size 512 --pbkdf pbkdf2";
                    cryptsetup_ok(&root, &format!("{format} {luks2} vm/data.luks"));
                    16 << 20
                }
                _ => {
                    let luks2 = "--type luks2 --sector-size 512 --pbkdf pbkdf2";
                    cryptsetup_ok(&root, &format!("{format} {luks2} --header h2 vm/data.luks"));
                    options = vec!["--header".to_owned(), text(&root.join("h2"))];
                    0
                }
            };
            std::fs::File::options().write(true).open(&image).unwrap().set_len((offset + SIZE) as u64).unwrap();
            write_by_header(&vm, &image, offset, &plain);
        }
        let before = std::fs::read(&image).unwrap();
        let report = import(&vm, "data.luks", &options.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(report["size_bytes"], SIZE, "{kind}: {report}");
        assert!(std::fs::read(&image).unwrap() == before, "{kind}: not a byte of it moves");
        vm.ok(&["vmx", "set", "VM", "scsi0:1.fileName=new.vmdk", "scsi0:1.present=TRUE"]);
        vm.disks.insert("new.vmdk".to_owned(), plain.clone());
        vm.assert_whole();
        // It is a disk like any other from here on.
        vm.ok(&["recrypt", "VM"]);
        vm.ok(&["recrypt", "VM", "--deep"]);
        vm.assert_whole();
        vm.ok(&["decrypt", "VM"]);
        assert!(qemu_bytes(&vm.folder().join("new.vmdk")) == plain, "{kind}");
    }
}

#[test]
fn what_cannot_be_imported_is_refused_and_changes_nothing() {
    let vm = vm(&DISKS[..1], &["--disks", "all"]);
    let root = vm.root.path();
    let (out, password, wrong) =
        (text(&vm.folder().join("new.vmdk")), text(&file(&vm, "pw")), text(&file(&vm, "wrong")));
    let image = text(&vm.folder().join("data.luks"));
    let args = |password: &str, out: &str| -> Vec<String> {
        ["disk", "import-luks", &image, "--vm", "VM", "-o", out, "--password-file", password]
            .map(str::to_owned)
            .to_vec()
    };
    let fails = |args: Vec<String>, status, message: &str| {
        vm.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status, message);
    };
    let format = |options: &str| {
        std::fs::File::create(&image).unwrap().set_len(20 << 20).unwrap();
        cryptsetup_ok(root, &format!("luksFormat -q --key-file pw --pbkdf-force-iterations 1000 {options}"));
    };
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    fails(args(&password, &out), 5, "this is no LUKS header");
    format("--type luks2 --pbkdf pbkdf2 --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 vm/data.luks");
    fails(args(&password, &out), 3, "in steps of 512");
    format("--type luks1 --cipher aes-cbc-essiv:sha256 --key-size 256 vm/data.luks");
    fails(args(&password, &out), 3, "aes-cbc-essiv:sha256");
    format("--type luks1 --cipher aes-xts-plain64 --key-size 256 vm/data.luks");
    fails(args(&password, &out), 3, "another length");
    format("--type luks1 --cipher aes-xts-plain64 --key-size 512 --header h vm/data.luks");
    std::fs::copy(root.join("h"), &image).unwrap();
    fails(args(&password, &out), 3, "a detached header");
    format("--type luks1 --cipher aes-xts-plain64 --key-size 512 vm/data.luks");
    fails(args(&wrong, &out), 4, "");
    fails(args(&password, &text(&vm.folder().join("flat.vmdk"))), 3, "there already");
    // A file that is a disk of the VM already: the header says what its data is, and the disk has it.
    let header = text(&root.join("h"));
    let flat = text(&vm.folder().join("flat-flat.vmdk"));
    let twice =
        ["disk", "import-luks", &flat, "--vm", "VM", "-o", &out, "--header", &header, "--password-file", &password];
    vm.fails(&twice, 3, "belongs to flat.vmdk already");
    let lock = vm.folder().join("web01.vmx.lck");
    std::fs::write(&lock, "").unwrap();
    fails(args(&password, &out), 3, "powered on");
    std::fs::remove_file(&lock).unwrap();
    // Cut off in the middle of its key material.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(100_000).unwrap();
    fails(args(&password, &out), 5, "needs 256000");
    std::fs::remove_file(&image).unwrap();
    vm.assert_whole();

    let plain = self::vm(&DISKS[..1], &[]);
    let image = plain.folder().join("data.luks");
    qemu(
        "qemu-img",
        &["create", "-q", "-f", "luks", "--object", &secret(&plain), "-o", "key-secret=password,iter-time=10"],
        &[&image, Path::new("1M")],
    );
    let (image, out, password) = (text(&image), text(&plain.folder().join("new.vmdk")), text(&file(&plain, "pw")));
    plain.fails(
        &["disk", "import-luks", &image, "--vm", "VM", "-o", &out, "--password-file", &password],
        3,
        "not encrypted",
    );
}

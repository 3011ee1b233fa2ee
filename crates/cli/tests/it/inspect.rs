//! `vmseal inspect` on files of every kind.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::kill::{Operation, kill_published};
use crate::testing::{TestVm, copy_folder, qemu, snapshot};
use crate::vmx_lock::{Folder, cases, vectors};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The entries of a document by their names.
fn files(document: &Value) -> BTreeMap<String, Value> {
    let files = document["files"].as_array().unwrap();
    files.iter().map(|file| (file["name"].as_str().unwrap().to_owned(), file.clone())).collect()
}

fn inspect(folder: &Folder, path: &str) -> BTreeMap<String, Value> {
    files(&json(&folder.ok(&["inspect", path, "--json"]).stdout))
}

/// Kind and encryption of an entry, what opens it, and whether there is an error.
fn told(entry: &Value) -> (&str, &str, Vec<String>, bool) {
    let ways = entry["opened_by"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ways = ways.iter().map(|way| way["by"].as_str().unwrap().to_owned()).collect();
    (entry["kind"].as_str().unwrap(), entry["encryption"].as_str().unwrap(), ways, entry["error"].is_string())
}

/// A folder with all vectors.
fn all_vectors() -> Folder {
    let (from, _) = vectors("vmx");
    let folder = Folder::new();
    copy_folder(from.parent().unwrap(), &folder.path("v"));
    folder
}

#[test]
fn every_vector_is_named_with_what_opens_it() {
    let folder = all_vectors();
    let entries = inspect(&folder, "v");
    let there: Vec<String> = snapshot(&folder.path("v")).into_keys().collect();
    assert_eq!(entries.keys().cloned().collect::<Vec<_>>(), there);
    for (name, kind, encryption, ways) in [
        ("vmx/xts256.vmx", "vmx", "foreign", &["password"][..]),
        ("vmx/two-phrases.vmx", "vmx", "foreign", &["password"]),
        ("vmx/partial.vmx", "vmx", "foreign", &["password"]),
        ("vmx/esxi-bundle.vmx", "vmx", "foreign", &["key"]),
        ("vmx/esxi-bundle-native.vmx", "vmx", "foreign", &["key"]),
        ("vmx/bad-only-fqid.vmx", "vmx", "foreign", &["key"]),
        ("vmx/README.md", "unknown", "unknown", &[]),
        ("vmdk/esxi-chain/vm.vmx", "vmx", "none", &[]),
        ("vmdk/esxi-chain/vm.vmsd", "vmsd", "none", &[]),
        ("vmdk/esxi-chain/vm.vmdk", "vmdk-descriptor", "none", &[]),
        ("vmdk/esxi-chain/vm-flat.vmdk", "flat-extent", "none", &[]),
        ("vmdk/esxi-chain/vm-000001-delta.vmdk", "cowd-extent", "none", &[]),
        ("vmdk/split-flat/s-f002.vmdk", "flat-extent", "none", &[]),
        ("vmdk/split-sparse/p-s002.vmdk", "sparse-extent", "none", &[]),
        ("vmdk/quirks/quirk flat.vmdk", "flat-extent", "none", &[]),
        ("vmdk/mono-sparse/mono.vmdk", "sparse-extent", "none", &[]),
        ("vmdk/stream/stream.vmdk", "stream-optimized", "none", &[]),
        ("vmdk/text-only/rdm.vmdk", "vmdk-descriptor", "none", &[]),
        ("vmdk/text-only/full-device.vmdk", "vmdk-descriptor", "none", &[]),
        ("vmdk/esxi-encrypted/enc.vmdk", "vmdk-descriptor", "foreign", &["key"]),
        ("vmdk/esxi-encrypted/enc-flat.vmdk", "flat-extent", "foreign", &["key"]),
        ("envelope/local.tgz.ve", "envelope", "foreign", &["envelope-key"]),
        ("envelope/zdump.1", "core-dump", "foreign", &["envelope-key"]),
        ("envelope/encryption.info", "keystore", "none", &["raw-key"]),
        ("envelope/bad-encryption-tpm.info", "keystore", "foreign", &["tpm"]),
        ("encobj/vm.nvram", "encrypted-object", "foreign", &["vmx"]),
        ("encobj/vm-Snapshot1.vmsn", "encrypted-object", "foreign", &["vmx"]),
        ("encobj/one-page.vmss", "encrypted-object", "foreign", &["vmx"]),
        ("encobj/vm.vmem", "encrypted-object", "foreign", &["vmx"]),
    ] {
        let ways = ways.iter().map(|way| (*way).to_owned()).collect();
        assert_eq!(told(&entries[name]), (kind, encryption, ways, false), "{name}: {}", entries[name]);
    }
    let text = |name: &str, field: &str| entries[name][field].as_str().unwrap_or_default().to_owned();
    assert!(text("vmx/partial.vmx", "method").contains("some settings hidden"));
    assert!(text("vmx/xts256.vmx", "method").contains("all settings hidden"));
    assert_eq!(text("vmdk/quirks/quirk flat.vmdk", "belongs_to"), "vmdk/quirks/quirks.vmdk");
    for name in ["vmdk/esxi-encrypted/enc.vmdk", "vmdk/esxi-encrypted/enc-flat.vmdk", "encobj/vm.nvram"] {
        assert!(text(name, "cannot").contains("not public"), "{name}");
    }
    for name in ["vmdk/text-only/rdm.vmdk", "vmdk/text-only/full-device.vmdk", "vmdk/stream/stream.vmdk"] {
        assert!(text(name, "cannot").starts_with("read or write its data"), "{name}: {}", entries[name]);
    }
    // Where damage is, as exactly as the format tells.
    for (name, place) in [
        ("vmdk/bad/sparse-gtes.vmdk", "byte 44"),
        ("vmx/bad-paren-extra.vmx", "line 3, column 367"),
        ("encobj/bad-short-page.nvram", "before byte"),
        ("envelope/bad-truncated-footer.ve", "before byte"),
        ("envelope/bad-encryption-short.info", "no data2"),
    ] {
        assert!(text(name, "error").contains(place), "{name}: {}", entries[name]);
    }
}

#[test]
fn damage_below_a_folder_does_not_fail_what_was_asked_for() {
    let folder = all_vectors();
    let ran = folder.ok(&["inspect", "v"]);
    assert!(ran.stderr.contains("files that are damaged or cannot be read: "), "{}", ran.stderr);
    let line = ran.stdout.lines().find(|line| line.starts_with("vmdk/bad/sparse-gtes.vmdk ")).unwrap();
    assert!(line.contains("ERROR: byte 44: "), "{line}");
    // Every file has one line; what encrypts it begins in one column.
    let entries = inspect(&folder, "v");
    for name in entries.keys() {
        assert_eq!(ran.stdout.lines().filter(|line| line.starts_with(&format!("{name} "))).count(), 1, "{name}");
    }
    // The same damage, named itself.
    for (name, status) in [
        ("v/vmdk/bad/sparse-gtes.vmdk", 5),
        ("v/vmx/bad-paren-extra.vmx", 5),
        ("v/encobj/bad-version.nvram", 5),
        ("v/envelope/bad-truncated-header.ve", 5),
        ("v/nowhere.vmdk", 1),
    ] {
        let before = snapshot(folder.root.path());
        let ran = folder.run(&["inspect", name, "--json"]);
        assert_eq!(ran.status, status, "{name}: {}", ran.stderr);
        json(&ran.stdout);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        assert!(before == snapshot(folder.root.path()));
    }
    let ran = folder.run(&["inspect", "v/vmdk/bad/sparse-gtes.vmdk", "v/encobj/vm.nvram", "v/nowhere", "--json"]);
    assert_eq!((ran.status, json(&ran.stdout)["errors"].as_array().unwrap().len()), (5, 2), "{}", ran.stderr);
    for name in ["v/vmx/README.md", "v/encobj/vm.nvram", "v/vmdk/esxi-chain/vm-flat.vmdk", "v/vmdk/stream/stream.vmdk"]
    {
        folder.ok(&["inspect", name]);
    }
}

#[test]
fn a_file_of_vsphere_is_never_taken_for_plain_data() {
    let folder = all_vectors();
    let from = folder.path("v/vmdk/esxi-encrypted");
    std::fs::write(from.join("vm.vmx"), "displayName = \"vm\"\nscsi0:0.fileName = \"enc.vmdk\"\n").unwrap();
    let text = folder.ok(&["inspect", "v/vmdk/esxi-encrypted/enc.vmdk"]).stdout;
    for part in ["Test KMS/1/4f5c2c4e-1d0b-4c7e-9a53-0d7a51e6b1aa", "vmwarevmcrypt", "not public"] {
        assert!(text.contains(part), "{text}");
    }
    // The extent alone, too, and under any name that the descriptor gives it.
    assert!(folder.ok(&["inspect", "v/vmdk/esxi-encrypted/enc-flat.vmdk"]).stdout.contains("part of     enc.vmdk"));
    folder.ok(&["--home", "state", "provider", "create", "native", "house"]);
    let encrypt = ["--home", "state", "encrypt", "v/vmdk/esxi-encrypted/vm.vmx", "--provider", "house"];
    folder.fails(&encrypt, &[3], "encrypted by VMware vSphere");
    let descriptor = std::fs::read_to_string(from.join("enc.vmdk")).unwrap();
    std::fs::write(from.join("enc.vmdk"), descriptor.replace("enc-flat.vmdk", "data.bin")).unwrap();
    std::fs::rename(from.join("enc-flat.vmdk"), from.join("data.bin")).unwrap();
    let entries = inspect(&folder, "v/vmdk/esxi-encrypted");
    assert_eq!(told(&entries["data.bin"]), ("flat-extent", "foreign", vec!["key".to_owned()], false));
}

#[test]
fn a_vm_of_vmseal_is_told_file_by_file() {
    let vm = TestVm::with_disks(&[("flat.vmdk", "monolithicFlat"), ("sparse.vmdk", "monolithicSparse")]);
    let look = || files(&json(&vm.ok(&["inspect", vm.folder().to_str().unwrap(), "--json"]).stdout));
    let all = ["flat-flat.vmdk", "flat.vmdk", "sparse.vmdk", "web01.vmx"];
    assert!(all.iter().all(|name| look()[*name]["encryption"] == "none"));
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let entries = look();
    for name in all {
        assert_eq!(entries[name]["encryption"], "vmseal", "{name}");
        assert_eq!(entries[name]["opened_by"][0]["provider"], "house", "{name}");
    }
    assert_eq!(told(&entries["web01.nvram"]), ("envelope", "vmseal", vec!["vmx".to_owned()], false));
    assert_eq!(told(&entries["vmware.log"]), ("unknown", "unknown", vec![], false));
    // The report of the VM is there as before.
    let document = json(&vm.ok(&["inspect", vm.folder().to_str().unwrap(), "--json"]).stdout);
    assert_eq!(document["vms"][0]["disks"].as_array().unwrap().len(), 2);
    assert_eq!(document["disks"].as_array().unwrap().len(), 0);
}

#[test]
fn what_an_interrupted_operation_left_is_told() {
    let vm = TestVm::with_disks(&[("flat.vmdk", "monolithicFlat"), ("sparse.vmdk", "monolithicSparse")]);
    kill_published(&vm, Operation::Encrypt, 0);
    let entries = files(&json(&vm.ok(&["inspect", vm.folder().to_str().unwrap(), "--json"]).stdout));
    assert_eq!(entries["web01.vmx.vmseal"]["kind"], "vmseal-record");
    assert_eq!(entries["web01.vmx.vmseal"]["can"][0], "resume");
    assert!(entries["web01.vmx.vmseal"]["description"].as_str().unwrap().contains("encrypt that is interrupted"));
    assert_eq!(entries["flat-flat.vmdk.vmseal-new"]["kind"], "vmseal-successor");
}

#[test]
fn images_of_other_makers() {
    let folder = Folder::new();
    let secret = "secret,id=s,data=a password";
    let image = |name: &str| folder.path(name);
    qemu(
        "qemu-img",
        &["create", "--object", secret, "-f", "luks", "-o", "key-secret=s,iter-time=10"],
        &[&image("a.luks"), Path::new("1M")],
    );
    qemu("qemu-img", &["create", "-f", "qcow2"], &[&image("plain.qcow2"), Path::new("1M")]);
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu(
        "qemu-img",
        &["create", "--object", secret, "-f", "qcow2", "-o", options],
        &[&image("locked.qcow2"), Path::new("1M")],
    );
    for format in ["vdi", "vhdx", "vpc", "qed"] {
        qemu("qemu-img", &["create", "-f", format], &[&image(&format!("a.{format}")), Path::new("1M")]);
    }
    let entries = inspect(&folder, ".");
    for (name, kind, encryption) in [
        ("a.luks", "luks", "foreign"),
        ("plain.qcow2", "qcow2", "none"),
        ("locked.qcow2", "qcow2", "foreign"),
        ("a.vdi", "vdi", "unknown"),
        ("a.vhdx", "vhdx", "none"),
        ("a.vpc", "vhd", "none"),
        ("a.qed", "qed", "none"),
    ] {
        assert_eq!(
            (&entries[name]["kind"], &entries[name]["encryption"]),
            (&kind.into(), &encryption.into()),
            "{name}"
        );
        assert!(entries[name]["cannot"].is_string(), "{name}");
    }
}

#[test]
fn links_and_names_that_are_no_text() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("a/b")).unwrap();
    folder.write("a/web01.vmx", "displayName = \"web01\"\n");
    folder.write("outside.vmx", "displayName = \"outside\"\n");
    std::os::unix::fs::symlink("..", folder.path("a/b/loop")).unwrap();
    std::os::unix::fs::symlink("../outside.vmx", folder.path("a/link.vmx")).unwrap();
    std::fs::write(folder.path("a").join(std::ffi::OsStr::from_bytes(b"\xff.vmx")), "x = 1\n").unwrap();
    std::fs::write(folder.path("a/new\nline.vmx"), "displayName = \"x\"\n").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path("a/pipe"), 0o600.into()).unwrap();
    let ran = folder.ok(&["inspect", "a"]);
    assert!(!ran.stdout.contains("outside"), "{}", ran.stdout);
    for part in ["b/loop  ", "a link, which is not followed", "a device, socket or pipe", "the name is not UTF-8"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert!(!ran.stdout.lines().any(|line| line.starts_with("line.vmx")), "{}", ran.stdout);
    let entries = inspect(&folder, "a");
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["new\nline.vmx", "web01.vmx"]);
}

#[test]
fn ten_thousand_files_of_every_kind() {
    let folder = all_vectors();
    let (from, list) = vectors("vmx");
    assert!(!cases(&list, "valid").is_empty());
    let kinds = ["vmx/xts256.vmx", "vmx/esxi-bundle.vmx", "vmdk/esxi-encrypted/enc.vmdk", "encobj/vm.nvram"];
    let more = ["vmdk/esxi-chain/vm.vmsd", "envelope/one-byte.ve", "vmdk/mono-sparse/mono.vmdk", "vmx/README.md"];
    let vectors = from.parent().unwrap();
    for index in 0..10_000 {
        let name = if index / 4 % 2 == 0 { kinds[index % 4] } else { more[index % 4] };
        let place = folder.path(&format!("many/{:03}", index / 10));
        std::fs::create_dir_all(&place).unwrap();
        let end = Path::new(name).file_name().unwrap().to_str().unwrap();
        std::fs::hard_link(folder.path("v").join(name), place.join(format!("{index}-{end}"))).unwrap();
        assert!(vectors.join(name).exists());
    }
    let began = Instant::now();
    let ran = folder.ok(&["inspect", "many", "--json"]);
    println!("10000 files: {:?}", began.elapsed());
    let entries = files(&json(&ran.stdout));
    assert_eq!(entries.len(), 10_000);
    for kind in ["vmx", "vmdk-descriptor", "encrypted-object", "vmsd", "envelope", "sparse-extent", "unknown"] {
        let count = entries.values().filter(|entry| entry["kind"] == kind).count();
        assert!(count >= 1250, "{kind}: {count}");
    }
}

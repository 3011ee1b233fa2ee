//! `vmseal envelope` and `vmseal coredump`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::faults::SmallDisk;
use crate::testing::snapshot;
use crate::vmx_lock::{Folder, cases, vectors};

const KEY: &str = "8a1df2b61e72d37601ce1aacccb2f30dce4eacd98fa3c8f30a4ca32a0c9bed73";

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn text<'v>(case: &'v Value, name: &str) -> &'v str {
    case[name].as_str().unwrap()
}

/// A folder with the file of a case, and its key.
fn folder(from: &Path, case: &Value) -> Folder {
    let folder = Folder::new();
    folder.write("in.ve", std::fs::read(from.join(text(case, "file"))).unwrap());
    folder.write("key", unhex(text(case, "key_hex")));
    folder
}

fn assert_holds(plaintext: &[u8], case: &Value) {
    let hash: String = Sha256::digest(plaintext).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, text(case, "plaintext_sha256"), "{}", case["file"]);
}

#[test]
fn the_vectors_extract_to_what_they_hold() {
    let (from, list) = vectors("envelope");
    for case in cases(&list, "valid") {
        let folder = folder(&from, case);
        let aad = String::from_utf8(unhex(text(case, "aad_hex"))).unwrap();
        let extract = ["envelope", "extract", "in.ve", "--key-file", "key", "--aad", &aad, "-o"];
        folder.ok(&[extract.as_slice(), &["out"]].concat());
        assert_holds(&folder.read("out"), case);
        assert_eq!(std::fs::metadata(folder.path("out")).unwrap().permissions().mode() & 0o777, 0o600);
        // To standard output, and from standard input, with the key as text.
        folder.write("key", format!("{}\n", text(case, "key_hex").to_uppercase()));
        let mut command = folder.command(&["envelope", "extract", "-", "--key-file", "key", "--aad", &aad, "-o", "-"]);
        let output = command.stdin(std::fs::File::open(folder.path("in.ve")).unwrap()).output().unwrap();
        assert!(output.status.success());
        assert_holds(&output.stdout, case);
        folder.fails(&[extract.as_slice(), &["out"]].concat(), &[3], "--force");
        folder.ok(&[extract.as_slice(), &["out", "--force"]].concat());
        assert_eq!(snapshot(folder.root.path()).len(), 3, "something is left");

        let described = folder.ok(&["envelope", "describe", "in.ve", "--json"]).stdout;
        let described: Value = serde_json::from_str(&described).unwrap();
        assert_eq!(described["offset_bytes"], case["offset"]);
        assert_eq!(described["header_bytes"], case["header_len"]);
        assert_eq!(described["key_id"], case["key_info"]);
        assert_eq!(described["key_hash"], case["key_hash_hex"]);
        assert_eq!(described["iv"], case["iv_hex"]);
        let people = folder.ok(&["envelope", "describe", "in.ve"]).stdout;
        assert!(people.contains(text(case, "key_info")) && people.contains("AES-256-GCM"), "{people}");
    }
}

#[test]
fn damaged_vectors_leave_no_output() {
    let (from, list) = vectors("envelope");
    let mut refused = 0;
    for case in cases(&list, "invalid") {
        // The command finds the envelope of a core dump by itself.
        if case["file"] == "zdump.1" {
            continue;
        }
        let folder = folder(&from, case);
        let aad = String::from_utf8(unhex(text(case, "aad_hex"))).unwrap();
        let statuses: &[i32] = if case["error"] == "wrong_key" { &[4] } else { &[5] };
        let extract = ["envelope", "extract", "in.ve", "--key-file", "key", "--aad", &aad, "-o"];
        folder.fails(&[extract.as_slice(), &["out"]].concat(), statuses, "vmseal: in.ve: ");
        let to_stdout = [extract.as_slice(), &["-"]].concat();
        folder.fails(&to_stdout, statuses, "vmseal: in.ve: ");
        assert_eq!(folder.run(&to_stdout).stdout, "", "plaintext before its tag");
        assert_ne!(folder.run(&["envelope", "describe", "in.ve"]).status, 101);
        refused += 1;
    }
    assert!(refused > 25, "{refused}");
}

#[test]
fn a_keystore_opens_the_configuration_of_its_host() {
    let (from, list) = vectors("envelope");
    let case = cases(&list, "valid").iter().find(|case| case["file"] == "local.tgz.ve").unwrap();
    let folder = folder(&from, case);
    for keystore in cases(&list, "keystores") {
        folder.write("encryption.info", std::fs::read(from.join(text(keystore, "file"))).unwrap());
        let extract = ["envelope", "extract", "in.ve", "--keystore", "encryption.info", "-o", "out"];
        if keystore["error"].is_null() {
            folder.ok(&extract);
            assert_holds(&folder.read("out"), case);
            std::fs::remove_file(folder.path("out")).unwrap();
            folder.fails(&[extract.as_slice(), &["--aad", "other"]].concat(), &[5], "associated data");
        } else {
            let tpm = if keystore["error"] == "unsupported_mode" { "TPM" } else { "" };
            folder.fails(&extract, &[5], tpm);
        }
    }
    folder.fails(&["envelope", "extract", "in.ve", "-o", "out"], &[2], "--key-file");
    folder.write("key", "too short");
    folder.fails(&["envelope", "extract", "in.ve", "--key-file", "key", "-o", "out"], &[4], "64 hexadecimal digits");
}

#[test]
fn what_was_sealed_comes_out_again() {
    let folder = Folder::new();
    folder.write("key", KEY);
    for len in [0, 1, 4095, 4096, 1 << 20, (1 << 20) + 17, (3 << 20) + 4000] {
        let content: Vec<u8> = (0..len).map(|at: usize| (at * 7 + at / 251) as u8).collect();
        folder.write("data", &content);
        let key = ["--key-file", "key"];
        let create = ["envelope", "create", "data", "--key-id", "key-7", "--aad", "of a test", "--force", "-o"];
        folder.ok(&[create.as_slice(), &["sealed"], &key].concat());
        folder
            .ok(&[&["envelope", "extract", "sealed", "--aad", "of a test", "--force", "-o", "out"][..], &key].concat());
        assert!(folder.read("out") == content, "{len}");
        folder.fails(&[&["envelope", "extract", "sealed", "-o", "no"][..], &key].concat(), &[5], "associated data");
        let described = folder.ok(&["envelope", "describe", "sealed"]).stdout;
        assert!(described.contains("key-7"), "{described}");
        // As a stream.
        let mut command = folder.command(&[create.as_slice(), &["-"], &key].concat());
        let sealed = command.stdout(Stdio::piped()).output().unwrap();
        folder.write("stream", sealed.stdout);
        folder
            .ok(&[&["envelope", "extract", "stream", "--aad", "of a test", "--force", "-o", "out"][..], &key].concat());
        assert!(folder.read("out") == content, "{len}");
    }
    let long = "k".repeat(5000);
    folder.fails(&["envelope", "create", "data", "-o", "new", "--key-file", "key", "--key-id", &long], &[5], "key ID");
}

#[test]
fn core_dumps_are_decrypted() {
    let (from, list) = vectors("envelope");
    for name in ["zdump.1", "core.ve"] {
        let case = cases(&list, "valid").iter().find(|case| case["file"] == name).unwrap();
        let folder = folder(&from, case);
        folder.ok(&["coredump", "decrypt", "in.ve", "-o", "core", "--key-file", "key"]);
        assert_holds(&folder.read("core"), case);
        folder.write("other", [1; 32]);
        folder.fails(&["coredump", "decrypt", "in.ve", "-o", "no", "--key-file", "other"], &[4], "wrong");
        folder.write("text", "this is no core dump\n");
        folder.fails(&["coredump", "decrypt", "text", "-o", "no", "--key-file", "key"], &[5], "this is no envelope");
    }
}

/// Runs a command, and gives the most memory that it took.
pub(crate) fn peak_kib(mut command: std::process::Command) -> u64 {
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let ended = loop {
        // The file of a process that has ended has no such line.
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak_kib = peak_kib.max(kib.unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    peak_kib
}

#[test]
fn a_file_larger_than_the_memory_it_may_take() {
    let folder = Folder::new();
    folder.write("key", KEY);
    std::fs::File::create(folder.path("data")).unwrap().set_len(1 << 30).unwrap();
    for args in [
        &["envelope", "create", "data", "-o", "sealed", "--key-id", "k", "--key-file", "key"][..],
        &["envelope", "extract", "sealed", "-o", "out", "--key-file", "key"],
    ] {
        let peak_kib = peak_kib(folder.command(args));
        assert!((1..64 << 10).contains(&peak_kib), "{args:?}: {peak_kib} KiB");
        println!("{}: at most {peak_kib} KiB", args[1]);
    }
    assert_eq!(std::fs::metadata(folder.path("out")).unwrap().len(), 1 << 30);
}

#[test]
fn an_interrupt_leaves_no_plaintext() {
    let folder = Folder::new();
    folder.write("key", KEY);
    std::fs::File::create(folder.path("data")).unwrap().set_len(512 << 20).unwrap();
    folder.ok(&["envelope", "create", "data", "-o", "sealed", "--key-id", "k", "--key-file", "key"]);
    let mut command = folder.command(&["envelope", "extract", "sealed", "-o", "out", "--key-file", "key"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    while !folder.path(".out.vmseal-tmp").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(snapshot(folder.root.path()).keys().collect::<Vec<_>>(), ["data", "key", "sealed"]);
}

#[test]
fn a_full_disk_leaves_no_output() {
    let folder = Folder::new();
    folder.write("key", KEY);
    folder.write("data", vec![7; 3 << 20]);
    folder.ok(&["envelope", "create", "data", "-o", "sealed", "--key-id", "k", "--key-file", "key"]);
    let small = SmallDisk::new(2 << 20);
    let out = small.path().join("out");
    let out = out.to_str().unwrap();
    for args in [
        &["envelope", "create", "data", "-o", out, "--key-id", "k", "--key-file", "key"][..],
        &["envelope", "extract", "sealed", "-o", out, "--key-file", "key"],
        &["coredump", "decrypt", "sealed", "-o", out, "--key-file", "key"],
    ] {
        folder.fails(args, &[1], "full");
        assert!(snapshot(small.path()).is_empty(), "{args:?}: {:?}", snapshot(small.path()).keys());
    }
}

//! `vmseal vmfile decrypt`, on the vectors of the formats and on memory of its own.

use base64ct::{Base64, Encoding};
use openssl::symm::{Cipher, Crypter, Mode};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::envelope::{peak_kib, unhex};
use crate::testing::snapshot;
use crate::vmx_lock::{Folder, cases, vectors};

const KEY: &str = "228d021bee3c37cccc9fc97f842b9a8da941754c550057f1ffc9b33d662fabe9";

fn vmx(cipher: &str, key: &[u8]) -> String {
    let key = Base64::encode_string(key).replace('=', "%3d");
    format!("displayName = \"web01\"\ndataFileKey = \"type=key:cipher={cipher}:key={key}\"\n")
}

/// A folder with a case's file, the VMX that has its key, locked with a password, and the same in the clear.
fn folder(case: &Value) -> Folder {
    let (from, _) = vectors("encobj");
    let name = case["file"].as_str().unwrap();
    let folder = Folder::new();
    folder.write(name, std::fs::read(from.join(name)).unwrap());
    let key = unhex(case["key_hex"].as_str().unwrap());
    folder.write("plain.vmx", vmx(if key.len() == 64 { "XTS-AES-256" } else { "AES-256" }, &key));
    folder.write("password", "a password");
    folder.ok(&["lock", "plain.vmx", "-o", "web01.vmx", "--password-file", "password"]);
    assert!(!String::from_utf8_lossy(&folder.read("web01.vmx")).contains("dataFileKey"));
    folder
}

fn hash(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_vectors_decrypt_to_what_they_hold() {
    let (_, list) = vectors("encobj");
    for case in cases(&list, "valid") {
        let folder = folder(case);
        let name = case["file"].as_str().unwrap();
        let decrypt = ["vmfile", "decrypt", name, "--vm", "web01.vmx", "--password-file", "password", "-o"];
        let ran = folder.ok(&[&decrypt[..], &["out"]].concat());
        assert!(ran.stderr.contains("nobody can authenticate"), "{}", ran.stderr);
        assert_eq!(hash(&folder.read("out")), case["plaintext_sha256"], "{name}");
        folder.fails(&[&decrypt[..], &["out"]].concat(), &[3], "--force");
        folder.ok(&[&decrypt[..], &["out", "--force"]].concat());
        // A VMX in the clear has the key too; the output may be standard output, and the input standard input.
        let mut command = folder.command(&["vmfile", "decrypt", "-", "--vm", "plain.vmx", "-o", "-"]);
        let output = command.stdin(std::fs::File::open(folder.path(name)).unwrap()).output().unwrap();
        assert!(output.status.success());
        assert_eq!(hash(&output.stdout), case["plaintext_sha256"], "{name}");
        match case["flat_sha256"].as_str() {
            Some(flat) => {
                assert!(ran.stderr.contains("--flat"), "{}", ran.stderr);
                folder.ok(&[&decrypt[..], &["flat", "--flat"]].concat());
                assert_eq!(hash(&folder.read("flat")), flat);
            }
            None => folder.fails(&[&decrypt[..], &["flat", "--flat"]].concat(), &[3], "no memory"),
        }
    }
}

#[test]
fn damaged_files_leave_no_output() {
    let (_, list) = vectors("encobj");
    let mut refused = 0;
    for case in cases(&list, "invalid") {
        let folder = folder(case);
        let name = case["file"].as_str().unwrap();
        let decrypt = ["vmfile", "decrypt", name, "--vm", "web01.vmx", "--password-file", "password", "-o", "out"];
        if case["error"] == "undetected" {
            assert!(folder.ok(&decrypt).stderr.contains("garbage"));
            continue;
        }
        // A key of another length is refused where the VMX is read.
        folder.fails(&decrypt, &[5], "vmseal: ");
        // Where the length of the file is not known beforehand the same damage shows later.
        let mut command = folder.command(&["vmfile", "decrypt", "-", "--vm", "plain.vmx", "-o", "out"]);
        let output = command.stdin(std::fs::File::open(folder.path(name)).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{name}");
        assert!(!folder.path("out").exists());
        refused += 1;
    }
    assert!(refused >= 10, "{refused}");
}

#[test]
fn another_vm_or_no_key() {
    let (_, list) = vectors("encobj");
    let memory = cases(&list, "valid").iter().find(|case| case["file"] == "vm.vmem").unwrap();
    let folder = folder(memory);
    folder.write("other.vmx", vmx("AES-256", &[7; 32]));
    folder.fails(
        &["vmfile", "decrypt", "vm.vmem", "--vm", "other.vmx", "-o", "out", "--flat"],
        &[4],
        "the VMX is another VM's",
    );
    folder.write("no-key.vmx", "displayName = \"web01\"\n");
    folder.fails(&["vmfile", "decrypt", "vm.vmem", "--vm", "no-key.vmx", "-o", "out"], &[5], "no dataFileKey");
    folder.fails(&["vmfile", "decrypt", "vm.vmem", "--vm", "web01.vmx", "-o", "out"], &[4], "--password-file");
    folder.write("wrong", "another");
    folder.fails(
        &["vmfile", "decrypt", "vm.vmem", "--vm", "web01.vmx", "--password-file", "wrong", "-o", "out"],
        &[4],
        "wrong",
    );
    folder.write("plain.nvram", b"MRVN rest");
    folder.fails(&["vmfile", "decrypt", "plain.nvram", "--vm", "plain.vmx", "-o", "out"], &[3], "not encrypted");
    folder.fails(&["vmfile", "decrypt", "password", "--vm", "plain.vmx", "-o", "out"], &[5], "no encrypted object");
    // A state that does not begin as one is told.
    let state = cases(&list, "valid").iter().find(|case| case["file"] == "vm-Snapshot1.vmsn").unwrap();
    let (from, _) = vectors("encobj");
    let name = state["file"].as_str().unwrap();
    folder.write(name, std::fs::read(from.join(name)).unwrap());
    let ran = folder.ok(&["vmfile", "decrypt", name, "--vm", "plain.vmx", "-o", "out"]);
    assert!(ran.stderr.contains("the key is probably wrong"), "{}", ran.stderr);
}

/// Memory of `block_count` blocks of 4 MiB, each with a byte of its own, as an encrypted object.
fn memory(block_count: u8) -> Vec<u8> {
    let mut blocks = Vec::new();
    for byte in 1..=block_count {
        // A literal, then repeats of it: the long form of a length, at distance 1.
        let mut stream = vec![0, byte];
        let rest = (4 << 20) - 1_usize;
        stream.push(0xe0);
        let more = rest - 9;
        stream.extend(std::iter::repeat_n(0xff, more / 255));
        stream.extend([(more % 255) as u8, 0]);
        for word in [4 << 20, 0, stream.len() as u32, 0] {
            blocks.extend(word.to_le_bytes());
        }
        blocks.extend(stream);
    }
    let mut file = Vec::new();
    for word in [0x8943_dd9e_u32, 2, 4064, 16, 16, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend((blocks.len() as u64).to_le_bytes());
    file.resize(4096, 0);
    for page in blocks.chunks(4064) {
        let mut page = page.to_vec();
        page.resize(4064, 0);
        let mut crypter = Crypter::new(Cipher::aes_256_cbc(), Mode::Encrypt, &unhex(KEY), Some(&[9; 16])).unwrap();
        crypter.pad(false);
        let mut ciphertext = vec![0; page.len() + 16];
        let len = crypter.update(&page, &mut ciphertext).unwrap();
        file.extend(&ciphertext[..len]);
        file.extend([9; 16]);
        file.extend([0; 16]);
    }
    file
}

#[test]
fn memory_larger_than_what_it_may_take() {
    let folder = Folder::new();
    folder.write("vm.vmem", memory(100));
    folder.write("web01.vmx", vmx("AES-256", &unhex(KEY)));
    let peak_kib =
        peak_kib(folder.command(&["vmfile", "decrypt", "vm.vmem", "--vm", "web01.vmx", "--flat", "-o", "flat"]));
    assert!((1..64 << 10).contains(&peak_kib), "{peak_kib} KiB");
    println!("400 MiB of memory: at most {peak_kib} KiB");
    let flat = folder.read("flat");
    assert_eq!(flat.len(), 400 << 20);
    assert!(flat.chunks(4 << 20).zip(1_u8..).all(|(block, byte)| block.iter().all(|found| *found == byte)));
    // A block that is cut off, in a file that is whole.
    let mut cut = memory(2);
    cut.truncate(cut.len() - 4096);
    let pages = (cut.len() - 4096) / 4096;
    cut[24..32].copy_from_slice(&(pages as u64 * 4064).to_le_bytes());
    folder.write("cut.vmem", cut);
    folder.fails(&["vmfile", "decrypt", "cut.vmem", "--vm", "web01.vmx", "--flat", "-o", "out"], &[5], "cut off");
    assert_eq!(snapshot(folder.root.path()).len(), 4, "something is left");
}

//! Other tools read what is written here, and what they write is read.
//!
//! Needs `qemu-img` (Debian: qemu-utils) and, in `VMSEAL_TEST_PYTHON`, the path of a Python that has
//! `dissect.hypervisor` and `pycryptodome` (PyPI). Without them these tests fail: a test that is passed over in silence
//! proves nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

#[path = "testing/extents.rs"]
mod extents;

use std::path::Path;
use std::process::Command;

use extents::{disk, read_extent, write_sparse, write_stream};
use vmseal_formats::sparse_header::SECTOR_LEN;
use vmseal_formats::{
    CreateType, Dictionary, Extent, ExtentKind, NewDescriptor, PhraseParameters, SparseHeader, UnlockedVmx, envelope,
};
use vmseal_keys::kdf::PassKdf;
use vmseal_keys::key_safe_pair::PairCipher;
use vmseal_keys::{FileKey, TestKeys, system_rng};

/// Runs a script with arguments, in a Python that has dissect. Gives what it prints.
fn python(script: &str, arguments: &[&Path]) -> Vec<u8> {
    let python = std::env::var_os("VMSEAL_TEST_PYTHON")
        .expect("set VMSEAL_TEST_PYTHON to a Python with dissect.hypervisor and pycryptodome");
    run(Command::new(python).arg("-c").arg(script).args(arguments))
}

fn qemu_img(arguments: &[&str], folder: &Path) -> Vec<u8> {
    run(Command::new("qemu-img").args(arguments).current_dir(folder))
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; install it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn dissect_opens_a_vmx_that_was_locked_here() {
    let script = "import sys; from dissect.hypervisor.descriptor.vmx import VMX\n\
        vmx = VMX.parse(open(sys.argv[1], encoding='utf-8').read()); assert vmx.encrypted; assert 'memsize' not in vmx.attr\n\
        vmx.unlock_with_phrase('Z\u{fc}rich \u{6771}\u{4eac}'); print(vmx.attr['memsize'], vmx.attr['annotation'], vmx.disks())";
    let plain = "displayName = \"web01\"\nmemsize = \"4096\"\nannotation = \"a|22b\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"web01.vmdk\"\n";
    let folder = tempfile::tempdir().unwrap();
    for cipher in [PairCipher::Aes128, PairCipher::Aes192, PairCipher::Aes256] {
        for kdf in [PassKdf::Pbkdf2HmacSha1, PassKdf::Pbkdf2HmacSha256] {
            let plain = Dictionary::parse(plain.as_bytes());
            let mut vmx = UnlockedVmx::with_key_safe(&plain, None, cipher, &mut system_rng()).unwrap();
            let parameters = PhraseParameters::generate(kdf, cipher, 10_000, &mut system_rng()).unwrap();
            vmx.add_phrase("Z\u{fc}rich \u{6771}\u{4eac}".as_bytes(), &parameters, &mut system_rng()).unwrap();
            let locked = vmx.lock(&mut TestKeys::new(), &mut system_rng()).unwrap();
            let path = folder.path().join("web01.vmx");
            std::fs::write(&path, locked.to_bytes().as_slice()).unwrap();
            let printed = String::from_utf8(python(script, &[&path])).unwrap();
            assert!(printed.starts_with("4096 ") && printed.contains("web01.vmdk"), "{printed}");
        }
    }
}

#[test]
fn dissect_opens_an_envelope_that_was_sealed_here() {
    let script = "import sys; from dissect.hypervisor.util.envelope import Envelope\n\
        envelope = Envelope(open(sys.argv[1], 'rb')); assert envelope.key_info == 'key-7', envelope.key_info\n\
        sys.stdout.buffer.write(envelope.decrypt(bytes(range(32)), aad=b'ESXConfiguration'))";
    let folder = tempfile::tempdir().unwrap();
    let key: [u8; 32] = std::array::from_fn(|index| index as u8);
    for len in [0, 1, 4096, 10_000] {
        let data: Vec<u8> = (0..len).map(|index| (index * 7) as u8).collect();
        let key = FileKey::from_bytes(&key).unwrap();
        let sealed = envelope::seal(&key, "key-7", envelope::CONFIGURATION_AAD, &data, &mut system_rng()).unwrap();
        let path = folder.path().join("local.tgz.ve");
        std::fs::write(&path, sealed).unwrap();
        assert!(python(script, &[&path]) == data, "{len} bytes");
    }
}

/// Disks whose capacity is a multiple of the grain, and one that is not.
const DISKS: [(usize, usize, &[usize]); 3] =
    [(4096, 16, &[0, 5, 127, 255]), (1000, 8, &[0, 1, 124]), (140_000, 128, &[0, 511, 512, 1093])];

#[test]
fn qemu_and_dissect_read_sparse_disks_that_were_written_here() {
    let script = "import sys; from pathlib import Path; from dissect.hypervisor.disk.vmdk import VMDK\n\
        disk = VMDK(Path(sys.argv[1])); sys.stdout.buffer.write(disk.read(disk.size))";
    for (sectors, grain_sectors, grains) in DISKS {
        let disk = disk(sectors, grain_sectors, grains);
        for (kind, file) in [
            ("sparse", write_sparse(&disk, grain_sectors, grains)),
            ("stream", write_stream(&disk, grain_sectors, grains)),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.vmdk");
            std::fs::write(&path, file).unwrap();
            qemu_img(&["check", "-f", "vmdk", "x.vmdk"], folder.path());
            qemu_img(&["convert", "-f", "vmdk", "-O", "raw", "x.vmdk", "x.raw"], folder.path());
            assert!(std::fs::read(folder.path().join("x.raw")).unwrap() == disk, "qemu {kind} {sectors}");
            // dissect fails at the end of a disk that does not fill its buffers.
            if sectors.is_multiple_of(1024) {
                assert!(python(script, &[&path]) == disk, "dissect {kind} {sectors}");
            }
        }
    }
}

#[test]
fn sparse_disks_of_qemu_are_read() {
    for (sectors, grain_sectors, grains) in DISKS {
        let disk = disk(sectors, grain_sectors, grains);
        for subformat in ["monolithicSparse", "streamOptimized"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("x.raw"), &disk).unwrap();
            let option = format!("subformat={subformat}");
            qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", &option, "x.raw", "x.vmdk"], folder.path());
            let file = std::fs::read(folder.path().join("x.vmdk")).unwrap();
            let header = SparseHeader::parse(&file).unwrap();
            assert_eq!(header.to_bytes(), file[..SECTOR_LEN]);
            let mut found = vec![0; disk.len()];
            read_extent(&file, &mut found).unwrap();
            assert!(found == disk, "{subformat} {sectors}");
        }
    }
}

#[test]
fn qemu_opens_a_disk_with_a_descriptor_that_was_written_here() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (disk(64, 8, &[0, 3]), disk(32, 8, &[1]));
    std::fs::write(folder.path().join("a b-f001.vmdk"), &first).unwrap();
    std::fs::write(folder.path().join("a b-f002.vmdk"), &second).unwrap();
    let extents = vec![
        Extent::new(ExtentKind::Flat, 64, Some("a b-f001.vmdk")),
        Extent::new(ExtentKind::Flat, 32, Some("a b-f002.vmdk")),
    ];
    let descriptor =
        NewDescriptor::new(CreateType::TwoGbMaxExtentFlat, 7, extents).adapter_type("ide").build().unwrap();
    std::fs::write(folder.path().join("a b.vmdk"), descriptor.to_bytes()).unwrap();
    let info = String::from_utf8(qemu_img(&["info", "--output=json", "a b.vmdk"], folder.path())).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], 96 * 512);
    assert_eq!(info["format-specific"]["data"]["cid"], 7);
    qemu_img(&["convert", "-f", "vmdk", "-O", "raw", "a b.vmdk", "x.raw"], folder.path());
    assert!(std::fs::read(folder.path().join("x.raw")).unwrap() == [first, second].concat());
}

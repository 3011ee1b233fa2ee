//! Where keys and plaintext are found, and where not.

use base64ct::{Base64, Encoding};
use vmseal::{LocalDir, LocalProviders, StoragePath};
use vmseal_disk::{DiskLayout, Encryption};
use vmseal_keys::{Dek, KeySource};

use crate::testing::{DISKS, TestVm, snapshot};

/// The DEK and the KEK of a disk, by the crates' own means.
pub(crate) fn disk_keys(vm: &TestVm, disk: &str) -> (Dek, vmseal_keys::Kek, Encryption) {
    let storage = LocalDir::open(vm.folder()).unwrap();
    let (descriptor, _) = DiskLayout::read_descriptor(&storage, &StoragePath::new(disk).unwrap()).unwrap();
    let encryption = Encryption::from_descriptor(&descriptor).unwrap().unwrap();
    let home = LocalDir::open(vm.home()).unwrap();
    let mut keys = LocalProviders::open(&home).unwrap();
    let (dek, _) = encryption.open_dek(disk, &mut keys).unwrap();
    let kek = keys.fetch(&encryption.keys().key_ids()[0]).unwrap();
    (dek, kek, encryption)
}

/// Each half of a key as bytes, hexadecimal and base64.
fn forms(key: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for part in key.chunks(16) {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.extend([part.to_vec(), hex.clone().into_bytes(), hex.to_uppercase().into_bytes()]);
    }
    forms.push(Base64::encode_string(key).trim_end_matches('=').as_bytes()[..40].to_vec());
    forms
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn no_key_lies_in_the_clear() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    let mut keys = Vec::new();
    for step in [&["encrypt", "VM", "--provider", "house"][..], &["recrypt", "VM"], &["recrypt", "VM", "--deep"]] {
        vm.ok(step);
        for (name, _) in &DISKS[..2] {
            let (dek, kek, _) = disk_keys(&vm, name);
            keys.extend(forms(dek.expose()));
            keys.extend(forms(kek.expose()));
        }
        for (place, files) in [("vm", snapshot(&vm.folder())), ("state", snapshot(&vm.home()))] {
            for (name, bytes) in files {
                for key in &keys {
                    assert!(!contains(&bytes, key), "a key lies in {place}/{name} after {step:?}");
                }
            }
        }
    }
    // The search finds a key where there is one.
    let planted = [b"x".as_slice(), &keys[0], b"y"].concat();
    assert!(contains(&planted, &keys[0]));
}

#[test]
fn no_sector_of_the_plain_disks_is_found_while_the_vm_is_encrypted() {
    let vm = TestVm::new();
    let plain: std::collections::HashSet<&[u8]> = vm
        .disks
        .values()
        .flat_map(|disk| disk.chunks(512))
        .filter(|sector| sector.iter().any(|byte| *byte != sector[0]))
        .collect();
    let nvram = std::fs::read(vm.folder().join("web01.nvram")).unwrap();
    // The search finds sectors where they are.
    assert!(snapshot(&vm.folder())["flat-flat.vmdk"].chunks(512).any(|sector| plain.contains(sector)));
    for step in [&["encrypt", "VM", "--provider", "house"][..], &["recrypt", "VM"], &["recrypt", "VM", "--deep"]] {
        vm.ok(step);
        for (name, bytes) in snapshot(&vm.folder()) {
            // At any offset: the guest's sectors begin at multiples of 512 in every file of ours, and a cheap look at all others is enough.
            assert!(!bytes.chunks(512).any(|sector| plain.contains(sector)), "a plain sector lies in {name}");
            assert!(!contains(&bytes, &nvram[..64]), "the NVRAM lies in {name}");
        }
    }
}

#[test]
fn a_wrapped_dek_does_not_open_on_another_disk() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let other = TestVm::with_disks(&DISKS[..1]);
    // The same provider, so that the key itself would open.
    std::fs::remove_dir_all(other.home()).unwrap();
    crate::testing::copy_folder(&vm.home(), &other.home());
    other.ok(&["encrypt", "VM", "--provider", "house"]);
    std::fs::copy(other.folder().join("flat.vmdk"), vm.folder().join("flat.vmdk")).unwrap();
    vm.fails(&["verify", "VM"], 5, "another disk");
    vm.fails(&["recrypt", "VM"], 5, "another disk");
    vm.fails(&["decrypt", "VM"], 5, "another disk");
}

#[test]
fn a_descriptor_that_lost_or_changed_its_entries_is_refused() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let plain = std::fs::read(vm.folder().join("flat.vmdk")).unwrap();
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let encrypted = std::fs::read_to_string(vm.folder().join("flat.vmdk")).unwrap();
    std::fs::write(vm.folder().join("flat.vmdk"), &plain).unwrap();
    for operation in [&["verify", "VM"][..], &["recrypt", "VM"], &["decrypt", "VM"]] {
        vm.fails(operation, 5, "says that it is not");
    }
    vm.fails(&["encrypt", "VM", "--provider", "house", "--disks", "flat.vmdk"], 5, "says that it is not");
    let changed = encrypted.replace("ddb.vmseal.unit = \"512\"", "ddb.vmseal.unit = \"4096\"");
    assert_ne!(changed, encrypted);
    std::fs::write(vm.folder().join("flat.vmdk"), changed).unwrap();
    vm.fails(&["verify", "VM"], 5, "vmseal.unit");
    std::fs::write(vm.folder().join("flat.vmdk"), encrypted).unwrap();
    vm.assert_whole();
}

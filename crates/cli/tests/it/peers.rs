//! An encrypted disk, decrypted by somebody else.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;

use crate::secrets::disk_keys;
use crate::testing::{DISKS, TestVm};

/// OpenSSL's XTS, one data unit at a time: the tweak is the little-endian number of the data unit.
fn openssl_decrypt(key: &[u8; 64], stored: &[u8], unit: usize) -> Vec<u8> {
    let mut plain = Vec::with_capacity(stored.len());
    let mut context = CipherCtx::new().unwrap();
    for (number, data) in stored.chunks(unit).enumerate() {
        // A data unit that was never written is all zero.
        if data.iter().all(|byte| *byte == 0) {
            plain.extend_from_slice(data);
            continue;
        }
        context.decrypt_init(Some(Cipher::aes_256_xts()), Some(key), Some(&(number as u128).to_le_bytes())).unwrap();
        context.set_padding(false);
        context.cipher_update_vec(data, &mut plain).unwrap();
    }
    plain
}

#[test]
fn openssl_decrypts_a_flat_disk() {
    for unit in [512, 4096] {
        let vm = TestVm::with_disks(&DISKS[..1]);
        vm.ok(&["encrypt", "VM", "--provider", "house", "--data-unit", &unit.to_string()]);
        for operation in [None, Some(&["recrypt", "VM", "--deep"][..])] {
            if let Some(operation) = operation {
                vm.ok(operation);
            }
            let (dek, ..) = disk_keys(&vm, "flat.vmdk");
            let stored = std::fs::read(vm.folder().join("flat-flat.vmdk")).unwrap();
            assert!(stored != vm.disks["flat.vmdk"]);
            assert!(openssl_decrypt(dek.expose(), &stored, unit) == vm.disks["flat.vmdk"]);
        }
    }
}

//! Disks of a VM are opened with all of their parents.

use vmseal_disk::{DescriptorPlace, DiskLayout};
use vmseal_keys::TestKeys;
use vmseal_rekey::{Error, ErrorKind, open_plain_disk, survey, unlock, verify};
use vmseal_storage::{Access, Memory, Storage, StoragePath};

use crate::testing::{SIZE, content, encrypt, make, path, vmx};

/// Makes the sparse disk a child of the flat one, and takes that out of the VMX.
fn link(storage: &Memory) {
    let (base, _) = DiskLayout::read_descriptor(storage, &path("vms/web01/flat.vmdk")).unwrap();
    let child_path = path("vms/web01/sparse.vmdk");
    let (mut child, place) = DiskLayout::read_descriptor(storage, &child_path).unwrap();
    child.set_header("parentFileNameHint", "flat.vmdk");
    child.set_header("parentCID", &format!("{:08x}", base.cid()));
    let DescriptorPlace::Embedded { offset_bytes, .. } = place else { panic!("the descriptor is inside") };
    storage.open(&child_path, Access::ReadWrite).unwrap().write_at(child.text(), offset_bytes).unwrap();
    let text = String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap()).unwrap();
    storage.replace(&vmx(), text.replace("scsi0:0.fileName = \"flat.vmdk\"\n", "").as_bytes()).unwrap();
}

/// What the guest reads of the chain: grains that the child has hide the base.
fn expected() -> Vec<u8> {
    let mut all = vec![0; 1 << 20];
    all[70_000..70_000 + SIZE].copy_from_slice(&content("flat"));
    let grains = 65_536..(70_000 + SIZE).next_multiple_of(65_536);
    all[grains].fill(0);
    all[70_000..70_000 + SIZE].copy_from_slice(&content("sparse"));
    all[600_000..600_004].copy_from_slice(b"base");
    all
}

#[test]
fn each_link_is_opened_with_its_own_keys_and_the_top_one_written() {
    for is_encrypted in [false, true] {
        let storage = Memory::new();
        make(&storage);
        let mut keys = TestKeys::new();
        if is_encrypted {
            encrypt(&storage, &mut keys);
        }
        let unlocked = is_encrypted.then(|| unlock(&storage, &vmx(), &mut keys).unwrap());
        let mut open = |path: &StoragePath, access| match &unlocked {
            Some(unlocked) => unlocked.open_disk(&storage, path, access, &mut keys),
            None => open_plain_disk(&storage, &vmx(), path, access),
        };
        open(&path("vms/web01/flat.vmdk"), Access::ReadWrite).unwrap().write_at(b"base", 600_000).unwrap();
        link(&storage);
        let base = || storage.read(&path("vms/web01/flat-flat.vmdk"), 4 << 20).unwrap();
        let (before, mut all) = (base(), expected());
        let disk_path = path("vms/web01/sparse.vmdk");
        let mut disk = open(&disk_path, Access::ReadWrite).unwrap();
        let mut bytes = vec![1; all.len()];
        disk.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == all);
        disk.write_at(b"new", 900_000).unwrap();
        all[900_000..900_003].copy_from_slice(b"new");
        disk.discard(66_000, 10_000).unwrap();
        all[66_000..76_000].fill(0);
        disk.flush().unwrap();
        drop(disk);
        open(&disk_path, Access::Read).unwrap().read_at(&mut bytes, 0).unwrap();
        assert!(bytes == all && base() == before);
        if let Some(unlocked) = &unlocked {
            verify(&storage, &vmx(), &mut keys).unwrap();
            // Whoever asks for what is left of a whole disk gets all of it.
            let disk = unlocked.open_salvage(&storage, &disk_path, &mut keys).unwrap();
            assert_eq!(disk.salvage_read(&mut bytes, 0).unwrap(), []);
            assert!(bytes == all);
        }
    }
}

#[test]
fn a_child_in_the_clear_on_an_encrypted_base_is_refused() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    let only = vmseal_rekey::Disks::Only(vec!["flat.vmdk".to_owned()]);
    let request = vmseal_rekey::Request::encrypt(&TestKeys::provider("test")).disks(only);
    crate::testing::run(&storage, &request, &mut keys);
    link(&storage);
    assert_eq!(survey(&storage, &vmx()).unwrap().disks[0].links.len(), 1);
    let unlocked = unlock(&storage, &vmx(), &mut keys).unwrap();
    let error = unlocked.open_disk(&storage, &path("vms/web01/sparse.vmdk"), Access::Read, &mut keys).unwrap_err();
    assert!(matches!(&error, Error::Disk(vmseal_disk::Error::MixedChain { .. })), "{error}");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

//! A VM in memory.

use vmseal_disk::{NewDisk, NewDiskType, UnitSize};
use vmseal_keys::TestKeys;
use vmseal_rekey::{Outcome, Request, Unwatched, execute, open_plain_disk, plan, survey, unlock};
use vmseal_storage::{Access, Memory, Storage, StoragePath};

pub(crate) const SIZE: usize = 300 << 10;

pub(crate) fn path(text: &str) -> StoragePath {
    StoragePath::new(text).unwrap()
}

pub(crate) fn vmx() -> StoragePath {
    path("vms/web01/web01.vmx")
}

pub(crate) fn content(name: &str) -> Vec<u8> {
    let seed = name.len() as u64 + 3;
    (0..SIZE as u64).map(|index| (index * seed % 251) as u8 ^ (index >> 9) as u8).collect()
}

/// A flat and a sparse disk and an NVRAM, in a folder below the root.
pub(crate) fn make(storage: &dyn Storage) {
    for folder in ["vms", "vms/web01"] {
        storage.create_folder(&path(folder)).unwrap();
    }
    let text = "displayName = \"web01\"\nnvram = \"web01.nvram\"\nscsi0:0.fileName = \"flat.vmdk\"\nsata0:1.fileName = \"sparse.vmdk\"\n";
    storage.replace(&vmx(), text.as_bytes()).unwrap();
    storage.replace(&path("vms/web01/web01.nvram"), &content("nvram")[..9000]).unwrap();
    for (name, disk_type) in [("flat", NewDiskType::Vmfs), ("sparse", NewDiskType::MonolithicSparse)] {
        let path = path(&format!("vms/web01/{name}.vmdk"));
        let mut disk = NewDisk::new(disk_type, 1 << 20).create_and_open(storage, &path).unwrap();
        disk.write_at(&content(name), 70_000).unwrap();
        disk.flush().unwrap();
    }
}

pub(crate) fn run(storage: &dyn Storage, request: &Request, keys: &mut TestKeys) -> Outcome {
    let planned = plan(&survey(storage, &vmx()).unwrap(), request).unwrap();
    execute(storage, &planned, keys, &mut Unwatched).unwrap()
}

pub(crate) fn encrypt(storage: &dyn Storage, keys: &mut TestKeys) {
    run(storage, &Request::encrypt(&TestKeys::provider("test")), keys);
}

/// The same with disks of a few zones.
pub(crate) fn make_small(storage: &dyn Storage) {
    make(storage);
}

pub(crate) fn encrypt_with(storage: &dyn Storage, keys: &mut TestKeys, unit: UnitSize) {
    run(storage, &Request::encrypt(&TestKeys::provider("test")).unit_size(unit), keys);
}

/// The guest reads what it wrote, whatever the disks are.
pub(crate) fn assert_content(storage: &dyn Storage, keys: &mut TestKeys) {
    for name in ["flat", "sparse"] {
        let disk_path = path(&format!("vms/web01/{name}.vmdk"));
        let mut bytes = vec![1; SIZE + 2];
        if survey(storage, &vmx()).unwrap().encryption.is_none() {
            open_plain_disk(storage, &vmx(), &disk_path, Access::Read).unwrap().read_at(&mut bytes, 69_999).unwrap();
        } else {
            let unlocked = unlock(storage, &vmx(), keys).unwrap();
            unlocked.open_disk(storage, &disk_path, Access::Read, keys).unwrap().read_at(&mut bytes, 69_999).unwrap();
        }
        assert!(bytes[1..=SIZE] == content(name) && bytes[0] == 0 && bytes[SIZE + 1] == 0, "{name}");
    }
}

/// Every file with its content.
pub(crate) fn files(storage: &Memory) -> Vec<(StoragePath, Vec<u8>)> {
    storage.paths().into_iter().map(|path| (path.clone(), storage.read(&path, 64 << 20).unwrap())).collect()
}

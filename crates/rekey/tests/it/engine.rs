//! The engine on storages that are no local folder.

use core::ops::ControlFlow;
use core::ops::Range;

use vmseal_keys::{KeySource, TestKeys};
use vmseal_rekey::{
    Changes, Disks, Ending, Error, Progress, Request, execute, plan, resume, rollback, survey, unlock, verify,
};
use vmseal_rekey::{Reason, Unwatched};
use vmseal_storage::{Access, File, Lock, LockMode, Memory, Metadata, Storage, StoragePath};

use crate::testing::{assert_content, encrypt, files, make, path, run, vmx};

#[test]
fn a_vm_in_memory_goes_through_its_life() {
    let storage = Memory::new();
    make(&storage);
    let at_first = files(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    assert_content(&storage, &mut keys);
    let first_key = survey(&storage, &vmx()).unwrap().encryption.key_ids().to_vec();
    run(&storage, &Request::shallow_recrypt(), &mut keys);
    assert_content(&storage, &mut keys);
    assert_ne!(survey(&storage, &vmx()).unwrap().encryption.key_ids(), first_key);
    run(&storage, &Request::deep_recrypt().provider(&TestKeys::provider("other")), &mut keys);
    assert_content(&storage, &mut keys);
    let verified = verify(&storage, &vmx(), &mut keys).unwrap();
    assert_eq!((verified.encrypted_disks.len(), verified.sealed_files.len()), (2, 1));
    run(&storage, &Request::decrypt(), &mut keys);
    assert_eq!(files(&storage), at_first);
}

/// A storage that knows neither holes nor versions of files nor how much room there is, as a simple object store.
#[derive(Debug)]
struct Plain(Memory);

#[derive(Debug)]
struct PlainFile(Box<dyn File>);

impl Storage for Plain {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, vmseal_storage::Error> {
        Ok(Box::new(PlainFile(self.0.open(path, access)?)))
    }

    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, vmseal_storage::Error> {
        Ok(Box::new(PlainFile(self.0.create(path, like)?)))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, vmseal_storage::Error> {
        Ok(self.0.metadata(path)?.map(|metadata| Metadata { version: None, identity: None, ..metadata }))
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, vmseal_storage::Error> {
        self.0.list(folder)
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), vmseal_storage::Error> {
        self.0.create_folder(folder)
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), vmseal_storage::Error> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &StoragePath) -> Result<(), vmseal_storage::Error> {
        self.0.remove(path)
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), vmseal_storage::Error> {
        self.0.sync_folder(folder)
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, vmseal_storage::Error> {
        self.0.lock(path, mode)
    }

    fn free_bytes(&self) -> Result<Option<u64>, vmseal_storage::Error> {
        Ok(None)
    }
}

impl File for PlainFile {
    fn len(&self) -> Result<u64, vmseal_storage::Error> {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), vmseal_storage::Error> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), vmseal_storage::Error> {
        self.0.write_at(data, offset)
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), vmseal_storage::Error> {
        self.0.set_len(len_bytes)
    }

    fn sync(&self) -> Result<(), vmseal_storage::Error> {
        self.0.sync()
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), vmseal_storage::Error> {
        self.0.punch_hole(offset, len_bytes)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, vmseal_storage::Error> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }
}

#[test]
fn storage_without_holes_and_versions_will_do() {
    let storage = Plain(Memory::new());
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    assert_content(&storage, &mut keys);
    stop_at(&storage, &Request::deep_recrypt(), &mut keys, 3);
    let outcome = resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
    assert_eq!(outcome.ending, Ending::Resumed);
    assert_content(&storage, &mut keys);
    run(&storage, &Request::decrypt(), &mut keys);
    assert_content(&storage, &mut keys);
}

/// Undoes what is pending.
pub(crate) fn undo(storage: &dyn Storage, keys: &mut TestKeys) -> Result<vmseal_rekey::Outcome, Error> {
    rollback(storage, &vmx(), keys, &mut Unwatched, Changes::Keep)
}

/// Executes `request` and stops it at the report with the number `at`.
pub(crate) fn stop_at(storage: &dyn Storage, request: &Request, keys: &mut TestKeys, at: usize) {
    let planned = plan(&survey(storage, &vmx()).unwrap(), request).unwrap();
    let mut reports = 0;
    let mut watch = |_: &Progress| {
        reports += 1;
        if reports >= at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(matches!(execute(storage, &planned, keys, &mut watch), Err(Error::Stopped)));
}

#[test]
fn what_was_stopped_is_completed_or_undone() {
    for at in 1..=6 {
        let storage = Memory::new();
        make(&storage);
        let mut keys = TestKeys::new();
        encrypt(&storage, &mut keys);
        let before = files(&storage);
        stop_at(&storage, &Request::deep_recrypt(), &mut keys, at);
        // While it is pending, nothing else begins, and nothing is read that may be about to change.
        assert!(matches!(unlock(&storage, &vmx(), &mut keys), Err(Error::Pending { committed: false, .. })));
        assert!(matches!(verify(&storage, &vmx(), &mut keys), Err(Error::Pending { .. })));
        let refusal = plan(&survey(&storage, &vmx()).unwrap(), &Request::decrypt()).unwrap_err();
        assert!(matches!(refusal.reasons[..], [Reason::Pending { committed: false, .. }]));

        assert_eq!(undo(&storage, &mut keys).unwrap().ending, Ending::RolledBack);
        assert_eq!(files(&storage), before);
        assert!(matches!(undo(&storage, &mut keys), Err(Error::NothingPending { .. })));

        stop_at(&storage, &Request::deep_recrypt(), &mut keys, at);
        assert_eq!(resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap().ending, Ending::Resumed);
        assert_content(&storage, &mut keys);
        assert!(matches!(
            resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep),
            Err(Error::NothingPending { .. })
        ));
    }
}

#[test]
fn what_the_guest_wrote_while_an_operation_lay_interrupted_is_kept() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    stop_at(&storage, &Request::encrypt(&TestKeys::provider("test")), &mut keys, 5);
    // A hypervisor knows nothing of our record: it starts the VM, and the guest writes.
    let mut disk = vmseal_disk::Disk::open(&storage, &path("vms/web01/flat.vmdk"), None, Access::ReadWrite).unwrap();
    disk.write_at(b"written meanwhile", 1000).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let nvram = path("vms/web01/web01.nvram");
    storage.replace(&nvram, b"other variables").unwrap();
    resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
    assert_content(&storage, &mut keys);
    let unlocked = unlock(&storage, &vmx(), &mut keys).unwrap();
    let mut bytes = [0; 17];
    let disk = unlocked.open_disk(&storage, &path("vms/web01/flat.vmdk"), Access::Read, &mut keys).unwrap();
    disk.read_at(&mut bytes, 1000).unwrap();
    assert_eq!(&bytes, b"written meanwhile");
    assert_eq!(unlocked.read_file(&storage, &nvram).unwrap().as_slice(), b"other variables");
}

#[test]
fn a_disk_that_is_open_for_writing_keeps_operations_away() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    let planned = plan(&survey(&storage, &vmx()).unwrap(), &Request::deep_recrypt()).unwrap();
    let unlocked = unlock(&storage, &vmx(), &mut keys).unwrap();
    let disk = unlocked.open_disk(&storage, &path("vms/web01/flat.vmdk"), Access::ReadWrite, &mut keys).unwrap();
    let error = execute(&storage, &planned, &mut keys, &mut Unwatched).unwrap_err();
    assert!(error.to_string().contains("served or written by process"), "{error}");
    // A shallow recrypt touches no data.
    run(&storage, &Request::shallow_recrypt(), &mut keys);
    drop(disk);
    let planned = plan(&survey(&storage, &vmx()).unwrap(), &Request::deep_recrypt()).unwrap();
    execute(&storage, &planned, &mut keys, &mut Unwatched).unwrap();
    assert_content(&storage, &mut keys);
}

#[test]
fn a_plan_for_a_vm_that_has_changed_is_not_executed() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    let test = TestKeys::provider("test");
    let planned = plan(&survey(&storage, &vmx()).unwrap(), &Request::encrypt(&test)).unwrap();
    run(&storage, &Request::encrypt(&test).disks(Disks::None), &mut keys);
    let before = files(&storage);
    assert!(execute(&storage, &planned, &mut keys, &mut Unwatched).is_err());
    assert_eq!(files(&storage), before);
}

#[test]
fn without_its_key_nothing_is_done() {
    let storage = Memory::new();
    make(&storage);
    let mut keys = TestKeys::new();
    encrypt(&storage, &mut keys);
    let before = files(&storage);
    keys.clear();
    for request in [Request::shallow_recrypt(), Request::deep_recrypt(), Request::decrypt()] {
        let planned = plan(&survey(&storage, &vmx()).unwrap(), &request).unwrap();
        let error = execute(&storage, &planned, &mut keys, &mut Unwatched).unwrap_err();
        assert!(matches!(error, Error::WrongKey { any_key_at_hand: false, .. }), "{error}");
        assert_eq!(files(&storage), before);
    }
    assert!(keys.phrase().is_none());
}

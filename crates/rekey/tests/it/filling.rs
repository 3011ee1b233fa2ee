//! A disk is filled, and another's disk adopted, whatever is cut off and where.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmseal_disk::DiskLayout;
use vmseal_formats::{Extent, ExtentKind};
use vmseal_keys::{Dek, TestKeys, system_rng};
use vmseal_rekey::{
    Changes, Error, Progress, Request, Unwatched, adopt, count_unwritten, fill, pending, resume, rollback, unlock,
    verify,
};
use vmseal_storage::{Access, File, Lock, LockMode, Memory, Metadata, Storage, StoragePath};

use crate::testing::{assert_content, encrypt, files, make, path, run, vmx};

/// Storage that fails at the operation that changes something with this number, and at every later one: what a process that ends leaves.
struct Ending<'s> {
    storage: &'s Memory,
    left: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct EndingFile {
    file: Box<dyn File>,
    left: Arc<AtomicUsize>,
}

fn step(left: &AtomicUsize) -> Result<(), vmseal_storage::Error> {
    let here = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(1)));
    match here {
        Ok(0) | Err(_) => Err(vmseal_storage::Error::Latched { path: "the test".into() }),
        Ok(_) => Ok(()),
    }
}

impl Storage for Ending<'_> {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, vmseal_storage::Error> {
        Ok(Box::new(EndingFile { file: self.storage.open(path, access)?, left: self.left.clone() }))
    }

    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, vmseal_storage::Error> {
        step(&self.left)?;
        Ok(Box::new(EndingFile { file: self.storage.create(path, like)?, left: self.left.clone() }))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, vmseal_storage::Error> {
        self.storage.metadata(path)
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, vmseal_storage::Error> {
        self.storage.list(folder)
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), vmseal_storage::Error> {
        self.storage.create_folder(folder)
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.storage.rename(from, to)
    }

    fn remove(&self, path: &StoragePath) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.storage.remove(path)
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.storage.sync_folder(folder)
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, vmseal_storage::Error> {
        self.storage.lock(path, mode)
    }

    fn free_bytes(&self) -> Result<Option<u64>, vmseal_storage::Error> {
        self.storage.free_bytes()
    }
}

impl File for EndingFile {
    fn len(&self) -> Result<u64, vmseal_storage::Error> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), vmseal_storage::Error> {
        self.file.read_at(buffer, offset)
    }

    /// A write that is cut off is done in half.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), vmseal_storage::Error> {
        step(&self.left).inspect_err(|_| {
            let _ = self.file.write_at(&data[..data.len() / 2 / 512 * 512], offset);
        })?;
        self.file.write_at(data, offset)
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.file.set_len(len_bytes)
    }

    fn sync(&self) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.file.sync()
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), vmseal_storage::Error> {
        step(&self.left)?;
        self.file.punch_hole(offset, len_bytes)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, vmseal_storage::Error> {
        self.file.next_data(offset)
    }
}

fn disk(name: &str) -> StoragePath {
    path(&format!("vms/web01/{name}.vmdk"))
}

fn copy(files: &[(StoragePath, Vec<u8>)]) -> Memory {
    let storage = Memory::new();
    for folder in ["vms", "vms/web01"] {
        storage.create_folder(&path(folder)).unwrap();
    }
    for (path, content) in files {
        storage.replace(path, content).unwrap();
    }
    storage
}

fn unwritten(storage: &dyn Storage, name: &str, keys: &mut TestKeys) -> u64 {
    let unlocked = unlock(storage, &vmx(), keys).unwrap();
    count_unwritten(storage, unlocked.secrets(), &disk(name), keys, &mut Unwatched).unwrap()
}

#[test]
fn a_fill_that_is_cut_off_anywhere_changes_nothing_of_what_is_read() {
    let mut keys = TestKeys::new();
    let storage = Memory::new();
    make(&storage);
    encrypt(&storage, &mut keys);
    let before = files(&storage);
    for name in ["flat", "sparse"] {
        let mut was_pending = [0; 2];
        for at in 0.. {
            let storage = copy(&before);
            let ending = Ending { storage: &storage, left: Arc::new(AtomicUsize::new(at)) };
            let done = fill(&ending, &vmx(), &disk(name), &mut keys, &mut Unwatched);
            if let Some(pending) = pending(&storage, &vmx()).unwrap() {
                was_pending[usize::from(pending.committed)] += 1;
                if at % 2 == 0 && !pending.committed {
                    rollback(&storage, &vmx()).unwrap();
                } else {
                    resume(&storage, &vmx(), &mut keys, &mut Unwatched, Changes::Keep).unwrap();
                }
            }
            assert_content(&storage, &mut keys);
            verify(&storage, &vmx(), &mut keys).unwrap();
            // Again, to the end.
            fill(&storage, &vmx(), &disk(name), &mut keys, &mut Unwatched).unwrap();
            assert_eq!(unwritten(&storage, name, &mut keys), 0);
            assert_content(&storage, &mut keys);
            run(&storage, &Request::shallow_recrypt(), &mut keys);
            run(&storage, &Request::deep_recrypt(), &mut keys);
            assert_content(&storage, &mut keys);
            let (descriptor, _) = DiskLayout::read_descriptor(&storage, &disk(name)).unwrap();
            assert_eq!(descriptor.ddb("vmseal.holes").as_deref(), Some("fill"), "{name} at {at}");
            if done.is_ok() {
                assert!(at > 20 && was_pending.iter().all(|count| *count > 0), "{name}: {at}, {was_pending:?}");
                break;
            }
        }
    }
}

#[test]
fn a_fill_that_is_stopped_leaves_nothing_pending() {
    let mut keys = TestKeys::new();
    let storage = Memory::new();
    make(&storage);
    encrypt(&storage, &mut keys);
    let mut stop = |_: &Progress| ControlFlow::Break(());
    let stopped = fill(&storage, &vmx(), &disk("flat"), &mut keys, &mut stop).unwrap_err();
    assert!(matches!(stopped, Error::FillStopped { .. }), "{stopped}");
    assert!(pending(&storage, &vmx()).unwrap().is_none());
    assert_content(&storage, &mut keys);
}

#[test]
fn an_adoption_that_is_cut_off_leaves_the_vm_as_it_was_or_with_the_disk() {
    let mut keys = TestKeys::new();
    let storage = Memory::new();
    make(&storage);
    encrypt(&storage, &mut keys);
    let dek = Dek::generate(&mut system_rng()).unwrap();
    storage.replace(&path("vms/web01/data.luks"), &[7; 1 << 16]).unwrap();
    let extent = Extent { offset_sectors: 8, ..Extent::new(ExtentKind::Flat, 100, Some("data.luks")) };
    let before = files(&storage);
    for at in 0.. {
        let storage = copy(&before);
        let ending = Ending { storage: &storage, left: Arc::new(AtomicUsize::new(at)) };
        let adopted = adopt(&ending, &vmx(), &disk("new"), extent.clone(), &dek, &mut keys);
        assert_content(&storage, &mut keys);
        verify(&storage, &vmx(), &mut keys).unwrap();
        let unlocked = unlock(&storage, &vmx(), &mut keys).unwrap();
        let opened = unlocked.disk_key(&storage, &disk("new"), &mut keys);
        if adopted.is_ok() {
            assert!(opened.unwrap().1 == dek);
            assert!(at > 8);
            // What lies before the extent is no reason against a deep recrypt.
            run(&storage, &Request::deep_recrypt(), &mut keys);
            break;
        }
        if opened.is_err() && storage.metadata(&disk("new")).unwrap().is_some() {
            // Nobody knows it.
            storage.remove(&disk("new")).unwrap();
        }
        if storage.metadata(&disk("new")).unwrap().is_none() {
            adopt(&storage, &vmx(), &disk("new"), extent.clone(), &dek, &mut keys).unwrap();
        }
    }
    // A name that the VM knows is not taken by another disk.
    let storage = copy(&before);
    adopt(&storage, &vmx(), &disk("new"), extent.clone(), &dek, &mut keys).unwrap();
    storage.rename(&disk("new"), &disk("moved")).unwrap();
    let refused = adopt(&storage, &vmx(), &disk("new"), extent, &dek, &mut keys).unwrap_err();
    assert!(refused.to_string().contains("another disk of this name"), "{refused}");
}

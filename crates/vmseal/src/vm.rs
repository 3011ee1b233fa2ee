//! A virtual machine on storage: the type that everything else exists for.

use vmseal_disk::Disk;
use vmseal_keys::KeySource;
use vmseal_rekey::{Changes, Error, Inventory, Outcome, Pending, Plan, Request, Unlocked, Verified, Watch};
use vmseal_storage::{Access, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::report::Report;

/// A virtual machine, by its VMX.
///
/// It holds no key and reads storage anew at each call, so that it never tells what was true a moment ago.
#[derive(Clone)]
pub struct Vm<'s> {
    pub(crate) storage: &'s dyn Storage,
    pub(crate) vmx: StoragePath,
}

impl<'s> Vm<'s> {
    /// The VM whose VMX is `vmx`, relative to the root of `storage`. Reads the VM's files; needs no key.
    ///
    /// # Errors
    /// Where the VMX or a disk is missing or damaged; the message names the file and what to do.
    pub fn open(storage: &'s dyn Storage, vmx: &str) -> Result<Self, Error> {
        let vm = Self { storage, vmx: StoragePath::new(vmx)? };
        vm.inventory()?;
        Ok(vm)
    }

    /// The VM whose VMX is `vmx`, unread: what [`resume`](Self::resume) and [`rollback`](Self::rollback) need also where an interrupted
    /// operation left files that do not make a whole VM.
    ///
    /// # Errors
    /// Where `vmx` is no path on the storage.
    pub fn at(storage: &'s dyn Storage, vmx: &str) -> Result<Self, Error> {
        Ok(Self { storage, vmx: StoragePath::new(vmx)? })
    }

    /// What is encrypted, how, and under which key IDs.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect(&self) -> Result<Report, Error> {
        Ok(Report::new(self.storage, &self.inventory()?))
    }

    /// What `request` would do to the VM as it is now.
    ///
    /// # Errors
    /// [`Error::Refused`] with every reason, where the rules forbid it; otherwise as [`open`](Self::open).
    pub fn plan(&self, request: &Request) -> Result<Plan, Error> {
        Ok(vmseal_rekey::plan(&self.inventory()?, request)?)
    }

    /// Does exactly what `plan` says, crash-safe: [`resume`](Self::resume) completes what was interrupted,
    /// [`rollback`](Self::rollback) undoes it. A shallow recrypt of a VM on which another one lies interrupted completes that one, and the
    /// outcome's ending says so.
    ///
    /// # Errors
    /// After an error whose [`kind`](Error::kind) is not [`Resumable`](vmseal_rekey::ErrorKind::Resumable) the VM is as it was before.
    pub fn execute(&self, plan: Plan, keys: &mut impl KeySource, mut watch: impl Watch) -> Result<Outcome, Error> {
        vmseal_rekey::execute(self.storage, &plan, keys, &mut watch)
    }

    /// Completes the operation that was interrupted.
    ///
    /// # Errors
    /// [`Error::NothingPending`] where there is none; see [`vmseal_rekey::resume`].
    pub fn resume(&self, keys: &mut impl KeySource, mut watch: impl Watch) -> Result<Outcome, Error> {
        vmseal_rekey::resume(self.storage, &self.vmx, keys, &mut watch, Changes::Keep)
    }

    /// Completes the operation that was interrupted, also where files were written after it was committed: what was written to those is lost.
    ///
    /// # Errors
    /// As [`resume`](Self::resume), but for [`Error::ChangedAfterCommit`].
    pub fn resume_discarding_changes(
        &self,
        keys: &mut impl KeySource,
        mut watch: impl Watch,
    ) -> Result<Outcome, Error> {
        vmseal_rekey::resume(self.storage, &self.vmx, keys, &mut watch, Changes::Discard)
    }

    /// The operation that was interrupted or is under way, where there is one. Also where the VM cannot be read as a whole.
    ///
    /// # Errors
    /// Where the record of the operation cannot be read.
    pub fn pending(&self) -> Result<Option<Pending>, Error> {
        vmseal_rekey::pending(self.storage, &self.vmx)
    }

    /// Undoes the operation that was interrupted. Keys are asked for only where data was being converted in place
    /// ([`Pending::converting`]): it is converted back.
    ///
    /// # Errors
    /// [`Error::NothingPending`]; [`Error::Committed`] where it can only be completed; see [`vmseal_rekey::rollback`].
    pub fn rollback(&self, keys: &mut impl KeySource, mut watch: impl Watch) -> Result<Outcome, Error> {
        vmseal_rekey::rollback(self.storage, &self.vmx, keys, &mut watch, Changes::Keep)
    }

    /// Checks that every key unwraps, every disk is whole and nothing is pending.
    ///
    /// # Errors
    /// The first thing that is not right.
    pub fn verify(&self, keys: &mut impl KeySource) -> Result<Verified, Error> {
        vmseal_rekey::verify(self.storage, &self.vmx, keys)
    }

    /// Opens the VM's secrets. Only what this returns can read an encrypted disk.
    ///
    /// # Errors
    /// [`Error::WrongKey`] where no key opens them; [`Error::Pending`] where an operation has to end first. A shallow recrypt has not: until it is
    /// completed the keys of before and after it are needed.
    pub fn unlock<'v>(&'v self, keys: &'v mut dyn KeySource) -> Result<UnlockedVm<'v>, Error> {
        let unlocked = vmseal_rekey::unlock(self.storage, &self.vmx, keys)?;
        Ok(UnlockedVm { storage: self.storage, unlocked, keys })
    }

    /// Opens a disk that is in the clear for reading, with all of its parents, by its descriptor's path relative to the storage root.
    ///
    /// # Errors
    /// Where the disk or a parent is encrypted, missing or damaged; [`Error::Pending`] where an operation has to end first.
    pub fn open_plain_disk(&self, path: &str) -> Result<Disk<'s>, Error> {
        vmseal_rekey::open_plain_disk(self.storage, &self.vmx, &StoragePath::new(path)?, Access::Read)
    }

    /// Opens a disk for reading, whether the VM is encrypted or in the clear.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock), [`UnlockedVm::open_disk`] and [`open_plain_disk`](Self::open_plain_disk).
    pub fn open_any_disk(&self, path: &str, keys: &mut dyn KeySource) -> Result<Disk<'s>, Error> {
        self.open_any(path, Access::Read, keys)
    }

    /// The same for reading and writing. For as long as it is open no operation on the VM begins but a shallow recrypt.
    ///
    /// # Errors
    /// As [`open_any_disk`](Self::open_any_disk); where an operation is at work.
    pub fn open_any_disk_for_writing(&self, path: &str, keys: &mut dyn KeySource) -> Result<Disk<'s>, Error> {
        self.open_any(path, Access::ReadWrite, keys)
    }

    fn open_any(&self, path: &str, access: Access, keys: &mut dyn KeySource) -> Result<Disk<'s>, Error> {
        let path = StoragePath::new(path)?;
        match vmseal_rekey::unlock(self.storage, &self.vmx, keys) {
            Ok(unlocked) => unlocked.open_disk(self.storage, &path, access, keys),
            Err(Error::NotEncrypted { .. }) => vmseal_rekey::open_plain_disk(self.storage, &self.vmx, &path, access),
            Err(error) => Err(error),
        }
    }

    /// Opens what is left of a damaged disk for reading: see [`Disk::open_salvage`].
    ///
    /// # Errors
    /// Where the VM's bundle or the disk's key does not open, or its descriptor cannot be understood.
    pub fn open_salvage(&self, path: &str, keys: &mut dyn KeySource) -> Result<Disk<'s>, Error> {
        let path = StoragePath::new(path)?;
        match vmseal_rekey::unlock_damaged(self.storage, &self.vmx, keys) {
            Ok(unlocked) => unlocked.open_salvage(self.storage, &path, keys),
            Err(Error::NotEncrypted { .. }) => Disk::open_salvage::<Error>(self.storage, &path, &mut |_, _| Ok(None)),
            Err(error) => Err(error),
        }
    }

    /// The KEKs that open the VM and its disk `path`, by ID.
    ///
    /// # Errors
    /// Where the VMX cannot be read.
    pub fn key_ids(&self, path: &str) -> Result<Vec<vmseal_keys::KeyId>, Error> {
        vmseal_rekey::key_ids(self.storage, &self.vmx, &StoragePath::new(path)?)
    }

    /// The VM as the planner sees it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inventory(&self) -> Result<Inventory, Error> {
        vmseal_rekey::survey(self.storage, &self.vmx)
    }

    pub(crate) fn storage(&self) -> &'s dyn Storage {
        self.storage
    }

    pub(crate) fn vmx_path(&self) -> &StoragePath {
        &self.vmx
    }

    /// The VMX, relative to the storage root.
    pub fn path(&self) -> &str {
        self.vmx.as_str()
    }
}

impl core::fmt::Debug for Vm<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vm").field("vmx", &self.vmx).finish_non_exhaustive()
    }
}

/// A VM whose secrets are open. It has the source of keys for itself for as long as it, or a disk that it opened, lives.
pub struct UnlockedVm<'v> {
    storage: &'v dyn Storage,
    unlocked: Unlocked,
    keys: &'v mut dyn KeySource,
}

impl<'v> UnlockedVm<'v> {
    /// Opens a disk for reading, with all of its parents, by its descriptor's path relative to the storage root.
    ///
    /// # Errors
    /// Where the disk or a parent is missing, damaged, another VM's, or not opened by the keys; where some links are encrypted and some are not.
    pub fn open_disk(&mut self, path: &str) -> Result<Disk<'v>, Error> {
        self.open(path, Access::Read)
    }

    /// Opens a disk for reading and writing; parents are never written. For as long as it is open no operation on the VM begins but a shallow recrypt.
    ///
    /// # Errors
    /// As [`open_disk`](Self::open_disk); where an operation is at work or pending.
    pub fn open_disk_for_writing(&mut self, path: &str) -> Result<Disk<'v>, Error> {
        self.open(path, Access::ReadWrite)
    }

    /// The content of a VM file, such as the NVRAM.
    ///
    /// # Errors
    /// Where the file is missing, damaged or another VM's.
    pub fn read_file(&self, path: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.unlocked.read_file(self.storage, &StoragePath::new(path)?)
    }

    fn open(&mut self, path: &str, access: Access) -> Result<Disk<'v>, Error> {
        self.unlocked.open_disk(self.storage, &StoragePath::new(path)?, access, self.keys)
    }
}

impl core::fmt::Debug for UnlockedVm<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UnlockedVm").field("vmx", self.unlocked.vmx()).finish_non_exhaustive()
    }
}

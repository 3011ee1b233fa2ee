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
    storage: &'s dyn Storage,
    vmx: StoragePath,
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
    /// [`rollback`](Self::rollback) undoes it.
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

    /// Undoes the operation that was interrupted; needs no key.
    ///
    /// # Errors
    /// [`Error::NothingPending`]; [`Error::Committed`] where it can only be completed.
    pub fn rollback(&self) -> Result<Outcome, Error> {
        vmseal_rekey::rollback(self.storage, &self.vmx)
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
    /// [`Error::WrongKey`] where no key opens them; [`Error::Pending`] where an operation has to end first.
    pub fn unlock<'v>(&'v self, keys: &'v mut dyn KeySource) -> Result<UnlockedVm<'v>, Error> {
        let unlocked = vmseal_rekey::unlock(self.storage, &self.vmx, keys)?;
        Ok(UnlockedVm { storage: self.storage, unlocked, keys })
    }

    /// Opens a disk that is in the clear for reading, by its descriptor's path relative to the storage root.
    ///
    /// # Errors
    /// Where the disk is encrypted, missing or damaged; [`Error::Pending`] where an operation has to end first.
    pub fn open_plain_disk(&self, path: &str) -> Result<Disk<'s>, Error> {
        vmseal_rekey::open_plain_disk(self.storage, &self.vmx, &StoragePath::new(path)?, Access::Read)
    }

    /// The VM as the planner sees it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inventory(&self) -> Result<Inventory, Error> {
        vmseal_rekey::survey(self.storage, &self.vmx)
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
    /// Opens a disk for reading, by its descriptor's path relative to the storage root.
    ///
    /// # Errors
    /// Where the disk is missing, damaged, another VM's, or not opened by the keys.
    pub fn open_disk(&mut self, path: &str) -> Result<Disk<'v>, Error> {
        self.open(path, Access::Read)
    }

    /// Opens a disk for reading and writing. For as long as it is open no operation on the VM begins.
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

//! A disk of a VM as an NBD export: any client reads and writes the guest's bytes, and the files on storage stay encrypted.
//!
//! ```no_run
//! use vmseal::nbd::{DiskAccess, DiskExport, Listener, Server, Stop, UnixSocket};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use vmseal::{LocalDir, LocalProviders, Vm};
//! # let (home, storage) = (LocalDir::open("/h")?, LocalDir::open("/s")?);
//! # let (mut keys, vm) = (LocalProviders::open(&home)?, Vm::open(&storage, "web01.vmx")?);
//! let export = DiskExport::open(&vm, "web01.vmdk", DiskAccess::Write, &mut keys)?;
//! let stop = Stop::new()?;                                       // `stop.stop()` in another thread ends it
//! let socket = UnixSocket::bind("/run/web01.sock".as_ref())?;
//! Server::new(&export).serve(&Listener::Unix(socket), &stop)?;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use vmseal_nbd::{BindError, Export, Listener, Server, Stop, Stream, TlsError, TlsSettings, UnixSocket};

use vmseal_disk::{Disk, Error as DiskError};
use vmseal_keys::KeySource;
use vmseal_rekey::PowerState;
use vmseal_storage::{Error as StorageError, Lock, LockMode, StoragePath};

use crate::file_error::FileError;
use crate::vm::Vm;

/// Of a disk that is served, beside its descriptor.
const LOCK_SUFFIX: &str = ".vmseal-lock";

/// What is made a hole at once, and what is written as zeros at once.
const DISCARD_LEN: u64 = 64 << 20;
const ZEROS_LEN: u64 = 1 << 20;

/// What clients may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

/// A disk of a VM, encrypted or not, for a [`Server`].
pub struct DiskExport<'d> {
    disk: RwLock<Disk<'d>>,
    size_bytes: u64,
    access: DiskAccess,
    /// A flush failed: what was written since the one before may be lost, and nobody may believe otherwise.
    is_broken: AtomicBool,
    /// Keep operations on the VM away, and other servers of the disk that would not see what this one writes.
    _locks: [Option<Box<dyn Lock>>; 2],
}

impl<'d> DiskExport<'d> {
    /// Opens a disk of `vm` by its descriptor's path relative to the storage root.
    ///
    /// No operation on the VM begins while it is open. For writing the VM has to be powered off and the disk attached to it alone, and no
    /// other server of the disk begins; several may read it at once.
    ///
    /// # Errors
    /// [`FileError::Refused`] where these rules forbid it; [`FileError::Vm`] where an operation is pending, no key opens the disk, or it is missing or damaged.
    pub fn open(
        vm: &'d Vm<'_>,
        path: &str,
        access: DiskAccess,
        keys: &'d mut dyn KeySource,
    ) -> Result<Self, FileError> {
        let inventory = vm.inventory()?;
        let path = StoragePath::new(path)?;
        if access == DiskAccess::Write && inventory.pending.is_none() {
            let refused = |what: String| Err(FileError::Refused { path: path.to_string(), what });
            let instead = "or serve the disk with `--read-only`";
            match &inventory.power {
                PowerState::Off => {}
                PowerState::On { evidence } | PowerState::InUse { file: evidence } => {
                    return refused(format!("{} is in use ({evidence}); power it off, {instead}", vm.path()));
                }
                PowerState::Suspended { evidence } => {
                    let what = "is suspended, and its memory knows the disk as it is";
                    return refused(format!("{} {what} ({evidence}); power it off, {instead}", vm.path()));
                }
            }
            match inventory.disks.iter().find(|disk| disk.path == path.as_str()) {
                None => return refused(format!("{} does not attach it; attach it, {instead}", vm.path())),
                Some(disk) => {
                    if let Some(other) = &disk.shared_with {
                        return refused(format!("{other} uses it too; detach it there, {instead}"));
                    }
                }
            }
        }
        // Before the disk is opened: what it says of its keys and tables stays true.
        let exclusive = if access == DiskAccess::Write { LockMode::Exclusive } else { LockMode::Shared };
        let vmx = StoragePath::new(vm.path())?;
        let held = vmseal_rekey::hold_disks(vm.storage(), &vmx, || Ok::<(), vmseal_rekey::Error>(()));
        let locks = [
            optional(held.map(|((), lock)| lock), access)?,
            optional(vm.storage().lock(&path.with_suffix(LOCK_SUFFIX), exclusive).map_err(Into::into), access)?,
        ];
        let disk = match access {
            DiskAccess::Read => vm.open_any_disk(path.as_str(), keys)?,
            DiskAccess::Write => vm.open_any_disk_for_writing(path.as_str(), keys)?,
        };
        let size_bytes = disk.size_bytes();
        Ok(Self { disk: RwLock::new(disk), size_bytes, access, is_broken: AtomicBool::new(false), _locks: locks })
    }

    fn read(&self) -> io::Result<RwLockReadGuard<'_, Disk<'d>>> {
        self.disk.read().map_err(|_| broken())
    }

    fn write(&self) -> io::Result<RwLockWriteGuard<'_, Disk<'d>>> {
        match self.is_broken.load(Ordering::Acquire) {
            true => Err(broken()),
            false => self.disk.write().map_err(|_| broken()),
        }
    }
}

impl Export for DiskExport<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        self.access == DiskAccess::Read
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read()?.read_at(buffer, offset).map_err(failed)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write()?.write_at(data, offset).map_err(failed)
    }

    fn flush(&self) -> io::Result<()> {
        let mut disk = self.write()?;
        let flushed = disk.flush();
        if flushed.is_err() {
            self.is_broken.store(true, Ordering::Release);
        }
        flushed.map_err(failed)
    }

    fn trim(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.write_zeroes(offset, len_bytes, true)
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_trim: bool) -> io::Result<()> {
        let piece_len = if may_trim { DISCARD_LEN } else { ZEROS_LEN };
        let end = offset + len_bytes;
        let mut at = offset;
        while at < end {
            // Others get their turn in between.
            let piece_end = end.min((at / piece_len + 1) * piece_len);
            match may_trim {
                true => self.write()?.discard(at, piece_end - at).map_err(failed)?,
                false => self.write_at(&vec![0; (piece_end - at) as usize], at)?,
            }
            at = piece_end;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.read()?.next_data(offset).map_err(failed)
    }
}

impl core::fmt::Debug for DiskExport<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DiskExport").field("disk", &self.disk).field("access", &self.access).finish_non_exhaustive()
    }
}

/// Where nothing can be written, nobody works on the VM: a reader needs no lock there.
fn optional(
    lock: Result<Box<dyn Lock>, vmseal_rekey::Error>,
    access: DiskAccess,
) -> Result<Option<Box<dyn Lock>>, FileError> {
    match lock {
        Ok(lock) => Ok(Some(lock)),
        Err(vmseal_rekey::Error::Storage(StorageError::ReadOnly { .. } | StorageError::PermissionDenied { .. }))
            if access == DiskAccess::Read =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn failed(error: DiskError) -> io::Error {
    let kind = match &error {
        DiskError::ExtentAccess { .. } => io::ErrorKind::PermissionDenied,
        DiskError::ExtentFull { .. } => io::ErrorKind::StorageFull,
        DiskError::Storage(StorageError::PermissionDenied { .. }) => io::ErrorKind::PermissionDenied,
        DiskError::Storage(StorageError::ReadOnly { .. }) => io::ErrorKind::ReadOnlyFilesystem,
        DiskError::Storage(StorageError::StorageFull { .. }) => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn broken() -> io::Error {
    io::Error::other("the disk failed before, and takes nothing more; end the server and start it again")
}

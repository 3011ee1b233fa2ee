//! A change of a VMX where it lies.

use vmseal_storage::{Access, Lock, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::vmx_file::{LEN_MAX, VmxFile};

/// A change of a VMX where it lies. No operation of vmseal on the VM begins before it is dropped.
pub struct VmxInPlace<'s> {
    storage: &'s dyn Storage,
    path: StoragePath,
    bytes: Zeroizing<Vec<u8>>,
    _lock: Box<dyn Lock>,
}

impl<'s> VmxInPlace<'s> {
    /// Begins a change.
    ///
    /// # Errors
    /// [`FileError::Refused`] where the VM runs or an operation of vmseal is pending; where another is at work on the VM.
    pub fn begin(storage: &'s dyn Storage, path: &StoragePath) -> Result<Self, FileError> {
        // What is not there gets no lock file beside it.
        storage.open(path, Access::Read)?;
        let lock = vmseal_rekey::lock(storage, path)?;
        let refused = |what: String| Err(FileError::Refused { path: path.to_string(), what });
        if let Some(pending) = vmseal_rekey::pending(storage, path)? {
            let undo = if pending.committed { "" } else { ", or undo it with `resume --rollback`" };
            let operation = pending.operation;
            return refused(format!("an interrupted {operation} has to end first; complete it with `resume`{undo}"));
        }
        if let Some(evidence) = vmseal_rekey::running(storage, path)? {
            return refused(format!("the VM is powered on or open in a VMware product ({evidence}); close it first"));
        }
        let bytes = Zeroizing::new(storage.read(path, LEN_MAX)?);
        Ok(Self { storage, path: path.clone(), bytes, _lock: lock })
    }

    /// The VMX as it is.
    ///
    /// # Errors
    /// As [`VmxFile::parse`].
    pub fn file(&self) -> Result<VmxFile, FileError> {
        VmxFile::parse(self.path.as_str(), &self.bytes)
    }

    /// Replaces the VMX atomically; gives whether that was needed.
    ///
    /// # Errors
    /// [`FileError::Changed`] where another program wrote to it meanwhile; where storage fails the VMX is as it was.
    pub fn replace(self, contents: &[u8]) -> Result<bool, FileError> {
        if contents == self.bytes.as_slice() {
            return Ok(false);
        }
        let now = Zeroizing::new(self.storage.read(&self.path, LEN_MAX)?);
        if *now != *self.bytes {
            return Err(FileError::Changed { path: self.path.to_string() });
        }
        self.storage.replace(&self.path, contents)?;
        Ok(true)
    }
}

/// Prints no content.
impl core::fmt::Debug for VmxInPlace<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmxInPlace").field("path", &self.path).finish_non_exhaustive()
    }
}

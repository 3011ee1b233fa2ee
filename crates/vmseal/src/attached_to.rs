//! The VM that a disk belongs to.

use vmseal_formats::{Dictionary, attached_disks};
use vmseal_storage::{Storage, StoragePath};

use crate::file_error::FileError;
use crate::vm::Vm;

/// A VMX is a small text.
const VMX_LEN_MAX: u64 = 4 << 20;

impl<'s> Vm<'s> {
    /// The VM whose VMX lies in the folder of `disk` and attaches it, where there is exactly one; unread.
    ///
    /// # Errors
    /// [`FileError::Refused`] where there is none, or more than one.
    pub fn attaching(storage: &'s dyn Storage, disk: &str) -> Result<Self, FileError> {
        let disk = StoragePath::new(disk)?;
        let mut found: Vec<StoragePath> = Vec::new();
        for name in storage.list(&disk.folder())? {
            if name.to_ascii_lowercase().ends_with(".vmx") {
                let vmx = disk.sibling(&name)?;
                if attaches(storage, &vmx, &disk) {
                    found.push(vmx);
                }
            }
        }
        let refused = |what: String| Err(FileError::Refused { path: disk.to_string(), what });
        match &found[..] {
            [vmx] => Ok(Self::at(storage, vmx.as_str())?),
            [] => refused("no VMX in its folder attaches it; name its VM with `--vm`".to_owned()),
            several => {
                let names: Vec<_> = several.iter().map(StoragePath::as_str).collect();
                refused(format!("{} attach it; name its VM with `--vm`", names.join(" and ")))
            }
        }
    }
}

/// Whether a VMX names the disk. One that cannot be read names none.
fn attaches(storage: &dyn Storage, vmx: &StoragePath, disk: &StoragePath) -> bool {
    let Ok(bytes) = storage.read(vmx, VMX_LEN_MAX) else { return false };
    let disks = attached_disks(&Dictionary::parse(&bytes)).unwrap_or_default();
    disks.iter().any(|attached| vmx.sibling(&attached.file).is_ok_and(|path| path == *disk))
}

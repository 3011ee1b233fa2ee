//! A disk on the command line, and the VM that it belongs to.

use std::path::{Path, PathBuf};

use vmseal::{LocalDir, Storage, StoragePath};

use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

/// The VM of a disk: the one that is named, or the only one in the disk's folder.
pub(crate) fn vm_of(disk: &Path, vm: Option<&Path>) -> Result<VmPath, Failure> {
    if let Some(vm) = vm {
        return VmPath::new(vm);
    }
    let folder = VmPath::of_file(disk)?.folder;
    let storage = LocalDir::open(&folder)?;
    let mut names = storage.list(&StoragePath::root())?;
    names.retain(|name| name.to_ascii_lowercase().ends_with(".vmx"));
    match names.as_slice() {
        [name] => Ok(VmPath { folder, name: name.clone() }),
        found => {
            let count = if found.is_empty() { "no VMX" } else { "several VMX" };
            let what = format!("{}: there is {count} beside it; name its VM with --vm VM.vmx", disk.display());
            Err(Failure::usage(what))
        }
    }
}

/// A file as a path in the VM's folder.
pub(crate) fn inside(vm: &VmPath, file: &Path) -> Result<String, Failure> {
    let name = VmPath::of_file(file)?;
    let whole = |folder: &Path| -> Result<PathBuf, Failure> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().map_err(|error| Failure::new(Status::Failed, format!("{}: {error}", folder.display())))
    };
    let path = whole(&name.folder)?.join(&name.name);
    let path = path.strip_prefix(whole(&vm.folder)?).ok().and_then(Path::to_str).map(str::to_owned);
    path.ok_or_else(|| {
        let what = "it lies outside of the VM's folder; move it there";
        Failure::usage(format!("{}: {what}", file.display()))
    })
}

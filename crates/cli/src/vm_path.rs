//! A VM's file on the command line, as the folder that is the VM's storage and the name in it.

use std::path::{Path, PathBuf};

use crate::status::{Failure, Status};

/// The folder of a file, and its name there.
#[derive(Debug)]
pub(crate) struct VmPath {
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
}

impl VmPath {
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        if path.is_dir() {
            let what = "this is a folder; name the VM's .vmx file in it";
            return Err(Failure::usage(format!("{}: {what}", path.display())));
        }
        Self::of_file(path)
    }

    /// The same for a file of any kind.
    pub(crate) fn of_file(path: &Path) -> Result<Self, Failure> {
        let name = path.file_name().ok_or_else(|| Failure::usage(format!("{}: this is no file", path.display())))?;
        let name = name.to_str().ok_or_else(|| {
            Failure::new(Status::Usage, format!("{}: the name is not UTF-8; rename the file", path.display()))
        })?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        Ok(Self { folder, name: name.to_owned() })
    }
}

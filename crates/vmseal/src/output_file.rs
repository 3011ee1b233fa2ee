//! Files that are made: whole or not at all.

use vmseal_storage::{Storage, StoragePath};

use crate::file_error::FileError;

/// Writes a file beside its place and renames it into it, durable, readable by its owner alone. One that is there is replaced where
/// `replace` allows it, and keeps its permissions.
///
/// # Errors
/// [`FileError::Exists`]; where storage fails nothing is left.
pub fn write_new(storage: &dyn Storage, path: &StoragePath, contents: &[u8], replace: bool) -> Result<(), FileError> {
    refuse_existing(storage, path, replace)?;
    Ok(storage.replace(path, contents)?)
}

/// Refuses what is there already, before any work.
pub(crate) fn refuse_existing(storage: &dyn Storage, path: &StoragePath, replace: bool) -> Result<(), FileError> {
    if !replace && storage.metadata(path)?.is_some() {
        return Err(FileError::Exists { path: path.to_string() });
    }
    Ok(())
}

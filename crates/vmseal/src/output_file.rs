//! Files that are made: whole or not at all.

use vmseal_storage::{File, Lock, Storage, StoragePath};

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

/// The same for what holds a secret: also where it replaces a file it is readable by its owner alone.
///
/// # Errors
/// As [`write_new`].
pub fn write_secret(
    storage: &dyn Storage,
    path: &StoragePath,
    contents: &[u8],
    replace: bool,
) -> Result<(), FileError> {
    let mut file = NewFile::begin(storage, path, replace)?;
    file.write(contents)?;
    file.complete(contents.len() as u64)
}

/// A file that is written beside its place, readable by its owner alone, until it is complete. Dropped before that, nothing is left of it.
pub(crate) struct NewFile<'s> {
    storage: &'s dyn Storage,
    path: StoragePath,
    temporary: StoragePath,
    replace: bool,
    file: Box<dyn File>,
    len: u64,
    is_complete: bool,
    /// Nobody else writes under the temporary name.
    _lock: Box<dyn Lock>,
}

impl<'s> NewFile<'s> {
    pub(crate) fn begin(storage: &'s dyn Storage, path: &StoragePath, replace: bool) -> Result<Self, FileError> {
        refuse_existing(storage, path, replace)?;
        let lock = vmseal_rekey::lock(storage, path)?;
        storage.clean_up(path)?;
        // The name that `Storage::clean_up` knows: the next run removes what a crash leaves.
        let temporary = path.sibling(&format!(".{}.vmseal-tmp", path.file_name()))?;
        let file = storage.create(&temporary, None)?;
        Ok(Self { storage, path: path.clone(), temporary, replace, file, len: 0, is_complete: false, _lock: lock })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        self.file.write_at(data, self.len)?;
        self.len += data.len() as u64;
        Ok(())
    }

    /// Cuts it to `len_bytes` and puts it in its place.
    pub(crate) fn complete(mut self, len_bytes: u64) -> Result<(), FileError> {
        self.file.set_len(len_bytes)?;
        self.file.sync()?;
        refuse_existing(self.storage, &self.path, self.replace)?;
        self.storage.rename(&self.temporary, &self.path)?;
        self.is_complete = true;
        Ok(self.storage.sync_folder(&self.path.folder())?)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            // The error that led here is the one that counts.
            let _ = self.storage.remove(&self.temporary);
        }
    }
}

/// Refuses what is there already, before any work.
pub(crate) fn refuse_existing(storage: &dyn Storage, path: &StoragePath, replace: bool) -> Result<(), FileError> {
    if !replace && storage.metadata(path)?.is_some() {
        return Err(FileError::Exists { path: path.to_string() });
    }
    Ok(())
}

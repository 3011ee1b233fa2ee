//! The seam between vmseal and whatever holds the bytes.

use core::fmt;
use core::num::NonZeroUsize;
use core::ops::Range;

use crate::error::Error;
use crate::path::StoragePath;

/// A tree of files.
pub trait Storage: Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongKind`], [`Error::PermissionDenied`] or [`Error::Io`].
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error>;

    /// Creates a new, empty file for reading and writing: with the owner and permissions of `like` where that is given, readable by its
    /// owner alone otherwise. Durable after [`sync_folder`](Self::sync_folder).
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; otherwise as [`open`](Self::open).
    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, Error>;

    /// What is there under this name; `None` where there is nothing.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] or [`Error::Io`].
    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error>;

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error>;

    /// Creates a folder that only its owner may use; one that is there already is left as it is.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error>;

    /// Renames a file, replacing what has the new name, atomically. Durable after [`sync_folder`](Self::sync_folder).
    ///
    /// # Errors
    /// [`Error::WrongKind`] where the new name is not a regular file's; otherwise as [`open`](Self::open).
    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error>;

    /// Removes a file. Durable after [`sync_folder`](Self::sync_folder).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn remove(&self, path: &StoragePath) -> Result<(), Error>;

    /// Makes creations, renames and removals in a folder durable.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error>;

    /// Takes an advisory lock under a name of its own; it ends when the value is dropped or its process ends.
    ///
    /// # Errors
    /// [`Error::Locked`] at once where another holder is in the way.
    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error>;

    /// Whether another program shows that it uses the file as a virtual disk: QEMU locks bytes of the images that it has open. Storage that cannot
    /// tell says no.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn in_use(&self, path: &StoragePath) -> Result<bool, Error> {
        let _ = path;
        Ok(false)
    }

    /// Bytes that can still be written; `None` where the storage cannot tell.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn free_bytes(&self) -> Result<Option<u64>, Error>;

    /// How many reads and writes at once the storage wants at most; `None` where as many as there are processors are right.
    fn requests_max(&self) -> Option<NonZeroUsize> {
        None
    }

    /// Reads a whole file of at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Error::TooLong`]; otherwise as [`open`](Self::open).
    fn read(&self, path: &StoragePath, limit_bytes: u64) -> Result<Vec<u8>, Error> {
        let file = self.open(path, Access::Read)?;
        let len_bytes = file.len()?;
        let too_long = || Error::TooLong { path: path.to_string(), len_bytes, limit_bytes };
        if len_bytes > limit_bytes {
            return Err(too_long());
        }
        let mut bytes = vec![0; usize::try_from(len_bytes).map_err(|_| too_long())?];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Removes what a replacement of `path` left that a crash cut off. Nothing refers to it.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    fn clean_up(&self, path: &StoragePath) -> Result<(), Error> {
        let temporary = temporary(path)?;
        if self.metadata(&temporary)?.is_some() {
            self.remove(&temporary)?;
        }
        Ok(())
    }

    /// Replaces a file, or makes it, so that after a crash it has either its old or its new content, whole.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`rename`](Self::rename); the old content is still there then.
    fn replace(&self, path: &StoragePath, contents: &[u8]) -> Result<(), Error> {
        let temporary = temporary(path)?;
        let like = self.metadata(path)?.map(|_| path);
        self.clean_up(path)?;
        let written = self.create(&temporary, like).and_then(|file| {
            file.write_at(contents, 0)?;
            file.sync()
        });
        if let Err(error) = written.and_then(|()| self.rename(&temporary, path)) {
            // The first error is the one that counts.
            let _ = self.remove(&temporary);
            return Err(error);
        }
        self.sync_folder(&path.folder())
    }
}

/// The name under which the new content of a file is written before it takes its place.
fn temporary(path: &StoragePath) -> Result<StoragePath, Error> {
    path.sibling(&format!(".{}.vmseal-tmp", path.file_name()))
}

/// An open file.
pub trait File: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn len(&self) -> Result<u64, Error>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::UnexpectedEnd`] where the file is too short; [`Error::Io`].
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error>;

    /// Writes `data` at byte `offset`; the file grows where needed, with zeros before the offset.
    ///
    /// # Errors
    /// [`Error::StorageFull`], [`Error::Latched`] or [`Error::Io`].
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error>;

    /// Cuts the file or makes it longer with a hole.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn set_len(&self, len_bytes: u64) -> Result<(), Error>;

    /// Makes everything that was written durable, through this handle and others; also of a file opened for reading.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn sync(&self) -> Result<(), Error>;

    /// Makes `len_bytes` bytes from `offset` read as zeros, and gives their room back where the storage can.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error>;

    /// The next range at or after `offset` that may hold something else than zeros, cut at `offset`; `None` where there is none. Storage
    /// without holes gives the rest of the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }
}

/// A held lock.
pub trait Lock: fmt::Debug + Send + Sync {}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// With others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The length of a file in bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
    /// A value that changes whenever the content may have changed; `None` where the storage cannot tell.
    pub version: Option<u64>,
    /// The same for two names of one file, and for no others; `None` where the storage cannot tell.
    pub identity: Option<u128>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// Something else: a device, a socket, a broken link.
    Other,
}

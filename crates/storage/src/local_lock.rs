//! Advisory locks of a folder: a file that is locked with `flock`, and goes away with the lock.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::local::failed;
use crate::path::StoragePath;
use crate::storage::{Lock, LockMode};

/// Somebody else removes the file between opening and locking it at most this often in a row.
const ATTEMPTS_MAX: usize = 100;

/// Takes the lock.
pub(crate) fn take(folder: OwnedFd, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
    let operation = match mode {
        LockMode::Shared => FlockOperation::NonBlockingLockShared,
        LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    let name = path.file_name();
    for _ in 0..ATTEMPTS_MAX {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| failed(path, "locking it", errno))?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Locked { path: path.to_string(), holder: holder(&file) }),
            Err(errno) => return Err(failed(path, "locking it", errno)),
        }
        // The last holder may have removed the file after it was opened here: then this lock protects nothing.
        if is_named(&folder, name, &file) {
            let held = LocalLock { folder, name: name.to_owned(), file };
            if mode == LockMode::Exclusive {
                // For the message of whoever is refused; the lock itself does not depend on it.
                let _ = rustix::fs::ftruncate(&held.file, 0);
                let _ = rustix::io::pwrite(&held.file, std::process::id().to_string().as_bytes(), 0);
            }
            return Ok(Box::new(held));
        }
    }
    Err(Error::Locked { path: path.to_string(), holder: None })
}

/// Whether the name still stands for the open file.
fn is_named(folder: &OwnedFd, name: &str, file: &OwnedFd) -> bool {
    match (rustix::fs::fstat(file), rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)) {
        (Ok(open), Ok(named)) => (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino),
        _ => false,
    }
}

fn holder(file: &OwnedFd) -> Option<u32> {
    let mut text = [0; 10];
    let len = rustix::io::pread(file, &mut text, 0).ok()?;
    core::str::from_utf8(text.get(..len)?).ok()?.parse().ok()
}

#[derive(Debug)]
struct LocalLock {
    folder: OwnedFd,
    name: String,
    file: OwnedFd,
}

impl Lock for LocalLock {}

impl Drop for LocalLock {
    fn drop(&mut self) {
        // Only the last holder removes the file: while others share the lock it has to stay the same file.
        if rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_named(&self.folder, &self.name, &self.file)
        {
            let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

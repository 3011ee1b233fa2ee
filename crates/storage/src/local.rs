//! A folder of this machine.

use core::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::error::Error;
use crate::local_lock;
use crate::path::StoragePath;
use crate::storage::{Access, File, Kind, Lock, LockMode, Metadata, Storage};

/// A folder of this machine. Nothing outside it is reached, whatever links lie in it.
#[derive(Debug)]
pub struct LocalDir {
    root: OwnedFd,
}

impl LocalDir {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongKind`], [`Error::PermissionDenied`] or [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let root = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::from_io(&folder.display().to_string(), "opening the folder", errno.into()))?;
        Ok(Self { root })
    }

    /// Opens a folder that only its owner may use, and makes it, with those above it, where it is not there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create_private(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::from_io(&folder.display().to_string(), "making the folder", error))?;
        Self::open(folder)
    }

    /// Opens what a path names, without ever leaving the root.
    fn open_beneath(&self, path: &StoragePath, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let name = if path.is_root() { "." } else { path.as_str() };
        let flags = flags | OFlags::CLOEXEC;
        #[cfg(target_os = "linux")]
        {
            match rustix::fs::openat2(&self.root, name, flags, mode, rustix::fs::ResolveFlags::BENEATH) {
                Err(Errno::NOSYS) => {}
                result => return result,
            }
        }
        // Without openat2: part by part, following no link at all.
        let mut folder = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rustix::fs::openat(&folder, part, flags | OFlags::NOFOLLOW, mode);
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            folder = rustix::fs::openat(&folder, part, flags, Mode::empty())?;
        }
        Err(Errno::NOENT)
    }

    /// The folder that holds `path`.
    fn folder_of(&self, path: &StoragePath) -> Result<OwnedFd, Error> {
        self.open_folder(&path.folder())
    }

    fn open_folder(&self, folder: &StoragePath) -> Result<OwnedFd, Error> {
        self.open_beneath(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .map_err(|errno| failed(folder, "opening the folder", errno))
    }

    /// What lies under a name, a link itself and not what it points to.
    fn stat(&self, path: &StoragePath) -> Result<Option<Stat>, Error> {
        if path.is_root() {
            return rustix::fs::fstat(&self.root).map(Some).map_err(|errno| failed(path, "looking at it", errno));
        }
        let folder = match self.open_beneath(&path.folder(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(failed(path, "looking at it", errno)),
        };
        match rustix::fs::statat(&folder, path.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(path, "looking at it", errno)),
        }
    }

    /// A link is refused where it would be replaced: what it points to would stay as it is.
    fn refuse_link(&self, path: &StoragePath) -> Result<(), Error> {
        match self.stat(path)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None | Some(FileType::RegularFile) => Ok(()),
            Some(_) => Err(Error::WrongKind {
                path: path.to_string(),
                wanted: "regular file; name the file itself, not a link to it",
            }),
        }
    }
}

/// A system error with the path it belongs to.
pub(crate) fn failed(path: &StoragePath, operation: &'static str, errno: Errno) -> Error {
    match errno {
        Errno::XDEV | Errno::LOOP => {
            Error::PathRefused { path: path.to_string(), what: "it is a link that leads outside the folder" }
        }
        errno => Error::from_io(&path.to_string(), operation, errno.into()),
    }
}

impl Storage for LocalDir {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        // NONBLOCK: a FIFO in the way must not hang the caller.
        let fd = self
            .open_beneath(path, flags | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| failed(path, "opening it", errno))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed(path, "looking at it", errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Box::new(LocalFile::new(path, fd))),
            _ => Err(Error::WrongKind { path: path.to_string(), wanted: "regular file" }),
        }
    }

    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, Error> {
        // What is made to take the place of another file cannot take that of a link.
        like.map_or(Ok(()), |like| self.refuse_link(like))?;
        let model = like.map(|like| self.stat(like)).transpose()?.flatten();
        let fd = self
            .open_beneath(
                path,
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o600),
            )
            .map_err(|errno| failed(path, "creating it", errno))?;
        if let Some(model) = model
            && let Err(errno) = copy_owner(&fd, &model)
        {
            // Without its owner and permissions the file would not be what was asked for.
            let _ = self.remove(path);
            return Err(failed(path, "keeping the owner and permissions", errno));
        }
        #[cfg(target_os = "linux")]
        if let Some(model) = like.filter(|_| model.is_some())
            && let Ok(model) = self.open_beneath(model, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
        {
            copy_attributes(&model, &fd);
        }
        Ok(Box::new(LocalFile::new(path, fd)))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error> {
        let Some(mut stat) = self.stat(path)? else { return Ok(None) };
        let mut kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            let target = self.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
            if let Some(target) = target.ok().and_then(|fd| rustix::fs::fstat(fd).ok()) {
                stat = target;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
        }
        Ok(Some(match kind {
            FileType::RegularFile => Metadata {
                len: u64::try_from(stat.st_size).unwrap_or(0),
                kind: Kind::File,
                version: Some(version(&stat)),
                identity: Some(identity(&stat)),
            },
            FileType::Directory => Metadata { len: 0, kind: Kind::Folder, version: None, identity: None },
            _ => Metadata { len: 0, kind: Kind::Other, version: None, identity: None },
        }))
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error> {
        let fd = self.open_folder(folder)?;
        let entries = rustix::fs::Dir::read_from(&fd).map_err(|errno| failed(folder, "reading the folder", errno))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| failed(folder, "reading the folder", errno))?;
            // A name that is no text cannot be one of a VM's files.
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        match rustix::fs::mkdirat(self.folder_of(folder)?, folder.file_name(), Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if self.metadata(folder)?.is_some_and(|metadata| metadata.kind == Kind::Folder) => Ok(()),
            Err(errno) => Err(failed(folder, "making the folder", errno)),
        }
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error> {
        self.refuse_link(to)?;
        rustix::fs::renameat(self.folder_of(from)?, from.file_name(), self.folder_of(to)?, to.file_name())
            .map_err(|errno| failed(to, "renaming to it", errno))
    }

    fn remove(&self, path: &StoragePath) -> Result<(), Error> {
        rustix::fs::unlinkat(self.folder_of(path)?, path.file_name(), AtFlags::empty())
            .map_err(|errno| failed(path, "removing it", errno))
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        rustix::fs::fsync(self.open_folder(folder)?).map_err(|errno| failed(folder, "syncing the folder", errno))
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
        local_lock::take(self.folder_of(path)?, path, mode)
    }

    fn in_use(&self, path: &StoragePath) -> Result<bool, Error> {
        let Ok(file) = self.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) else {
            return Ok(false);
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(path, "looking at it", errno))?;
        // Where the system does not list its locks nothing can be told.
        Ok(std::fs::read_to_string("/proc/locks").is_ok_and(|locks| is_open_in_qemu(&locks, &stat)))
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        let root = StoragePath::root();
        let stat = rustix::fs::fstatvfs(&self.root).map_err(|errno| failed(&root, "asking for free space", errno))?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// Looks for QEMU's locks of a file in the list of `proc_locks(5)`: it holds some of the bytes 100 to 203 of each image that it has open.
fn is_open_in_qemu(locks: &str, stat: &Stat) -> bool {
    let own = format!("{:02x}:{:02x}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev), stat.st_ino);
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace().skip_while(|field| *field != own).skip(1);
        fields.next().and_then(|start| start.parse::<u64>().ok()).is_some_and(|start| (100..=203).contains(&start))
    })
}

/// Gives a new file the owner and the permissions of another.
fn copy_owner(fd: &OwnedFd, model: &Stat) -> Result<(), Errno> {
    let own = rustix::fs::fstat(fd)?;
    let (user, group) = (rustix::fs::Uid::from_raw(model.st_uid), rustix::fs::Gid::from_raw(model.st_gid));
    if own.st_uid != model.st_uid {
        rustix::fs::fchown(fd, Some(user), Some(group))?;
    } else if own.st_gid != model.st_gid {
        // A group that the user is not in cannot be given; the owner still can do everything.
        let _ = rustix::fs::fchown(fd, None, Some(group));
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(model.st_mode & 0o7777))
}

#[allow(clippy::unnecessary_cast, reason = "the types of these fields differ between systems")]
fn identity(stat: &Stat) -> u128 {
    u128::from(stat.st_dev as u64) << 64 | u128::from(stat.st_ino as u64)
}

/// Gives a new file the extended attributes of another, access control lists and labels among them. What the system does not let this
/// user set is left out: the owner and the permissions are what counts.
#[cfg(target_os = "linux")]
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) {
    /// The greatest list and value that Linux allows.
    const LEN_MAX: usize = 64 << 10;
    let mut names = vec![0; LEN_MAX];
    let Ok(len) = rustix::fs::flistxattr(from, names.as_mut_slice()) else { return };
    let mut value = vec![0; LEN_MAX];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(len) = rustix::fs::fgetxattr(from, name, value.as_mut_slice()) {
            let _ = rustix::fs::fsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty());
        }
    }
}

/// Changes with every change of the content: the inode, its length, and the times of its last change (FNV-1a over them).
#[allow(clippy::unnecessary_cast, reason = "the types of these fields differ between systems")]
fn version(stat: &Stat) -> u64 {
    let fields = [
        stat.st_dev as u64,
        stat.st_ino as u64,
        stat.st_size as u64,
        stat.st_mtime as u64,
        stat.st_mtime_nsec as u64,
        stat.st_ctime as u64,
        stat.st_ctime_nsec as u64,
    ];
    fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[derive(Debug)]
struct LocalFile {
    path: StoragePath,
    file: std::fs::File,
    /// Set by the first failed write or sync: what that left behind is unknown, and a later sync would not tell.
    failed: AtomicBool,
}

impl LocalFile {
    fn new(path: &StoragePath, fd: OwnedFd) -> Self {
        Self { path: path.clone(), file: fd.into(), failed: AtomicBool::new(false) }
    }

    fn latch<T>(&self, operation: &'static str, result: std::io::Result<T>) -> Result<T, Error> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            Error::from_io(&self.path.to_string(), operation, error)
        })
    }

    fn check(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Relaxed) { Err(Error::Latched { path: self.path.to_string() }) } else { Ok(()) }
    }
}

impl File for LocalFile {
    fn len(&self) -> Result<u64, Error> {
        let metadata =
            self.file.metadata().map_err(|error| Error::from_io(&self.path.to_string(), "looking at it", error))?;
        Ok(metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::UnexpectedEnd {
                path: self.path.to_string(),
                len_bytes: self.len().unwrap_or(0),
                wanted_bytes: offset.saturating_add(buffer.len() as u64),
            },
            _ => Error::from_io(&self.path.to_string(), "reading it", error),
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.check()?;
        self.latch("writing it", self.file.write_all_at(data, offset))
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), Error> {
        self.check()?;
        self.latch("changing its length", self.file.set_len(len_bytes))
    }

    fn sync(&self) -> Result<(), Error> {
        self.check()?;
        self.latch("syncing it", self.file.sync_all())
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.check()?;
        let end = offset.saturating_add(len_bytes).min(self.len()?);
        if offset >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, end - offset) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = [0; 64 << 10];
                let mut at = offset;
                while at < end {
                    let len = (end - at).min(zeros.len() as u64);
                    self.write_at(&zeros[..len as usize], at)?;
                    at += len;
                }
                Ok(())
            }
            Err(errno) => self.latch("punching a hole into it", Err(errno.into())),
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        let seek = |to: SeekFrom| rustix::fs::seek(self.file.as_fd(), to);
        let io = |errno: Errno| Error::from_io(&self.path.to_string(), "looking for holes", errno.into());
        let len = self.len()?;
        if offset >= len {
            return Ok(None);
        }
        let start = match seek(SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset..len)),
            Err(errno) => return Err(io(errno)),
        };
        let end = seek(SeekFrom::Hole(start)).map_err(io)?.min(len);
        Ok((start < end).then_some(start..end))
    }
}

//! What can go wrong on storage.

/// A failed access to storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something with this name is there already.
    #[error("{path} already exists")]
    AlreadyExists {
        /// The path.
        path: String,
    },
    /// The storage failed in another way.
    #[error("{path}: {operation} failed")]
    Io {
        /// The path.
        path: String,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// An earlier write or sync of this file failed.
    #[error("{path}: an earlier write failed, so that nothing more is written; open it again once that is mended")]
    Latched {
        /// The path.
        path: String,
    },
    /// Another process holds the lock.
    #[error("{path} is locked: another vmseal{} is working on it; wait until it has ended", holder_text(holder))]
    Locked {
        /// What the lock protects.
        path: String,
        /// The process that holds it, where that is known.
        holder: Option<u32>,
    },
    /// It is not a regular file, or not a folder.
    #[error("{path} is not a {wanted}; see what is there, and restore the file")]
    WrongKind {
        /// The path.
        path: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// There is no such file or folder.
    #[error("{path} is not there; restore it, or correct the name")]
    NotFound {
        /// The path.
        path: String,
    },
    /// The name leads outside the storage, or is no name.
    #[error("{path:?} cannot be used as a path here: {what}")]
    PathRefused {
        /// The text.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The system does not allow it.
    #[error("{path}: {operation} is not permitted; run as a user who may")]
    PermissionDenied {
        /// The path.
        path: String,
        /// What was tried.
        operation: &'static str,
    },
    /// The storage can only be read.
    #[error("{path}: the storage is read-only; make it writable and try again")]
    ReadOnly {
        /// The path.
        path: String,
    },
    /// The storage is full.
    #[error("{path}: the storage is full; make room and try again")]
    StorageFull {
        /// The path.
        path: String,
    },
    /// A file that is read whole is longer than its kind can be.
    #[error("{path} has {len_bytes} bytes, and a file of its kind at most {limit_bytes}; it is something else")]
    TooLong {
        /// The path.
        path: String,
        /// Its length.
        len_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The file ends before what is wanted.
    #[error("{path} ends at byte {len_bytes}, before byte {wanted_bytes}; it is cut off")]
    UnexpectedEnd {
        /// The path.
        path: String,
        /// Its length.
        len_bytes: u64,
        /// Where the wanted bytes end.
        wanted_bytes: u64,
    },
}

fn holder_text(holder: &Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| {
        if pid == std::process::id() { " (this process itself)".to_owned() } else { format!(" (process {pid})") }
    })
}

impl Error {
    /// The kind of a system error, with the path it belongs to.
    pub fn from_io(path: &str, operation: &'static str, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            std::io::ErrorKind::NotFound => Self::NotFound { path },
            std::io::ErrorKind::PermissionDenied => Self::PermissionDenied { path, operation },
            std::io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::StorageFull { path },
            std::io::ErrorKind::NotADirectory => Self::WrongKind { path, wanted: "folder" },
            std::io::ErrorKind::IsADirectory => Self::WrongKind { path, wanted: "file" },
            _ => Self::Io { path, operation, source },
        }
    }
}

//! The exit status of each kind of failure, as scripts rely on it.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

use vmseal::{Error, KeySourceError};

/// Exit statuses; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Failed = 1,
    Usage = 2,
    Refused = 3,
    Key = 4,
    Damaged = 5,
    NotPermitted = 6,
    Resumable = 7,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why the command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), source: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = of_error(&error);
        let message = error.to_string();
        // A transparent error prints as its source: the chain goes on below it.
        let source = error.source().map(|source| source.to_string()).filter(|source| *source != message);
        Self { status, message, source: source.map(Into::into) }
    }
}

impl From<KeySourceError> for Failure {
    fn from(error: KeySourceError) -> Self {
        Error::from(error).into()
    }
}

impl From<vmseal::storage::Error> for Failure {
    fn from(error: vmseal::storage::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let status = if error.kind() == std::io::ErrorKind::PermissionDenied { Status::NotPermitted } else { Status::Failed };
        Self::new(status, error.to_string())
    }
}

fn of_error(error: &Error) -> Status {
    match error {
        Error::Refused(_) => Status::Refused,
        error if error.is_resumable() => Status::Resumable,
        Error::KeySource(_) | Error::RecoveryPhraseNeeded | Error::WrongKey { .. } => Status::Key,
        Error::BundleContent { .. }
        | Error::DescriptorRoom { .. }
        | Error::Format { .. }
        | Error::RecordDamaged { .. }
        | Error::RecordForged { .. }
        | Error::Vm { .. }
        | Error::WrongDisk { .. } => Status::Damaged,
        Error::Storage(error) => of_storage(error),
        Error::Disk(vmseal::disk::Error::Storage(error)) => of_storage(error),
        Error::Disk(_) => Status::Damaged,
        _ => Status::Failed,
    }
}

fn of_storage(error: &vmseal::storage::Error) -> Status {
    match error {
        vmseal::storage::Error::Locked { .. } => Status::Refused,
        vmseal::storage::Error::PermissionDenied { .. } => Status::NotPermitted,
        _ => Status::Failed,
    }
}

//! The exit status of each kind of failure, as scripts rely on it.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

use vmseal::nbd::BindError;
use vmseal::{Error, ErrorKind, FileError, KeySourceError, ProviderError, StorageError};

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

impl From<ErrorKind> for Status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Damaged => Self::Damaged,
            ErrorKind::Key => Self::Key,
            ErrorKind::NotPermitted => Self::NotPermitted,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Resumable => Self::Resumable,
            _ => Self::Failed,
        }
    }
}

/// Why the command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
    /// Each rule that forbids it, where one does.
    pub(crate) reasons: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// Whether standard output has its one document already.
    pub(crate) is_reported: bool,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), reasons: Vec::new(), source: None, is_reported: false }
    }

    /// A failure whose details were printed with the result, which stands for it on standard output.
    pub(crate) fn reported(status: Status, message: impl Into<String>) -> Self {
        Self { is_reported: true, ..Self::new(status, message) }
    }

    /// A failure with the first cause below it that says something else.
    fn with_source(status: Status, error: &(dyn StdError + 'static)) -> Self {
        let message = error.to_string();
        // A transparent error prints as its source, and one with a path ends with it: the chain goes on below.
        let source = error.source().map(ToString::to_string).filter(|source| !message.ends_with(source.as_str()));
        Self { source: source.map(Into::into), ..Self::new(status, message) }
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
        let reasons = match &error {
            Error::Refused(refusal) => refusal.reasons.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        Self { reasons, ..Self::with_source(error.kind().into(), &error) }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Vm(error) => error.into(),
            error => Self::with_source(error.kind().into(), &error),
        }
    }
}

impl From<KeySourceError> for Failure {
    fn from(error: KeySourceError) -> Self {
        Error::from(error).into()
    }
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        let status = match &error {
            ProviderError::Exists(_) => Status::Refused,
            ProviderError::NativeName(_) => Status::Usage,
            ProviderError::FileDamaged { .. } | ProviderError::PasswordCost { .. } => Status::Damaged,
            ProviderError::PasswordEmpty
            | ProviderError::PasswordNeeded(_)
            | ProviderError::Unknown(_)
            | ProviderError::WrongPassword(_) => Status::Key,
            _ => Status::Failed,
        };
        match error {
            ProviderError::Storage(error) => error.into(),
            error => Self::new(status, error.to_string()),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Error::from(error).into()
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let status = match &error {
            BindError::InUse { .. } | BindError::NotASocket { .. } => Status::Refused,
            BindError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Status::NotPermitted
            }
            _ => Status::Failed,
        };
        Self::with_source(status, &error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let status =
            if error.kind() == std::io::ErrorKind::PermissionDenied { Status::NotPermitted } else { Status::Failed };
        Self::new(status, error.to_string())
    }
}

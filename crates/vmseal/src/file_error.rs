//! What can go wrong with a single file: a VMX that is opened by a password, an envelope.

use vmseal_formats::Error as FormatError;
use vmseal_keys::KeyId;
use vmseal_rekey::{Error, ErrorKind};

/// A file that could not be read, opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Another program wrote to the file in the meantime.
    #[error("{path} was changed by another program meanwhile, and was left as that made it; try again")]
    Changed {
        /// The file.
        path: String,
    },
    /// The output is there already.
    #[error("{path} is there already; name another file, or replace it with `--force`")]
    Exists {
        /// The file.
        path: String,
    },
    /// The file could not be understood or opened.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Nothing that was given opens the file.
    #[error("{path}: no key that opens it is at hand{}; {why}", ids_text(key_ids))]
    KeyNeeded {
        /// The file.
        path: String,
        /// The KEKs that open it.
        key_ids: Vec<KeyId>,
        /// What to do.
        why: String,
    },
    /// A rule forbids it.
    #[error("{path}: {what}")]
    Refused {
        /// The file.
        path: String,
        /// Why, and what to do.
        what: String,
    },
    /// Reading from a stream failed.
    #[error("{path}: reading failed")]
    Stream {
        /// What was read.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is of another kind than what was asked for.
    #[error("{path}: {what}")]
    Unknown {
        /// The file.
        path: String,
        /// What was expected, and what to do.
        what: &'static str,
    },
    /// What was decrypted is not what such files hold.
    #[error(
        "{path} does not decrypt to memory: the VMX is another VM's, or the file is damaged; name the VM's own VMX"
    )]
    WrongVm {
        /// The file.
        path: String,
    },
    /// The VM that the file belongs to is at work, or its storage failed.
    #[error(transparent)]
    Vm(#[from] Error),
}

impl FileError {
    /// What the error means to whoever asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Changed { .. } | Self::Stream { .. } => ErrorKind::Failed,
            Self::Exists { .. } | Self::Refused { .. } => ErrorKind::Refused,
            Self::Format { source, .. } => match source {
                FormatError::WrongKey { .. } | FormatError::NoKey { .. } | FormatError::KeySource(_) => ErrorKind::Key,
                FormatError::Random => ErrorKind::Failed,
                _ => ErrorKind::Damaged,
            },
            Self::KeyNeeded { .. } | Self::WrongVm { .. } => ErrorKind::Key,
            Self::Unknown { .. } => ErrorKind::Damaged,
            Self::Vm(error) => error.kind(),
        }
    }

    /// A file without any entry.
    pub(crate) fn no_vmx(path: &str) -> Self {
        let what = "this is no VMX: it has no line of the form name = \"value\"; name the VM's .vmx file";
        Self::Unknown { path: path.to_owned(), what }
    }

    /// For `map_err`: an error of the formats, in this file.
    pub(crate) fn format(path: &str) -> impl Fn(FormatError) -> Self + '_ {
        |source| Self::Format { path: path.to_owned(), source }
    }
}

fn ids_text(key_ids: &[KeyId]) -> String {
    let names: Vec<String> = key_ids.iter().map(KeyId::to_string).collect();
    if names.is_empty() { String::new() } else { format!(" (key {})", names.join(" or ")) }
}

impl From<vmseal_storage::Error> for FileError {
    fn from(error: vmseal_storage::Error) -> Self {
        Self::Vm(error.into())
    }
}

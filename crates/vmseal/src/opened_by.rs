//! What opens an encrypted file, as far as it shows without any key.

use core::fmt;

use serde::Serialize;
use vmseal_formats::{KeyList, Locator, PhraseParameters};

/// One way to open an encrypted file. The names are those of the JSON document.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
#[non_exhaustive]
pub enum OpenedBy {
    /// The key of an ESXi envelope, by the name that its header gives.
    EnvelopeKey {
        /// The name.
        key: String,
    },
    /// A KEK.
    Key {
        /// The key provider; none where the file names no provider.
        provider: Option<String>,
        /// The key there.
        key: String,
    },
    /// Nothing that is known here.
    Other {
        /// What it is.
        what: String,
    },
    /// A password.
    Password,
    /// A key that lies in the file itself: whoever has the file has the key.
    RawKey,
    /// The TPM of the host.
    Tpm,
    /// The keys inside the VM's VMX, once that is unlocked.
    Vmx,
}

impl OpenedBy {
    /// Every way that a list of locks offers, each once.
    pub(crate) fn of_list(list: &KeyList) -> Vec<Self> {
        let mut ways = Vec::new();
        for pair in list.pairs() {
            let way = Self::of_locator(&pair.locker);
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    fn of_locator(locator: &Locator) -> Self {
        match locator {
            Locator::Fqid { server, key, .. } => Self::Key { provider: server.clone(), key: key.clone() },
            Locator::Phrase { parameters, .. } => match PhraseParameters::parse(parameters) {
                Ok(_) => Self::Password,
                Err(error) => Self::Other { what: format!("a password, but for its damage ({error})") },
            },
            Locator::RawKey(_) => Self::RawKey,
            other => Self::Other { what: format!("a lock of the type {:?}, which nothing here opens", other.kind()) },
        }
    }
}

impl fmt::Display for OpenedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnvelopeKey { key } => write!(f, "key {key}"),
            Self::Key { provider: Some(provider), key } => write!(f, "key {provider}/{key}"),
            Self::Key { provider: None, key } => write!(f, "key {key} (no provider named)"),
            Self::Other { what } => f.write_str(what),
            Self::Password => f.write_str("password"),
            Self::RawKey => f.write_str("a key that lies in the file"),
            Self::Tpm => f.write_str("the host's TPM"),
            Self::Vmx => f.write_str("the VM's unlocked VMX"),
        }
    }
}

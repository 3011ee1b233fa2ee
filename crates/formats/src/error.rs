//! What can be wrong with a file.

use core::fmt;

use vmseal_keys::{KeyId, KeySourceError};

/// Where in the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Place {
    /// A byte offset from the start of what was parsed.
    Byte(u64),
    /// A line and a column in bytes, both from 1.
    Line {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(offset) => write!(f, "byte {offset}"),
            Self::Line { line, column } => write!(f, "line {line}, column {column}"),
        }
    }
}

/// A file that cannot be read, opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not begin, or a part of it does not begin, as its format does.
    #[error("{place}: this is no {format}, or its first bytes are damaged; check that it is the right file")]
    BadMagic {
        /// The format.
        format: &'static str,
        /// Where the magic was looked for.
        place: Place,
    },
    /// Base64 that is not.
    #[error("{place}: {what} is not whole base64 (RFC 4648); restore it from a copy")]
    Base64 {
        /// What was to be decoded.
        what: &'static str,
        /// Where.
        place: Place,
    },
    /// A structure that contradicts itself.
    #[error("{place}: {what}; the file is damaged, restore it from a copy")]
    Corrupt {
        /// The contradiction.
        what: &'static str,
        /// Where.
        place: Place,
    },
    /// A name that may stand there once.
    #[error("line {line}: {name} was given before, in line {first_line}; remove the wrong one")]
    Duplicate {
        /// The name.
        name: String,
        /// The first line with it.
        first_line: usize,
        /// This line.
        line: usize,
    },
    /// Text that is not in the encoding the file names.
    #[error("{place}: {name} is not valid {encoding}; correct the file's encoding entry")]
    Encoding {
        /// The entry.
        name: String,
        /// The encoding.
        encoding: &'static str,
        /// Where.
        place: Place,
    },
    /// A `%` without two hexadecimal digits.
    #[error("{place}: `%` is not followed by two hexadecimal digits; the text was cut or changed")]
    Escape {
        /// Where.
        place: Place,
    },
    /// A key of the wrong length.
    #[error("{what} has {found} bytes and {wanted} are needed; it is of another file or damaged")]
    KeyLength {
        /// Which key.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it has to have.
        wanted: usize,
    },
    /// A key could not be had from its provider.
    #[error("the key that opens it could not be had")]
    KeySource(#[source] KeySourceError),
    /// A part of the wrong length.
    #[error("{what} has {found} bytes and {wanted}; it is cut off or damaged")]
    Length {
        /// Which part.
        what: &'static str,
        /// Its length.
        found: u64,
        /// What it has to be, as a clause: `needs 16`.
        wanted: &'static str,
    },
    /// More than is worked through for a file that may be hostile.
    #[error("{what}: {found}, and at most {max} allowed; if you trust the file, raise the limit")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What was found, in decimal.
        found: String,
        /// The limit.
        max: u64,
    },
    /// An entry, field or attribute that has to be there.
    #[error("there is no {name} in this {part}; it is incomplete, restore it from a copy")]
    Missing {
        /// Its name.
        name: &'static str,
        /// In what it is missing.
        part: &'static str,
    },
    /// No key or phrase for any of its locks was at hand.
    #[error("no key for it is here: {}", key_ids_text(key_ids))]
    NoKey {
        /// The keys that open it.
        key_ids: Vec<KeyId>,
    },
    /// It is no list of pairs, or has no lock that could be opened.
    #[error("this key list has no lock that a phrase or key opens: {what}")]
    NoUsableLocator {
        /// Why.
        what: &'static str,
    },
    /// Data whose tag does not verify under the right key.
    #[error("{what} was changed or damaged after it was encrypted, or the associated data is another; use a copy")]
    NotAuthentic {
        /// What does not verify.
        what: &'static str,
    },
    /// No random bytes.
    #[error("the operating system gave no random bytes; nothing was written")]
    Random,
    /// Text that does not follow its grammar.
    #[error("{place}: {what}")]
    Syntax {
        /// What was expected.
        what: &'static str,
        /// Where.
        place: Place,
    },
    /// It ends too early.
    #[error("this {format} ends at byte {len_bytes}, before byte {wanted_bytes}; it is cut off, use a copy")]
    Truncated {
        /// The format.
        format: &'static str,
        /// Where it ends.
        len_bytes: u64,
        /// Where it has to reach.
        wanted_bytes: u64,
    },
    /// The name of an algorithm, type or mode that this version does not know.
    #[error("{place}: the {kind} {name:?} is not known here; a newer vmseal may know it")]
    Unknown {
        /// What it names.
        kind: Kind,
        /// The name.
        name: String,
        /// Where.
        place: Place,
    },
    /// What is known by name and not done.
    #[error("{what} cannot be read here: {why}")]
    Unsupported {
        /// What.
        what: &'static str,
        /// Why, and what helps.
        why: &'static str,
    },
    /// Flags that change the meaning of a format, and are not known.
    #[error(
        "this {format} has unknown flags {flags:#010x}; reading it could give wrong data, a newer vmseal may know them"
    )]
    UnsupportedFlags {
        /// The format.
        format: &'static str,
        /// The unknown ones.
        flags: u32,
    },
    /// A version of a format.
    #[error("version {version} of {format} is not known here; a newer vmseal may know it")]
    UnsupportedVersion {
        /// The format.
        format: &'static str,
        /// The version.
        version: String,
    },
    /// A value that its field cannot have.
    #[error("{place}: {what} cannot be {found:?}; correct it or restore the file from a copy")]
    Value {
        /// The field, and what it may be.
        what: &'static str,
        /// The value.
        found: String,
        /// Where.
        place: Place,
    },
    /// None of the keys or phrases that were tried opens it; or it is damaged, which cannot be told apart.
    #[error("the phrase or key is wrong, or it is damaged: {}", key_ids_text(key_ids))]
    WrongKey {
        /// The keys that open it.
        key_ids: Vec<KeyId>,
    },
}

/// What an unknown name was to name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// The type of an envelope's attribute.
    AttributeType,
    /// A cipher.
    Cipher,
    /// A text encoding.
    Encoding,
    /// The type of a disk's extent.
    ExtentType,
    /// A hash function.
    Hash,
    /// A key derivation function.
    Kdf,
    /// The type of a LUKS2 key slot.
    KeySlot,
    /// The type of a locator.
    Locator,
    /// A MAC.
    Mac,
    /// The mode of an ESXi keystore.
    Mode,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AttributeType => "attribute type",
            Self::Cipher => "cipher",
            Self::Encoding => "encoding",
            Self::ExtentType => "extent type",
            Self::Hash => "hash function",
            Self::Kdf => "key derivation function",
            Self::KeySlot => "key slot type",
            Self::Locator => "locator type",
            Self::Mac => "MAC",
            Self::Mode => "mode",
        })
    }
}

impl Error {
    /// The error at a place inside a larger text: that text's line, and the column where the inner text begins.
    pub(crate) fn within(self, line: usize, column: usize) -> Self {
        let shift = |place: Place| match place {
            Place::Byte(offset) => Place::Line { line, column: column + usize::try_from(offset).unwrap_or(0) },
            place => place,
        };
        match self {
            Self::Base64 { what, place } => Self::Base64 { what, place: shift(place) },
            Self::Encoding { name, encoding, place } => Self::Encoding { name, encoding, place: shift(place) },
            Self::Escape { place } => Self::Escape { place: shift(place) },
            Self::Syntax { what, place } => Self::Syntax { what, place: shift(place) },
            Self::Unknown { kind, name, place } => Self::Unknown { kind, name, place: shift(place) },
            Self::Value { what, found, place } => Self::Value { what, found, place: shift(place) },
            error => error,
        }
    }

    /// A failure of the key crate where the only cause can be the generator or a length.
    pub(crate) fn from_keys(error: vmseal_keys::Error, what: &'static str) -> Self {
        match error {
            vmseal_keys::Error::KeyLength { found, wanted } => Self::KeyLength { what, found, wanted },
            vmseal_keys::Error::Rounds { rounds, max } => {
                Self::Limit { what: "rounds of key derivation", found: rounds.to_string(), max: max.into() }
            }
            vmseal_keys::Error::WrongKey => Self::WrongKey { key_ids: Vec::new() },
            _ => Self::Random,
        }
    }
}

fn key_ids_text(key_ids: &[KeyId]) -> String {
    match key_ids {
        [] => "enter its phrase, or use the files of the host that has its key".to_owned(),
        [id] => format!("key {} of provider {} opens it", id.key(), id.provider()),
        [first, rest @ ..] => {
            let mut text = format!("one of these keys opens it: {first}");
            for id in rest {
                text.push_str(&format!(", {id}"));
            }
            text
        }
    }
}

//! ESXi's keystore, `encryption.info`: where the key of the host's configuration and core dumps comes from.

use vmseal_keys::FileKey;
use vmseal_keys::kdf::{self, PassKdf};
use zeroize::Zeroizing;

use crate::crypto_dict::CryptoDict;
use crate::dictionary::Dictionary;
use crate::error::{Error, Kind, Place};

/// The text behind the password, which VMware published.
const PUBLISHED_TEXT: &[u8] = b"This is obfuscation, not encryption. If you want encryption, use TPM.";
/// The rounds of key derivation.
const ROUNDS: u32 = 100_000;
/// Bytes of each part.
const PART_LEN: usize = 16;
const ENTRY: &str = "ConfigEncData";

/// A keystore whose key can be had.
#[derive(Debug)]
pub struct Keystore {
    key_id: String,
    key: FileKey,
}

/// What a keystore says of its key, which is not derived for that.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum KeystoreMode {
    /// The key follows from the file: whoever has the file has the key.
    None {
        /// The key's ID, as envelopes name it.
        key_id: String,
    },
    /// A host's TPM has sealed the key.
    Tpm,
}

impl KeystoreMode {
    /// Reads what a keystore says.
    ///
    /// # Errors
    /// As [`Keystore::parse`], but for the mode `TPM`.
    pub fn parse(dictionary: &Dictionary) -> Result<Self, Error> {
        match Parts::parse(dictionary)? {
            Some(parts) => Ok(Self::None { key_id: parts.key_id }),
            None => Ok(Self::Tpm),
        }
    }
}

impl Keystore {
    /// Reads a keystore. In mode `NONE` the key follows from the file: whoever has the file has the key.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in mode `TPM`, where a host's TPM has sealed the key; [`Error::Unknown`] for another
    /// mode; [`Error::Missing`], [`Error::Syntax`], [`Error::Escape`], [`Error::Base64`], [`Error::Length`],
    /// [`Error::UnsupportedVersion`].
    pub fn parse(dictionary: &Dictionary) -> Result<Self, Error> {
        let Some(Parts { key_id, password, salt }) = Parts::parse(dictionary)? else {
            let why =
                "the host's TPM has sealed its key in a form that is not public; use the host's recovery key there";
            return Err(Error::Unsupported { what: "a keystore of mode TPM", why });
        };
        let key = kdf::derive(PassKdf::Pbkdf2HmacSha256, &password, salt.as_slice(), ROUNDS, ROUNDS, FileKey::LEN)
            .and_then(|key| FileKey::from_slice(&key))
            .map_err(|error| Error::from_keys(error, "the key of a keystore"))?;
        Ok(Self { key_id, key })
    }

    /// The key's ID, as envelopes name it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key.
    pub fn key(&self) -> &FileKey {
        &self.key
    }
}

/// What the key of a keystore is derived from.
struct Parts {
    key_id: String,
    password: Zeroizing<Vec<u8>>,
    salt: Zeroizing<[u8; PART_LEN]>,
}

impl Parts {
    /// None in mode `TPM`.
    fn parse(dictionary: &Dictionary) -> Result<Option<Self>, Error> {
        const PART: &str = "keystore";
        let mode = dictionary.text("mode")?.ok_or(Error::Missing { name: "mode", part: PART })?;
        let place = |name: &str| dictionary.place(name).unwrap_or(Place::Byte(0));
        if mode.eq_ignore_ascii_case("TPM") {
            return Ok(None);
        }
        if !mode.eq_ignore_ascii_case("NONE") {
            return Err(Error::Unknown { kind: Kind::Mode, name: mode, place: place("mode") });
        }
        let text = dictionary.text(ENTRY)?.ok_or(Error::Missing { name: ENTRY, part: PART })?;
        Self::from_text(&text).map(Some).map_err(|error| match place(ENTRY) {
            Place::Line { line, column } => error.within(line, column),
            _ => error,
        })
    }

    fn from_text(text: &str) -> Result<Self, Error> {
        let dict = CryptoDict::parse(text, "ConfigEncData of a keystore")?;
        let part = |name: &'static str| -> Result<Zeroizing<[u8; PART_LEN]>, Error> {
            let bytes = dict.bytes(name)?;
            let wrong = |_| Error::Length { what: name, found: bytes.len() as u64, wanted: "needs 16" };
            bytes.as_slice().try_into().map(Zeroizing::new).map_err(wrong)
        };
        let version = dict.field("version")?;
        if version != "1" {
            return Err(Error::UnsupportedVersion {
                format: "the keystore",
                version: version.chars().take(40).collect(),
            });
        }
        let password = Zeroizing::new([part("data1")?.as_slice(), PUBLISHED_TEXT].concat());
        Ok(Self { key_id: uuid_text(&*part("keyId")?), password, salt: part("data2")? })
    }
}

/// A UUID in the order of its bytes.
fn uuid_text(bytes: &[u8; PART_LEN]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

//! What the vector tests share: the files, and the names of error classes.

use std::path::{Path, PathBuf};

use serde_json::Value;
use vmseal_formats::{Error, Kind};
use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, ProviderName};

/// The vectors of one format.
pub(crate) struct Vectors {
    folder: PathBuf,
    values: Value,
}

impl Vectors {
    pub(crate) fn of(format: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format);
        let text = std::fs::read(folder.join("vectors.json")).expect("vectors.json");
        Self { folder, values: serde_json::from_slice(&text).expect("JSON") }
    }

    /// The cases of a list, of which there have to be some.
    pub(crate) fn cases(&self, list: &str) -> &[Value] {
        let cases = self.values[list].as_array().expect("a list of cases");
        assert!(!cases.is_empty(), "no case in {list}");
        cases
    }

    pub(crate) fn file(&self, case: &Value) -> Vec<u8> {
        self.named(text(&case["file"]))
    }

    pub(crate) fn named(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

pub(crate) fn hex(value: &Value) -> Vec<u8> {
    let digits = text(value);
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn sha256(data: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names by which the vectors call an error. More than one where the order of checks decides.
pub(crate) fn classes(error: &Error) -> &'static [&'static str] {
    match error {
        Error::BadMagic { .. } => &["bad_magic"],
        Error::Base64 { .. } => &["base64"],
        Error::Corrupt { .. } => &["corrupt"],
        Error::Duplicate { .. } => &["duplicate"],
        Error::Encoding { .. } => &["encoding"],
        Error::Escape { .. } => &["escape"],
        Error::KeyLength { .. } => &["key_length"],
        Error::Length { .. } => &["length", "padding"],
        Error::Limit { .. } => &["limit"],
        Error::Missing { name: "extent", .. } => &["no_extents"],
        Error::Missing { .. } => &["missing_entry", "missing_field", "missing_attribute"],
        Error::NoKey { .. } | Error::NoUsableLocator { .. } => &["no_usable_locator"],
        Error::NotAuthentic { .. } => &["mac_mismatch", "tag_mismatch"],
        Error::Syntax { .. } => &["syntax"],
        Error::Truncated { .. } => &["truncated"],
        Error::Unknown { kind: Kind::AttributeType, .. } => &["unknown_attribute_type"],
        Error::Unknown { kind: Kind::Cipher, .. } => &["unknown_cipher"],
        Error::Unknown { kind: Kind::Encoding, .. } => &["encoding"],
        Error::Unknown { kind: Kind::ExtentType, .. } => &["unknown_extent_type"],
        Error::Unknown { kind: Kind::Kdf, .. } => &["unknown_kdf"],
        Error::Unknown { kind: Kind::Locator, .. } => &["unknown_locator"],
        Error::Unknown { kind: Kind::Mac, .. } => &["unknown_mac"],
        Error::Unknown { kind: Kind::Mode, .. } | Error::Unsupported { .. } => &["unsupported_mode"],
        Error::UnsupportedFlags { .. } => &["unsupported_flags"],
        Error::UnsupportedVersion { .. } => &["unsupported_version"],
        Error::Value { .. } => &["value"],
        Error::WrongKey { .. } => &["wrong_key"],
        _ => &[],
    }
}

/// That a result is an error of the class that the case names.
pub(crate) fn check_error<T>(case: &Value, result: Result<T, Error>) {
    let wanted = text(&case["error"]);
    match result {
        Ok(_) => panic!("{case} was accepted"),
        Err(error) => assert!(classes(&error).contains(&wanted), "{case}: {error} ({error:?})"),
    }
}

/// Has one KEK.
pub(crate) struct OneKey(pub(crate) KeyId, pub(crate) Vec<u8>);

impl KeySource for OneKey {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        Err(KeySourceError::UnknownProvider(provider.clone()))
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        if *id == self.0 { Ok(Kek::from_slice(&self.1).unwrap()) } else { Err(KeySourceError::UnknownKey(id.clone())) }
    }
}

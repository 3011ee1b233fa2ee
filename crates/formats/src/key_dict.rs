//! The text of a key: `type=key:cipher=…:key=…`.

use core::fmt;

use base64ct::{Base64, Encoding};
use vmseal_keys::key_safe_pair::PairCipher;
use zeroize::Zeroizing;

use crate::crypto_dict::{self, CryptoDict};
use crate::error::{Error, Kind, Place};

/// A key and the cipher it is for: what a key safe locks, and what `dataFileKey` is.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyDict {
    cipher: PairCipher,
    key: Zeroizing<Vec<u8>>,
}

impl KeyDict {
    /// A key for a cipher; the caller wipes its own copy.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn new(cipher: PairCipher, key: &[u8]) -> Result<Self, Error> {
        check_length(cipher, key.len())?;
        Ok(Self { cipher, key: Zeroizing::new(key.to_vec()) })
    }

    /// Reads the text of a key.
    ///
    /// # Errors
    /// [`Error::Encoding`], [`Error::Syntax`], [`Error::Escape`], [`Error::Missing`], [`Error::Value`] where its type
    /// is not `key`, [`Error::Unknown`] for the cipher, [`Error::Base64`], [`Error::KeyLength`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let place = Place::Byte(0);
        let text = core::str::from_utf8(text).map_err(|error| Error::Encoding {
            name: "the text of a key".to_owned(),
            encoding: "UTF-8",
            place: Place::Byte(error.valid_up_to() as u64),
        })?;
        let dict = CryptoDict::parse(text, "text of a key")?;
        match dict.field("type")? {
            "key" => {}
            found => return Err(Error::Value { what: "the type of a key", found: found.to_owned(), place }),
        }
        let cipher = cipher(dict.field("cipher")?)?;
        let key = dict.bytes("key")?;
        check_length(cipher, key.len())?;
        Ok(Self { cipher, key })
    }

    /// The text, in the order that every reader takes.
    pub fn to_text(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(Base64::encode_string(&self.key));
        let key = crypto_dict::escape_value(&key);
        Zeroizing::new(["type=key:cipher=", self.cipher.name(), ":key=", &key].concat())
    }

    /// The cipher that the key is for.
    pub fn cipher(&self) -> PairCipher {
        self.cipher
    }

    /// The bytes of the key, which the caller must not keep or print.
    pub fn expose(&self) -> &[u8] {
        &self.key
    }
}

pub(crate) fn cipher(name: &str) -> Result<PairCipher, Error> {
    PairCipher::from_name(name).ok_or_else(|| Error::Unknown {
        kind: Kind::Cipher,
        name: name.to_owned(),
        place: Place::Byte(0),
    })
}

fn check_length(cipher: PairCipher, found: usize) -> Result<(), Error> {
    if found == cipher.key_len() {
        return Ok(());
    }
    Err(Error::KeyLength { what: "a key of its cipher", found, wanted: cipher.key_len() })
}

impl fmt::Debug for KeyDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDict({}, ..)", self.cipher.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text() {
        for cipher in PairCipher::ALL {
            let key = KeyDict::new(cipher, &vec![0xfb; cipher.key_len()]).unwrap();
            assert!(KeyDict::parse(key.to_text().as_bytes()).unwrap() == key);
        }
        let key = KeyDict::new(PairCipher::Aes128, &[0xff; 16]).unwrap();
        assert_eq!(key.to_text().as_str(), "type=key:cipher=AES-128:key=/////////////////////w%3d%3d");
        assert_eq!(format!("{key:?}"), "KeyDict(AES-128, ..)");
    }
}

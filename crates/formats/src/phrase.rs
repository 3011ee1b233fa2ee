//! Keys from phrases, with the parameters that a locator holds.

use base64ct::{Base64, Encoding};
use rand_core::TryCryptoRng;
use vmseal_keys::kdf::{self, PassKdf};
use vmseal_keys::key_safe_pair::{self, PairCipher, PairMac};
use zeroize::Zeroizing;

use crate::crypto_dict::{self, CryptoDict};
use crate::error::{Error, Kind, Place};
use crate::key_dict;
use crate::locator::{Locator, Pair};

/// The salt of what is written.
const SALT_LEN: usize = 16;
/// The identifier of a phrase.
const ID_LEN: usize = 8;

/// How a key is derived from a phrase: `pass2key=…:cipher=…:rounds=…:salt=…`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PhraseParameters {
    kdf: PassKdf,
    cipher: PairCipher,
    rounds: u32,
    salt: Vec<u8>,
}

impl PhraseParameters {
    /// Parameters with these values.
    pub fn new(kdf: PassKdf, cipher: PairCipher, rounds: u32, salt: &[u8]) -> Self {
        Self { kdf, cipher, rounds, salt: salt.to_vec() }
    }

    /// Parameters with a random salt.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn generate<R: TryCryptoRng>(
        kdf: PassKdf,
        cipher: PairCipher,
        rounds: u32,
        rng: &mut R,
    ) -> Result<Self, Error> {
        let mut salt = [0; SALT_LEN];
        rng.try_fill_bytes(&mut salt).map_err(|_| Error::Random)?;
        Ok(Self::new(kdf, cipher, rounds, &salt))
    }

    /// Reads the parameters of a phrase locator.
    ///
    /// # Errors
    /// [`Error::Syntax`], [`Error::Escape`], [`Error::Missing`], [`Error::Unknown`] for function and cipher,
    /// [`Error::Base64`]; [`Error::Value`] for rounds that are no positive number, [`Error::Limit`] for more than 32
    /// bits hold.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let dict = CryptoDict::parse(text, "locator of a phrase")?;
        let name = dict.field("pass2key")?;
        let kdf = PassKdf::from_name(name).ok_or_else(|| Error::Unknown {
            kind: Kind::Kdf,
            name: name.to_owned(),
            place: Place::Byte(0),
        })?;
        let cipher = key_dict::cipher(dict.field("cipher")?)?;
        let rounds = rounds(dict.field("rounds")?)?;
        Ok(Self { kdf, cipher, rounds, salt: dict.bytes("salt")?.to_vec() })
    }

    /// The text, in the order that every reader takes.
    pub fn to_text(&self) -> String {
        let salt = Base64::encode_string(&self.salt);
        let salt = crypto_dict::escape_value(&salt);
        let (kdf, cipher) = (self.kdf.name(), self.cipher.name());
        format!("pass2key={kdf}:cipher={cipher}:rounds={}:salt={}", self.rounds, salt.as_str())
    }

    /// The key of a phrase.
    ///
    /// # Errors
    /// [`Error::Limit`] before any work where there are more rounds than `rounds_max`.
    pub fn derive(&self, phrase: &[u8], rounds_max: u32) -> Result<Zeroizing<Vec<u8>>, Error> {
        kdf::derive(self.kdf, phrase, &self.salt, self.rounds, rounds_max, self.cipher.key_len())
            .map_err(|error| Error::from_keys(error, "the key of a phrase"))
    }

    /// Locks a secret under a phrase, as a pair with a random identifier.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Limit`] for more rounds than [`kdf::ROUNDS_MAX`].
    pub fn lock<R: TryCryptoRng>(
        &self,
        phrase: &[u8],
        mac: PairMac,
        plaintext: &[u8],
        rng: &mut R,
    ) -> Result<Pair, Error> {
        let mut id = [0; ID_LEN];
        rng.try_fill_bytes(&mut id).map_err(|_| Error::Random)?;
        let key = self.derive(phrase, kdf::ROUNDS_MAX)?;
        let data = key_safe_pair::lock(self.cipher, mac, &key, plaintext, rng)
            .map_err(|error| Error::from_keys(error, "the key of a phrase"))?;
        let locker = Locator::Phrase { id: Base64::encode_string(&id), parameters: self.to_text() };
        Ok(Pair { locker, mac: mac.name().to_owned(), data })
    }

    /// The function.
    pub fn kdf(&self) -> PassKdf {
        self.kdf
    }

    /// The cipher that the key is for.
    pub fn cipher(&self) -> PairCipher {
        self.cipher
    }

    /// How often the function is iterated.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The salt.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }
}

fn rounds(text: &str) -> Result<u32, Error> {
    let what = "the rounds of key derivation, a positive number,";
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(rounds) if is_number && rounds > 0 => Ok(rounds),
        Err(_) if is_number => Err(Error::Limit {
            what: "rounds of key derivation",
            found: text.chars().take(40).collect(),
            max: kdf::ROUNDS_MAX.into(),
        }),
        _ => Err(Error::Value { what, found: text.chars().take(40).collect(), place: Place::Byte(0) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_their_text() {
        let parameters = PhraseParameters::new(PassKdf::Pbkdf2HmacSha1, PairCipher::XtsAes256, 10_000, &[0xfe; 16]);
        let text = "pass2key=PBKDF2-HMAC-SHA-1:cipher=XTS-AES-256:rounds=10000:salt=/v7+/v7+/v7+/v7+/v7+/g%3d%3d";
        assert_eq!(parameters.to_text(), text);
        assert_eq!(PhraseParameters::parse(text).unwrap(), parameters);
    }

    #[test]
    fn rounds_are_checked_before_any_hashing() {
        for (text, is_limit) in
            [("0", false), ("-1", false), ("+1", false), ("", false), ("x", false), ("99999999999", true)]
        {
            assert_eq!(matches!(rounds(text), Err(Error::Limit { .. })), is_limit, "{text}");
            assert!(rounds(text).is_err());
        }
        let costly = PhraseParameters::new(PassKdf::Pbkdf2HmacSha1, PairCipher::Aes256, u32::MAX, b"salt");
        assert!(matches!(costly.derive(b"phrase", kdf::ROUNDS_MAX), Err(Error::Limit { .. })));
    }
}

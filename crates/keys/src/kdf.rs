//! Keys from passwords: PBKDF2 (RFC 8018, 5.2) as VMware's locators name it.

use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::Error;

/// Rounds of what vmseal writes itself: OWASP's advice of 2023 for PBKDF2-HMAC-SHA-256.
pub const ROUNDS_WRITTEN: u32 = 600_000;
/// The rounds that are done for a file unless the caller allows more: some seconds of work.
pub const ROUNDS_MAX: u32 = 10_000_000;

/// The functions that locators name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKdf {
    /// `PBKDF2-HMAC-SHA-1`.
    Pbkdf2HmacSha1,
    /// `PBKDF2-HMAC-SHA-256`.
    Pbkdf2HmacSha256,
}

impl PassKdf {
    /// The name in a locator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pbkdf2HmacSha1 => "PBKDF2-HMAC-SHA-1",
            Self::Pbkdf2HmacSha256 => "PBKDF2-HMAC-SHA-256",
        }
    }

    /// The function with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Pbkdf2HmacSha1, Self::Pbkdf2HmacSha256].into_iter().find(|kdf| kdf.name() == name)
    }
}

/// Derives `len` bytes from a phrase.
///
/// # Errors
/// [`Error::Rounds`] where `rounds` is 0 or above `rounds_max`, before any work is done.
pub fn derive(
    kdf: PassKdf,
    phrase: &[u8],
    salt: &[u8],
    rounds: u32,
    rounds_max: u32,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    if rounds == 0 || rounds > rounds_max {
        return Err(Error::Rounds { rounds, max: rounds_max });
    }
    let mut key = Zeroizing::new(vec![0; len]);
    match kdf {
        PassKdf::Pbkdf2HmacSha1 => pbkdf2::pbkdf2_hmac::<Sha1>(phrase, salt, rounds, &mut key),
        PassKdf::Pbkdf2HmacSha256 => pbkdf2::pbkdf2_hmac::<Sha256>(phrase, salt, rounds, &mut key),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn the_known_answers_of_rfc_6070() {
        let key = |rounds| derive(PassKdf::Pbkdf2HmacSha1, b"password", b"salt", rounds, ROUNDS_MAX, 20).unwrap();
        assert_eq!(key(1).as_slice(), hex!("0c60c80f961f0e71f3a9b524af6012062fe037a6"));
        assert_eq!(key(4096).as_slice(), hex!("4b007901b765489abead49d926f721d065a429c1"));
    }

    #[test]
    fn the_known_answer_of_rfc_7914() {
        let key = derive(PassKdf::Pbkdf2HmacSha256, b"passwd", b"salt", 1, 1, 64).unwrap();
        assert_eq!(
            key.as_slice(),
            hex!(
                "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
                "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
            )
        );
    }

    #[test]
    fn too_many_rounds_are_refused_before_any_work() {
        for rounds in [0, 101, u32::MAX] {
            let refused = derive(PassKdf::Pbkdf2HmacSha1, b"p", b"s", rounds, 100, 32).unwrap_err();
            assert_eq!(refused, Error::Rounds { rounds, max: 100 });
        }
    }
}

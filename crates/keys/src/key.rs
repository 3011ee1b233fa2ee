//! The key types.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use rand_core::TryCryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::Error;
use crate::memory::Slot;

/// Identifies a key to people without helping to find it: 3 bytes of HMAC-SHA-256 over a fixed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckValue([u8; 3]);

impl fmt::Display for CheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl CheckValue {
    fn of(key: &[u8]) -> Self {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).map(|mac| mac.chain_update(b"vmseal key check value"));
        let mut value = [0; 3];
        if let Ok(mac) = mac {
            value.copy_from_slice(&mac.finalize().into_bytes()[..3]);
        }
        Self(value)
    }
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $len:literal, $check:expr) => {
        $(#[$doc])*
        pub struct $name(Slot);

        impl $name {
            /// Its length in bytes.
            pub const LEN: usize = $len;

            /// A new key from `rng`, which is [`system_rng`](crate::system_rng) but in tests.
            ///
            /// # Errors
            /// [`Error::Random`] where the generator fails.
            pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, Error> {
                let mut slot = Slot::new();
                rng.try_fill_bytes(&mut slot.bytes_mut()[..$len]).map_err(|_| Error::Random)?;
                Self::checked(slot)
            }

            /// The key with these bytes; the caller wipes its own copy.
            ///
            /// # Errors
            /// Where such a key is not allowed: a DEK with [`Error::EqualHalves`].
            pub fn from_bytes(bytes: &[u8; $len]) -> Result<Self, Error> {
                let mut slot = Slot::new();
                slot.bytes_mut()[..$len].copy_from_slice(bytes);
                Self::checked(slot)
            }

            /// The key with these bytes.
            ///
            /// # Errors
            /// [`Error::KeyLength`]; otherwise as [`from_bytes`](Self::from_bytes).
            pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
                match bytes.try_into() {
                    Ok(bytes) => Self::from_bytes(bytes),
                    Err(_) => Err(Error::KeyLength { found: bytes.len(), wanted: $len }),
                }
            }

            /// The bytes of the key, which the caller must not keep or print.
            pub fn expose(&self) -> &[u8; $len] {
                let (key, _) = self.0.bytes().split_first_chunk().unwrap_or((&[0; $len], &[]));
                key
            }

            /// Identifies the key to people.
            pub fn check_value(&self) -> CheckValue {
                CheckValue::of(self.expose())
            }

            fn checked(slot: Slot) -> Result<Self, Error> {
                let check: fn(&[u8; $len]) -> Result<(), Error> = $check;
                let key = Self(slot);
                check(key.expose())?;
                Ok(key)
            }
        }

        /// In constant time.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.expose().ct_eq(other.expose()).into()
            }
        }

        impl Eq for $name {}

        /// Prints the check value, never the key.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.check_value())
            }
        }
    };
}

key! {
    /// Data encryption key of a disk: XTS-AES-256 (IEEE 1619), the data key and then the tweak key, 32 bytes each and never equal.
    Dek, 64, |key| if key[..32].ct_eq(&key[32..]).into() { Err(Error::EqualHalves) } else { Ok(()) }
}

key! {
    /// Key of one sealed VM file: AES-256-GCM.
    FileKey, 32, |_| Ok(())
}

key! {
    /// Key encryption key: wraps DEKs and the secrets of a VM.
    Kek, 32, |_| Ok(())
}

key! {
    /// Primary key of a key provider: its KEKs are derived from it or wrapped under it.
    PrimaryKey, 32, |_| Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system_rng;

    #[test]
    fn debug_prints_a_check_value_and_no_key() {
        let key = Kek::from_bytes(&[0x41; 32]).unwrap();
        let text = format!("{key:?}");
        assert_eq!(text, format!("Kek({})", key.check_value()));
        assert!(!text.contains("41414141") && !text.contains("AAAA"));
    }

    #[test]
    fn a_dek_with_equal_halves_is_refused() {
        assert_eq!(Dek::from_bytes(&[3; 64]).unwrap_err(), Error::EqualHalves);
        let mut bytes = [3; 64];
        bytes[63] = 4;
        assert_eq!(Dek::from_bytes(&bytes).unwrap().expose(), &bytes);
    }

    #[test]
    fn keys_are_compared_by_their_bytes() {
        let key = Dek::generate(&mut system_rng()).unwrap();
        assert!(key == Dek::from_slice(key.expose()).unwrap());
        assert!(key != Dek::generate(&mut system_rng()).unwrap());
        assert_eq!(Kek::from_slice(&[1; 31]).unwrap_err(), Error::KeyLength { found: 31, wanted: 32 });
    }
}

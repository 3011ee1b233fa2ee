//! The ciphers.

use core::fmt;

use aes::{Aes128, Aes256};
use cipher::KeyInit;
use subtle::ConstantTimeEq;

use crate::batch::{self, Direction};
use crate::error::Error;

macro_rules! xts {
    ($(#[$doc:meta])* $name:ident, $aes:ident, $key_len:literal) => {
        $(#[$doc])*
        pub struct $name {
            data: $aes,
            tweak: $aes,
        }

        impl $name {
            /// The bytes of its key: the data key, then the tweak key.
            pub const KEY_LEN: usize = $key_len;

            /// The cipher under `key`: the data key, then the tweak key.
            ///
            /// # Errors
            /// [`Error::EqualHalves`].
            pub fn new(key: &[u8; $key_len]) -> Result<Self, Error> {
                Self::new_from_slice(key)
            }

            /// The cipher under `key`.
            ///
            /// # Errors
            /// [`Error::KeyLength`]; [`Error::EqualHalves`].
            pub fn new_from_slice(key: &[u8]) -> Result<Self, Error> {
                if key.len() != $key_len {
                    return Err(Error::KeyLength);
                }
                let (data, tweak) = key.split_at($key_len / 2);
                if data.ct_eq(tweak).into() {
                    return Err(Error::EqualHalves);
                }
                let aes = |key| $aes::new_from_slice(key).map_err(|_| Error::KeyLength);
                Ok(Self { data: aes(data)?, tweak: aes(tweak)? })
            }

            /// Encrypts a run of data units in place. `data` is units of `unit_size` bytes, numbered from `first_unit`; the last may be
            /// shorter, from 16 bytes on.
            ///
            /// # Errors
            /// [`Error::UnitSize`], [`Error::ShortUnit`], [`Error::UnitNumber`]: nothing has changed then.
            pub fn encrypt_units(&self, data: &mut [u8], unit_size: usize, first_unit: u128) -> Result<(), Error> {
                batch::run(&self.data, &self.tweak, Direction::Encrypt, data, unit_size, first_unit)
            }

            /// Decrypts a run of data units in place; as [`encrypt_units`](Self::encrypt_units).
            ///
            /// # Errors
            /// As [`encrypt_units`](Self::encrypt_units).
            pub fn decrypt_units(&self, data: &mut [u8], unit_size: usize, first_unit: u128) -> Result<(), Error> {
                batch::run(&self.data, &self.tweak, Direction::Decrypt, data, unit_size, first_unit)
            }

            /// Encrypts a run of data units from `input` into `output`.
            ///
            /// # Errors
            /// [`Error::OutputLength`]; otherwise as [`encrypt_units`](Self::encrypt_units). `output` is unspecified after an error.
            pub fn encrypt_units_to(
                &self,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
            ) -> Result<(), Error> {
                batch::copy(input, output)?;
                self.encrypt_units(output, unit_size, first_unit)
            }

            /// Decrypts a run of data units from `input` into `output`.
            ///
            /// # Errors
            /// As [`encrypt_units_to`](Self::encrypt_units_to).
            pub fn decrypt_units_to(
                &self,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
            ) -> Result<(), Error> {
                batch::copy(input, output)?;
                self.decrypt_units(output, unit_size, first_unit)
            }

            /// Decrypts a run of data units under this key and encrypts it under `to`, in one pass over blocks that stay in the cache.
            ///
            /// # Errors
            /// As [`encrypt_units`](Self::encrypt_units).
            pub fn transcrypt_units(
                &self,
                to: &Self,
                data: &mut [u8],
                unit_size: usize,
                first_unit: u128,
            ) -> Result<(), Error> {
                batch::check(data.len(), unit_size, first_unit)?;
                // Whole units of about 64 KiB: what the first pass leaves in the cache the second finds there.
                let block_len = (65_536 / unit_size).max(1) * unit_size;
                let mut unit = first_unit;
                for block in data.chunks_mut(block_len) {
                    self.decrypt_units(block, unit_size, unit)?;
                    to.encrypt_units(block, unit_size, unit)?;
                    // The sum was checked for the whole run; the value after the last block is not used.
                    unit = unit.wrapping_add((block_len / unit_size) as u128);
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

xts! {
    /// XTS-AES-256: a key of 64 bytes.
    XtsAes256, Aes256, 64
}

xts! {
    /// XTS-AES-128: a key of 32 bytes.
    XtsAes128, Aes128, 32
}

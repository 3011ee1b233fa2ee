//! The ciphers.

use core::fmt;

use aes::{Aes128, Aes256};
use cipher::InOutBuf;
use subtle::ConstantTimeEq;

use crate::error::Error;
use crate::kernels::{Cipher, Direction, Kernel};
#[cfg(feature = "parallel")]
use crate::parallel::{Workers, for_each_part};
use crate::run::{self, Run};

macro_rules! xts {
    ($(#[$doc:meta])* $name:ident, $aes:ident, $round_keys:literal, $key_len:literal) => {
        $(#[$doc])*
        pub struct $name {
            cipher: Cipher<$aes, $round_keys>,
        }

        impl $name {
            /// The bytes of its key: the data key, then the tweak key.
            pub const KEY_LEN: usize = $key_len;

            /// The cipher under `key`: the data key, then the tweak key. The kernel is chosen here, once.
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
                let key = key.try_into().map_err(|_| Error::KeyLength)?;
                // The portable kernel is always there.
                Self::on(Kernel::detect(), key).or_else(|| Self::on(Kernel::Portable, key)).unwrap_or(Err(Error::KeyLength))
            }

            /// The cipher under `key` on this kernel, however slow; none where the CPU does not run it.
            #[cfg(feature = "force-kernel")]
            pub fn with_kernel(kernel: Kernel, key: &[u8; $key_len]) -> Option<Result<Self, Error>> {
                Self::on(kernel, key)
            }

            /// The kernel that it runs on.
            #[cfg(feature = "force-kernel")]
            pub fn kernel(&self) -> Kernel {
                self.cipher.kernel()
            }

            /// Encrypts a run of data units in place. `data` is units of `unit_size` bytes, numbered from `first_unit`; the last may be
            /// shorter, from 16 bytes on, and is enciphered by ciphertext stealing (IEEE 1619, 5.3.2) where it is not whole blocks.
            ///
            /// # Errors
            /// [`Error::UnitSize`], [`Error::ShortUnit`], [`Error::UnitNumber`]: nothing has changed then.
            pub fn encrypt_units(&self, data: &mut [u8], unit_size: usize, first_unit: u128) -> Result<(), Error> {
                self.process(Direction::Encrypt, data.into(), unit_size, first_unit)
            }

            /// Decrypts a run of data units in place; as [`encrypt_units`](Self::encrypt_units).
            ///
            /// # Errors
            /// As [`encrypt_units`](Self::encrypt_units).
            pub fn decrypt_units(&self, data: &mut [u8], unit_size: usize, first_unit: u128) -> Result<(), Error> {
                self.process(Direction::Decrypt, data.into(), unit_size, first_unit)
            }

            /// Encrypts a run of data units from `input` into `output`.
            ///
            /// # Errors
            /// [`Error::OutputLength`]; otherwise as [`encrypt_units`](Self::encrypt_units). Nothing is written then.
            pub fn encrypt_units_to(
                &self,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
            ) -> Result<(), Error> {
                let data = InOutBuf::new(input, output).map_err(|_| Error::OutputLength)?;
                self.process(Direction::Encrypt, data, unit_size, first_unit)
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
                let data = InOutBuf::new(input, output).map_err(|_| Error::OutputLength)?;
                self.process(Direction::Decrypt, data, unit_size, first_unit)
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
                let run = Run::new(data.len(), unit_size, first_unit)?;
                run::transcrypt(&self.cipher, &to.cipher, data, run);
                Ok(())
            }

            /// As [`encrypt_units`](Self::encrypt_units), with `workers` doing parts of it at the same time. A short run is done at once.
            ///
            /// # Errors
            /// As [`encrypt_units`](Self::encrypt_units); [`Error::Workers`].
            #[cfg(feature = "parallel")]
            pub fn encrypt_units_parallel(
                &self,
                data: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                self.parallel(Direction::Encrypt, data, unit_size, first_unit, workers)
            }

            /// As [`decrypt_units`](Self::decrypt_units), with `workers` doing parts of it at the same time.
            ///
            /// # Errors
            /// As [`encrypt_units_parallel`](Self::encrypt_units_parallel).
            #[cfg(feature = "parallel")]
            pub fn decrypt_units_parallel(
                &self,
                data: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                self.parallel(Direction::Decrypt, data, unit_size, first_unit, workers)
            }

            /// As [`encrypt_units_to`](Self::encrypt_units_to), with `workers` doing parts of it at the same time.
            ///
            /// # Errors
            /// As [`encrypt_units_to`](Self::encrypt_units_to); [`Error::Workers`].
            #[cfg(feature = "parallel")]
            pub fn encrypt_units_to_parallel(
                &self,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                self.parallel_to(Direction::Encrypt, input, output, unit_size, first_unit, workers)
            }

            /// As [`decrypt_units_to`](Self::decrypt_units_to), with `workers` doing parts of it at the same time.
            ///
            /// # Errors
            /// As [`encrypt_units_to_parallel`](Self::encrypt_units_to_parallel).
            #[cfg(feature = "parallel")]
            pub fn decrypt_units_to_parallel(
                &self,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                self.parallel_to(Direction::Decrypt, input, output, unit_size, first_unit, workers)
            }

            /// As [`transcrypt_units`](Self::transcrypt_units), with `workers` doing parts of it at the same time.
            ///
            /// # Errors
            /// As [`encrypt_units_parallel`](Self::encrypt_units_parallel).
            #[cfg(feature = "parallel")]
            pub fn transcrypt_units_parallel(
                &self,
                to: &Self,
                data: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                let run = Run::new(data.len(), unit_size, first_unit)?;
                let len = data.len();
                for_each_part(data, len, run, workers, |part, run| run::transcrypt(&self.cipher, &to.cipher, part, run))
            }

            fn on(kernel: Kernel, key: &[u8; $key_len]) -> Option<Result<Self, Error>> {
                let (data, tweak) = key.split_at($key_len / 2);
                if data.ct_eq(tweak).into() {
                    return Some(Err(Error::EqualHalves));
                }
                Cipher::new(kernel, data, tweak).map(|cipher| Ok(Self { cipher: cipher? }))
            }

            #[inline]
            fn process(
                &self,
                direction: Direction,
                data: InOutBuf<'_, '_, u8>,
                unit_size: usize,
                first_unit: u128,
            ) -> Result<(), Error> {
                let run = Run::new(data.len(), unit_size, first_unit)?;
                run::process(&self.cipher, direction, data, run);
                Ok(())
            }

            #[cfg(feature = "parallel")]
            fn parallel(
                &self,
                direction: Direction,
                data: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                let run = Run::new(data.len(), unit_size, first_unit)?;
                let len = data.len();
                for_each_part(data, len, run, workers, |part, run| {
                    run::process(&self.cipher, direction, part.into(), run);
                })
            }

            #[cfg(feature = "parallel")]
            fn parallel_to(
                &self,
                direction: Direction,
                input: &[u8],
                output: &mut [u8],
                unit_size: usize,
                first_unit: u128,
                workers: &dyn Workers,
            ) -> Result<(), Error> {
                if input.len() != output.len() {
                    return Err(Error::OutputLength);
                }
                let run = Run::new(input.len(), unit_size, first_unit)?;
                for_each_part((input, output), input.len(), run, workers, |(input, output), run| {
                    // The parts are of one length, as the whole is.
                    if let Ok(part) = InOutBuf::new(input, output) {
                        run::process(&self.cipher, direction, part, run);
                    }
                })
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
    XtsAes256, Aes256, 15, 64
}

xts! {
    /// XTS-AES-128: a key of 32 bytes.
    XtsAes128, Aes128, 11, 32
}

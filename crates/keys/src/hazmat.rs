//! Key wrapping by the letter of its standards, for interoperability and known answers.
//!
//! Nothing here binds a wrapped key to what it is for: use [`wrap`](crate::wrap) and [`unwrap`](crate::unwrap) for keys of your own.

use aes::{Aes128, Aes192, Aes256};
use aes_kw::cipher::consts::U16;
use aes_kw::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes_kw::{AesKw, AesKwp};
use zeroize::Zeroizing;

use crate::error::Error;

/// No key that is wrapped is longer.
const KEY_LEN_MAX: usize = 4096;

/// Which of the two wrapping functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyWrap {
    /// AES-KW (RFC 3394, SP 800-38F section 6.2): keys of 16 bytes and more, in steps of 8.
    Kw,
    /// AES-KWP (RFC 5649, SP 800-38F section 6.3): keys of any length from 1 byte.
    Kwp,
}

/// Wraps `key` under an AES key of 16, 24 or 32 bytes.
///
/// # Errors
/// [`Error::KeyLength`] where either key has a length that the function does not take.
pub fn wrap(function: KeyWrap, under: &[u8], key: &[u8]) -> Result<Vec<u8>, Error> {
    match under.len() {
        16 => wrap_with::<Aes128>(function, under, key),
        24 => wrap_with::<Aes192>(function, under, key),
        32 => wrap_with::<Aes256>(function, under, key),
        found => Err(Error::KeyLength { found, wanted: 32 }),
    }
}

/// Unwraps what [`wrap`] made.
///
/// # Errors
/// [`Error::WrongKey`] where the integrity check fails; [`Error::KeyLength`] for an AES key of another length.
pub fn unwrap(function: KeyWrap, under: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    match under.len() {
        16 => unwrap_with::<Aes128>(function, under, wrapped),
        24 => unwrap_with::<Aes192>(function, under, wrapped),
        32 => unwrap_with::<Aes256>(function, under, wrapped),
        found => Err(Error::KeyLength { found, wanted: 32 }),
    }
}

fn wrap_with<C>(function: KeyWrap, under: &[u8], key: &[u8]) -> Result<Vec<u8>, Error>
where
    C: KeyInit + BlockCipherEncrypt<BlockSize = U16>,
{
    let length = || Error::KeyLength { found: key.len(), wanted: 32 };
    if key.is_empty()
        || key.len() > KEY_LEN_MAX
        || function == KeyWrap::Kw && (key.len() < 16 || !key.len().is_multiple_of(8))
    {
        return Err(length());
    }
    let under_len = |_| Error::KeyLength { found: under.len(), wanted: 32 };
    let mut buffer = vec![0; key.len().next_multiple_of(8) + 8];
    let wrapped = match function {
        KeyWrap::Kw => {
            AesKw::<C>::new_from_slice(under).map_err(under_len)?.wrap_key(key, &mut buffer).map(<[u8]>::len)
        }
        KeyWrap::Kwp => {
            AesKwp::<C>::new_from_slice(under).map_err(under_len)?.wrap_key(key, &mut buffer).map(<[u8]>::len)
        }
    };
    let len = wrapped.map_err(|_| length())?;
    buffer.truncate(len);
    Ok(buffer)
}

fn unwrap_with<C>(function: KeyWrap, under: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error>
where
    C: KeyInit + BlockCipherDecrypt<BlockSize = U16>,
{
    if wrapped.len() > KEY_LEN_MAX + 16 {
        return Err(Error::WrongKey);
    }
    let under_len = |_| Error::KeyLength { found: under.len(), wanted: 32 };
    let mut buffer = Zeroizing::new(vec![0; wrapped.len()]);
    let key = match function {
        KeyWrap::Kw => {
            AesKw::<C>::new_from_slice(under).map_err(under_len)?.unwrap_key(wrapped, &mut buffer).map(<[u8]>::len)
        }
        KeyWrap::Kwp => {
            AesKwp::<C>::new_from_slice(under).map_err(under_len)?.unwrap_key(wrapped, &mut buffer).map(<[u8]>::len)
        }
    };
    let len = key.map_err(|_| Error::WrongKey)?;
    buffer.truncate(len);
    Ok(buffer)
}

//! The locked blob of VMware's locators: `IV || AES-CBC(PKCS#7(plaintext)) || MAC(plaintext)`.
//!
//! Source: the formats of Workstation and Fusion key safes (`docs/formats/key-safe.md`). The MAC is over the plaintext under the whole
//! key; under a key of 64 bytes AES takes the first 32. Neither IV nor padding is authenticated by the format, so that opening
//! checks padding and MAC together, in constant time, and tells nobody which of them failed.

use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hmac::{Hmac, KeyInit, Mac};
use rand_core::TryCryptoRng;
use sha1::Sha1;
use sha2::Sha256;
use subtle::{ConditionallySelectable, ConstantTimeEq, ConstantTimeLess};
use zeroize::Zeroizing;

use crate::error::Error;

const BLOCK_LEN: usize = 16;
/// No key safe or bundle is longer.
const LEN_MAX: usize = 64 << 20;

/// The ciphers that locators name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairCipher {
    /// `AES-128`.
    Aes128,
    /// `AES-192`.
    Aes192,
    /// `AES-256`.
    Aes256,
    /// `XTS-AES-256`: a key of 64 bytes; here still AES-256-CBC under its first half.
    XtsAes256,
}

impl PairCipher {
    /// Every cipher.
    pub const ALL: [Self; 4] = [Self::Aes128, Self::Aes192, Self::Aes256, Self::XtsAes256];

    /// The name in a locator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "AES-128",
            Self::Aes192 => "AES-192",
            Self::Aes256 => "AES-256",
            Self::XtsAes256 => "XTS-AES-256",
        }
    }

    /// The cipher with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }

    /// The bytes of its key.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes192 => 24,
            Self::Aes256 => 32,
            Self::XtsAes256 => 64,
        }
    }
}

/// The MACs that locators name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the name has two numbers")]
pub enum PairMac {
    /// `HMAC-SHA-1`.
    HmacSha1,
    /// `HMAC-SHA-1-128`: cut to 16 bytes.
    HmacSha1_128,
    /// `HMAC-SHA-256`.
    HmacSha256,
}

impl PairMac {
    /// Every MAC.
    pub const ALL: [Self; 3] = [Self::HmacSha1, Self::HmacSha1_128, Self::HmacSha256];

    /// The name in a locator.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "HMAC-SHA-1",
            Self::HmacSha1_128 => "HMAC-SHA-1-128",
            Self::HmacSha256 => "HMAC-SHA-256",
        }
    }

    /// The MAC with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mac| mac.name() == name)
    }

    /// Its length in bytes.
    pub fn tag_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha1_128 => 16,
            Self::HmacSha256 => 32,
        }
    }

    fn compute(self, key: &[u8], data: &[u8]) -> Zeroizing<Vec<u8>> {
        fn hmac<M: Mac + KeyInit>(key: &[u8], data: &[u8]) -> Vec<u8> {
            match <M as KeyInit>::new_from_slice(key) {
                Ok(mac) => mac.chain_update(data).finalize().into_bytes().to_vec(),
                Err(_) => unreachable!("HMAC accepts keys of every length (RFC 2104)"),
            }
        }
        let mut tag = Zeroizing::new(match self {
            Self::HmacSha1 | Self::HmacSha1_128 => hmac::<Hmac<Sha1>>(key, data),
            Self::HmacSha256 => hmac::<Hmac<Sha256>>(key, data),
        });
        tag.truncate(self.tag_len());
        tag
    }
}

/// Locks `plaintext` under `key` with a random IV.
///
/// # Errors
/// [`Error::KeyLength`] where the key is not of the cipher's length; [`Error::Random`].
pub fn lock<R: TryCryptoRng>(
    cipher: PairCipher,
    mac: PairMac,
    key: &[u8],
    plaintext: &[u8],
    rng: &mut R,
) -> Result<Vec<u8>, Error> {
    let mut iv = [0; BLOCK_LEN];
    rng.try_fill_bytes(&mut iv).map_err(|_| Error::Random)?;
    lock_with_iv(cipher, mac, key, plaintext, &iv)
}

/// Locks `plaintext` under `key` with this IV, which must not have been used with the key before.
///
/// # Errors
/// [`Error::KeyLength`] where the key is not of the cipher's length.
pub fn lock_with_iv(
    cipher: PairCipher,
    mac: PairMac,
    key: &[u8],
    plaintext: &[u8],
    iv: &[u8; BLOCK_LEN],
) -> Result<Vec<u8>, Error> {
    check_key(cipher, key)?;
    let padding = BLOCK_LEN - plaintext.len() % BLOCK_LEN;
    let end = BLOCK_LEN + plaintext.len() + padding;
    // Made at its full length at once: growing would leave plaintext behind in memory.
    let mut blob = Zeroizing::new(Vec::with_capacity(end + mac.tag_len()));
    blob.extend_from_slice(iv);
    blob.extend_from_slice(plaintext);
    blob.resize(end, padding as u8);
    let len = end - BLOCK_LEN;
    let done = match cipher {
        PairCipher::Aes128 => encrypt::<aes::Aes128>(key, iv, &mut blob[BLOCK_LEN..], len),
        PairCipher::Aes192 => encrypt::<aes::Aes192>(key, iv, &mut blob[BLOCK_LEN..], len),
        PairCipher::Aes256 | PairCipher::XtsAes256 => {
            encrypt::<aes::Aes256>(&key[..32], iv, &mut blob[BLOCK_LEN..], len)
        }
    };
    done.ok_or(Error::KeyLength { found: key.len(), wanted: cipher.key_len() })?;
    blob.extend_from_slice(&mac.compute(key, plaintext));
    Ok(core::mem::take(&mut *blob))
}

/// Opens what [`lock`] made.
///
/// # Errors
/// [`Error::WrongKey`] for a wrong key and for damage alike; [`Error::KeyLength`] where the key is not of the cipher's length.
pub fn unlock(cipher: PairCipher, mac: PairMac, key: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    check_key(cipher, key)?;
    let body_len = blob.len().checked_sub(BLOCK_LEN + mac.tag_len()).ok_or(Error::WrongKey)?;
    if body_len == 0 || body_len % BLOCK_LEN != 0 || blob.len() > LEN_MAX {
        return Err(Error::WrongKey);
    }
    let (iv, rest) = blob.split_at(BLOCK_LEN);
    let (body, tag) = rest.split_at(body_len);
    let mut plaintext = Zeroizing::new(body.to_vec());
    let done = match cipher {
        PairCipher::Aes128 => decrypt::<aes::Aes128>(key, iv, &mut plaintext),
        PairCipher::Aes192 => decrypt::<aes::Aes192>(key, iv, &mut plaintext),
        PairCipher::Aes256 | PairCipher::XtsAes256 => decrypt::<aes::Aes256>(&key[..32], iv, &mut plaintext),
    };
    done.ok_or(Error::WrongKey)?;

    // Strict PKCS#7 (RFC 5652, 6.3): 1 to 16, and every padding byte counts. A wrong padding is taken for 16, so that the same work
    // follows whatever was found.
    let last = plaintext[body_len - 1];
    let mut padding_ok = !last.ct_eq(&0) & last.ct_lt(&(BLOCK_LEN as u8 + 1));
    for (index, byte) in plaintext[body_len - BLOCK_LEN..].iter().enumerate() {
        let is_padding = !last.ct_lt(&((BLOCK_LEN - index) as u8));
        padding_ok &= !is_padding | byte.ct_eq(&last);
    }
    let padding = u8::conditional_select(&(BLOCK_LEN as u8), &last, padding_ok);
    let len = body_len - usize::from(padding);
    let mac_ok = mac.compute(key, &plaintext[..len]).ct_eq(tag);
    if bool::from(padding_ok & mac_ok) {
        plaintext.truncate(len);
        Ok(plaintext)
    } else {
        Err(Error::WrongKey)
    }
}

fn check_key(cipher: PairCipher, key: &[u8]) -> Result<(), Error> {
    if key.len() == cipher.key_len() {
        Ok(())
    } else {
        Err(Error::KeyLength { found: key.len(), wanted: cipher.key_len() })
    }
}

fn encrypt<C>(key: &[u8], iv: &[u8], data: &mut [u8], len: usize) -> Option<()>
where
    C: cbc::cipher::BlockCipherEncrypt + cbc::cipher::KeyInit,
{
    let cipher = cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?;
    cipher.encrypt_padded::<NoPadding>(data, len).ok().map(|_| ())
}

fn decrypt<C>(key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()>
where
    C: cbc::cipher::BlockCipherDecrypt + cbc::cipher::KeyInit,
{
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?;
    cipher.decrypt_padded::<NoPadding>(data).ok().map(|_| ())
}

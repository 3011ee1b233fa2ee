//! Keys under keys, each bound to its context.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use rand_core::TryCryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::error::Error;
use crate::hazmat::{self, KeyWrap};
use crate::key::Kek;
use crate::key_safe_pair::{self, PairCipher, PairMac};

/// AES-GCM's nonce (SP 800-38D, 8.2.2: 96 random bits).
const NONCE_LEN: usize = 12;

/// How a key is wrapped under a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrapAlgorithm {
    /// AES-256-GCM (SP 800-38D): 12 random bytes, ciphertext, tag; the context is the associated data.
    Aes256Gcm,
    /// AES-KW (RFC 3394) under HKDF-SHA-256 (RFC 5869) of the KEK with the context as info.
    AesKw,
    /// AES-KWP (RFC 5649), likewise.
    AesKwp,
    /// The locked blob of VMware's key safe (AES-256-CBC, HMAC-SHA-256); the context stands before the key.
    KeySafePair,
}

/// Wraps `key` under `under`, for `context` alone.
///
/// # Errors
/// [`Error::KeyLength`] where AES-KW does not take a key of this length; [`Error::Random`].
pub fn wrap<R: TryCryptoRng>(
    algorithm: WrapAlgorithm,
    under: &Kek,
    key: &[u8],
    context: &Context,
    rng: &mut R,
) -> Result<Vec<u8>, Error> {
    match algorithm {
        WrapAlgorithm::Aes256Gcm => {
            let mut nonce = [0; NONCE_LEN];
            rng.try_fill_bytes(&mut nonce).map_err(|_| Error::Random)?;
            let payload = Payload { msg: key, aad: &context.to_bytes() };
            let sealed = Aes256Gcm::new(under.expose().into())
                .encrypt(&Nonce::from(nonce), payload)
                .map_err(|_| Error::KeyLength { found: key.len(), wanted: 64 })?;
            Ok([&nonce[..], &sealed].concat())
        }
        WrapAlgorithm::AesKw => hazmat::wrap(KeyWrap::Kw, bound(under, context, "AES-KW").as_slice(), key),
        WrapAlgorithm::AesKwp => hazmat::wrap(KeyWrap::Kwp, bound(under, context, "AES-KWP").as_slice(), key),
        WrapAlgorithm::KeySafePair => {
            let plaintext = Zeroizing::new([context.to_bytes().as_slice(), b"\n", key].concat());
            key_safe_pair::lock(PairCipher::Aes256, PairMac::HmacSha256, under.expose(), &plaintext, rng)
        }
    }
}

/// Unwraps what [`wrap`] made, in the same context.
///
/// # Errors
/// [`Error::WrongKey`] for another KEK, another context, and damage alike.
pub fn unwrap(
    algorithm: WrapAlgorithm,
    under: &Kek,
    wrapped: &[u8],
    context: &Context,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    match algorithm {
        WrapAlgorithm::Aes256Gcm => {
            let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(Error::WrongKey)?;
            let payload = Payload { msg: sealed, aad: &context.to_bytes() };
            let key = Aes256Gcm::new(under.expose().into()).decrypt(&Nonce::from(*nonce), payload);
            key.map(Zeroizing::new).map_err(|_| Error::WrongKey)
        }
        WrapAlgorithm::AesKw => hazmat::unwrap(KeyWrap::Kw, bound(under, context, "AES-KW").as_slice(), wrapped),
        WrapAlgorithm::AesKwp => hazmat::unwrap(KeyWrap::Kwp, bound(under, context, "AES-KWP").as_slice(), wrapped),
        WrapAlgorithm::KeySafePair => {
            let plaintext = key_safe_pair::unlock(PairCipher::Aes256, PairMac::HmacSha256, under.expose(), wrapped)?;
            let prefix = [context.to_bytes().as_slice(), b"\n"].concat();
            match plaintext.split_at_checked(prefix.len()) {
                Some((found, key)) if bool::from(found.ct_eq(&prefix)) => Ok(Zeroizing::new(key.to_vec())),
                _ => Err(Error::WrongKey),
            }
        }
    }
}

/// The KEK of one context and one function.
fn bound(under: &Kek, context: &Context, function: &str) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let info = [b"vmseal wrap ", function.as_bytes(), b" ", &context.to_bytes()].concat();
    if Hkdf::<Sha256>::new(None, under.expose()).expand(&info, key.as_mut_slice()).is_err() {
        unreachable!("HKDF-SHA-256 gives up to 8160 bytes (RFC 5869, 2.3)");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dek, Purpose, system_rng};

    const ALL: [WrapAlgorithm; 4] =
        [WrapAlgorithm::Aes256Gcm, WrapAlgorithm::AesKw, WrapAlgorithm::AesKwp, WrapAlgorithm::KeySafePair];

    #[test]
    fn a_wrapped_key_opens_with_its_kek_in_its_context_only() {
        let mut rng = system_rng();
        let dek = Dek::generate(&mut rng).unwrap();
        let (kek, other_kek) = (Kek::generate(&mut rng).unwrap(), Kek::generate(&mut rng).unwrap());
        let context = Context::new(Purpose::Disk, &[1; 16]);
        for algorithm in ALL {
            let wrapped = wrap(algorithm, &kek, dek.expose(), &context, &mut rng).unwrap();
            assert_eq!(unwrap(algorithm, &kek, &wrapped, &context).unwrap().as_slice(), dek.expose());
            assert!(wrapped.windows(16).all(|part| !dek.expose().windows(16).any(|key| key == part)));
            assert_eq!(unwrap(algorithm, &other_kek, &wrapped, &context), Err(Error::WrongKey));
            for other in [Context::new(Purpose::Disk, &[2; 16]), Context::new(Purpose::VmFile, &[1; 16])] {
                assert_eq!(unwrap(algorithm, &kek, &wrapped, &other), Err(Error::WrongKey), "{algorithm:?}");
            }
            for (from, to) in ALL.into_iter().map(|to| (algorithm, to)).filter(|(from, to)| from != to) {
                assert!(unwrap(to, &kek, &wrapped, &context).is_err(), "{from:?} opened as {to:?}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut rng = system_rng();
        let kek = Kek::generate(&mut rng).unwrap();
        let context = Context::new(Purpose::Kek, &[9; 16]);
        for algorithm in ALL {
            let wrapped = wrap(algorithm, &kek, &[5; 32], &context, &mut rng).unwrap();
            for bit in 0..wrapped.len() * 8 {
                let mut damaged = wrapped.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                // The IV of the key-safe pair is not authenticated by the format; its plaintext is checked as a whole all the same.
                assert_eq!(
                    unwrap(algorithm, &kek, &damaged, &context),
                    Err(Error::WrongKey),
                    "{algorithm:?} bit {bit}"
                );
            }
            for len in 0..wrapped.len() {
                assert_eq!(
                    unwrap(algorithm, &kek, &wrapped[..len], &context),
                    Err(Error::WrongKey),
                    "{algorithm:?} {len}"
                );
            }
        }
    }
}

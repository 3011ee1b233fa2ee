//! AES-256-GCM (SP 800-38D) in pieces of any size: files that are larger than memory have one tag.

use aes::Aes256;
use ctr::cipher::{Array, BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher};
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use zeroize::Zeroizing;

use crate::error::Error;

/// Bytes of a block.
const BLOCK_LEN: usize = 16;
/// Bytes of a tag.
pub(crate) const TAG_LEN: usize = 16;
/// The most that one IV may encrypt: 2^39 - 256 bits (5.2.1.1).
pub(crate) const LEN_MAX: u64 = (1 << 36) - 32;
/// So much goes through cipher and hash before the next: it stays in the first cache.
const PIECE_LEN: usize = 8 << 10;

/// One encryption or decryption. Decrypted bytes are not to be believed before the tag has been compared.
pub(crate) struct Gcm {
    cipher: ctr::Ctr32BE<Aes256>,
    hash: GHash,
    mask: Zeroizing<[u8; BLOCK_LEN]>,
    aad_len: u64,
    len: u64,
    /// Ciphertext that does not fill a block yet, in the first bytes.
    partial: [u8; BLOCK_LEN],
}

impl Gcm {
    pub(crate) fn new(key: &[u8; 32], iv: &[u8; 12], aad: &[&[u8]]) -> Self {
        let aes = Aes256::new(key.into());
        let mut hash_key = Array::from([0; BLOCK_LEN]);
        aes.encrypt_block(&mut hash_key);
        let mut hash = GHash::new(&hash_key);
        zeroize::Zeroize::zeroize(hash_key.as_mut_slice());
        let mut counter = [0; BLOCK_LEN];
        counter[..iv.len()].copy_from_slice(iv);
        counter[BLOCK_LEN - 1] = 1;
        let mut cipher = ctr::Ctr32BE::<Aes256>::new(key.into(), &counter.into());
        let mut mask = Zeroizing::new([0; BLOCK_LEN]);
        cipher.apply_keystream(mask.as_mut_slice());
        let aad = aad.concat();
        hash.update_padded(&aad);
        Self { cipher, hash, mask, aad_len: aad.len() as u64, len: 0, partial: [0; BLOCK_LEN] }
    }

    pub(crate) fn encrypt(&mut self, data: &mut [u8]) -> Result<(), Error> {
        for piece in data.chunks_mut(PIECE_LEN) {
            self.check_len(piece.len())?;
            self.cipher.apply_keystream(piece);
            self.absorb(piece);
        }
        Ok(())
    }

    pub(crate) fn decrypt(&mut self, data: &mut [u8]) -> Result<(), Error> {
        for piece in data.chunks_mut(PIECE_LEN) {
            self.check_len(piece.len())?;
            self.absorb(piece);
            self.cipher.apply_keystream(piece);
        }
        Ok(())
    }

    pub(crate) fn tag(mut self) -> [u8; TAG_LEN] {
        let used = (self.len % BLOCK_LEN as u64) as usize;
        self.hash.update_padded(&self.partial[..used]);
        let mut lengths = Array::from([0; BLOCK_LEN]);
        lengths[..8].copy_from_slice(&(self.aad_len * 8).to_be_bytes());
        lengths[8..].copy_from_slice(&(self.len * 8).to_be_bytes());
        self.hash.update(&[lengths]);
        let mut tag: [u8; TAG_LEN] = self.hash.finalize().into();
        tag.iter_mut().zip(self.mask.iter()).for_each(|(tag, mask)| *tag ^= mask);
        tag
    }

    fn check_len(&self, more: usize) -> Result<(), Error> {
        let len = self.len + more as u64;
        if len <= LEN_MAX {
            return Ok(());
        }
        Err(Error::Limit { what: "bytes under one AES-GCM tag", found: len.to_string(), max: LEN_MAX })
    }

    /// Hashes ciphertext.
    fn absorb(&mut self, mut data: &[u8]) {
        let used = (self.len % BLOCK_LEN as u64) as usize;
        self.len += data.len() as u64;
        if used > 0 {
            let (head, rest) = data.split_at(data.len().min(BLOCK_LEN - used));
            self.partial[used..used + head.len()].copy_from_slice(head);
            if used + head.len() < BLOCK_LEN {
                return;
            }
            self.hash.update(&[self.partial.into()]);
            data = rest;
        }
        let (blocks, rest) = Array::slice_as_chunks(data);
        self.hash.update(blocks);
        self.partial[..rest.len()].copy_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::Aes256Gcm;
    use aes_gcm::aead::{Aead, Payload};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_pieces_give_what_one_call_gives(
            key: [u8; 32],
            iv: [u8; 12],
            aad in proptest::collection::vec(any::<u8>(), 0..50),
            data in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0..40_usize, 0..20),
        ) {
            let whole = Aes256Gcm::new(&key.into());
            let sealed = whole.encrypt(&iv.into(), Payload { msg: &data, aad: &aad }).unwrap();
            let (mut encrypting, mut decrypting) = (Gcm::new(&key, &iv, &[&aad]), Gcm::new(&key, &iv, &[b"", &aad]));
            let mut piece_lens = cuts.into_iter().chain(std::iter::repeat(64));
            let mut bytes = data.clone();
            let mut rest = bytes.as_mut_slice();
            while !rest.is_empty() {
                let len = rest.len().min(piece_lens.next().unwrap_or(1));
                let (piece, after) = rest.split_at_mut(len);
                encrypting.encrypt(piece).unwrap();
                rest = after;
            }
            prop_assert_eq!([bytes.as_slice(), &encrypting.tag()].concat(), sealed);
            decrypting.decrypt(&mut bytes).unwrap();
            prop_assert_eq!(bytes, data);
        }
    }
}

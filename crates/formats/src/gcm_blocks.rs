//! Whole blocks under AES-256-GCM, with the fastest instructions that the processor has.

use aes::Aes256;
use ctr::cipher::{Array, BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher};
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use zeroize::Zeroize;

#[cfg(target_arch = "x86_64")]
use crate::gcm_vaes::{self, CHUNK_LEN, Kernel, Keys, State};

/// Bytes of a block.
pub(crate) const BLOCK_LEN: usize = 16;

/// The counter and the hash of a message. All lengths are whole blocks.
pub(crate) trait Blocks {
    /// The keystream of the next block.
    fn keystream(&mut self) -> [u8; BLOCK_LEN];

    fn hash(&mut self, blocks: &[u8]);

    /// Encrypts in place, and hashes what comes out.
    fn encrypt(&mut self, blocks: &mut [u8]);

    /// Hashes `from` and decrypts it to `to`, which is as long.
    fn decrypt(&mut self, from: &[u8], to: &mut [u8]);

    fn digest(&self) -> [u8; BLOCK_LEN];
}

/// The fastest for this processor. `counter` is the first counter block.
pub(crate) fn fastest(key: &[u8; 32], counter: [u8; BLOCK_LEN]) -> Box<dyn Blocks + Send + Sync> {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = gcm_vaes::detect() {
        return Box::new(Vaes::new(kernel, key, counter));
    }
    Box::new(Portable::new(key, counter))
}

/// Cipher and hash of RustCrypto, which run anywhere.
pub(crate) struct Portable {
    cipher: ctr::Ctr32BE<Aes256>,
    hash: GHash,
}

impl Portable {
    /// So much goes through cipher and hash before the next: it stays in the first cache.
    const PIECE_LEN: usize = 8 << 10;

    pub(crate) fn new(key: &[u8; 32], counter: [u8; BLOCK_LEN]) -> Self {
        let mut hash_key = Array::from([0; BLOCK_LEN]);
        Aes256::new(key.into()).encrypt_block(&mut hash_key);
        let hash = GHash::new(&hash_key);
        hash_key.as_mut_slice().zeroize();
        Self { cipher: ctr::Ctr32BE::new(key.into(), &counter.into()), hash }
    }
}

impl Blocks for Portable {
    fn keystream(&mut self) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        self.cipher.apply_keystream(&mut block);
        block
    }

    fn hash(&mut self, blocks: &[u8]) {
        self.hash.update(Array::slice_as_chunks(blocks).0);
    }

    fn encrypt(&mut self, blocks: &mut [u8]) {
        for piece in blocks.chunks_mut(Self::PIECE_LEN) {
            self.cipher.apply_keystream(piece);
            self.hash(piece);
        }
    }

    fn decrypt(&mut self, from: &[u8], to: &mut [u8]) {
        for (from, to) in from.chunks(Self::PIECE_LEN).zip(to.chunks_mut(Self::PIECE_LEN)) {
            self.hash(from);
            to.copy_from_slice(from);
            self.cipher.apply_keystream(to);
        }
    }

    fn digest(&self) -> [u8; BLOCK_LEN] {
        self.hash.clone().finalize().into()
    }
}

/// Chunks in the registers of AVX-512; what is shorter than a chunk is made one.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Vaes {
    kernel: Kernel,
    keys: Box<Keys>,
    state: State,
}

#[cfg(target_arch = "x86_64")]
impl Vaes {
    pub(crate) fn new(kernel: Kernel, key: &[u8; 32], counter: [u8; BLOCK_LEN]) -> Self {
        let mut keys = Box::new(Keys::ZERO);
        (kernel.expand)(key, &mut keys);
        Self { kernel, keys, state: State { hash: 0, counter: u128::from_be_bytes(counter) } }
    }

    /// Hashes less than a chunk: zeros in front leave the hash as it is when it comes in behind them.
    fn hash_rest(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        let mut chunk = [0; CHUNK_LEN];
        let start = CHUNK_LEN - rest.len();
        chunk[start..].copy_from_slice(rest);
        let before = core::mem::take(&mut self.state.hash).to_be_bytes();
        chunk[start..].iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
        (self.kernel.hash)(&self.keys, &mut self.state, &[chunk]);
    }

    /// Applies the keystream to less than a chunk.
    fn cover_rest(&mut self, rest: &mut [u8]) {
        if rest.is_empty() {
            return;
        }
        let mut chunk = [0; CHUNK_LEN];
        (self.kernel.keystream)(&self.keys, &self.state, &mut chunk);
        rest.iter_mut().zip(&chunk).for_each(|(byte, key)| *byte ^= key);
        chunk.zeroize();
        // Only the lowest 32 bits count, and the length of a message is limited so that they are not used past their end.
        self.state.counter = self.state.counter.wrapping_add((rest.len() / BLOCK_LEN) as u128);
    }
}

#[cfg(target_arch = "x86_64")]
impl Blocks for Vaes {
    fn keystream(&mut self) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        self.cover_rest(&mut block);
        block
    }

    fn hash(&mut self, blocks: &[u8]) {
        let (chunks, rest) = blocks.as_chunks();
        (self.kernel.hash)(&self.keys, &mut self.state, chunks);
        self.hash_rest(rest);
    }

    fn encrypt(&mut self, blocks: &mut [u8]) {
        let (chunks, rest) = blocks.as_chunks_mut();
        (self.kernel.encrypt)(&self.keys, &mut self.state, chunks);
        self.cover_rest(rest);
        self.hash_rest(rest);
    }

    fn decrypt(&mut self, from: &[u8], to: &mut [u8]) {
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
        (self.kernel.decrypt)(&self.keys, &mut self.state, from, to);
        self.hash_rest(from_rest);
        to_rest.copy_from_slice(from_rest);
        self.cover_rest(to_rest);
    }

    fn digest(&self) -> [u8; BLOCK_LEN] {
        self.state.hash.to_be_bytes()
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_last_counters_of_an_iv_are_those_of_the_portable_cipher() {
        let Some(kernel) = gcm_vaes::detect() else {
            println!("this processor has no VAES with AVX-512: that kernel is not tested");
            return;
        };
        let mut counter = [0xff; BLOCK_LEN];
        counter[BLOCK_LEN - 1] = 0;
        // What begins with 0xffff_ff00 and ends with 0xffff_ffff: four chunks, or three and one that is not whole.
        for blocks in [256, 255, 193, 192, 1] {
            let (mut vaes, mut portable) = (Vaes::new(kernel, &[3; 32], counter), Portable::new(&[3; 32], counter));
            let mut data = vec![5; blocks * BLOCK_LEN];
            let mut expected = data.clone();
            vaes.encrypt(&mut data);
            portable.encrypt(&mut expected);
            assert_eq!(data, expected, "{blocks} blocks");
            assert_eq!(vaes.digest(), portable.digest(), "{blocks} blocks");
        }
    }
}

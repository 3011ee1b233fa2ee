//! AES-256-GCM (SP 800-38D) in pieces of any size: files that are larger than memory have one tag.

use zeroize::Zeroizing;

use crate::error::Error;
use crate::gcm_blocks::{self, BLOCK_LEN, Blocks};

/// Bytes of a tag.
pub(crate) const TAG_LEN: usize = 16;
/// The most that one IV may encrypt: 2^39 - 256 bits (5.2.1.1).
pub(crate) const LEN_MAX: u64 = (1 << 36) - 32;

/// One encryption or decryption. Decrypted bytes are not to be believed before the tag has been compared.
pub(crate) struct Gcm {
    blocks: Box<dyn Blocks + Send + Sync>,
    mask: Zeroizing<[u8; BLOCK_LEN]>,
    aad_len: u64,
    len: u64,
    /// The ciphertext and the keystream of a block that is not full yet.
    partial: [u8; BLOCK_LEN],
    keystream: Zeroizing<[u8; BLOCK_LEN]>,
}

impl Gcm {
    pub(crate) fn new(key: &[u8; 32], iv: &[u8; 12], aad: &[&[u8]]) -> Self {
        Self::over(gcm_blocks::fastest(key, first_counter(iv)), aad)
    }

    fn over(mut blocks: Box<dyn Blocks + Send + Sync>, aad: &[&[u8]]) -> Self {
        let mask = Zeroizing::new(blocks.keystream());
        let mut aad = aad.concat();
        let aad_len = aad.len() as u64;
        aad.resize(aad.len().next_multiple_of(BLOCK_LEN), 0);
        blocks.hash(&aad);
        Self { blocks, mask, aad_len, len: 0, partial: [0; BLOCK_LEN], keystream: Zeroizing::new([0; BLOCK_LEN]) }
    }

    /// Encrypts in place.
    pub(crate) fn encrypt(&mut self, data: &mut [u8]) -> Result<(), Error> {
        let used = self.begin(data.len())?;
        let (head, data) = data.split_at_mut(data.len().min((BLOCK_LEN - used) % BLOCK_LEN));
        self.cover::<true>(used, head);
        let (blocks, rest) = data.split_at_mut(data.len() / BLOCK_LEN * BLOCK_LEN);
        self.blocks.encrypt(blocks);
        self.cover::<true>(0, rest);
        Ok(())
    }

    /// Decrypts `from` to the start of `to`, which is at least as long.
    pub(crate) fn decrypt(&mut self, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
        let used = self.begin(from.len())?;
        let to = &mut to[..from.len()];
        let (head, from) = from.split_at(from.len().min((BLOCK_LEN - used) % BLOCK_LEN));
        let (to_head, to) = to.split_at_mut(head.len());
        to_head.copy_from_slice(head);
        self.cover::<false>(used, to_head);
        let (blocks, rest) = from.split_at(from.len() / BLOCK_LEN * BLOCK_LEN);
        let (to, to_rest) = to.split_at_mut(blocks.len());
        self.blocks.decrypt(blocks, to);
        to_rest.copy_from_slice(rest);
        self.cover::<false>(0, to_rest);
        Ok(())
    }

    pub(crate) fn tag(mut self) -> [u8; TAG_LEN] {
        let used = (self.len % BLOCK_LEN as u64) as usize;
        if used > 0 {
            self.partial[used..].fill(0);
            self.blocks.hash(&self.partial);
        }
        let lengths = [self.aad_len * 8, self.len * 8].map(u64::to_be_bytes);
        self.blocks.hash(lengths.as_flattened());
        let mut tag = self.blocks.digest();
        tag.iter_mut().zip(self.mask.iter()).for_each(|(tag, mask)| *tag ^= mask);
        tag
    }

    /// Counts bytes that come next; gives how many the last block has already.
    fn begin(&mut self, more: usize) -> Result<usize, Error> {
        let used = (self.len % BLOCK_LEN as u64) as usize;
        let len = self.len + more as u64;
        if len > LEN_MAX {
            return Err(Error::Limit { what: "bytes under one AES-GCM tag", found: len.to_string(), max: LEN_MAX });
        }
        self.len = len;
        Ok(used)
    }

    /// Encrypts or decrypts bytes of one block, which has `used` already, in place.
    fn cover<const ENCRYPT: bool>(&mut self, used: usize, data: &mut [u8]) {
        if data.is_empty() {
            return;
        }
        if used == 0 {
            *self.keystream = self.blocks.keystream();
        }
        let end = used + data.len();
        let partial = self.partial[used..end].iter_mut().zip(&self.keystream[used..end]);
        for (byte, (partial, key)) in data.iter_mut().zip(partial) {
            let from = *byte;
            *byte ^= key;
            *partial = if ENCRYPT { *byte } else { from };
        }
        if end == BLOCK_LEN {
            self.blocks.hash(&self.partial);
        }
    }
}

/// The counter block of an IV of 96 bits.
fn first_counter(iv: &[u8; 12]) -> [u8; BLOCK_LEN] {
    let mut counter = [0; BLOCK_LEN];
    counter[..iv.len()].copy_from_slice(iv);
    counter[BLOCK_LEN - 1] = 1;
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, Payload};
    use aes_gcm::{Aes256Gcm, KeyInit};
    use hex_literal::hex;
    use openssl::symm;
    use proptest::prelude::*;

    type Make = fn(&[u8; 32], &[u8; 12], &[&[u8]]) -> Gcm;

    /// Each implementation that this processor can run.
    fn implementations() -> Vec<(&'static str, Make)> {
        let portable: Make = |key, iv, aad| Gcm::over(Box::new(gcm_blocks::Portable::new(key, first_counter(iv))), aad);
        let mut all = vec![("portable", portable)];
        #[cfg(target_arch = "x86_64")]
        if crate::gcm_vaes::detect().is_some() {
            all.push(("vaes", |key, iv, aad| {
                let kernel = crate::gcm_vaes::detect().unwrap();
                Gcm::over(Box::new(gcm_blocks::Vaes::new(kernel, key, first_counter(iv))), aad)
            }));
        }
        all
    }

    /// Another kernel than the processor has to choose would go unnoticed.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_processor_with_the_instructions_has_the_kernel() {
        let has = is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw");
        assert_eq!(implementations().len(), if has { 2 } else { 1 });
        if !has {
            println!("this processor has no VAES with AVX-512: that kernel is not tested");
        }
    }

    /// Test cases 13 to 16 of the GCM specification (McGrew and Viega), which NIST's validation takes over.
    #[test]
    fn the_test_cases_of_the_specification() {
        let key = hex!("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let iv = hex!("cafebabefacedbaddecaf888");
        let plaintext = hex!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
        );
        let ciphertext = hex!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
        );
        let aad = hex!("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        for (name, make) in implementations() {
            let run = |key: &[u8; 32], iv: &[u8; 12], aad: &[u8], data: &[u8]| {
                let mut gcm = make(key, iv, &[aad]);
                let mut data = data.to_vec();
                gcm.encrypt(&mut data).unwrap();
                (data, gcm.tag())
            };
            let zero = run(&[0; 32], &[0; 12], b"", b"");
            assert_eq!(zero, (vec![], hex!("530f8afbc74536b9a963b4f1c4cb738b")), "{name}, case 13");
            let one = run(&[0; 32], &[0; 12], b"", &[0; 16]);
            let expected = hex!("cea7403d4d606b6e074ec5d3baf39d18");
            assert_eq!(one, (expected.to_vec(), hex!("d0d1c8a799996bf0265b98b5d48ab919")), "{name}, case 14");
            let whole = run(&key, &iv, b"", &plaintext);
            assert_eq!(whole, (ciphertext.to_vec(), hex!("b094dac5d93471bdec1a502270e3cc6c")), "{name}, case 15");
            let part = run(&key, &iv, &aad, &plaintext[..60]);
            assert_eq!(part, (ciphertext[..60].to_vec(), hex!("76fc6ece0f4e1768cddf8853bb2d551b")), "{name}, case 16");
        }
    }

    #[test]
    fn more_than_one_iv_may_encrypt_is_refused() {
        let mut gcm = Gcm::new(&[1; 32], &[2; 12], &[]);
        gcm.len = LEN_MAX - 1;
        assert!(matches!(gcm.encrypt(&mut [0; 2]), Err(Error::Limit { .. })));
    }

    /// Lengths around blocks, groups and chunks of the kernels.
    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![
            0..300_usize,
            (0..6_usize, 0..40_usize).prop_map(|(chunks, more)| chunks * 1024 + more),
            0..9000_usize
        ]
    }

    proptest! {
        #[test]
        fn any_pieces_on_any_processor_give_what_one_call_of_others_gives(
            key: [u8; 32],
            iv: [u8; 12],
            aad in proptest::collection::vec(any::<u8>(), 0..1200),
            (len, seed) in (lengths(), any::<u64>()),
            cuts in proptest::collection::vec(prop_oneof![0..40_usize, 0..3000_usize], 0..20),
        ) {
            let data: Vec<u8> = (0..len as u64).map(|index| (seed.wrapping_mul(2 * index + 1) >> 56) as u8).collect();
            let sealed = Aes256Gcm::new(&key.into()).encrypt(&iv.into(), Payload { msg: &data, aad: &aad }).unwrap();
            let mut tag = [0; TAG_LEN];
            let cipher = symm::Cipher::aes_256_gcm();
            let by_openssl = symm::encrypt_aead(cipher, &key, Some(&iv), &aad, &data, &mut tag).unwrap();
            prop_assert_eq!([by_openssl.as_slice(), &tag].concat(), sealed.as_slice());
            for (name, make) in implementations() {
                let (mut encrypting, mut decrypting) = (make(&key, &iv, &[&aad]), make(&key, &iv, &[b"", &aad]));
                let piece_lens = || cuts.iter().copied().chain(std::iter::repeat(1500));
                let mut bytes = data.clone();
                let mut rest = bytes.as_mut_slice();
                for len in piece_lens().take_while(|_| !data.is_empty()) {
                    let (piece, after) = rest.split_at_mut(rest.len().min(len));
                    encrypting.encrypt(piece).unwrap();
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!([bytes.as_slice(), &encrypting.tag()].concat(), sealed.as_slice(), "{}", name);
                let mut opened = vec![0; len];
                let mut at = 0;
                for piece_len in piece_lens() {
                    let end = len.min(at + piece_len);
                    decrypting.decrypt(&bytes[at..end], &mut opened[at..]).unwrap();
                    at = end;
                    if at == len {
                        break;
                    }
                }
                prop_assert_eq!(decrypting.tag(), tag, "{}", name);
                prop_assert_eq!(opened.as_slice(), data.as_slice(), "{}", name);
            }
        }
    }
}

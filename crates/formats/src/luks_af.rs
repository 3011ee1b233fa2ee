//! The anti-forensic split of LUKS: a key is spread over so many bytes that losing a few of them loses the key.
//!
//! LUKS1 On-Disk Format 1.2.3, 2.4; T. Fruhwirth, "New methods in hard disk encryption" (2005), 5.2.

use rand_core::TryCryptoRng;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::luks_kdf::LuksHash;

/// The stripes that a key is split into; no other number is in use.
pub(crate) const STRIPES: usize = 4000;

/// Splits `key` into [`STRIPES`] stripes of its length.
///
/// # Errors
/// [`Error::Random`].
pub(crate) fn split<R: TryCryptoRng>(key: &[u8], hash: LuksHash, rng: &mut R) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut stripes = Zeroizing::new(vec![0; key.len() * STRIPES]);
    let last = key.len() * (STRIPES - 1);
    rng.try_fill_bytes(&mut stripes[..last]).map_err(|_| Error::Random)?;
    let sum = diffused(&stripes[..last], key.len(), hash);
    for (byte, (sum, key)) in stripes[last..].iter_mut().zip(sum.iter().zip(key)) {
        *byte = sum ^ key;
    }
    Ok(stripes)
}

/// The key of `key_len` bytes that was split into `stripes`.
pub(crate) fn merge(stripes: &[u8], key_len: usize, hash: LuksHash) -> Zeroizing<Vec<u8>> {
    let last = stripes.len().saturating_sub(key_len);
    let mut key = diffused(&stripes[..last], key_len, hash);
    key.iter_mut().zip(&stripes[last..]).for_each(|(key, stripe)| *key ^= stripe);
    key
}

/// All stripes but the last, each added and then diffused.
fn diffused(stripes: &[u8], key_len: usize, hash: LuksHash) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; key_len]);
    for stripe in stripes.chunks(key_len) {
        sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
        for (number, block) in sum.chunks_mut(hash.len()).enumerate() {
            let digest = hash.digest(&[&(number as u32).to_be_bytes(), block]);
            block.copy_from_slice(&digest[..block.len()]);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmseal_keys::system_rng;

    #[test]
    fn a_key_comes_back_and_one_changed_byte_loses_it() {
        for hash in [LuksHash::Sha1, LuksHash::Sha256, LuksHash::Sha512] {
            let key: Vec<u8> = (0..64).collect();
            let mut stripes = split(&key, hash, &mut system_rng()).unwrap();
            assert_eq!(merge(&stripes, 64, hash).as_slice(), key);
            // Stripe 15, first byte: the first block of the sum is lost, which is as much as one hash covers.
            stripes[15 * 64] ^= 1;
            let lost = merge(&stripes, 64, hash);
            assert_ne!(lost[..hash.len()], key[..hash.len()]);
            assert_eq!(lost[hash.len()..], key[hash.len()..]);
        }
    }
}

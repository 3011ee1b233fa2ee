//! Key schedules for AES instructions (FIPS 197, 5.2 and 5.3.5), made with them: no table, no branch on the key.

use core::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Round keys of one AES key: 11 of AES-128, 15 of AES-256.
pub(super) type RoundKeys<const N: usize> = [__m128i; N];

/// The schedules of an XTS key.
pub(super) struct Schedules<const N: usize> {
    pub(super) encrypt: RoundKeys<N>,
    /// For the equivalent inverse cipher.
    pub(super) decrypt: RoundKeys<N>,
    pub(super) tweak: RoundKeys<N>,
}

impl<const N: usize> Schedules<N> {
    /// The schedules of a data key and a tweak key of the length that goes with `N`.
    #[target_feature(enable = "aes,sse4.1")]
    pub(super) fn new(data: &[u8], tweak: &[u8]) -> Self {
        let encrypt = expand(data);
        Self { encrypt, decrypt: invert(&encrypt), tweak: expand(tweak) }
    }
}

impl<const N: usize> Drop for Schedules<N> {
    fn drop(&mut self) {
        self.encrypt.zeroize();
        self.decrypt.zeroize();
        self.tweak.zeroize();
    }
}

impl<const N: usize> ZeroizeOnDrop for Schedules<N> {}

#[target_feature(enable = "aes,sse4.1")]
fn expand<const N: usize>(key: &[u8]) -> RoundKeys<N> {
    const { assert!(N == 11 || N == 15) }
    // Every column becomes the last one, rotated as RotWord does or not; with four equal columns ShiftRows changes nothing.
    let rotated = _mm_set1_epi32(0x0c0f_0e0d);
    let last = _mm_set1_epi32(0x0f0e_0d0c);
    let mut keys = [_mm_setzero_si128(); N];
    for (key, bytes) in keys.iter_mut().zip(key.chunks_exact(16)) {
        *key = super::aesni::block_of(bytes);
    }
    let key_blocks = if N == 11 { 1 } else { 2 };
    let mut constant = 1;
    for index in key_blocks..N {
        let before = keys[index - 1];
        let word = if (index - key_blocks) % key_blocks == 0 {
            let word = _mm_aesenclast_si128(_mm_shuffle_epi8(before, rotated), _mm_set1_epi32(constant));
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
            word
        } else {
            _mm_aesenclast_si128(_mm_shuffle_epi8(before, last), _mm_setzero_si128())
        };
        let mut columns = keys[index - key_blocks];
        columns = _mm_xor_si128(columns, _mm_slli_si128(columns, 4));
        columns = _mm_xor_si128(columns, _mm_slli_si128(columns, 8));
        keys[index] = _mm_xor_si128(columns, word);
    }
    keys
}

#[target_feature(enable = "aes,sse4.1")]
fn invert<const N: usize>(encrypt: &RoundKeys<N>) -> RoundKeys<N> {
    let mut keys = *encrypt;
    keys.reverse();
    for key in &mut keys[1..N - 1] {
        *key = _mm_aesimc_si128(*key);
    }
    keys
}

#[cfg(test)]
mod tests {
    use core::mem::MaybeUninit;

    use super::*;
    use crate::kernels::Kernel;

    #[test]
    fn schedules_are_wiped_when_they_are_dropped() {
        if !Kernel::AesNi.is_available() {
            return;
        }
        let mut place = MaybeUninit::<Schedules<15>>::uninit();
        let bytes = place.as_mut_ptr().cast::<u8>();
        let read = || {
            // SAFETY: the schedules were written there, without padding between vectors, and the place still exists.
            (0..size_of::<Schedules<15>>()).all(|index| unsafe { bytes.add(index).read_volatile() } == 0)
        };
        // SAFETY: AES-NI is available.
        unsafe { bytes.cast::<Schedules<15>>().write(Schedules::new(&[7; 32], &[9; 32])) };
        assert!(!read());
        // SAFETY: written above, dropped once.
        unsafe { bytes.cast::<Schedules<15>>().drop_in_place() };
        assert!(read());
    }
}

//! What the machine allows: AES rounds a second at each width of register, and the speed at which memory is read and written in place.

use std::hint::black_box;

/// A width of AES instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Xmm,
    Ymm,
    Zmm,
}

impl Width {
    pub const ALL: [Self; 3] = [Self::Xmm, Self::Ymm, Self::Zmm];

    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Xmm => is_x86_feature_detected!("aes"),
            Self::Ymm => is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx2"),
            Self::Zmm => is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx512f"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    pub fn bits(self) -> usize {
        match self {
            Self::Xmm => 128,
            Self::Ymm => 256,
            Self::Zmm => 512,
        }
    }

    /// As many AES rounds as enciphering `len` bytes takes under a key of 256 bits, 14 for each 16 bytes, and nothing else: no loads,
    /// no stores, 12 registers that wait for nothing but themselves.
    pub fn rounds_of(self, len: usize) {
        let rounds = len / (self.bits() / 8) * 14;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: called only where it is available.
        unsafe {
            match self {
                Self::Xmm => x86::xmm(rounds),
                Self::Ymm => x86::ymm(rounds),
                Self::Zmm => x86::zmm(rounds),
            }
        }
        black_box(rounds);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::hint::black_box;

    macro_rules! rounds {
        ($name:ident, $features:literal, $vector:ident, $zero:ident, $round:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(rounds: usize) {
                let key: $vector = black_box($zero());
                let mut state = [key; 12];
                for _ in 0..rounds / 48 {
                    for _ in 0..4 {
                        for block in &mut state {
                            *block = $round(*block, key);
                        }
                    }
                }
                black_box(state);
            }
        };
    }

    rounds!(xmm, "aes,avx", __m128i, _mm_setzero_si128, _mm_aesenc_si128);
    rounds!(ymm, "vaes,avx2", __m256i, _mm256_setzero_si256, _mm256_aesenc_epi128);
    rounds!(zmm, "vaes,avx512f", __m512i, _mm512_setzero_si512, _mm512_aesenc_epi128);
}

/// Reads and writes every byte in place, asking for memory `ahead` bytes before (0: not at all).
pub fn update(data: &mut [u8], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F is there.
        return unsafe { update_avx512(data, ahead) };
    }
    for word in data.as_chunks_mut::<8>().0 {
        *word = (!u64::from_ne_bytes(*word)).to_ne_bytes();
    }
    black_box(ahead);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn update_avx512(data: &mut [u8], ahead: usize) {
    use core::arch::x86_64::*;
    let ones = _mm512_set1_epi64(-1);
    for line in data.as_chunks_mut::<64>().0 {
        let at = line.as_mut_ptr();
        // SAFETY: 64 bytes lie there; a prefetch does not fault.
        unsafe {
            if ahead != 0 {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
            }
            _mm512_storeu_si512(at.cast(), _mm512_xor_si512(_mm512_loadu_si512(at.cast()), ones));
        }
    }
}

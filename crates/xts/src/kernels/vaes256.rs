//! VAES and VPCLMULQDQ on AVX2: 16 blocks in 8 registers of 256 bits, their tweaks and the round keys in the first-level cache.

use core::arch::asm;
use core::arch::x86_64::*;

use cipher::consts::U256;
use cipher::{Array, InOut};

use super::aesni;
use super::schedule::RoundKeys;
use crate::tweak::advance;
use crate::walk::{Chunk, Data, PASS, walk};

/// Blocks of a register.
const WIDTH: usize = 2;
/// Registers in flight: a pass.
const LANES: usize = PASS / WIDTH;
const LANE_LEN: usize = 32;
type Group<'inp, 'out> = InOut<'inp, 'out, Array<u8, U256>>;

/// Encrypts the numbers from `first_unit` to the first tweaks of as many units.
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
pub(super) fn encrypt_tweaks<const N: usize>(keys: &RoundKeys<N>, first_unit: u128, tweaks: &mut [u128]) {
    let whole = tweaks.len() / PASS * PASS;
    let (passes, rest) = tweaks.split_at_mut(whole);
    crate::tweak::number(first_unit, passes);
    let (passes, _) = passes.as_chunks_mut::<PASS>();
    for pass in passes {
        let state = load_table(pass);
        store_table(pass, rounds::<N, true>(keys, state));
    }
    aesni::encrypt_tweaks(keys, first_unit.wrapping_add(whole as u128), rest);
}

/// Encrypts or decrypts whole blocks of units that start with `tweaks`; returns the tweak that follows the last block.
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
pub(super) fn process<const N: usize, const ENCRYPT: bool>(
    keys: &RoundKeys<N>,
    data: Data<'_, '_>,
    unit_size: usize,
    tweaks: &[u128],
    ahead: usize,
) -> u128 {
    walk(
        data,
        unit_size,
        tweaks,
        |part, tweaks| chunk::<N, ENCRYPT>(keys, part, tweaks.this, ahead),
        |part, table| pass::<N, ENCRYPT>(keys, part, table),
    )
}

#[inline]
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn chunk<const N: usize, const ENCRYPT: bool>(keys: &RoundKeys<N>, data: Chunk<'_, '_>, tweak: u128, ahead: usize) {
    let mut tweak = tweak;
    let (groups, _) = data.into_buf().into_chunks::<U256>();
    for group in groups {
        if ahead != 0 {
            prefetch(group.get_in(), ahead);
        }
        let tweaks = follow(tweak);
        tweak = advance::<16>(tweak);
        blocks::<N, ENCRYPT>(keys, group, &tweaks);
    }
}

#[inline]
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn pass<const N: usize, const ENCRYPT: bool>(keys: &RoundKeys<N>, mut data: Data<'_, '_>, table: &[u128; PASS]) {
    let tweaks = load_table(table);
    let len = data.len();
    let mut buffer = Array::<u8, U256>::default();
    buffer[..len].copy_from_slice(data.get_in());
    blocks::<N, ENCRYPT>(keys, InOut::from(&mut buffer), &tweaks);
    data.get_out().copy_from_slice(&buffer[..len]);
    crate::wipe(&mut buffer);
}

/// The tweaks of 16 consecutive blocks, all from that of the first: x^k for k up to 7 is a shift by k bits and what it carries out
/// times x^7+x^2+x+1; x^8 is a shift of those by a byte.
#[inline]
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn follow(tweak: u128) -> [__m256i; LANES] {
    let polynomial = _mm256_set1_epi64x(0x87);
    let first = _mm256_broadcastsi128_si256(_mm_set_epi64x((tweak >> 64) as i64, tweak as i64));
    let times = |even: i64| {
        let shift = _mm256_set_epi64x(even + 1, even + 1, even, even);
        let carries = _mm256_srlv_epi64(first, _mm256_sub_epi64(_mm256_set1_epi64x(64), shift));
        let folded = _mm256_clmulepi64_epi128::<0x01>(carries, polynomial);
        let shifted = _mm256_sllv_epi64(first, shift);
        _mm256_xor_si256(_mm256_xor_si256(shifted, _mm256_bslli_epi128::<8>(carries)), folded)
    };
    let byte = |tweaks: __m256i| {
        let folded = _mm256_clmulepi64_epi128::<0x00>(_mm256_bsrli_epi128::<15>(tweaks), polynomial);
        _mm256_xor_si256(_mm256_bslli_epi128::<1>(tweaks), folded)
    };
    let low = [times(0), times(2), times(4), times(6)];
    [low[0], low[1], low[2], low[3], byte(low[0]), byte(low[1]), byte(low[2]), byte(low[3])]
}

#[inline]
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn blocks<const N: usize, const ENCRYPT: bool>(
    keys: &RoundKeys<N>,
    mut data: Group<'_, '_>,
    tweaks: &[__m256i; LANES],
) {
    let mut state = load(data.get_in());
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = _mm256_xor_si256(*block, *tweak);
    }
    state = rounds::<N, ENCRYPT>(keys, state);
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = _mm256_xor_si256(*block, *tweak);
    }
    store(data.get_out(), state);
}

#[inline]
#[target_feature(enable = "aes,avx2,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn rounds<const N: usize, const ENCRYPT: bool>(keys: &RoundKeys<N>, mut state: [__m256i; LANES]) -> [__m256i; LANES] {
    let first = _mm256_broadcastsi128_si256(keys[0]);
    for block in &mut state {
        *block = _mm256_xor_si256(*block, first);
    }
    for key in &keys[1..N - 1] {
        let key = _mm256_broadcastsi128_si256(*key);
        for block in &mut state {
            *block = if ENCRYPT { _mm256_aesenc_epi128(*block, key) } else { _mm256_aesdec_epi128(*block, key) };
        }
        hold(&mut state);
    }
    let last = _mm256_broadcastsi128_si256(keys[N - 1]);
    for block in &mut state {
        *block = if ENCRYPT { _mm256_aesenclast_epi128(*block, last) } else { _mm256_aesdeclast_epi128(*block, last) };
    }
    state
}

/// Keeps the blocks of a round together. Left alone the compiler finishes one block before it starts the next, which saves registers
/// and leaves the AES units waiting for it.
#[inline]
#[target_feature(enable = "avx2")]
fn hold<const COUNT: usize>(state: &mut [__m256i; COUNT]) {
    if let [a, b, c, d, e, f, g, h] = state.as_mut_slice() {
        // SAFETY: no instruction at all.
        unsafe {
            asm!(
                "# {} {} {} {} {} {} {} {}",
                inout(ymm_reg) * a,
                inout(ymm_reg) * b,
                inout(ymm_reg) * c,
                inout(ymm_reg) * d,
                inout(ymm_reg) * e,
                inout(ymm_reg) * f,
                inout(ymm_reg) * g,
                inout(ymm_reg) * h,
                options(pure, nomem, nostack, preserves_flags)
            )
        }
    }
}

/// Asks for the bytes `ahead` of these: a hint that no address can make fail.
#[inline]
#[allow(unused_unsafe, reason = "a safe function in newer versions of Rust")]
#[target_feature(enable = "avx2")]
fn prefetch(data: &Array<u8, U256>, ahead: usize) {
    for line in [0, 64, 128, 192] {
        let address = data.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a prefetch reads nothing that the program can see and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(data: &Array<u8, U256>) -> [__m256i; LANES] {
    let mut state = [_mm256_setzero_si256(); LANES];
    for (block, bytes) in state.iter_mut().zip(data.as_chunks::<LANE_LEN>().0) {
        // SAFETY: 32 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(data: &mut Array<u8, U256>, state: [__m256i; LANES]) {
    for (bytes, block) in data.as_chunks_mut::<LANE_LEN>().0.iter_mut().zip(state) {
        // SAFETY: 32 bytes may be written there, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), block) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_table(table: &[u128; PASS]) -> [__m256i; LANES] {
    let mut state = [_mm256_setzero_si256(); LANES];
    for (block, tweaks) in state.iter_mut().zip(table.as_chunks::<WIDTH>().0) {
        // SAFETY: 2 integers of 16 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm256_loadu_si256(tweaks.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_table(table: &mut [u128; PASS], state: [__m256i; LANES]) {
    for (tweaks, block) in table.as_chunks_mut::<WIDTH>().0.iter_mut().zip(state) {
        // SAFETY: 2 integers of 16 bytes may be written there, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(tweaks.as_mut_ptr().cast(), block) }
    }
}

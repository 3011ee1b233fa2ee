//! AES-NI and PCLMULQDQ: 8 blocks in 8 registers, their tweaks in the first-level cache.

use core::arch::asm;
use core::arch::x86_64::*;

use cipher::consts::U128;
use cipher::{Array, InOut};

use super::schedule::RoundKeys;
use crate::tweak::advance;
use crate::walk::{BLOCK_LEN, Chunk, Data, PASS, walk};

/// Blocks in flight.
const LANES: usize = 8;
type Group<'inp, 'out> = InOut<'inp, 'out, Array<u8, U128>>;

/// Encrypts the numbers from `first_unit` to the first tweaks of as many units.
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
pub(super) fn encrypt_tweaks<const N: usize>(keys: &RoundKeys<N>, first_unit: u128, tweaks: &mut [u128]) {
    let number = |index| to_vector(first_unit.wrapping_add(index as u128));
    let (groups, rest) = tweaks.as_chunks_mut::<LANES>();
    let whole = groups.len() * LANES;
    for (group_index, group) in groups.iter_mut().enumerate() {
        let mut state = [_mm_setzero_si128(); LANES];
        for (index, block) in state.iter_mut().enumerate() {
            *block = number(group_index * LANES + index);
        }
        state = rounds::<N, true, LANES>(keys, state);
        for (tweak, block) in group.iter_mut().zip(state) {
            *tweak = from_vector(block);
        }
    }
    for (index, tweak) in rest.iter_mut().enumerate() {
        let [block] = rounds::<N, true, 1>(keys, [number(whole + index)]);
        *tweak = from_vector(block);
    }
}

/// Encrypts or decrypts whole blocks of units that start with `tweaks`; returns the tweak that follows the last block.
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
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
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
fn chunk<const N: usize, const ENCRYPT: bool>(keys: &RoundKeys<N>, data: Chunk<'_, '_>, tweak: u128, ahead: usize) {
    let mut tweak = tweak;
    let (groups, _) = data.into_buf().into_chunks::<U128>();
    for group in groups {
        if ahead != 0 {
            prefetch(group.get_in(), ahead);
        }
        let tweaks = follow(to_vector(tweak));
        tweak = advance::<8>(tweak);
        blocks::<N, ENCRYPT>(keys, group, &tweaks);
    }
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
fn pass<const N: usize, const ENCRYPT: bool>(keys: &RoundKeys<N>, data: Data<'_, '_>, table: &[u128; PASS]) {
    let (groups, mut rest) = data.into_chunks::<U128>();
    let (tables, _) = table.as_chunks::<LANES>();
    let whole = groups.len();
    for (group, tweaks) in groups.into_iter().zip(tables) {
        blocks::<N, ENCRYPT>(keys, group, &vectors(tweaks));
    }
    if !rest.is_empty() {
        let len = rest.len();
        let mut buffer = Array::<u8, U128>::default();
        buffer[..len].copy_from_slice(rest.get_in());
        blocks::<N, ENCRYPT>(keys, InOut::from(&mut buffer), &vectors(&tables[whole]));
        rest.get_out().copy_from_slice(&buffer[..len]);
        crate::wipe(&mut buffer);
    }
}

/// The tweaks of 8 consecutive blocks, all from that of the first: x^k is a shift by k bits and what it carries out times x^7+x^2+x+1.
#[inline]
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
fn follow(tweak: __m128i) -> [__m128i; LANES] {
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq,sse4.1")]
    fn times<const SHIFT: i32, const BACK: i32>(tweak: __m128i) -> __m128i {
        let carries = _mm_srli_epi64::<BACK>(tweak);
        let folded = _mm_clmulepi64_si128::<0x01>(carries, _mm_set_epi64x(0, 0x87));
        _mm_xor_si128(_mm_xor_si128(_mm_slli_epi64::<SHIFT>(tweak), _mm_slli_si128::<8>(carries)), folded)
    }
    [
        tweak,
        times::<1, 63>(tweak),
        times::<2, 62>(tweak),
        times::<3, 61>(tweak),
        times::<4, 60>(tweak),
        times::<5, 59>(tweak),
        times::<6, 58>(tweak),
        times::<7, 57>(tweak),
    ]
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
fn blocks<const N: usize, const ENCRYPT: bool>(
    keys: &RoundKeys<N>,
    mut data: Group<'_, '_>,
    tweaks: &[__m128i; LANES],
) {
    let mut state = load(data.get_in());
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = _mm_xor_si128(*block, *tweak);
    }
    state = rounds::<N, ENCRYPT, LANES>(keys, state);
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = _mm_xor_si128(*block, *tweak);
    }
    store(data.get_out(), state);
}

#[inline]
#[target_feature(enable = "aes,pclmulqdq,sse4.1")]
fn rounds<const N: usize, const ENCRYPT: bool, const COUNT: usize>(
    keys: &RoundKeys<N>,
    mut state: [__m128i; COUNT],
) -> [__m128i; COUNT] {
    for block in &mut state {
        *block = _mm_xor_si128(*block, keys[0]);
    }
    for key in &keys[1..N - 1] {
        for block in &mut state {
            *block = if ENCRYPT { _mm_aesenc_si128(*block, *key) } else { _mm_aesdec_si128(*block, *key) };
        }
        hold(&mut state);
    }
    for block in &mut state {
        let key = keys[N - 1];
        *block = if ENCRYPT { _mm_aesenclast_si128(*block, key) } else { _mm_aesdeclast_si128(*block, key) };
    }
    state
}

/// Keeps the blocks of a round together. Left alone the compiler finishes one block before it starts the next, which saves registers
/// and leaves the AES units waiting for it.
#[inline]
#[target_feature(enable = "sse4.1")]
fn hold<const COUNT: usize>(state: &mut [__m128i; COUNT]) {
    if let [a, b, c, d, e, f, g, h] = state.as_mut_slice() {
        // SAFETY: no instruction at all.
        unsafe {
            asm!(
                "# {} {} {} {} {} {} {} {}",
                inout(xmm_reg) * a,
                inout(xmm_reg) * b,
                inout(xmm_reg) * c,
                inout(xmm_reg) * d,
                inout(xmm_reg) * e,
                inout(xmm_reg) * f,
                inout(xmm_reg) * g,
                inout(xmm_reg) * h,
                options(pure, nomem, nostack, preserves_flags)
            )
        }
    }
}

/// Asks for the bytes `ahead` of these: a hint that no address can make fail.
#[inline]
#[allow(unused_unsafe, reason = "a safe function in newer versions of Rust")]
#[target_feature(enable = "sse4.1")]
fn prefetch(data: &Array<u8, U128>, ahead: usize) {
    for line in [0, 64] {
        let address = data.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a prefetch reads nothing that the program can see and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// A block from 16 bytes; anything shorter is an error of this crate and gives zeros.
#[inline]
#[target_feature(enable = "sse4.1")]
pub(super) fn block_of(bytes: &[u8]) -> __m128i {
    bytes.first_chunk::<BLOCK_LEN>().map_or(_mm_setzero_si128(), |block| to_vector(u128::from_le_bytes(*block)))
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn to_vector(value: u128) -> __m128i {
    _mm_set_epi64x((value >> 64) as i64, value as i64)
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn vectors(values: &[u128; LANES]) -> [__m128i; LANES] {
    let mut state = [_mm_setzero_si128(); LANES];
    for (block, value) in state.iter_mut().zip(values) {
        *block = to_vector(*value);
    }
    state
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn from_vector(value: __m128i) -> u128 {
    let (low, high) = (_mm_extract_epi64::<0>(value) as u64, _mm_extract_epi64::<1>(value) as u64);
    u128::from(low) | u128::from(high) << 64
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn load(data: &Array<u8, U128>) -> [__m128i; LANES] {
    let mut state = [_mm_setzero_si128(); LANES];
    for (block, bytes) in state.iter_mut().zip(data.as_chunks::<BLOCK_LEN>().0) {
        // SAFETY: 16 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn store(data: &mut Array<u8, U128>, state: [__m128i; LANES]) {
    for (bytes, block) in data.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(state) {
        // SAFETY: 16 bytes may be written there, and the store asks for no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), block) }
    }
}

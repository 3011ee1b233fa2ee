//! VAES and VPCLMULQDQ on AVX-512: 32 blocks in 8 registers of 512 bits, their tweaks in 8 more, the round keys in 15.

use core::arch::x86_64::*;

use cipher::Array;
use cipher::consts::U512;

use super::aesni;
use super::schedule::RoundKeys;
use crate::walk::{Chunk, Data, PASS, walk};

/// Blocks of a register.
const WIDTH: usize = 4;
/// Registers of a chunk, and of a pass.
const CHUNK_LANES: usize = 8;
const PASS_LANES: usize = PASS / WIDTH;
const LANE_LEN: usize = 64;

/// Encrypts unit numbers to the first tweaks of their units.
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
pub(super) fn encrypt_tweaks<const N: usize>(keys: &RoundKeys<N>, tweaks: &mut [u128]) {
    if tweaks.len() < WIDTH {
        return aesni::encrypt_tweaks(keys, tweaks);
    }
    let keys = keys.map(|key| _mm512_broadcast_i32x4(key));
    let (passes, rest) = tweaks.as_chunks_mut::<PASS>();
    for pass in passes {
        encrypt_pass(&keys, pass);
    }
    if !rest.is_empty() {
        let mut pass = [0; PASS];
        pass[..rest.len()].copy_from_slice(rest);
        encrypt_pass(&keys, &mut pass);
        rest.copy_from_slice(&pass[..rest.len()]);
        crate::wipe(&mut pass);
    }
}

/// Encrypts or decrypts whole blocks of units that start with `tweaks`; returns the tweak that follows the last block.
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
pub(super) fn process<const N: usize, const ENCRYPT: bool>(
    keys: &RoundKeys<N>,
    data: Data<'_, '_>,
    unit_size: usize,
    tweaks: &[u128],
    ahead: usize,
) -> u128 {
    let keys = keys.map(|key| _mm512_broadcast_i32x4(key));
    walk(
        data,
        unit_size,
        tweaks,
        |part, tweak| chunk::<N, ENCRYPT>(&keys, part, tweak, ahead),
        |part, table| pass::<N, ENCRYPT>(&keys, part, table),
    )
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn chunk<const N: usize, const ENCRYPT: bool>(keys: &[__m512i; N], mut data: Chunk<'_, '_>, tweak: u128, ahead: usize) {
    if ahead != 0 {
        prefetch(data.get_in(), ahead);
    }
    let tweaks = follow(tweak);
    let mut state = load(data.get_in());
    whiten(&mut state, &tweaks, keys[0]);
    state = rounds::<N, ENCRYPT, CHUNK_LANES>(keys, state, &tweaks);
    store(data.get_out(), state);
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn pass<const N: usize, const ENCRYPT: bool>(keys: &[__m512i; N], mut data: Data<'_, '_>, table: &[u128; PASS]) {
    let tweaks = load_table(table);
    let mut state = load_part(data.get_in());
    whiten(&mut state, &tweaks, keys[0]);
    state = rounds::<N, ENCRYPT, PASS_LANES>(keys, state, &tweaks);
    store_part(data.get_out(), state);
}

/// The tweaks of 32 consecutive blocks, all from that of the first: x^k for k up to 7 is a shift by k bits and what it carries out
/// times x^7+x^2+x+1; x^8, x^16 and x^24 are shifts of those by whole bytes.
#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn follow(tweak: u128) -> [__m512i; CHUNK_LANES] {
    let polynomial = _mm512_set1_epi64(0x87);
    let first = _mm512_broadcast_i32x4(_mm_set_epi64x((tweak >> 64) as i64, tweak as i64));
    let times = |shift: __m512i, back: __m512i| {
        let carries = _mm512_srlv_epi64(first, back);
        let folded = _mm512_clmulepi64_epi128::<0x01>(carries, polynomial);
        xor3(_mm512_sllv_epi64(first, shift), _mm512_bslli_epi128::<8>(carries), folded)
    };
    let low = times(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64));
    let high = times(_mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4), _mm512_set_epi64(57, 57, 58, 58, 59, 59, 60, 60));
    macro_rules! bytes {
        ($tweaks:expr, $count:literal) => {{
            let carries = _mm512_bsrli_epi128::<{ 16 - $count }>($tweaks);
            let folded = _mm512_clmulepi64_epi128::<0x00>(carries, polynomial);
            _mm512_xor_si512(_mm512_bslli_epi128::<$count>($tweaks), folded)
        }};
    }
    [low, high, bytes!(low, 1), bytes!(high, 1), bytes!(low, 2), bytes!(high, 2), bytes!(low, 3), bytes!(high, 3)]
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn encrypt_pass<const N: usize>(keys: &[__m512i; N], pass: &mut [u128; PASS]) {
    let none = [_mm512_setzero_si512(); PASS_LANES];
    let mut state = load_table(pass);
    whiten(&mut state, &none, keys[0]);
    state = rounds::<N, true, PASS_LANES>(keys, state, &none);
    store_table(pass, state);
}

/// The first whitening and the tweak in one instruction.
#[inline]
#[target_feature(enable = "avx512f")]
fn whiten<const COUNT: usize>(state: &mut [__m512i; COUNT], tweaks: &[__m512i; COUNT], key: __m512i) {
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = xor3(*block, *tweak, key);
    }
}

/// The rounds after the first whitening; the last round's key takes the tweak with it.
#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn rounds<const N: usize, const ENCRYPT: bool, const COUNT: usize>(
    keys: &[__m512i; N],
    mut state: [__m512i; COUNT],
    tweaks: &[__m512i; COUNT],
) -> [__m512i; COUNT] {
    for key in &keys[1..N - 1] {
        for block in &mut state {
            *block = if ENCRYPT { _mm512_aesenc_epi128(*block, *key) } else { _mm512_aesdec_epi128(*block, *key) };
        }
    }
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        let key = _mm512_xor_si512(*tweak, keys[N - 1]);
        *block = if ENCRYPT { _mm512_aesenclast_epi128(*block, key) } else { _mm512_aesdeclast_epi128(*block, key) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// Asks for the bytes `ahead` of these: a hint that no address can make fail.
#[inline]
#[allow(unused_unsafe, reason = "a safe function in newer versions of Rust")]
#[target_feature(enable = "avx512f")]
fn prefetch(data: &Array<u8, U512>, ahead: usize) {
    for lane in 0..CHUNK_LANES {
        let address = data.as_ptr().wrapping_add(ahead + lane * LANE_LEN);
        // SAFETY: a prefetch reads nothing that the program can see and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(data: &Array<u8, U512>) -> [__m512i; CHUNK_LANES] {
    let mut state = [_mm512_setzero_si512(); CHUNK_LANES];
    for (block, bytes) in state.iter_mut().zip(data.as_chunks::<LANE_LEN>().0) {
        // SAFETY: 64 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(data: &mut Array<u8, U512>, state: [__m512i; CHUNK_LANES]) {
    for (bytes, block) in data.as_chunks_mut::<LANE_LEN>().0.iter_mut().zip(state) {
        // SAFETY: 64 bytes may be written there, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), block) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_table(table: &[u128; PASS]) -> [__m512i; PASS_LANES] {
    let mut state = [_mm512_setzero_si512(); PASS_LANES];
    for (block, tweaks) in state.iter_mut().zip(table.as_chunks::<WIDTH>().0) {
        // SAFETY: 4 integers of 16 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm512_loadu_si512(tweaks.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_table(table: &mut [u128; PASS], state: [__m512i; PASS_LANES]) {
    for (tweaks, block) in table.as_chunks_mut::<WIDTH>().0.iter_mut().zip(state) {
        // SAFETY: 4 integers of 16 bytes may be written there, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(tweaks.as_mut_ptr().cast(), block) }
    }
}

/// The bytes of a lane that lie in the first `len`, a bit each.
fn mask(len: usize, lane: usize) -> u64 {
    match len.saturating_sub(lane * LANE_LEN) {
        count @ 0..LANE_LEN => (1 << count) - 1,
        _ => u64::MAX,
    }
}

/// Up to a pass of bytes, followed by zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_part(data: &[u8]) -> [__m512i; PASS_LANES] {
    let mut state = [_mm512_setzero_si512(); PASS_LANES];
    for (lane, block) in state.iter_mut().enumerate() {
        let address = data.as_ptr().wrapping_add(lane * LANE_LEN);
        // SAFETY: only bytes whose bit is set are read, and those lie in `data`; no alignment is asked for.
        *block = unsafe { _mm512_maskz_loadu_epi8(mask(data.len(), lane), address.cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_part(data: &mut [u8], state: [__m512i; PASS_LANES]) {
    let len = data.len();
    for (lane, block) in state.into_iter().enumerate() {
        let address = data.as_mut_ptr().wrapping_add(lane * LANE_LEN);
        // SAFETY: only bytes whose bit is set are written, and those lie in `data`; no alignment is asked for.
        unsafe { _mm512_mask_storeu_epi8(address.cast(), mask(len, lane), block) }
    }
}

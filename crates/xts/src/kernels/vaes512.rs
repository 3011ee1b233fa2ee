//! VAES and VPCLMULQDQ on AVX-512: 32 blocks in 8 registers of 512 bits, their tweaks in 8 more, the round keys in 15.

use core::arch::asm;
use core::arch::x86_64::*;

use cipher::Array;
use cipher::consts::U512;

use super::aesni;
use super::schedule::RoundKeys;
use crate::tweak::{CHAIN_LEN, Chains, advance};
use crate::walk::{CHUNK_LEN, Chunk, Data, PASS, walk};

/// Blocks of a register.
const WIDTH: usize = 4;
/// Registers of a chunk, and of a pass.
const CHUNK_LANES: usize = 8;
const PASS_LANES: usize = PASS / WIDTH;
const LANE_LEN: usize = 64;
const CHUNK: usize = WIDTH * CHUNK_LANES;
/// Tweaks that each chain makes in a round.
const STEPS: usize = 2;

/// Encrypts the numbers from `first_unit` to the first tweaks of as many units.
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
pub(super) fn encrypt_tweaks<const N: usize>(keys: &RoundKeys<N>, first_unit: u128, tweaks: &mut [u128]) {
    if tweaks.len() <= PASS / 2 {
        return aesni::encrypt_tweaks(keys, first_unit, tweaks);
    }
    let keys = broadcast(keys);
    let mut first = first_unit;
    let (chunks, rest) = tweaks.as_chunks_mut::<CHUNK>();
    for chunk in chunks {
        let state = encrypt_numbers::<N, CHUNK_LANES>(&keys, first);
        store_table::<CHUNK, CHUNK_LANES>(chunk, state);
        first = first.wrapping_add(CHUNK as u128);
    }
    for part in rest.chunks_mut(PASS) {
        let mut pass = [0; PASS];
        let state = encrypt_numbers::<N, PASS_LANES>(&keys, first);
        store_table::<PASS, PASS_LANES>(&mut pass, state);
        part.copy_from_slice(&pass[..part.len()]);
        crate::wipe(&mut pass);
        first = first.wrapping_add(PASS as u128);
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
    let keys = broadcast(keys);
    if data.len() == CHUNK_LEN && unit_size >= CHUNK_LEN {
        // A sector on its own: nothing comes next.
        let tweak = tweaks.first().copied().unwrap_or(0);
        for part in data.into_chunks::<U512>().0 {
            lone_chunk::<N, ENCRYPT>(&keys, part, follow(tweak));
        }
        return advance::<32>(tweak);
    }
    // The tweaks of the chunk that comes next, made by the one before it.
    let mut prepared = None;
    let mut table = Table([0; CHUNK]);
    let table = &mut table.0;
    let following = walk(
        data,
        unit_size,
        tweaks,
        |part, tweaks| {
            if prepared.is_none() {
                store_table::<CHUNK, CHUNK_LANES>(table, follow(tweaks.this));
            }
            prepared = tweaks.next.map(|_| ());
            chunk::<N, ENCRYPT>(&keys, part, table, tweaks.next.unwrap_or(0), ahead);
        },
        |part, table| pass::<N, ENCRYPT>(&keys, part, table),
    );
    crate::wipe(table);
    following
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn chunk<const N: usize, const ENCRYPT: bool>(
    keys: &[__m512i; N],
    mut data: Chunk<'_, '_>,
    table: &mut [u128; CHUNK],
    next: u128,
    ahead: usize,
) {
    if ahead != 0 {
        prefetch(data.get_in(), ahead);
    }
    let tweaks = load_table::<CHUNK, CHUNK_LANES>(table);
    let mut state = load(data.get_in());
    whiten(&mut state, &tweaks, keys[0]);
    let mut chains = Chains::new(next);
    macro_rules! round_and_steps {
        ($($index:literal)*) => {$(
            state = round::<ENCRYPT, CHUNK_LANES>(state, keys[1 + $index]);
            for step in 0..STEPS {
                let index = $index * STEPS + step;
                [table[index], table[CHAIN_LEN + index]] = chains.next();
            }
            hold_both(&mut state, &mut chains);
        )*};
    }
    // Written out: the compiler would make a loop of it that reads the round keys from memory.
    round_and_steps!(0 1 2 3 4 5 6 7);
    for key in &keys[1 + CHAIN_LEN / STEPS..N - 1] {
        state = round::<ENCRYPT, CHUNK_LANES>(state, *key);
    }
    state = last_round::<ENCRYPT, CHUNK_LANES>(state, &tweaks, keys[N - 1]);
    store(data.get_out(), state);
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn lone_chunk<const N: usize, const ENCRYPT: bool>(
    keys: &[__m512i; N],
    mut data: Chunk<'_, '_>,
    tweaks: [__m512i; CHUNK_LANES],
) {
    let mut state = load(data.get_in());
    whiten(&mut state, &tweaks, keys[0]);
    state = rounds::<N, ENCRYPT, CHUNK_LANES>(keys, state, &tweaks);
    store(data.get_out(), state);
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn pass<const N: usize, const ENCRYPT: bool>(keys: &[__m512i; N], mut data: Data<'_, '_>, table: &[u128; PASS]) {
    let tweaks = load_table::<PASS, PASS_LANES>(table);
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
fn encrypt_numbers<const N: usize, const COUNT: usize>(keys: &[__m512i; N], first: u128) -> [__m512i; COUNT] {
    let none = [_mm512_setzero_si512(); COUNT];
    let mut state = none;
    for (lane, block) in state.iter_mut().enumerate() {
        // Four numbers a lane. Each is a sum of its own: between two there may be a carry into the upper half.
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| first.wrapping_add((lane * WIDTH + index) as u128));
        let halves = [a, a >> 64, b, b >> 64, c, c >> 64, d, d >> 64].map(|half| half as i64);
        let [a, b, c, d, e, f, g, h] = halves;
        *block = _mm512_set_epi64(h, g, f, e, d, c, b, a);
    }
    whiten(&mut state, &none, keys[0]);
    rounds::<N, true, COUNT>(keys, state, &none)
}

/// The first whitening and the tweak in one instruction.
#[inline]
#[target_feature(enable = "avx512f")]
fn whiten<const COUNT: usize>(state: &mut [__m512i; COUNT], tweaks: &[__m512i; COUNT], key: __m512i) {
    for (block, tweak) in state.iter_mut().zip(tweaks) {
        *block = xor3(*block, *tweak, key);
    }
}

/// The rounds after the first whitening.
#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn rounds<const N: usize, const ENCRYPT: bool, const COUNT: usize>(
    keys: &[__m512i; N],
    mut state: [__m512i; COUNT],
    tweaks: &[__m512i; COUNT],
) -> [__m512i; COUNT] {
    for key in &keys[1..N - 1] {
        state = round::<ENCRYPT, COUNT>(state, *key);
    }
    last_round::<ENCRYPT, COUNT>(state, tweaks, keys[N - 1])
}

#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn round<const ENCRYPT: bool, const COUNT: usize>(mut state: [__m512i; COUNT], key: __m512i) -> [__m512i; COUNT] {
    for block in &mut state {
        *block = if ENCRYPT { _mm512_aesenc_epi128(*block, key) } else { _mm512_aesdec_epi128(*block, key) };
    }
    hold(&mut state);
    state
}

/// The last round's key takes the tweak with it.
#[inline]
#[target_feature(enable = "aes,avx512f,avx512bw,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn last_round<const ENCRYPT: bool, const COUNT: usize>(
    mut state: [__m512i; COUNT],
    tweaks: &[__m512i; COUNT],
    key: __m512i,
) -> [__m512i; COUNT] {
    // Apart from the rounds: between them these would take turns at the AES units of some CPUs out of step.
    let mut keys = *tweaks;
    for tweak in &mut keys {
        *tweak = _mm512_xor_si512(*tweak, key);
    }
    hold(&mut keys);
    for (block, key) in state.iter_mut().zip(keys) {
        *block = if ENCRYPT { _mm512_aesenclast_epi128(*block, key) } else { _mm512_aesdeclast_epi128(*block, key) };
    }
    state
}

/// Keeps the blocks of a round together. Left alone the compiler finishes one block before it starts the next, which saves registers
/// and leaves the AES units waiting for it.
#[inline]
#[target_feature(enable = "avx512f")]
fn hold<const COUNT: usize>(state: &mut [__m512i; COUNT]) {
    match state.as_mut_slice() {
        [a, b, c, d, e, f, g, h] => {
            // SAFETY: no instruction at all.
            unsafe {
                asm!(
                    "# {} {} {} {} {} {} {} {}",
                    inout(zmm_reg) * a,
                    inout(zmm_reg) * b,
                    inout(zmm_reg) * c,
                    inout(zmm_reg) * d,
                    inout(zmm_reg) * e,
                    inout(zmm_reg) * f,
                    inout(zmm_reg) * g,
                    inout(zmm_reg) * h,
                    options(pure, nomem, nostack, preserves_flags)
                )
            }
        }
        [a, b, c, d] => {
            // SAFETY: no instruction at all.
            unsafe {
                asm!(
                    "# {} {} {} {}",
                    inout(zmm_reg) * a,
                    inout(zmm_reg) * b,
                    inout(zmm_reg) * c,
                    inout(zmm_reg) * d,
                    options(pure, nomem, nostack, preserves_flags)
                )
            }
        }
        _ => {}
    }
}

/// Keeps a round and the tweaks of the next chunk that are made beside it together: the general registers have nothing else to do while the
/// vector units are busy with AES. Left alone the compiler makes all tweaks first.
#[inline]
#[target_feature(enable = "avx512f")]
fn hold_both(state: &mut [__m512i; CHUNK_LANES], chains: &mut Chains) {
    let [a, b, c, d, e, f, g, h] = state;
    let [i, j, k, l] = chains.halves();
    // SAFETY: no instruction at all. As it might read memory, what was stored before it is not put off.
    unsafe {
        asm!(
            "# {} {} {} {} {} {} {} {} {} {} {} {}",
            inout(zmm_reg) * a,
            inout(zmm_reg) * b,
            inout(zmm_reg) * c,
            inout(zmm_reg) * d,
            inout(zmm_reg) * e,
            inout(zmm_reg) * f,
            inout(zmm_reg) * g,
            inout(zmm_reg) * h,
            inout(reg) * i,
            inout(reg) * j,
            inout(reg) * k,
            inout(reg) * l,
            options(nostack, preserves_flags)
        );
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast<const N: usize>(keys: &RoundKeys<N>) -> [__m512i; N] {
    let mut wide = [_mm512_setzero_si512(); N];
    for (wide, key) in wide.iter_mut().zip(keys) {
        *wide = _mm512_broadcast_i32x4(*key);
    }
    wide
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
fn load_table<const BLOCKS: usize, const COUNT: usize>(table: &[u128; BLOCKS]) -> [__m512i; COUNT] {
    let mut state = [_mm512_setzero_si512(); COUNT];
    for (block, tweaks) in state.iter_mut().zip(table.as_chunks::<WIDTH>().0) {
        // SAFETY: 4 integers of 16 bytes may be read there, and the load asks for no alignment.
        *block = unsafe { _mm512_loadu_si512(tweaks.as_ptr().cast()) };
    }
    state
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_table<const BLOCKS: usize, const COUNT: usize>(table: &mut [u128; BLOCKS], state: [__m512i; COUNT]) {
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
#[repr(align(64))]
struct Table([u128; CHUNK]);

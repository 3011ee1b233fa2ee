//! AES-256-GCM on VAES and VPCLMULQDQ with AVX-512: four blocks a register, and the hash of one group of eight registers is worked out
//! between the rounds of another.
//!
//! GHASH is POLYVAL of the blocks read backwards (RFC 8452, appendix A): the products need no reversal of bits then, and are reduced by
//! multiplying twice by the upper half of the polynomial.
//!
//! Only [`detect`] gives these functions away, on a processor that has their instructions: nothing here is `unsafe`.

use core::arch::x86_64::*;
use core::hint::black_box;

use bytemuck::must_cast as cast;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Blocks of a register.
const LANES: usize = 4;
const LANE_LEN: usize = 64;
/// Registers that go through AES together: as many as hide how long a round takes.
const GROUP: usize = 8;
const GROUP_LEN: usize = LANE_LEN * GROUP;
/// Registers between two reductions.
const REGISTERS: usize = 2 * GROUP;
const BLOCKS: usize = LANES * REGISTERS;
/// So many bytes are worked on at a time.
pub(crate) const CHUNK_LEN: usize = LANE_LEN * REGISTERS;

/// Ciphertext is asked for so many chunks before it is decrypted: it may come from memory.
const AHEAD: usize = 2;

/// The upper half of POLYVAL's x^128 + x^127 + x^126 + x^121 + 1.
const POLYNOMIAL: u64 = 0xc200_0000_0000_0000;

/// What is worked out of a key before the first byte.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(crate) struct Keys {
    /// The hash key to the power of 64 for the first block of a chunk, down to 1 for its last.
    powers: [[u128; LANES]; REGISTERS],
    rounds: [u128; 15],
}

impl Keys {
    pub(crate) const ZERO: Self = Self { powers: [[0; LANES]; REGISTERS], rounds: [0; 15] };
}

/// How far a message has come. Blocks are numbers whose first byte is the most significant, as in the standard.
pub(crate) struct State {
    pub(crate) hash: u128,
    /// The block that the next keystream comes from; its lowest 32 bits count.
    pub(crate) counter: u128,
}

type Chunk = [u8; CHUNK_LEN];

/// The functions of this file.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Works out the keys.
    pub(crate) expand: fn(&[u8; 32], &mut Keys),
    /// Hashes whole chunks.
    pub(crate) hash: fn(&Keys, &mut State, &[Chunk]),
    /// Writes the keystream of a chunk over it; the counter stays where it is.
    pub(crate) keystream: fn(&Keys, &State, &mut Chunk),
    /// Encrypts whole chunks in place and hashes them.
    pub(crate) encrypt: fn(&Keys, &mut State, &mut [Chunk]),
    /// Hashes whole chunks and decrypts them to as many others.
    pub(crate) decrypt: fn(&Keys, &mut State, &[Chunk], &mut [Chunk]),
}

/// The kernel, where the processor can run it.
#[multiversion::multiversion(targets("x86_64+aes+avx512bw+avx512f+pclmulqdq+sse4.1+vaes+vpclmulqdq"))]
pub(crate) fn detect() -> Option<Kernel> {
    multiversion::target::match_target! {
        "x86_64+aes+avx512bw+avx512f+pclmulqdq+sse4.1+vaes+vpclmulqdq" => Some(Kernel { expand, hash, keystream, encrypt, decrypt }),
        _ => None,
    }
}

#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn expand(key: &[u8; 32], keys: &mut Keys) {
    let [first, second] = cast::<[u8; 32], [u128; 2]>(*key);
    let mut rounds = [_mm_setzero_si128(); 15];
    (rounds[0], rounds[1]) = (cast(first), cast(second));
    // FIPS 197, 5.2, for eight words of key. The round constants are part of the instruction.
    macro_rules! round_key {
        ($index:expr, $constant:literal, $word:literal) => {
            let assist = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(rounds[$index - 1], $constant), $word);
            let mut key = rounds[$index - 2];
            key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
            key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
            rounds[$index] = _mm_xor_si128(key, assist);
        };
    }
    macro_rules! round_keys {
        ($($index:literal $constant:literal),*) => {$(
            round_key!($index, $constant, 0xff);
            round_key!($index + 1, 0, 0xaa);
        )*};
    }
    round_keys!(2 0x01, 4 0x02, 6 0x04, 8 0x08, 10 0x10, 12 0x20);
    round_key!(14, 0x40, 0xff);

    let mut block = rounds[0];
    for round in &rounds[1..14] {
        block = _mm_aesenc_si128(block, *round);
    }
    // The hash key times x, which makes POLYVAL of GHASH.
    let zero = cast::<_, u128>(_mm_aesenclast_si128(block, rounds[14])).swap_bytes();
    let hash_key = (zero << 1) ^ ((zero >> 127) * ((u128::from(POLYNOMIAL) << 64) | 1));
    let mut power = hash_key;
    for index in (0..BLOCKS).rev() {
        keys.powers[index / LANES][index % LANES] = power;
        power = multiply(power, hash_key);
    }
    for (to, round) in keys.rounds.iter_mut().zip(&mut rounds) {
        *to = cast(*round);
    }
}

#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn hash(keys: &Keys, state: &mut State, chunks: &[Chunk]) {
    let mut sum = cast(state.hash);
    for chunk in chunks {
        sum = hash_chunk(keys, sum, chunk);
    }
    state.hash = cast(sum);
}

#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn keystream(keys: &Keys, state: &State, chunk: &mut Chunk) {
    *chunk = [0; CHUNK_LEN];
    cover(&mut Cipher::new(keys, state.counter), chunk);
}

#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn encrypt(keys: &Keys, state: &mut State, chunks: &mut [Chunk]) {
    let Some(first) = chunks.first_mut() else { return };
    let mut cipher = Cipher::new(keys, state.counter);
    let mut sum = cast(state.hash);
    cover(&mut cipher, first);
    // A chunk is hashed while the next one is encrypted.
    for index in 1..chunks.len() {
        let (before, after) = chunks.split_at_mut(index);
        let mut products = Products::new(sum);
        let hashed = before[index - 1].as_chunks::<GROUP_LEN>().0.iter().zip(keys.powers.as_chunks::<GROUP>().0);
        for ((hashed, powers), group) in hashed.zip(after[0].as_chunks_mut::<GROUP_LEN>().0) {
            let registers = cipher.rounds_beside(&mut products, hashed, powers);
            for (register, part) in registers.into_iter().zip(group.as_chunks_mut::<LANE_LEN>().0) {
                *part = cipher.last_round(register, *part);
            }
        }
        sum = products.sum();
    }
    state.hash = cast(hash_chunk(keys, sum, &chunks[chunks.len() - 1]));
    state.counter = cipher.next();
}

#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn decrypt(keys: &Keys, state: &mut State, from: &[Chunk], to: &mut [Chunk]) {
    let mut cipher = Cipher::new(keys, state.counter);
    let mut sum = cast(state.hash);
    for (index, (this, to)) in from.iter().zip(to).enumerate() {
        if let Some(next) = from.get(index + AHEAD) {
            next.as_chunks::<LANE_LEN>().0.iter().for_each(safe_arch::prefetch_t0);
        }
        let mut products = Products::new(sum);
        let from = this.as_chunks::<GROUP_LEN>().0.iter().zip(keys.powers.as_chunks::<GROUP>().0);
        for ((from, powers), to) in from.zip(to.as_chunks_mut::<GROUP_LEN>().0) {
            let registers = cipher.rounds_beside(&mut products, from, powers);
            let parts = from.as_chunks::<LANE_LEN>().0.iter().zip(to.as_chunks_mut::<LANE_LEN>().0);
            for (register, (from, to)) in registers.into_iter().zip(parts) {
                *to = cipher.last_round(register, *from);
            }
        }
        sum = products.sum();
    }
    state.hash = cast(sum);
    state.counter = cipher.next();
}

/// Encrypts a chunk, and hashes nothing.
#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn cover(cipher: &mut Cipher, chunk: &mut Chunk) {
    for group in chunk.as_chunks_mut::<GROUP_LEN>().0 {
        let mut registers = cipher.counters();
        for round in &cipher.rounds[1..cipher.last] {
            add_round(&mut registers, *round);
        }
        for (register, part) in registers.into_iter().zip(group.as_chunks_mut::<LANE_LEN>().0) {
            *part = cipher.last_round(register, *part);
        }
    }
}

#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn hash_chunk(keys: &Keys, sum: __m128i, chunk: &Chunk) -> __m128i {
    let mut products = Products::new(sum);
    for (part, powers) in chunk.as_chunks::<LANE_LEN>().0.iter().zip(&keys.powers) {
        products.add(*part, *powers);
    }
    products.sum()
}

struct Cipher {
    rounds: [__m512i; 15],
    /// The index of the last round, and the rounds that have a product beside them. The compiler is kept from knowing them: it would write the
    /// loops out, and finish one register before it starts the next, which costs a sixth of the speed.
    last: usize,
    products: usize,
    /// The next four counters, the bytes of each backwards.
    counters: __m512i,
}

impl Cipher {
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn new(keys: &Keys, counter: u128) -> Self {
        let mut rounds = [_mm512_setzero_si512(); 15];
        for (wide, round) in rounds.iter_mut().zip(&keys.rounds) {
            *wide = _mm512_broadcast_i32x4(cast(*round));
        }
        let counters = _mm512_broadcast_i32x4(cast(counter));
        let (last, products) = (black_box(14), black_box(GROUP));
        Self { rounds, last, products, counters: _mm512_add_epi32(counters, cast([0, 1, 2, 3_u128])) }
    }

    /// The counter after the last one that was taken.
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn next(&self) -> u128 {
        cast(_mm512_castsi512_si128(self.counters))
    }

    /// The counters of a group, with the first round key added.
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn counters(&mut self) -> [__m512i; GROUP] {
        let mut registers = [_mm512_setzero_si512(); GROUP];
        for register in &mut registers {
            *register = _mm512_xor_si512(backwards(self.counters), self.rounds[0]);
            self.counters = _mm512_add_epi32(self.counters, cast([LANES as u128; LANES]));
        }
        registers
    }

    /// All rounds but the last on the next counters; the products of a group beside them.
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn rounds_beside(
        &mut self,
        products: &mut Products,
        hashed: &[u8; GROUP_LEN],
        powers: &[[u128; LANES]; GROUP],
    ) -> [__m512i; GROUP] {
        let mut registers = self.counters();
        let (beside, alone) = self.rounds[1..self.last].split_at(GROUP);
        let hashed = hashed.as_chunks().0.iter().zip(powers);
        for (round, (part, powers)) in beside[..self.products].iter().zip(hashed) {
            add_round(&mut registers, *round);
            products.add(*part, *powers);
        }
        for round in alone {
            add_round(&mut registers, *round);
        }
        registers
    }

    /// The last round, which takes the data with it.
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn last_round(&self, register: __m512i, data: [u8; LANE_LEN]) -> [u8; LANE_LEN] {
        cast(_mm512_aesenclast_epi128(register, _mm512_xor_si512(self.rounds[14], cast(data))))
    }
}

#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn add_round(registers: &mut [__m512i; GROUP], round: __m512i) {
    for register in registers {
        *register = _mm512_aesenc_epi128(*register, round);
    }
}

/// Sums of products that are not reduced yet, a sum in each lane.
struct Products {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
    /// The hash so far, which the first block takes with it.
    before: __m512i,
}

impl Products {
    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn new(sum: __m128i) -> Self {
        let zero = _mm512_setzero_si512();
        Self { low: zero, middle: zero, high: zero, before: _mm512_zextsi128_si512(sum) }
    }

    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn add(&mut self, blocks: [u8; LANE_LEN], powers: [u128; LANES]) {
        let blocks = _mm512_xor_si512(backwards(cast(blocks)), self.before);
        self.before = _mm512_setzero_si512();
        let powers = cast(powers);
        let middle =
            [_mm512_clmulepi64_epi128::<0x01>(blocks, powers), _mm512_clmulepi64_epi128::<0x10>(blocks, powers)];
        self.low = _mm512_xor_si512(self.low, _mm512_clmulepi64_epi128::<0x00>(blocks, powers));
        self.high = _mm512_xor_si512(self.high, _mm512_clmulepi64_epi128::<0x11>(blocks, powers));
        // 0x96: the exclusive or of three.
        self.middle = _mm512_ternarylogic_epi64::<0x96>(self.middle, middle[0], middle[1]);
    }

    #[inline]
    #[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
    fn sum(self) -> __m128i {
        let low = _mm512_xor_si512(self.low, _mm512_bslli_epi128::<8>(self.middle));
        let high = _mm512_xor_si512(self.high, _mm512_bsrli_epi128::<8>(self.middle));
        reduce(sum_of_lanes(low), sum_of_lanes(high))
    }
}

/// The bytes of each block in the other order.
#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn backwards(blocks: __m512i) -> __m512i {
    const ORDER: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;
    _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(cast(ORDER)))
}

#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn sum_of_lanes(lanes: __m512i) -> __m128i {
    let halves = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
    _mm_xor_si128(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
}

#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn multiply(a: u128, b: u128) -> u128 {
    let (a, b) = (cast(a), cast(b));
    let middle = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
    let low = _mm_xor_si128(_mm_clmulepi64_si128::<0x00>(a, b), _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(_mm_clmulepi64_si128::<0x11>(a, b), _mm_srli_si128::<8>(middle));
    cast(reduce(low, high))
}

/// A product of 256 bits divided by x^128, modulo the polynomial.
#[inline]
#[target_feature(enable = "aes,avx512bw,avx512f,pclmulqdq,sse4.1,vaes,vpclmulqdq")]
fn reduce(mut low: __m128i, high: __m128i) -> __m128i {
    let polynomial = cast(u128::from(POLYNOMIAL));
    for _ in 0..2 {
        low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), _mm_clmulepi64_si128::<0x00>(low, polynomial));
    }
    _mm_xor_si128(high, low)
}

//! A run of data units: checked, cut into groups whose tweaks are encrypted together, and the ciphertext stealing at its end.

use cipher::consts::U16;
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use crate::error::Error;
use crate::kernels::{Cipher, Direction};
use crate::tweak::advance;
use crate::walk::{BLOCK_LEN, Data};

/// Units whose tweaks are encrypted together.
const GROUP: usize = 128;
/// The same in a short run, so that a call for one unit has little to set up and to wipe.
const SHORT_GROUP: usize = 4;
/// How far before its use data is fetched from memory, in bytes.
const AHEAD: usize = 4096;
/// From this length in bytes on a run is not expected in the cache.
const MEMORY_SIZED: usize = 512 << 10;
/// What transcrypting decrypts and then encrypts, in bytes: it stays in the second-level cache.
const TRANSCRYPT_LEN: usize = 128 << 10;

/// A run of data units within the range of unit numbers, the last one of at least a block.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) unit_size: usize,
    pub(crate) first_unit: u128,
    /// How far ahead to prefetch, in bytes; 0 for not at all.
    pub(crate) ahead: usize,
}

impl Run {
    /// Checks a run of `len` bytes before anything of it is changed.
    #[inline]
    pub(crate) fn new(len: usize, unit_size: usize, first_unit: u128) -> Result<Self, Error> {
        if unit_size < BLOCK_LEN || !unit_size.is_multiple_of(BLOCK_LEN) {
            return Err(Error::UnitSize);
        }
        // A division costs as much as the tweak of a unit does on some CPUs; one unit needs none.
        let (whole, rest) = if len == unit_size { (1, 0) } else { (len / unit_size, len % unit_size) };
        if rest != 0 && rest < BLOCK_LEN {
            return Err(Error::ShortUnit);
        }
        let last = (whole + usize::from(rest != 0)).saturating_sub(1);
        if first_unit.checked_add(last as u128).is_none() {
            return Err(Error::UnitNumber);
        }
        Ok(Self { unit_size, first_unit, ahead: if len >= MEMORY_SIZED { AHEAD } else { 0 } })
    }

    /// The rest of the run after `count` units.
    #[inline]
    pub(crate) fn skip(self, count: usize) -> Self {
        // The sum was checked for every unit of the run; what follows the last unit is not used.
        Self { first_unit: self.first_unit.wrapping_add(count as u128), ..self }
    }
}

/// Encrypts or decrypts a checked run.
#[inline]
pub(crate) fn process<A, const N: usize>(cipher: &Cipher<A, N>, direction: Direction, data: Data<'_, '_>, run: Run)
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    if data.len().is_multiple_of(BLOCK_LEN) {
        return whole_blocks(cipher, direction, data, run);
    }
    let count = data.len() / run.unit_size;
    let (units, last) = data.split_at(count * run.unit_size);
    whole_blocks(cipher, direction, units, run);
    let mut tweak = [0];
    cipher.encrypt_tweaks(run.skip(count).first_unit, &mut tweak);
    let before_len = (last.len() / BLOCK_LEN - 1) * BLOCK_LEN;
    let (before, stolen) = last.split_at(before_len);
    if before_len != 0 {
        tweak = [cipher.process(direction, before, before_len, &tweak, 0)];
    }
    steal(cipher, direction, stolen, tweak[0]);
    crate::wipe(&mut tweak);
}

/// Decrypts under one cipher and encrypts under another, in one pass over blocks that stay in the cache.
pub(crate) fn transcrypt<A, const N: usize>(from: &Cipher<A, N>, to: &Cipher<A, N>, data: &mut [u8], run: Run)
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    let unit_count = (TRANSCRYPT_LEN / run.unit_size).max(1);
    let mut rest = run;
    for block in data.chunks_mut(unit_count.saturating_mul(run.unit_size)) {
        process(from, Direction::Decrypt, block.into(), rest);
        process(to, Direction::Encrypt, block.into(), Run { ahead: 0, ..rest });
        rest = rest.skip(unit_count);
    }
}

#[inline]
fn whole_blocks<A, const N: usize>(cipher: &Cipher<A, N>, direction: Direction, data: Data<'_, '_>, run: Run)
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    if data.len() <= run.unit_size.saturating_mul(SHORT_GROUP) {
        groups::<A, N, SHORT_GROUP>(cipher, direction, data, run);
    } else {
        groups::<A, N, GROUP>(cipher, direction, data, run);
    }
}

#[inline]
fn groups<A, const N: usize, const COUNT: usize>(
    cipher: &Cipher<A, N>,
    direction: Direction,
    data: Data<'_, '_>,
    run: Run,
) where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    let mut tweaks = [0; COUNT];
    let (mut data, mut run) = (data, run);
    while !data.is_empty() {
        let group_len = data.len().min(run.unit_size.saturating_mul(COUNT));
        let (group, rest) = data.split_at(group_len);
        data = rest;
        let count = if group_len <= run.unit_size { 1 } else { group_len.div_ceil(run.unit_size) };
        let tweaks = &mut tweaks[..count];
        cipher.encrypt_tweaks(run.first_unit, tweaks);
        cipher.process(direction, group, run.unit_size, tweaks, run.ahead);
        run = run.skip(count);
    }
    crate::wipe(&mut tweaks);
}

/// Ciphertext stealing (IEEE 1619, 5.3.2 and 5.4.2): `data` is the last whole block and the part after it, `tweak` the block's.
fn steal<A, const N: usize>(cipher: &Cipher<A, N>, direction: Direction, mut data: Data<'_, '_>, tweak: u128)
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    // Decryption meets the two blocks in the other order.
    let (first, second) = match direction {
        Direction::Encrypt => (tweak, advance::<1>(tweak)),
        Direction::Decrypt => (advance::<1>(tweak), tweak),
    };
    let part_len = data.len() - BLOCK_LEN;
    let mut whole = [0; BLOCK_LEN];
    let mut part = [0; BLOCK_LEN];
    whole.copy_from_slice(&data.get_in()[..BLOCK_LEN]);
    part[..part_len].copy_from_slice(&data.get_in()[BLOCK_LEN..]);
    cipher.process(direction, whole.as_mut_slice().into(), BLOCK_LEN, &[first], 0);
    data.get_out()[BLOCK_LEN..].copy_from_slice(&whole[..part_len]);
    part[part_len..].copy_from_slice(&whole[part_len..]);
    cipher.process(direction, part.as_mut_slice().into(), BLOCK_LEN, &[second], 0);
    data.get_out()[..BLOCK_LEN].copy_from_slice(&part);
    crate::wipe(&mut whole);
    crate::wipe(&mut part);
}

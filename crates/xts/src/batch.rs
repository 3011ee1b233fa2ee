//! Runs of data units over any block cipher: the tweaks of up to 64 units are encrypted together, and the blocks of units in bulk.

use cipher::consts::U16;
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt};
use zeroize::Zeroize;

use crate::error::Error;

pub(crate) const BLOCK_LEN: usize = 16;
/// Units whose tweaks are encrypted together.
const UNITS: usize = 64;
/// Blocks that are processed together: 4 KiB of data, and as much of tweaks, stay in the first-level cache.
const BLOCKS: usize = 256;

type Block = Array<u8, U16>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

/// Checks a run before anything of it is changed. `len` is the length of all units together.
pub(crate) fn check(len: usize, unit_size: usize, first_unit: u128) -> Result<(), Error> {
    if unit_size < BLOCK_LEN || unit_size % BLOCK_LEN != 0 {
        return Err(Error::UnitSize);
    }
    let last_len = len % unit_size;
    if last_len != 0 && last_len < BLOCK_LEN {
        return Err(Error::ShortUnit);
    }
    let count = len.div_ceil(unit_size) as u128;
    if count > 0 && first_unit.checked_add(count - 1).is_none() {
        return Err(Error::UnitNumber);
    }
    Ok(())
}

pub(crate) fn copy(input: &[u8], output: &mut [u8]) -> Result<(), Error> {
    if input.len() != output.len() {
        return Err(Error::OutputLength);
    }
    output.copy_from_slice(input);
    Ok(())
}

/// Processes a run in place.
pub(crate) fn run<C>(
    data_cipher: &C,
    tweak_cipher: &C,
    direction: Direction,
    data: &mut [u8],
    unit_size: usize,
    first_unit: u128,
) -> Result<(), Error>
where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    check(data.len(), unit_size, first_unit)?;
    let mut tweaks = [Block::default(); UNITS];
    let mut table = [Block::default(); BLOCKS];
    let mut unit = first_unit;
    for group in data.chunks_mut(unit_size.saturating_mul(UNITS)) {
        let count = group.len().div_ceil(unit_size);
        for (index, tweak) in tweaks[..count].iter_mut().enumerate() {
            *tweak = Block::from((unit + index as u128).to_le_bytes());
        }
        tweak_cipher.encrypt_blocks(&mut tweaks[..count]);
        process(data_cipher, direction, group, unit_size, &tweaks[..count], &mut table);
        // Only the value after the last unit can wrap, and that is not used.
        unit = unit.wrapping_add(count as u128);
    }
    tweaks.as_mut_slice().zeroize_blocks();
    table.as_mut_slice().zeroize_blocks();
    Ok(())
}

/// Wipes blocks.
trait ZeroizeBlocks {
    fn zeroize_blocks(&mut self);
}

impl ZeroizeBlocks for [Block] {
    fn zeroize_blocks(&mut self) {
        Block::slice_as_flattened_mut(self).zeroize();
    }
}

/// Processes units whose encrypted tweaks are given.
fn process<C>(
    cipher: &C,
    direction: Direction,
    group: &mut [u8],
    unit_size: usize,
    tweaks: &[Block],
    table: &mut [Block; BLOCKS],
) where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    // What needs stealing comes last and on its own: its final two blocks.
    let tail = match group.len() % BLOCK_LEN {
        0 => 0,
        rest => BLOCK_LEN + rest,
    };
    let whole_len = group.len() - tail;
    let (whole, stolen) = group.split_at_mut(whole_len);
    let (blocks, _) = Block::slice_as_chunks_mut(whole);
    let unit_blocks = unit_size / BLOCK_LEN;
    let mut next = Tweaks { tweaks: tweaks.iter(), current: 0, left: 0, unit_blocks };
    for part in blocks.chunks_mut(BLOCKS) {
        let table = &mut table[..part.len()];
        for (block, tweak) in part.iter_mut().zip(table.iter_mut()) {
            let value = next.next();
            *tweak = Block::from(value.to_le_bytes());
            xor(block, tweak);
        }
        match direction {
            Direction::Encrypt => cipher.encrypt_blocks(part),
            Direction::Decrypt => cipher.decrypt_blocks(part),
        }
        for (block, tweak) in part.iter_mut().zip(table.iter()) {
            xor(block, tweak);
        }
    }
    if tail != 0 {
        let tweak = next.next();
        steal(cipher, direction, stolen, tweak, double(tweak));
    }
    next.current.zeroize();
}

/// The tweak of each block, unit after unit.
struct Tweaks<'a> {
    tweaks: core::slice::Iter<'a, Block>,
    current: u128,
    /// Blocks left in the unit, `current` being the tweak of the one before.
    left: usize,
    unit_blocks: usize,
}

impl Tweaks<'_> {
    #[inline(always)]
    fn next(&mut self) -> u128 {
        if self.left == 0 {
            self.left = self.unit_blocks;
            self.current = self.tweaks.next().map_or(0, |tweak| u128::from_le_bytes((*tweak).into()));
        } else {
            self.current = double(self.current);
        }
        self.left -= 1;
        self.current
    }
}

/// Multiplies by x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1 (IEEE 1619, 5.2), without a branch.
#[inline(always)]
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}

#[inline(always)]
fn xor(block: &mut Block, tweak: &Block) {
    let value = u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes((*tweak).into());
    *block = Block::from(value.to_ne_bytes());
}

/// Ciphertext stealing (IEEE 1619, 5.3.2 and 5.4.2) for the last whole block and the part after it.
fn steal<C>(cipher: &C, direction: Direction, tail: &mut [u8], tweak: u128, next_tweak: u128)
where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    // Decryption meets the two blocks in the other order.
    let (first_tweak, second_tweak) = match direction {
        Direction::Encrypt => (tweak, next_tweak),
        Direction::Decrypt => (next_tweak, tweak),
    };
    let apply = |block: &mut Block, tweak: u128| {
        let tweak = Block::from(tweak.to_le_bytes());
        xor(block, &tweak);
        match direction {
            Direction::Encrypt => cipher.encrypt_block(block),
            Direction::Decrypt => cipher.decrypt_block(block),
        }
        xor(block, &tweak);
    };
    let (last, part) = tail.split_at_mut(BLOCK_LEN);
    let mut block = Block::default();
    block.copy_from_slice(last);
    apply(&mut block, first_tweak);
    let mut second = block;
    second[..part.len()].copy_from_slice(part);
    part.copy_from_slice(&block[..part.len()]);
    apply(&mut second, second_tweak);
    last.copy_from_slice(&second);
    block.as_mut_slice().zeroize();
    second.as_mut_slice().zeroize();
}

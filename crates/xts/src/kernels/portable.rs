//! Any block cipher of RustCrypto's traits, in batches; nothing unsafe.

use cipher::consts::U16;
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, InOutBuf, KeyInit};

use super::dispatch::Direction;
use crate::error::Error;
use crate::tweak::{CHAIN_LEN, Chains, advance};
use crate::walk::{BLOCK_LEN, Data};

/// Blocks that are processed together: 4 KiB of data, and as much of tweaks, stay in the first-level cache.
const BATCH: usize = 256;

type Block = Array<u8, U16>;

/// The two keys of XTS; `A` wipes itself.
pub(super) struct Keys<A> {
    data: A,
    tweak: A,
}

impl<A: KeyInit> Keys<A> {
    pub(super) fn new(data: &[u8], tweak: &[u8]) -> Result<Self, Error> {
        let cipher = |key| A::new_from_slice(key).map_err(|_| Error::KeyLength);
        Ok(Self { data: cipher(data)?, tweak: cipher(tweak)? })
    }
}

/// Encrypts the numbers from `first_unit` to the first tweaks of as many units.
pub(super) fn encrypt_tweaks<A>(keys: &Keys<A>, first_unit: u128, tweaks: &mut [u128])
where
    A: BlockCipherEncrypt<BlockSize = U16>,
{
    crate::tweak::number(first_unit, tweaks);
    let mut blocks = [Block::default(); 16];
    for group in tweaks.chunks_mut(blocks.len()) {
        let blocks = &mut blocks[..group.len()];
        for (block, tweak) in blocks.iter_mut().zip(group.iter()) {
            *block = tweak.to_le_bytes().into();
        }
        keys.tweak.encrypt_blocks(blocks);
        for (block, tweak) in blocks.iter().zip(group) {
            *tweak = u128::from_le_bytes((*block).into());
        }
    }
    crate::wipe(&mut blocks);
}

/// Encrypts or decrypts whole blocks of units that start with `tweaks`; returns the tweak that follows the last block.
pub(super) fn process<A>(
    keys: &Keys<A>,
    direction: Direction,
    data: Data<'_, '_>,
    unit_size: usize,
    tweaks: &[u128],
) -> u128
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    let mut table = [Block::default(); BATCH];
    let (mut rest, _) = data.into_chunks::<U16>();
    let used = rest.len().min(BATCH);
    let unit_blocks = unit_size / BLOCK_LEN;
    let mut tweaks = tweaks.iter().copied();
    let (mut tweak, mut unit_left) = (0, 0);
    while !rest.is_empty() {
        let count = rest.len().min(BATCH);
        let (part, after) = rest.split_at(count);
        rest = after;
        let mut table_left = &mut table[..count];
        while !table_left.is_empty() {
            if unit_left == 0 {
                unit_left = unit_blocks;
                tweak = tweaks.next().unwrap_or(tweak);
            }
            let (unit, others) = table_left.split_at_mut(unit_left.min(table_left.len()));
            table_left = others;
            unit_left -= unit.len();
            tweak = follow(unit, tweak);
        }
        batch(&keys.data, direction, part, &table[..count]);
    }
    crate::wipe(&mut table[..used]);
    tweak
}

/// Fills `table` with the tweaks of consecutive blocks from `tweak` on; returns the one that follows.
fn follow(table: &mut [Block], tweak: u128) -> u128 {
    let mut next = tweak;
    let (groups, rest) = table.as_chunks_mut::<{ 2 * CHAIN_LEN }>();
    for group in groups {
        let mut chains = Chains::new(next);
        for index in 0..CHAIN_LEN {
            let [first, second] = chains.next();
            group[index] = first.to_le_bytes().into();
            group[CHAIN_LEN + index] = second.to_le_bytes().into();
        }
        next = advance::<32>(next);
    }
    for block in rest {
        *block = next.to_le_bytes().into();
        next = advance::<1>(next);
    }
    next
}

fn batch<A>(cipher: &A, direction: Direction, mut data: InOutBuf<'_, '_, Block>, tweaks: &[Block])
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    for (mut block, tweak) in data.reborrow().into_iter().zip(tweaks) {
        *block.get_out() = xor(block.get_in(), tweak);
    }
    let data = data.get_out();
    match direction {
        Direction::Encrypt => cipher.encrypt_blocks(data),
        Direction::Decrypt => cipher.decrypt_blocks(data),
    }
    for (block, tweak) in data.iter_mut().zip(tweaks) {
        *block = xor(block, tweak);
    }
}

#[inline(always)]
fn xor(block: &Block, tweak: &Block) -> Block {
    (u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes((*tweak).into())).to_ne_bytes().into()
}

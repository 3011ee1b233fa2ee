//! Any block cipher of RustCrypto's traits, in batches; nothing unsafe.

use cipher::consts::U16;
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, InOutBuf, KeyInit};

use super::dispatch::Direction;
use crate::error::Error;
use crate::tweak::Tweaks;
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

/// Encrypts unit numbers to the first tweaks of their units.
pub(super) fn encrypt_tweaks<A>(keys: &Keys<A>, tweaks: &mut [u128])
where
    A: BlockCipherEncrypt<BlockSize = U16>,
{
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
    let mut tweaks = Tweaks::new(tweaks, unit_size / BLOCK_LEN);
    let (mut rest, _) = data.into_chunks::<U16>();
    let used = rest.len().min(BATCH);
    while !rest.is_empty() {
        let count = rest.len().min(BATCH);
        let (part, after) = rest.split_at(count);
        rest = after;
        batch(&keys.data, direction, part, &mut tweaks, &mut table[..count]);
    }
    crate::wipe(&mut table[..used]);
    tweaks.following()
}

fn batch<A>(
    cipher: &A,
    direction: Direction,
    mut data: InOutBuf<'_, '_, Block>,
    tweaks: &mut Tweaks<'_>,
    table: &mut [Block],
) where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
{
    for (mut block, tweak) in data.reborrow().into_iter().zip(table.iter_mut()) {
        *tweak = tweaks.next().to_le_bytes().into();
        *block.get_out() = xor(block.get_in(), tweak);
    }
    let data = data.get_out();
    match direction {
        Direction::Encrypt => cipher.encrypt_blocks(data),
        Direction::Decrypt => cipher.decrypt_blocks(data),
    }
    for (block, tweak) in data.iter_mut().zip(table.iter()) {
        *block = xor(block, tweak);
    }
}

#[inline(always)]
fn xor(block: &Block, tweak: &Block) -> Block {
    (u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes((*tweak).into())).to_ne_bytes().into()
}

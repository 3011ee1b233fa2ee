//! How a kernel walks over whole blocks of consecutive units: chunks of 32 blocks of one unit, whose tweaks all follow from one,
//! and passes of up to 16 blocks whose tweaks stand in a table.

use cipher::consts::U512;
use cipher::{Array, InOut, InOutBuf};

use crate::tweak::{Tweaks, advance};

pub(crate) const BLOCK_LEN: usize = 16;
const CHUNK_LEN: usize = 512;
/// Blocks of a pass.
pub(crate) const PASS: usize = 16;

/// What is read and what is written, of the same length: either the same bytes or others.
pub(crate) type Data<'inp, 'out> = InOutBuf<'inp, 'out, u8>;
/// 32 blocks of one unit.
pub(crate) type Chunk<'inp, 'out> = InOut<'inp, 'out, Array<u8, U512>>;

/// Walks over `data`, whole blocks of units that start with `tweaks`, and returns the tweak that follows the last block. `chunk` is
/// given the tweak of its first block.
#[inline(always)]
pub(crate) fn walk(
    data: Data<'_, '_>,
    unit_size: usize,
    tweaks: &[u128],
    mut chunk: impl FnMut(Chunk<'_, '_>, u128),
    mut pass: impl FnMut(Data<'_, '_>, &[u128; PASS]),
) -> u128 {
    if unit_size % CHUNK_LEN != 0 && unit_size < 4 * CHUNK_LEN {
        // Small units: passes run across their borders.
        return passes(data, Tweaks::new(tweaks, unit_size / BLOCK_LEN), &mut pass);
    }
    let mut next = 0;
    let mut rest = data;
    for &tweak in tweaks {
        let unit_len = unit_size.min(rest.len());
        let (unit, after) = rest.split_at(unit_len);
        rest = after;
        next = tweak;
        let (chunks, tail) = unit.into_chunks::<U512>();
        for part in chunks {
            chunk(part, next);
            next = advance::<32>(next);
        }
        if !tail.is_empty() {
            next = passes(tail, Tweaks::new(&[next], usize::MAX), &mut pass);
        }
    }
    next
}

#[inline(always)]
fn passes(data: Data<'_, '_>, mut tweaks: Tweaks<'_>, pass: &mut impl FnMut(Data<'_, '_>, &[u128; PASS])) -> u128 {
    let mut table = [0; PASS];
    let mut rest = data;
    while !rest.is_empty() {
        let len = rest.len().min(PASS * BLOCK_LEN);
        let (part, after) = rest.split_at(len);
        rest = after;
        for tweak in &mut table[..len / BLOCK_LEN] {
            *tweak = tweaks.next();
        }
        pass(part, &table);
    }
    crate::wipe(&mut table);
    tweaks.following()
}

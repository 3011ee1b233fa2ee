//! How a kernel walks over whole blocks of consecutive units: chunks of 32 blocks of one unit, whose tweaks all follow from one,
//! and passes of up to 16 blocks whose tweaks stand in a table.

use cipher::consts::U512;
use cipher::{Array, InOut, InOutBuf};

use crate::tweak::{Tweaks, advance};

pub(crate) const BLOCK_LEN: usize = 16;
/// Bytes of a chunk.
pub(crate) const CHUNK_LEN: usize = 512;
/// Blocks of a pass.
pub(crate) const PASS: usize = 16;

/// What is read and what is written, of the same length: either the same bytes or others.
pub(crate) type Data<'inp, 'out> = InOutBuf<'inp, 'out, u8>;
/// 32 blocks of one unit.
pub(crate) type Chunk<'inp, 'out> = InOut<'inp, 'out, Array<u8, U512>>;

/// The first tweak of a chunk, and of the chunk after it where there is one that is known already.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) this: u128,
    pub(crate) next: Option<u128>,
}

/// Walks over `data`, whole blocks of units that start with `tweaks`, and returns the tweak that follows the last block. `chunk` is
/// given the tweak of its first block, and that of the next chunk, so that it can prepare it. Each of the two is called in one place, so
/// that it becomes part of the loop.
#[inline(always)]
pub(crate) fn walk(
    data: Data<'_, '_>,
    unit_size: usize,
    tweaks: &[u128],
    mut chunk: impl FnMut(Chunk<'_, '_>, Pair),
    mut pass: impl FnMut(Data<'_, '_>, &[u128; PASS]),
) -> u128 {
    // Small units are left to passes, which run across their borders, and of others what is less than a chunk; between whole chunks
    // a border is a matter of counting.
    let whole_chunks = unit_size.is_multiple_of(CHUNK_LEN);
    let small = !whole_chunks && unit_size < 4 * CHUNK_LEN;
    let unit_chunks = if whole_chunks { unit_size / CHUNK_LEN } else { usize::MAX };
    let mut table = [0; PASS];
    let mut units = tweaks.iter().copied();
    let mut following = 0;
    let mut rest = data;
    while !rest.is_empty() {
        let part_len = if whole_chunks || small { rest.len() } else { unit_size.min(rest.len()) };
        let (part, after) = rest.split_at(part_len);
        rest = after;
        let chunks_len = if small { 0 } else { part_len / CHUNK_LEN * CHUNK_LEN };
        let (chunks, mut tail) = part.split_at(chunks_len);
        let mut tail_tweaks = Tweaks::new(tweaks, unit_size / BLOCK_LEN);
        if !small {
            following = units.next().unwrap_or(following);
            let mut left = chunks_len / CHUNK_LEN;
            let mut unit_left = unit_chunks;
            for part in chunks.into_chunks::<U512>().0 {
                let this = following;
                left -= 1;
                unit_left -= 1;
                following = advance::<32>(this);
                if unit_left == 0 {
                    unit_left = unit_chunks;
                    following = units.next().unwrap_or(following);
                }
                chunk(part, Pair { this, next: if left > 0 { Some(following) } else { None } });
            }
            tail_tweaks = Tweaks::within(following);
        }
        while !tail.is_empty() {
            let len = tail.len().min(PASS * BLOCK_LEN);
            let (part, after) = tail.split_at(len);
            tail = after;
            for tweak in &mut table[..len / BLOCK_LEN] {
                *tweak = tail_tweaks.next();
            }
            pass(part, &table);
            following = tail_tweaks.following();
        }
    }
    crate::wipe(&mut table);
    following
}

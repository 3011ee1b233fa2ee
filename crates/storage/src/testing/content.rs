//! Bytes of a file, of which a copy costs nothing until one of the two changes.

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::memory::{BLOCK_LEN, blocks};

type Block = [u8; BLOCK_LEN as usize];

/// Blocks that are missing are holes. Bytes of a block beyond the length are zeros, except while [`put`](Content::put) has not been followed by
/// [`set_len`](Content::set_len).
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    blocks: Arc<BTreeMap<u64, Arc<Block>>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many blocks it takes on the disk.
    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub(super) fn has_block(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    /// The blocks of a range that are no holes.
    pub(super) fn blocks_in(&self, range: &Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        self.blocks.range(range.start / BLOCK_LEN..=(range.end - 1) / BLOCK_LEN).map(|(block, _)| *block).collect()
    }

    /// The range has to lie inside the length.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) {
        let mut rest = buffer;
        let end = offset + rest.len() as u64;
        for (block, range) in blocks(offset..end) {
            let (part, tail) = rest.split_at_mut(range.len());
            match self.blocks.get(&block) {
                Some(bytes) => part.copy_from_slice(&bytes[range]),
                None => part.fill(0),
            }
            rest = tail;
        }
    }

    /// Writes, and leaves the length as it is.
    pub(super) fn put(&mut self, data: &[u8], offset: u64) {
        let all = Arc::make_mut(&mut self.blocks);
        let mut rest = data;
        for (block, range) in blocks(offset..offset + data.len() as u64) {
            let (part, tail) = rest.split_at(range.len());
            if let Ok(whole) = <&Block>::try_from(part) {
                all.insert(block, Arc::new(*whole));
            } else {
                let bytes = all.entry(block).or_insert_with(|| Arc::new([0; BLOCK_LEN as usize]));
                Arc::make_mut(bytes)[range].copy_from_slice(part);
            }
            rest = tail;
        }
    }

    /// Makes a range read as zeros, and leaves the length as it is.
    pub(super) fn clear(&mut self, range: &Range<u64>) {
        for block in self.blocks_in(range) {
            let start = block * BLOCK_LEN;
            let inside = range.start.max(start) - start..range.end.min(start + BLOCK_LEN) - start;
            let all = Arc::make_mut(&mut self.blocks);
            if inside == (0..BLOCK_LEN) {
                all.remove(&block);
            } else if let Some(bytes) = all.get_mut(&block) {
                Arc::make_mut(bytes)[inside.start as usize..inside.end as usize].fill(0);
            }
        }
    }

    /// Cuts what lies beyond, or adds a hole.
    pub(super) fn set_len(&mut self, len_bytes: u64) {
        self.clear(&(len_bytes..u64::MAX));
        self.len = len_bytes;
    }

    /// Changes bits of the byte at `offset`.
    pub(super) fn flip(&mut self, offset: u64, mask: u8) {
        let mut byte = [0];
        self.read(&mut byte, offset);
        self.put(&[byte[0] ^ mask], offset);
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let mut found: Option<Range<u64>> = None;
        for block in self.blocks.range(offset / BLOCK_LEN..).map(|(block, _)| *block) {
            let range = block * BLOCK_LEN..(block + 1) * BLOCK_LEN;
            match &mut found {
                None => found = Some(range),
                Some(found) if found.end == range.start => found.end = range.end,
                Some(_) => break,
            }
        }
        found.map(|range| range.start.max(offset)..range.end.min(self.len)).filter(|range| range.start < range.end)
    }
}

//! The digests of a disk's content, block by block: what tells changed blocks, and a damaged copy.

use sha2::{Digest, Sha256};

use crate::file_error::FileError;

const MAGIC: &[u8; 8] = b"VMSEALD1";
const HEADER_LEN: usize = 32;
/// Bytes of a digest.
pub(crate) const DIGEST_LEN: usize = 32;
/// A list has at most this many blocks: 16 MiB of digests for a disk of any size.
const BLOCKS_MAX: u64 = 1 << 19;
const BLOCK_MIN: u64 = 1 << 20;
/// The digest of a block that reads as zeros: no content has it.
pub(crate) const ZEROS: [u8; DIGEST_LEN] = [0; DIGEST_LEN];

/// SHA-256 of each block of a disk's content. `docs/formats/digests.md` has the file byte by byte.
///
/// It tells whoever has a guess at a block whether the guess is right: keep it where the raw image may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestList {
    size_bytes: u64,
    block_bytes: u64,
    digests: Vec<[u8; DIGEST_LEN]>,
}

impl DigestList {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let block_bytes = size_bytes.div_ceil(BLOCKS_MAX).next_power_of_two().max(BLOCK_MIN);
        Self { size_bytes, block_bytes, digests: Vec::new() }
    }

    /// The size of the disk, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes of a block; the last may be shorter.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// One SHA-256 over all digests: two lists with the same one are of the same content.
    pub fn digest(&self) -> [u8; DIGEST_LEN] {
        Sha256::digest(self.digests.as_flattened()).into()
    }

    pub(crate) fn block_count(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    pub(crate) fn block_range(&self, block: u64) -> core::ops::Range<u64> {
        let start = block * self.block_bytes;
        start..self.size_bytes.min(start + self.block_bytes)
    }

    pub(crate) fn get(&self, block: u64) -> Option<&[u8; DIGEST_LEN]> {
        self.digests.get(usize::try_from(block).ok()?)
    }

    pub(crate) fn extend(&mut self, digests: impl IntoIterator<Item = [u8; DIGEST_LEN]>) {
        self.digests.extend(digests);
    }

    pub(crate) fn len(&self) -> u64 {
        self.digests.len() as u64
    }

    /// The file: a header, the digests, and SHA-256 over both.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.block_bytes.to_le_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend_from_slice(self.digests.as_flattened());
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads a file that [`to_bytes`](Self::to_bytes) made; `name` is what an error calls it.
    ///
    /// # Errors
    /// [`FileError::Unknown`] where it is none, is cut off or damaged.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, FileError> {
        let wrong = |what| FileError::Unknown { path: name.to_owned(), what };
        if !bytes.starts_with(MAGIC) {
            return Err(wrong("this is no digest list of vmseal"));
        }
        let damaged = || wrong("the digest list is cut off or damaged; make it anew with a full export");
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(DIGEST_LEN)).ok_or_else(damaged)?;
        if body.len() < HEADER_LEN || Sha256::digest(body).as_slice() != sum {
            return Err(damaged());
        }
        let value = |at: usize| body[at..].first_chunk().map_or(0, |value| u64::from_le_bytes(*value));
        let (digests, rest) = body[HEADER_LEN..].as_chunks();
        let list = Self { size_bytes: value(8), block_bytes: value(16), digests: digests.to_vec() };
        let is_whole = list.block_bytes.is_power_of_two() && rest.is_empty() && list.len() == list.block_count();
        if is_whole { Ok(list) } else { Err(damaged()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_survives_its_file_and_nothing_else_passes() {
        let mut list = DigestList::new((3 << 20) + 512);
        list.extend([[1; 32], ZEROS, [3; 32], [4; 32]]);
        let bytes = list.to_bytes();
        assert_eq!(DigestList::parse(&bytes, "list").unwrap(), list);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(DigestList::parse(&damaged, "list").is_err(), "byte {at}");
            assert!(DigestList::parse(&bytes[..at], "list").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn lists_of_huge_disks_stay_small() {
        let list = DigestList::new(64 << 40);
        assert!(list.block_count() <= BLOCKS_MAX && list.block_bytes() == 128 << 20);
        assert_eq!(DigestList::new(1).block_bytes(), BLOCK_MIN);
    }
}

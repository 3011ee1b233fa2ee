//! The blocks of a decrypted VMEM, expanded to flat memory (`docs/formats/vmem.md`).

use zeroize::Zeroizing;

use crate::error::{Error, Place};

/// Bytes before each block.
pub const BLOCK_HEADER_LEN: usize = 16;
/// The most that a block expands to; every full block of a product has this size.
pub const EXPANDED_LEN_MAX: usize = 4 << 20;
/// The most that a block is compressed to: literal runs of 32 bytes have one byte more.
const COMPRESSED_LEN_MAX: usize = EXPANDED_LEN_MAX + EXPANDED_LEN_MAX / 16;

/// The header of a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockHeader {
    /// Its bytes of memory.
    pub expanded_len: usize,
    /// Its bytes in the file, behind this header.
    pub compressed_len: usize,
}

impl BlockHeader {
    /// Reads a header; `offset_bytes` is where it is, for errors.
    ///
    /// # Errors
    /// [`Error::Truncated`]; [`Error::Limit`] for more than 4 MiB; [`Error::Corrupt`].
    pub fn parse(bytes: &[u8], offset_bytes: u64) -> Result<Self, Error> {
        let Some((header, _)) = bytes.split_first_chunk::<BLOCK_HEADER_LEN>() else {
            let wanted_bytes = offset_bytes + BLOCK_HEADER_LEN as u64;
            return Err(Error::Truncated {
                format: "VMEM",
                len_bytes: offset_bytes + bytes.len() as u64,
                wanted_bytes,
            });
        };
        let mut words = header.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
        let mut word = || words.next().unwrap_or(0);
        let (expanded_len, zero, compressed_len, zero_too) = (word(), word(), word(), word());
        if zero != 0 || zero_too != 0 {
            let what = "the header of a block has a word that is not zero";
            return Err(Error::Corrupt { what, place: Place::Byte(offset_bytes) });
        }
        for (found, max) in [(expanded_len, EXPANDED_LEN_MAX), (compressed_len, COMPRESSED_LEN_MAX)] {
            if found > max {
                let what = "bytes of a block of VMEM";
                return Err(Error::Limit { what, found: found.to_string(), max: max as u64 });
            }
        }
        Ok(Self { expanded_len, compressed_len })
    }

    /// Expands the stream of a block; `offset_bytes` is where it is, for errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a stream that does not give exactly the memory that the header says.
    pub fn expand(&self, stream: &[u8], offset_bytes: u64) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut block = Block {
            stream,
            at: 0,
            memory: Zeroizing::new(Vec::with_capacity(self.expanded_len)),
            len: self.expanded_len,
        };
        match block.expand() {
            Some(()) => Ok(block.memory),
            None => {
                let place = Place::Byte(offset_bytes + block.at as u64);
                Err(Error::Corrupt { what: "a compressed block of VMEM does not expand", place })
            }
        }
    }
}

/// Expands a decrypted VMEM whole: block behind block.
///
/// # Errors
/// Those of [`BlockHeader::parse`] and [`BlockHeader::expand`]; [`Error::Limit`] for more than `len_max` bytes of
/// memory.
pub fn expand(vmem: &[u8], len_max: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut flat = Zeroizing::new(Vec::new());
    let mut at = 0;
    while at < vmem.len() {
        let header = BlockHeader::parse(&vmem[at..], at as u64)?;
        at += BLOCK_HEADER_LEN;
        let Some(stream) = vmem[at..].get(..header.compressed_len) else {
            let wanted_bytes = (at + header.compressed_len) as u64;
            return Err(Error::Truncated { format: "VMEM", len_bytes: vmem.len() as u64, wanted_bytes });
        };
        if flat.len() + header.expanded_len > len_max {
            let found = (flat.len() + header.expanded_len).to_string();
            return Err(Error::Limit { what: "bytes of expanded memory", found, max: len_max as u64 });
        }
        flat.extend_from_slice(&header.expand(stream, at as u64)?);
        at += header.compressed_len;
    }
    Ok(flat)
}

struct Block<'a> {
    stream: &'a [u8],
    at: usize,
    memory: Zeroizing<Vec<u8>>,
    len: usize,
}

impl Block<'_> {
    /// None where the stream is damaged.
    fn expand(&mut self) -> Option<()> {
        if self.len == 0 && self.stream.is_empty() {
            return Some(());
        }
        let first = self.next()?;
        if first >> 5 > 1 {
            return None;
        }
        self.literals(usize::from(first & 31) + 1)?;
        while self.at < self.stream.len() {
            let control = self.next()?;
            if control < 32 {
                self.literals(usize::from(control) + 1)?;
            } else {
                self.copy(control)?;
            }
        }
        (self.memory.len() == self.len).then_some(())
    }

    fn literals(&mut self, count: usize) -> Option<()> {
        let bytes = self.stream.get(self.at..self.at + count)?;
        self.at += count;
        (self.memory.len() + count <= self.len).then(|| self.memory.extend_from_slice(bytes))
    }

    /// Repeats what was expanded before; what lies before the start of the block is zeros.
    fn copy(&mut self, control: u8) -> Option<()> {
        let high = usize::from(control & 31);
        let mut count = usize::from(control >> 5) + 2;
        if control >> 5 == 7 {
            loop {
                let more = self.next()?;
                count += usize::from(more);
                if more != 0xff {
                    break;
                }
            }
        }
        let low = self.next()?;
        let distance = if high == 31 && low == 0xff {
            0x2000 + (usize::from(self.next()?) << 8 | usize::from(self.next()?))
        } else {
            (high << 8 | usize::from(low)) + 1
        };
        if self.memory.len() + count > self.len {
            return None;
        }
        for _ in 0..count {
            let byte = self.memory.len().checked_sub(distance).map_or(0, |from| self.memory[from]);
            self.memory.push(byte);
        }
        Some(())
    }

    fn next(&mut self) -> Option<u8> {
        let byte = *self.stream.get(self.at)?;
        self.at += 1;
        Some(byte)
    }
}

/// Whatever the bytes: no more memory than the limit.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    if let Ok(flat) = expand(data, 16 << 20) {
        assert!(flat.len() <= 16 << 20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand_one(stream: &[u8], len: usize) -> Option<Vec<u8>> {
        let header = BlockHeader { expanded_len: len, compressed_len: stream.len() };
        header.expand(stream, 0).ok().map(|memory| memory.to_vec())
    }

    #[test]
    fn runs_and_repeats() {
        assert_eq!(expand_one(b"\x02abc", 3).unwrap(), b"abc");
        assert_eq!(expand_one(b"\x22abc", 3).unwrap(), b"abc");
        assert_eq!(expand_one(b"\x02abc\x20\x02\x00d", 7).unwrap(), b"abcabcd");
        // A repeat of itself: "ab" and then length 5 at distance 1.
        assert_eq!(expand_one(b"\x01ab\x60\x00", 7).unwrap(), b"abbbbbb");
        // What lies before the block is zeros.
        assert_eq!(expand_one(b"\x00a\x20\x05", 4).unwrap(), b"a\0\0\0");
        // The long form of length: 7 + 2 + 255 + 1.
        assert_eq!(expand_one(b"\x00a\xe0\xff\x01\x00", 266).unwrap(), [b'a'; 266]);
        assert_eq!(expand_one(b"", 0).unwrap(), b"");
    }

    #[test]
    fn damage_is_noticed() {
        for (stream, len) in [
            (&b"\x02ab"[..], 3),
            (b"\x02abc", 4),
            (b"\x02abc", 2),
            (b"\x40a", 1),
            (b"\x00a\x20", 4),
            (b"\x00a\xe0\xff", 300),
            (b"\x00a\x3f\xff\x00", 4),
            (b"\x00a\xff\xff\xff\xff\xff\xff\x00\x00", 100),
            (b"", 1),
        ] {
            assert_eq!(expand_one(stream, len), None, "{stream:?}");
        }
        let huge = [0xffff_ffff_u32, 0, 1, 0].map(u32::to_le_bytes).concat();
        assert!(matches!(BlockHeader::parse(&huge, 0), Err(Error::Limit { .. })));
        assert!(matches!(expand(&[0; 15], 100), Err(Error::Truncated { .. })));
    }
}

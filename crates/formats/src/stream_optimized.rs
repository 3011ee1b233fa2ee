//! streamOptimized extents: compressed grains behind markers, the tables after them
//! (`docs/formats/stream-optimized.md`).

use flate2::{Decompress, FlushDecompress, Status};

use crate::error::{Error, Place};
use crate::sparse_header::{SECTOR_LEN, SparseHeader};

/// Bytes before the compressed data of a grain.
pub const GRAIN_MARKER_LEN: usize = 12;
/// How far before its end a file has its real header.
pub const FOOTER_FROM_END: u64 = 2 * SECTOR_LEN as u64;

pub(crate) const END_OF_STREAM: u32 = 0;
pub(crate) const GRAIN_TABLE: u32 = 1;
pub(crate) const GRAIN_DIRECTORY: u32 = 2;
pub(crate) const FOOTER: u32 = 3;
const PROGRESS: u32 = 4;

/// What comes next in the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Marker {
    /// The end.
    EndOfStream,
    /// The footer, in the next sector.
    Footer,
    /// A compressed grain, behind the 12 bytes of its marker and up to the next whole sector.
    Grain {
        /// Its first sector on the virtual disk.
        sector: u64,
        /// Its bytes as they are stored.
        stored_len: u32,
    },
    /// The grain directory.
    GrainDirectory {
        /// How many sectors follow.
        sector_count: u64,
    },
    /// A grain table.
    GrainTable {
        /// How many sectors follow.
        sector_count: u64,
    },
    /// How far the writer was.
    Progress {
        /// How many sectors follow.
        sector_count: u64,
    },
}

impl Marker {
    /// Reads a marker from the start of its sector; `offset_bytes` is where it is in the file, for errors.
    ///
    /// # Errors
    /// [`Error::Truncated`]; [`Error::Corrupt`] for a type that is not known.
    pub fn parse(bytes: &[u8], offset_bytes: u64) -> Result<Self, Error> {
        let truncated = || Error::Truncated {
            format: "streamOptimized extent",
            len_bytes: offset_bytes + bytes.len() as u64,
            wanted_bytes: offset_bytes + SECTOR_LEN as u64,
        };
        let (value, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
        let (size, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
        let (value, stored_len) = (u64::from_le_bytes(*value), u32::from_le_bytes(*size));
        if stored_len > 0 {
            return Ok(Self::Grain { sector: value, stored_len });
        }
        let (kind, _) = rest.split_first_chunk().ok_or_else(truncated)?;
        match u32::from_le_bytes(*kind) {
            END_OF_STREAM => Ok(Self::EndOfStream),
            GRAIN_TABLE => Ok(Self::GrainTable { sector_count: value }),
            GRAIN_DIRECTORY => Ok(Self::GrainDirectory { sector_count: value }),
            FOOTER => Ok(Self::Footer),
            PROGRESS => Ok(Self::Progress { sector_count: value }),
            _ => {
                let what = "a marker has a type that is not known";
                Err(Error::Corrupt { what, place: Place::Byte(offset_bytes) })
            }
        }
    }
}

impl SparseHeader {
    /// Reads the header at the end of a streamOptimized file, from its last 1024 bytes.
    ///
    /// # Errors
    /// Those of [`parse`](Self::parse); [`Error::Truncated`] where there is none.
    pub fn parse_footer(end: &[u8], file_len: u64) -> Result<Self, Error> {
        let missing = || Error::Truncated {
            format: "streamOptimized extent",
            len_bytes: file_len,
            wanted_bytes: file_len.saturating_add(FOOTER_FROM_END),
        };
        let start = end.len().checked_sub(FOOTER_FROM_END as usize).ok_or_else(missing)?;
        let header = Self::parse(&end[start..]).map_err(|error| match error {
            Error::BadMagic { .. } => missing(),
            error => error,
        })?;
        if header.is_at_end() { Err(missing()) } else { Ok(header) }
    }
}

/// Decompresses a grain as it is in the file: its marker, the stream. `sector` is where it has to be on the disk.
///
/// The result has the whole length of a grain; what the stream lacks of it is zeros.
///
/// # Errors
/// [`Error::Truncated`]; [`Error::Corrupt`] for another place, a stream that is damaged, and one longer than a grain.
pub fn read_grain(header: &SparseHeader, bytes: &[u8], offset_bytes: u64, sector: u64) -> Result<Vec<u8>, Error> {
    let corrupt = |what| Error::Corrupt { what, place: Place::Byte(offset_bytes) };
    let truncated = |wanted: usize| Error::Truncated {
        format: "streamOptimized extent",
        len_bytes: offset_bytes.saturating_add(bytes.len() as u64),
        wanted_bytes: offset_bytes.saturating_add(wanted as u64),
    };
    let (stored_len, data) = if header.has_markers() {
        match Marker::parse(bytes, offset_bytes)? {
            Marker::Grain { sector: found, stored_len } if found == sector => {
                (stored_len as usize, bytes.get(GRAIN_MARKER_LEN..))
            }
            _ => return Err(corrupt("the grain here is not the one that the table says")),
        }
    } else {
        let len = bytes.first_chunk().ok_or_else(|| truncated(4))?;
        (u32::from_le_bytes(*len) as usize, bytes.get(4..))
    };
    let stream =
        data.and_then(|data| data.get(..stored_len)).ok_or_else(|| truncated(GRAIN_MARKER_LEN + stored_len))?;
    let grain_len = usize::try_from(header.grain_sectors).unwrap_or(0) * SECTOR_LEN;
    let mut grain = vec![0; grain_len];
    let mut inflate = Decompress::new(true);
    match inflate.decompress(stream, &mut grain, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => Ok(grain),
        Ok(_) => Err(corrupt("a compressed grain is longer than a grain, or its stream does not end")),
        Err(_) => Err(corrupt("a compressed grain does not decompress")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_apart() {
        let marker = |value: u64, size: u32, kind: u32| {
            let bytes = [&value.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat();
            Marker::parse(&bytes, 0)
        };
        assert_eq!(marker(0, 0, 0).unwrap(), Marker::EndOfStream);
        assert_eq!(marker(4, 0, 1).unwrap(), Marker::GrainTable { sector_count: 4 });
        assert_eq!(marker(128, 9, 77).unwrap(), Marker::Grain { sector: 128, stored_len: 9 });
        assert!(marker(1, 0, 5).is_err());
        assert!(matches!(Marker::parse(&[0; 11], 5), Err(Error::Truncated { len_bytes: 16, .. })));
    }

    #[test]
    fn a_grain_never_grows_beyond_its_size() {
        use std::io::Write;
        let mut header = SparseHeader::new(1024, 8);
        header.flags |= SparseHeader::FLAG_COMPRESSED;
        let stored = |len: usize| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&vec![7; len]).unwrap();
            let stream = encoder.finish().unwrap();
            [&(stream.len() as u32).to_le_bytes()[..], &stream].concat()
        };
        let short = read_grain(&header, &stored(100), 0, 0).unwrap();
        assert_eq!((short.len(), short[99], short[100]), (4096, 7, 0));
        assert_eq!(read_grain(&header, &stored(4096), 0, 0).unwrap(), [7; 4096]);
        assert!(read_grain(&header, &stored(4097), 0, 0).is_err());
        assert!(read_grain(&header, &stored(1 << 26), 0, 0).is_err());
        let whole = stored(4096);
        for len in 0..whole.len() {
            assert!(read_grain(&header, &whole[..len], 0, 0).is_err(), "{len}");
        }
    }
}

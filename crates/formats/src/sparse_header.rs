//! The header of hosted sparse extents (`docs/formats/sparse-extent.md`).

use bytes::{Buf, BufMut};

use crate::error::{Error, Place};
use crate::extent::Extent;

/// Bytes of a sector.
pub const SECTOR_LEN: usize = 512;
/// The first bytes.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// Entries of a grain table; the format has a field for it, and no other value occurs.
pub const GTES_PER_GT: u32 = 512;
/// The grain directory's sector where the header at the end of the file has it (streamOptimized).
pub const GD_AT_END: u64 = u64::MAX;

// Layout: each field begins where the one before it ends.
const MAGIC_OFFSET: usize = 0;
const VERSION_OFFSET: usize = MAGIC_OFFSET + 4;
const FLAGS_OFFSET: usize = VERSION_OFFSET + 4;
const CAPACITY_OFFSET: usize = FLAGS_OFFSET + 4;
const GRAIN_OFFSET: usize = CAPACITY_OFFSET + 8;
const DESCRIPTOR_OFFSET: usize = GRAIN_OFFSET + 8;
const DESCRIPTOR_SIZE_OFFSET: usize = DESCRIPTOR_OFFSET + 8;
const GTES_OFFSET: usize = DESCRIPTOR_SIZE_OFFSET + 8;
const REDUNDANT_GD_OFFSET: usize = GTES_OFFSET + 4;
const GD_OFFSET: usize = REDUNDANT_GD_OFFSET + 8;
const OVERHEAD_OFFSET: usize = GD_OFFSET + 8;
const UNCLEAN_OFFSET: usize = OVERHEAD_OFFSET + 8;
const NEWLINES_OFFSET: usize = UNCLEAN_OFFSET + 1;
const COMPRESSION_OFFSET: usize = NEWLINES_OFFSET + 4;
const RESERVED_OFFSET: usize = COMPRESSION_OFFSET + 2;
const RESERVED_LEN: usize = SECTOR_LEN - RESERVED_OFFSET;

/// What a transfer in text mode would change.
const NEWLINES: [u8; 4] = *b"\n \r\n";
/// The largest grain that is taken: 128 MiB.
const GRAIN_SECTORS_MAX: u64 = 1 << 18;
/// The greatest capacity that is taken: 2^37 sectors are 64 TiB, the largest disk of any product.
const CAPACITY_SECTORS_MAX: u64 = 1 << 37;
/// The most entries of a grain directory that are taken: 512 MiB of directory is no disk of any product.
const GD_ENTRIES_MAX: u64 = 1 << 27;

/// How grains are stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Compression {
    /// Deflate (RFC 1951) in the wrapper of zlib (RFC 1950).
    Deflate,
    /// As they are.
    None,
}

/// The header of a hosted sparse extent. Offsets and sizes are in sectors of 512 bytes, as on disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SparseHeader {
    /// 1; 2 with zeroed grains, 3 for streamOptimized.
    pub version: u32,
    /// See the `FLAG_` constants.
    pub flags: u32,
    /// The size of the extent on the virtual disk; need not be a multiple of the grain.
    pub capacity_sectors: u64,
    /// The size of a grain, a power of two.
    pub grain_sectors: u64,
    /// Where the embedded descriptor is; 0 for none.
    pub descriptor_offset_sectors: u64,
    /// The room that the embedded descriptor has; 0 for none.
    pub descriptor_sectors: u64,
    /// Entries of a grain table: 512.
    pub gtes_per_gt: u32,
    /// Where the copy of the grain directory is.
    pub redundant_gd_sector: u64,
    /// Where the grain directory is; [`GD_AT_END`] where the footer has it.
    pub gd_sector: u64,
    /// What precedes the grains.
    pub overhead_sectors: u64,
    /// Whether the file was not closed properly.
    pub unclean_shutdown: bool,
    /// How grains are stored.
    pub compression: Compression,
    /// The bytes behind the last field, zero in every file known; kept.
    pub reserved: [u8; RESERVED_LEN],
}

impl SparseHeader {
    /// The bytes of newlines are meant.
    pub const FLAG_NEWLINE_TEST: u32 = 1;
    /// The copy of the grain directory is the one to read.
    pub const FLAG_REDUNDANT_GD: u32 = 2;
    /// An entry of 1 in a grain table means zeros.
    pub const FLAG_ZEROED_GRAINS: u32 = 4;
    /// Grains are compressed.
    pub const FLAG_COMPRESSED: u32 = 0x0001_0000;
    /// Grains and tables have markers before them.
    pub const FLAG_MARKERS: u32 = 0x0002_0000;
    /// High flags change the meaning: of those only these are known.
    const INCOMPATIBLE_KNOWN: u32 = Self::FLAG_COMPRESSED | Self::FLAG_MARKERS;

    /// The header of a new extent without grains and without a descriptor.
    pub fn new(capacity_sectors: u64, grain_sectors: u64) -> Self {
        Self {
            version: 1,
            flags: Self::FLAG_NEWLINE_TEST,
            capacity_sectors,
            grain_sectors,
            descriptor_offset_sectors: 0,
            descriptor_sectors: 0,
            gtes_per_gt: GTES_PER_GT,
            redundant_gd_sector: 0,
            gd_sector: 0,
            overhead_sectors: 0,
            unclean_shutdown: false,
            compression: Compression::None,
            reserved: [0; RESERVED_LEN],
        }
    }

    /// Reads a header; `bytes` may go on behind it.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::BadMagic`], [`Error::UnsupportedVersion`], [`Error::UnsupportedFlags`],
    /// [`Error::Corrupt`] for newline bytes that a text transfer changed, [`Error::Value`] and [`Error::Limit`] for
    /// sizes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const FORMAT: &str = "sparse extent";
        if !bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
            return Err(Error::BadMagic { format: FORMAT, place: Place::Byte(0) });
        }
        let Some((mut fields, _)) = bytes.split_first_chunk::<SECTOR_LEN>().map(|(header, rest)| (&header[..], rest))
        else {
            return Err(Error::Truncated {
                format: FORMAT,
                len_bytes: bytes.len() as u64,
                wanted_bytes: SECTOR_LEN as u64,
            });
        };
        fields.advance(VERSION_OFFSET);
        let version = fields.get_u32_le();
        let flags = fields.get_u32_le();
        let capacity_sectors = fields.get_u64_le();
        let grain_sectors = fields.get_u64_le();
        let descriptor_offset_sectors = fields.get_u64_le();
        let descriptor_sectors = fields.get_u64_le();
        let gtes_per_gt = fields.get_u32_le();
        let redundant_gd_sector = fields.get_u64_le();
        let gd_sector = fields.get_u64_le();
        let overhead_sectors = fields.get_u64_le();
        let unclean = fields.get_u8();
        let mut newlines = [0; 4];
        fields.copy_to_slice(&mut newlines);
        let compression = fields.get_u16_le();
        let mut reserved = [0; RESERVED_LEN];
        fields.copy_to_slice(&mut reserved);

        if !(1..=3).contains(&version) {
            return Err(Error::UnsupportedVersion { format: "the sparse extent", version: version.to_string() });
        }
        let unknown = flags & 0xffff_0000 & !Self::INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(Error::UnsupportedFlags { format: FORMAT, flags: unknown });
        }
        if flags & Self::FLAG_NEWLINE_TEST != 0 && newlines != NEWLINES {
            let what = "the newline bytes were changed, as a transfer in text mode does";
            return Err(Error::Corrupt { what, place: Place::Byte(NEWLINES_OFFSET as u64) });
        }
        let value = |what, found: u64, offset: usize| {
            Err(Error::Value { what, found: found.to_string(), place: Place::Byte(offset as u64) })
        };
        if !grain_sectors.is_power_of_two() || grain_sectors > GRAIN_SECTORS_MAX {
            return value("the size of a grain, a power of two of at most 128 MiB,", grain_sectors, GRAIN_OFFSET);
        }
        if gtes_per_gt != GTES_PER_GT {
            return value("the number of entries of a grain table, 512,", gtes_per_gt.into(), GTES_OFFSET);
        }
        if capacity_sectors > CAPACITY_SECTORS_MAX {
            let what = "sectors of a sparse extent";
            return Err(Error::Limit { what, found: capacity_sectors.to_string(), max: CAPACITY_SECTORS_MAX });
        }
        let compression = match compression {
            0 => Compression::None,
            1 => Compression::Deflate,
            other => return value("the compression, 0 or 1,", other.into(), COMPRESSION_OFFSET),
        };
        let place_and_size = [
            (descriptor_offset_sectors, descriptor_sectors, DESCRIPTOR_OFFSET),
            (redundant_gd_sector, 0, REDUNDANT_GD_OFFSET),
            (overhead_sectors, 0, OVERHEAD_OFFSET),
            (if gd_sector == GD_AT_END { 0 } else { gd_sector }, 0, GD_OFFSET),
        ];
        for (sector, size, offset) in place_and_size {
            if sector.checked_add(size).is_none_or(|end| end > Extent::SECTORS_MAX) {
                return value("a place in the file, of which the bytes fit 63 bits,", sector, offset);
            }
        }
        let header = Self {
            version,
            flags,
            capacity_sectors,
            grain_sectors,
            descriptor_offset_sectors,
            descriptor_sectors,
            gtes_per_gt,
            redundant_gd_sector,
            gd_sector,
            overhead_sectors,
            unclean_shutdown: unclean != 0,
            compression,
            reserved,
        };
        if header.gd_entry_count() > GD_ENTRIES_MAX {
            let found = header.gd_entry_count().to_string();
            return Err(Error::Limit { what: "entries of a grain directory", found, max: GD_ENTRIES_MAX });
        }
        Ok(header)
    }

    /// The header as it is written.
    pub fn to_bytes(&self) -> [u8; SECTOR_LEN] {
        let mut bytes = [0; SECTOR_LEN];
        let mut fields = &mut bytes[..];
        fields.put_slice(&MAGIC);
        fields.put_u32_le(self.version);
        fields.put_u32_le(self.flags);
        fields.put_u64_le(self.capacity_sectors);
        fields.put_u64_le(self.grain_sectors);
        fields.put_u64_le(self.descriptor_offset_sectors);
        fields.put_u64_le(self.descriptor_sectors);
        fields.put_u32_le(self.gtes_per_gt);
        fields.put_u64_le(self.redundant_gd_sector);
        fields.put_u64_le(self.gd_sector);
        fields.put_u64_le(self.overhead_sectors);
        fields.put_u8(self.unclean_shutdown.into());
        fields.put_slice(&NEWLINES);
        fields.put_u16_le(match self.compression {
            Compression::None => 0,
            Compression::Deflate => 1,
        });
        fields.put_slice(&self.reserved);
        bytes
    }

    /// The bytes of the file that hold the embedded descriptor and its padding.
    pub fn descriptor_range(&self) -> Option<core::ops::Range<u64>> {
        let start = self.descriptor_offset_sectors * SECTOR_LEN as u64;
        let end = (self.descriptor_offset_sectors + self.descriptor_sectors) * SECTOR_LEN as u64;
        (self.descriptor_offset_sectors > 0 && end > start).then_some(start..end)
    }

    /// The number of grains, the last of which may reach behind the capacity.
    pub fn grain_count(&self) -> u64 {
        self.capacity_sectors.div_ceil(self.grain_sectors.max(1))
    }

    /// The number of entries of the grain directory: one for each grain table.
    pub fn gd_entry_count(&self) -> u64 {
        self.grain_count().div_ceil(u64::from(self.gtes_per_gt.max(1)))
    }

    /// The size of the grain directory in sectors.
    pub fn gd_sector_count(&self) -> u64 {
        (self.gd_entry_count() * 4).div_ceil(SECTOR_LEN as u64)
    }

    /// The sector of the grain directory that is to be read: the copy where the flags say so.
    pub fn gd_in_use_sector(&self) -> u64 {
        if self.flags & Self::FLAG_REDUNDANT_GD != 0 { self.redundant_gd_sector } else { self.gd_sector }
    }

    /// Whether an entry of 1 in a grain table means zeros.
    pub fn has_zeroed_grains(&self) -> bool {
        self.flags & Self::FLAG_ZEROED_GRAINS != 0
    }

    /// Whether grains and tables have markers before them.
    pub fn has_markers(&self) -> bool {
        self.flags & Self::FLAG_MARKERS != 0
    }

    /// Whether grains are compressed.
    pub fn is_compressed(&self) -> bool {
        self.flags & Self::FLAG_COMPRESSED != 0
    }

    /// Whether the header at the end of the file is the one that counts.
    pub fn is_at_end(&self) -> bool {
        self.gd_sector == GD_AT_END
    }

    /// Checks that what the header points to lies inside the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_file_len(&self, len_bytes: u64) -> Result<(), Error> {
        let end = |sector: u64, count: u64| sector.saturating_add(count).saturating_mul(SECTOR_LEN as u64);
        let corrupt = |what, offset: usize| Err(Error::Corrupt { what, place: Place::Byte(offset as u64) });
        if end(self.descriptor_offset_sectors, self.descriptor_sectors) > len_bytes {
            return corrupt("the embedded descriptor lies behind the end of the file", DESCRIPTOR_OFFSET);
        }
        let gd_sector = self.gd_in_use_sector();
        if gd_sector != GD_AT_END && end(gd_sector, self.gd_sector_count()) > len_bytes {
            return corrupt("the grain directory lies behind the end of the file", GD_OFFSET);
        }
        Ok(())
    }
}

/// What parses is written as it was, up to the spelling of its flag for an unclean shutdown.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let Ok(header) = SparseHeader::parse(data) else { return };
    let bytes = header.to_bytes();
    assert!(SparseHeader::parse(&bytes).is_ok_and(|again| again == header));
    let _ = (header.gd_entry_count(), header.gd_sector_count(), header.check_file_len(data.len() as u64));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_specification() {
        assert_eq!((CAPACITY_OFFSET, GTES_OFFSET, GD_OFFSET), (12, 44, 56));
        assert_eq!((UNCLEAN_OFFSET, COMPRESSION_OFFSET, RESERVED_OFFSET), (72, 77, 79));
    }

    #[test]
    fn counts_are_rounded_up() {
        let header = SparseHeader::new(512 * 128 + 1, 128);
        assert_eq!((header.grain_count(), header.gd_entry_count(), header.gd_sector_count()), (513, 2, 1));
        assert_eq!(SparseHeader::new(0, 128).gd_entry_count(), 0);
    }

    proptest! {
        #[test]
        fn a_header_survives(capacity in 0..CAPACITY_SECTORS_MAX, grain in 3..16_u32, gd in any::<u32>(), zeroed: bool, unclean: bool) {
            let mut header = SparseHeader::new(capacity, 1 << grain);
            header.gd_sector = gd.into();
            header.unclean_shutdown = unclean;
            if zeroed {
                header.flags |= SparseHeader::FLAG_ZEROED_GRAINS;
            }
            prop_assert_eq!(SparseHeader::parse(&header.to_bytes()).unwrap(), header);
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = SparseHeader::parse(&bytes);
            for (at, byte) in bytes.iter_mut().zip(MAGIC) {
                *at = byte;
            }
            let _ = SparseHeader::parse(&bytes);
        }
    }
}

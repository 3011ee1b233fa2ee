//! The header of COWD extents: snapshots on VMFS 3 and 5 (`docs/formats/cowd.md`).

use bytes::Buf;

use crate::error::{Error, Place};
use crate::grain_table::GrainLayout;

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"COWD";
/// Bytes of the header.
pub const HEADER_LEN: usize = 2048;
/// Entries of a grain table.
const GTES_PER_GT: u64 = 4096;
/// The largest grain that is taken.
const GRAIN_SECTORS_MAX: u32 = 1 << 16;

/// The header of a COWD extent, as far as it says where grains are.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CowdHeader {
    /// Bits of unknown meaning; 3 in every file known.
    pub flags: u32,
    /// The size of the extent on the virtual disk.
    pub capacity_sectors: u32,
    /// The size of a grain, most often 1.
    pub grain_sectors: u32,
    /// Where the grain directory is.
    pub gd_sector: u32,
    /// Entries of the grain directory that are there.
    pub gd_entry_count: u32,
    /// Where the next grain would be put.
    pub next_free_sector: u32,
}

impl CowdHeader {
    /// Reads a header; `bytes` may go on behind it.
    ///
    /// # Errors
    /// [`Error::BadMagic`], [`Error::Truncated`], [`Error::UnsupportedVersion`]; [`Error::Value`] for a grain that is
    /// no power of two and for a directory that is too short for the capacity.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const FORMAT: &str = "COWD extent";
        if bytes[..bytes.len().min(MAGIC.len())] != MAGIC[..bytes.len().min(MAGIC.len())] {
            return Err(Error::BadMagic { format: FORMAT, place: Place::Byte(0) });
        }
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            let (len_bytes, wanted_bytes) = (bytes.len() as u64, HEADER_LEN as u64);
            return Err(Error::Truncated { format: FORMAT, len_bytes, wanted_bytes });
        };
        let mut fields = &header[MAGIC.len()..];
        let version = fields.get_u32_le();
        if version != 1 {
            return Err(Error::UnsupportedVersion { format: "the COWD extent", version: version.to_string() });
        }
        let header = Self {
            flags: fields.get_u32_le(),
            capacity_sectors: fields.get_u32_le(),
            grain_sectors: fields.get_u32_le(),
            gd_sector: fields.get_u32_le(),
            gd_entry_count: fields.get_u32_le(),
            next_free_sector: fields.get_u32_le(),
        };
        let value =
            |what, found: u32, offset| Err(Error::Value { what, found: found.to_string(), place: Place::Byte(offset) });
        if !header.grain_sectors.is_power_of_two() || header.grain_sectors > GRAIN_SECTORS_MAX {
            return value("the size of a grain, a power of two of at most 32 MiB,", header.grain_sectors, 16);
        }
        if u64::from(header.gd_entry_count) < header.layout().table_count() {
            return value("the entries of a grain directory, enough for the capacity,", header.gd_entry_count, 24);
        }
        Ok(header)
    }

    /// How its grains are found.
    pub fn layout(&self) -> GrainLayout {
        GrainLayout {
            capacity_sectors: self.capacity_sectors.into(),
            grain_sectors: self.grain_sectors.into(),
            gtes_per_gt: GTES_PER_GT,
            gd_sector: self.gd_sector.into(),
            has_zeroed_grains: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(fields: [u32; 7]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        fields.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        bytes.resize(HEADER_LEN, 0);
        bytes
    }

    #[test]
    fn headers_are_checked() {
        let good = CowdHeader::parse(&header([1, 3, 8192, 1, 4, 2, 40])).unwrap();
        assert_eq!((good.layout().table_count(), good.layout().directory_range()), (2, 2048..2056));
        for bad in
            [[2, 3, 8192, 1, 4, 2, 40], [1, 3, 8192, 0, 4, 2, 40], [1, 3, 8192, 3, 4, 2, 40], [1, 3, 8193, 1, 4, 2, 40]]
        {
            assert!(CowdHeader::parse(&header(bad)).is_err(), "{bad:?}");
        }
        assert!(matches!(CowdHeader::parse(b"COWD"), Err(Error::Truncated { .. })));
        assert!(matches!(CowdHeader::parse(b"KDMV"), Err(Error::BadMagic { .. })));
    }
}

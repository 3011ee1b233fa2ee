//! The data unit of a disk's encryption.

use core::fmt;
use core::ops::Range;

/// The size of a data unit: what is encrypted under one tweak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnitSize {
    /// 512 bytes: a sector. With it an encrypted flat disk is what Linux calls `aes-xts-plain64`.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl UnitSize {
    /// The largest data unit: what is cut at multiples of it is cut at multiples of every data unit.
    pub const MAX_BYTES: u64 = 4096;

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// Cuts a range of a disk of `size_bytes` into the part of a data unit at its start, the whole data units, and the part of one at its end;
    /// each may be empty. The last data unit of a disk may be shorter than the others, and is whole where the disk ends.
    pub(crate) fn cut(self, range: &Range<u64>, size_bytes: u64) -> [Range<u64>; 3] {
        let unit = u64::from(self.bytes());
        let first = range.start.next_multiple_of(unit);
        let last = if range.end >= size_bytes { range.end } else { range.end - range.end % unit };
        let head = range.start..first.min(range.end);
        let whole = head.end..last.max(head.end);
        let tail = whole.end..range.end;
        [head, whole, tail]
    }

    /// The data units that a range of a disk of `size_bytes` touches.
    pub(crate) fn around(self, range: &Range<u64>, size_bytes: u64) -> Range<u64> {
        let unit = u64::from(self.bytes());
        range.start - range.start % unit..range.end.next_multiple_of(unit).min(size_bytes)
    }

    /// The data unit of this size.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        [Self::B512, Self::B4096].into_iter().find(|unit| unit.bytes() == bytes)
    }
}

impl fmt::Display for UnitSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_data_units_and_at_the_end_of_the_disk() {
        let size = 3 * 4096 + 512;
        let cases = [
            (0..8192, [0..0, 0..8192, 8192..8192]),
            (1..8193, [1..4096, 4096..8192, 8192..8193]),
            (10..20, [10..20, 20..20, 20..20]),
            (4096..4100, [4096..4096, 4096..4096, 4096..4100]),
            (12288..size, [12288..12288, 12288..size, size..size]),
            (12289..size, [12289..size, size..size, size..size]),
        ];
        for (range, wanted) in cases {
            assert_eq!(UnitSize::B4096.cut(&range, size), wanted, "{range:?}");
        }
        assert_eq!(UnitSize::B4096.around(&(12290..12291), size), 12288..size);
    }
}

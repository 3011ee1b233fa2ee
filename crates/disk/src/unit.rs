//! The data unit of a disk's encryption.

use core::fmt;

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

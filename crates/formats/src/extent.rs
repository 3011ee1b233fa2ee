//! The extents of a virtual disk, as its descriptor lists them.

use core::fmt;

/// What may be done with an extent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Access {
    /// `NOACCESS`: not even read.
    NoAccess,
    /// `RDONLY`.
    ReadOnly,
    /// `RW`.
    ReadWrite,
}

impl Access {
    /// Every access.
    pub const ALL: [Self; 3] = [Self::NoAccess, Self::ReadOnly, Self::ReadWrite];

    /// The word in a descriptor.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAccess => "NOACCESS",
            Self::ReadOnly => "RDONLY",
            Self::ReadWrite => "RW",
        }
    }
}

/// How an extent holds its sectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum ExtentKind {
    /// One after the other, in a file or on a device.
    Flat,
    /// SESparse: snapshots on VMFS 6.
    SeSparse,
    /// Hosted sparse: grains behind a directory.
    Sparse,
    /// As [`Flat`](Self::Flat), in a file on VMFS.
    Vmfs,
    /// A raw device.
    VmfsRaw,
    /// The pointer to a raw device.
    VmfsRdm,
    /// COWD: snapshots on VMFS 3 and 5.
    VmfsSparse,
    /// Zeros, without a file.
    Zero,
}

impl ExtentKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Flat,
        Self::SeSparse,
        Self::Sparse,
        Self::Vmfs,
        Self::VmfsRaw,
        Self::VmfsRdm,
        Self::VmfsSparse,
        Self::Zero,
    ];

    /// The word in a descriptor.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "FLAT",
            Self::SeSparse => "SESPARSE",
            Self::Sparse => "SPARSE",
            Self::Vmfs => "VMFS",
            Self::VmfsRaw => "VMFSRAW",
            Self::VmfsRdm => "VMFSRDM",
            Self::VmfsSparse => "VMFSSPARSE",
            Self::Zero => "ZERO",
        }
    }
}

/// A part of a virtual disk.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Extent {
    /// What may be done with it.
    pub access: Access,
    /// Its size in sectors of 512 bytes, at least 1.
    pub sector_count: u64,
    /// How it holds its sectors.
    pub kind: ExtentKind,
    /// Its file, as the descriptor names it: most often relative to the descriptor's folder, but any path may stand
    /// here. Not for [`ExtentKind::Zero`], but for a few writers that name one.
    pub file: Option<String>,
    /// Where it begins in its file, in sectors.
    pub offset_sectors: u64,
    /// What follows: the identifiers of partition and device.
    pub extra: Vec<String>,
    /// Its line in the descriptor, from 1; 0 for an extent that is not from one.
    pub line: usize,
}

impl Extent {
    /// The most sectors that an extent or a disk may have: their bytes fit 63 bits.
    pub const SECTORS_MAX: u64 = i64::MAX as u64 / 512;

    /// An extent that may be written and begins where its file begins.
    pub fn new(kind: ExtentKind, sector_count: u64, file: Option<&str>) -> Self {
        let file = file.map(str::to_owned);
        let access = Access::ReadWrite;
        Self { access, sector_count, kind, file, offset_sectors: 0, extra: Vec::new(), line: 0 }
    }
}

/// The line of a descriptor.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.access.name(), self.sector_count, self.kind.name())?;
        if let Some(file) = &self.file {
            write!(f, " \"{file}\"")?;
            if matches!(self.kind, ExtentKind::Flat) || self.offset_sectors > 0 || !self.extra.is_empty() {
                write!(f, " {}", self.offset_sectors)?;
            }
        }
        self.extra.iter().try_for_each(|word| write!(f, " {word}"))
    }
}

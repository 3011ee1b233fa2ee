//! The kinds of extents that are read and never written.

use vmseal_formats::{CowdHeader, ExtentKind, SeSparseHeader, SparseHeader, cowd, se_sparse, stream_optimized};
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::layout::{SECTOR_LEN, read_start};

/// The header of an extent that is read and never written.
#[derive(Clone, Debug)]
pub(crate) enum ReadOnlyHeader {
    Cowd(CowdHeader),
    SeSparse(SeSparseHeader),
    /// The one at the end of a streamOptimized file.
    Stream(Box<SparseHeader>),
}

impl ReadOnlyHeader {
    pub(crate) fn parse(file: &dyn File, path: &StoragePath, kind: ExtentKind) -> Result<Self, Error> {
        let format = |source| Error::Format { path: path.to_string(), source };
        Ok(match kind {
            ExtentKind::VmfsSparse => {
                Self::Cowd(CowdHeader::parse(&read_start(file, cowd::HEADER_LEN)?).map_err(format)?)
            }
            ExtentKind::SeSparse => {
                Self::SeSparse(SeSparseHeader::parse(&read_start(file, se_sparse::HEADERS_LEN)?).map_err(format)?)
            }
            _ => {
                let header = SparseHeader::parse(&read_start(file, SECTOR_LEN as usize)?).map_err(format)?;
                if !header.is_at_end() {
                    return Ok(Self::Stream(Box::new(header)));
                }
                let len_bytes = file.len()?;
                let end_len = len_bytes.min(stream_optimized::FOOTER_FROM_END);
                let mut end = vec![0; usize::try_from(end_len).unwrap_or(0)];
                file.read_at(&mut end, len_bytes - end_len)?;
                Self::Stream(Box::new(SparseHeader::parse_footer(&end, len_bytes).map_err(format)?))
            }
        })
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Cowd(_) => "a COWD extent (vmfsSparse)",
            Self::SeSparse(_) => "an SESparse extent",
            Self::Stream(_) => "a streamOptimized extent",
        }
    }

    pub(crate) fn capacity_sectors(&self) -> u64 {
        match self {
            Self::Cowd(header) => header.capacity_sectors.into(),
            Self::SeSparse(header) => header.capacity_sectors,
            Self::Stream(header) => header.capacity_sectors,
        }
    }

    pub(crate) fn grain_sectors(&self) -> u64 {
        match self {
            Self::Cowd(header) => header.grain_sectors.into(),
            Self::SeSparse(header) => header.grain_sectors(),
            Self::Stream(header) => header.grain_sectors,
        }
    }
}

//! Reads the compressed grains of a streamOptimized extent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vmseal_formats::{SparseHeader, stream_optimized};
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::grains::{Grain, GrainMap, damaged};
use crate::layout::SECTOR_LEN;
use crate::sparse::GrainExtent;

/// Grains that are kept as they were decompressed: small reads one after the other, of a few readers.
const KEPT_LEN_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct StreamExtent {
    grains: GrainExtent,
    header: SparseHeader,
    /// The grains read last. The lock is not held while one is read and decompressed.
    kept: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl StreamExtent {
    /// Opens an extent with the header that counts, which may be the one at the end of the file.
    pub(crate) fn open(
        file: Box<dyn File>,
        path: &StoragePath,
        header: &SparseHeader,
        is_salvage: bool,
    ) -> Result<Self, Error> {
        let map = GrainMap::hosted(header);
        let grains = if is_salvage {
            GrainExtent::salvage(file, path, map, None)?
        } else {
            GrainExtent::read_only(file, path, map)?
        };
        Ok(Self { grains, header: header.clone(), kept: Mutex::default() })
    }

    pub(crate) fn file(&self) -> &dyn File {
        self.grains.file()
    }

    pub(crate) fn grain_len(&self) -> u64 {
        self.grains.grain_len()
    }

    /// As [`GrainExtent::run`]; a run in the file is a part of one grain, and its place that of the grain's marker.
    pub(crate) fn run(&self, offset: u64, len_bytes: u64) -> Result<(Grain, u64), Error> {
        let grain_len = self.grains.grain_len();
        match self.grains.run(offset, len_bytes)? {
            (Grain::At(byte), _) => {
                Ok((Grain::At(byte - offset % grain_len), len_bytes.min(grain_len - offset % grain_len)))
            }
            run => Ok(run),
        }
    }

    /// Fills `buffer` with the bytes from `offset` of the extent on, which lie in the grain whose marker is at byte `marker` of the file.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64, marker: u64) -> Result<(), Error> {
        let grain_len = self.grains.grain_len();
        let bytes = self.grain(offset / grain_len, marker)?;
        let start = (offset % grain_len) as usize;
        buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
        Ok(())
    }

    fn grain(&self, grain: u64, marker: u64) -> Result<Arc<Vec<u8>>, Error> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept().iter().find(|(known, _)| *known == grain) {
            return Ok(bytes.clone());
        }
        let path = self.grains.path();
        let file = self.grains.file();
        let (marker_len, size_at) =
            if self.header.has_markers() { (stream_optimized::GRAIN_MARKER_LEN, 8) } else { (4, 0) };
        let mut start = [0; stream_optimized::GRAIN_MARKER_LEN];
        file.read_at(&mut start[..marker_len], marker)?;
        let mut size = [0; 4];
        size.copy_from_slice(&start[size_at..size_at + 4]);
        let stored_len = u64::from(u32::from_le_bytes(size));
        // A stream that cannot be compressed grows by a few bytes in a thousand.
        let end = marker + marker_len as u64 + stored_len;
        if stored_len > 2 * self.grains.grain_len() + SECTOR_LEN || end > self.grains.file_len() {
            return Err(damaged(path, marker, "a compressed grain is longer than it can be"));
        }
        let mut stored = vec![0; marker_len + stored_len as usize];
        file.read_at(&mut stored, marker)?;
        let sector = grain * self.header.grain_sectors;
        let bytes = stream_optimized::read_grain(&self.header, &stored, marker, sector)
            .map_err(|source| Error::Format { path: path.to_string(), source })?;
        let bytes = Arc::new(bytes);
        let mut kept = kept();
        while !kept.is_empty() && (kept.len() + 1) * bytes.len() > KEPT_LEN_MAX {
            kept.pop_front();
        }
        kept.push_back((grain, bytes.clone()));
        Ok(bytes)
    }
}

//! A disk's extent file as a list of pieces in file order: which bytes are the guest's, and what the others are.

use core::ops::Range;
use std::vec;

use vmseal_formats::SparseHeader;
use vmseal_storage::{File, StoragePath};

use crate::error::Error;
use crate::grains::{Directory, Grain, GrainMap, damaged, read_entries};
use crate::layout::{DescriptorPlace, DiskLayout, Extent, Place, SECTOR_LEN};
use crate::unit::UnitSize;

/// Grains that are sorted at once: a file is gone through in windows, so that memory does not grow with the disk.
const WINDOW_GRAINS: u64 = 1 << 20;

/// A run of bytes in an extent file. What no piece names are holes, and room that no table refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it lies in the file.
    pub file_range: Range<u64>,
    /// What it is.
    pub kind: PieceKind,
}

/// What the bytes of a piece are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// The descriptor.
    Descriptor,
    /// The guest's bytes: whole data units of any size, but where the disk ends.
    Guest {
        /// The first of them on the virtual disk.
        virtual_byte: u64,
    },
    /// Everything else that has to stay as it is: headers, tables, bytes of a flat file outside the disk.
    Other,
}

impl DiskLayout {
    /// The pieces of the extent file `path`, which is open as `file`, in file order and without overlap.
    ///
    /// # Errors
    /// [`Error::DamagedTables`]; [`Error::Storage`]. The same at each item.
    pub fn pieces<'a>(
        &self,
        file: &'a dyn File,
        path: &StoragePath,
    ) -> Result<Box<dyn Iterator<Item = Result<Piece, Error>> + Send + 'a>, Error> {
        let mut extents: Vec<Extent> =
            self.extents().iter().filter(|extent| extent.kind.path() == Some(path)).cloned().collect();
        match extents.first().map(|extent| &extent.kind) {
            Some(Place::Sparse { header, .. }) => {
                let descriptor = match self.descriptor_place() {
                    DescriptorPlace::Embedded { offset_bytes, len_bytes } => {
                        Some(offset_bytes..offset_bytes + len_bytes)
                    }
                    DescriptorPlace::OwnFile => None,
                };
                Ok(Box::new(SparsePieces::new(file, path, header, &extents[0], descriptor)?))
            }
            _ => {
                extents.sort_by_key(flat_offset);
                Ok(Box::new(FlatPieces { file, file_len: file.len()?, extents, at: 0 }))
            }
        }
    }
}

fn flat_offset(extent: &Extent) -> u64 {
    match extent.kind {
        Place::Flat { offset_bytes, .. } => offset_bytes,
        _ => 0,
    }
}

/// The allocated parts of a flat file.
struct FlatPieces<'a> {
    file: &'a dyn File,
    file_len: u64,
    /// The extents in this file, by their offset in it.
    extents: Vec<Extent>,
    at: u64,
}

impl Iterator for FlatPieces<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let data = match self.file.next_data(self.at) {
            Ok(data) => data?,
            Err(error) => return Some(Err(error.into())),
        };
        let extent = self.extents.iter().find(|extent| flat_offset(extent) + extent.len_bytes > data.start);
        let piece = match extent {
            Some(extent) if flat_offset(extent) < data.end => {
                let offset = flat_offset(extent);
                if data.start < offset {
                    Piece { file_range: data.start..offset, kind: PieceKind::Other }
                } else {
                    guest_piece(extent, offset, data.start.max(self.at)..data.end, self.at)
                }
            }
            _ => Piece { file_range: data.start..data.end.min(self.file_len), kind: PieceKind::Other },
        };
        self.at = piece.file_range.end;
        Some(Ok(piece))
    }
}

/// The guest's bytes in `data`, widened to whole data units: storage may tell of holes at any byte.
fn guest_piece(extent: &Extent, offset: u64, data: Range<u64>, at: u64) -> Piece {
    let unit = UnitSize::MAX_BYTES;
    let virtual_of = |byte: u64| extent.virtual_byte + (byte - offset);
    let before = (virtual_of(data.start) % unit).min(data.start - offset.max(at));
    let start = data.start - before;
    let end_of_extent = offset + extent.len_bytes;
    let end = data.end.min(end_of_extent);
    let end = (end + (unit - virtual_of(end) % unit) % unit).min(end_of_extent);
    Piece { file_range: start..end, kind: PieceKind::Guest { virtual_byte: virtual_of(start) } }
}

/// The pieces of a sparse extent, window by window.
struct SparsePieces<'a> {
    file: &'a dyn File,
    file_len: u64,
    path: StoragePath,
    header: SparseHeader,
    extent: Extent,
    descriptor: Option<Range<u64>>,
    directory: Directory,
    /// The next byte of the file that is in no window yet.
    window: u64,
    pieces: vec::IntoIter<Piece>,
    /// Where the last piece ended.
    end: u64,
    failed: bool,
}

impl<'a> SparsePieces<'a> {
    fn new(
        file: &'a dyn File,
        path: &StoragePath,
        header: &SparseHeader,
        extent: &Extent,
        descriptor: Option<Range<u64>>,
    ) -> Result<Self, Error> {
        Ok(Self {
            file,
            file_len: file.len()?,
            path: path.clone(),
            header: header.clone(),
            extent: extent.clone(),
            descriptor,
            directory: Directory::read(file, path, header)?,
            window: 0,
            pieces: Vec::new().into_iter(),
            end: 0,
            failed: false,
        })
    }

    fn grain_len(&self) -> u64 {
        self.header.grain_sectors * SECTOR_LEN
    }

    /// Everything that begins in the next window, in order.
    fn fill(&mut self) -> Result<(), Error> {
        let window = self.window..self.window.saturating_add(WINDOW_GRAINS * self.grain_len());
        let mut pieces = Vec::new();
        let mut other = |range: Range<u64>| {
            if window.contains(&range.start) && range.start < range.end {
                pieces.push(Piece { file_range: range, kind: PieceKind::Other });
            }
        };
        other(0..SECTOR_LEN);
        let grains_max = (window.end - window.start) / self.grain_len() + 1;
        let directory_len = self.header.gd_entry_count() * 4;
        let table_len = GrainMap::hosted(&self.header).table_len();
        let directories = [
            (Some(&self.directory.main), self.header.gd_sector),
            (self.directory.redundant.as_ref(), self.header.redundant_gd_sector),
        ];
        for (directory, sector) in directories {
            let Some(directory) = directory else { continue };
            let offset = sector * SECTOR_LEN;
            other(offset..offset + directory_len);
            for table in directory.iter().filter(|table| **table != 0) {
                let offset = u64::from(*table) * SECTOR_LEN;
                other(offset..offset + table_len);
            }
        }
        if let Some(range) = &self.descriptor
            && window.contains(&range.start)
        {
            pieces.push(Piece { file_range: range.clone(), kind: PieceKind::Descriptor });
        }
        let count_max = pieces.len() + usize::try_from(grains_max).unwrap_or(usize::MAX);
        self.grains(&window, &mut pieces, count_max)?;
        pieces.sort_by_key(|piece| piece.file_range.start);
        for piece in &pieces {
            if piece.file_range.start < self.end {
                let what = "two tables or grains use the same bytes";
                return Err(damaged(&self.path, piece.file_range.start, what));
            }
            self.end = piece.file_range.end;
        }
        self.pieces = pieces.into_iter();
        self.window = window.end;
        Ok(())
    }

    /// The grains that begin in `window`.
    /// More than fit side by side cannot be: that is found before memory is used up.
    fn grains(&self, window: &Range<u64>, pieces: &mut Vec<Piece>, count_max: usize) -> Result<(), Error> {
        let grain_len = self.grain_len();
        let per_table = u64::from(self.header.gtes_per_gt);
        for (index, table) in self.directory.main.iter().enumerate().filter(|(_, table)| **table != 0) {
            let offset = u64::from(*table) * SECTOR_LEN;
            let entries = read_entries(self.file, offset, GrainMap::hosted(&self.header).table_len())?;
            for (slot, entry) in entries.iter().enumerate() {
                let Grain::At(byte) = Grain::from_entry(self.header.has_zeroed_grains(), *entry) else { continue };
                // Checked whatever the window: no window reaches beyond the file.
                if byte >= self.file_len {
                    let what = "a grain table names a grain beyond the end of the file";
                    return Err(damaged(&self.path, offset + slot as u64 * 4, what));
                }
                if !window.contains(&byte) {
                    continue;
                }
                let within = (index as u64 * per_table + slot as u64).saturating_mul(grain_len);
                let Some(left) = self.extent.len_bytes.checked_sub(within).filter(|left| *left > 0) else {
                    let what = "a grain table names a grain beyond the end of the disk";
                    return Err(damaged(&self.path, offset + slot as u64 * 4, what));
                };
                if pieces.len() >= count_max {
                    return Err(damaged(&self.path, byte, "two grains use the same bytes"));
                }
                let end = (byte + grain_len.min(left)).min(self.file_len);
                if end != byte + grain_len.min(left) && !(end - byte).is_multiple_of(UnitSize::MAX_BYTES) {
                    return Err(damaged(&self.path, byte, "a grain is cut off by the end of the file"));
                }
                let virtual_byte = self.extent.virtual_byte + within;
                pieces.push(Piece { file_range: byte..end, kind: PieceKind::Guest { virtual_byte } });
            }
        }
        Ok(())
    }
}

impl Iterator for SparsePieces<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Some(Ok(piece));
            }
            if self.failed || self.window >= self.file_len {
                return None;
            }
            if let Err(error) = self.fill() {
                self.failed = true;
                return Some(Err(error));
            }
        }
    }
}

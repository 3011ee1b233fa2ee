//! Where the bytes of a disk lie: its descriptor, and the files of its extents.

use vmseal_formats::{Access as ExtentAccess, Descriptor, ExtentKind, SparseHeader};
use vmseal_storage::{Access, File, Kind, Storage, StoragePath};

use crate::error::Error;
use crate::pieces::{Piece, PieceKind};
use crate::read_only::ReadOnlyHeader;
use crate::unit::UnitSize;

pub(crate) const SECTOR_LEN: u64 = 512;
/// No descriptor is longer.
const DESCRIPTOR_LEN_MAX: u64 = 1 << 20;
/// A disk of 64 TiB in pieces of 2 GiB has 32768 extents; no product makes larger ones.
const EXTENTS_MAX: usize = 1 << 16;

/// Where the descriptor of a disk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorPlace {
    /// It is a file of its own.
    OwnFile,
    /// It lies inside the disk's one sparse extent.
    Embedded {
        /// Where it begins.
        offset_bytes: u64,
        /// The room that it has.
        len_bytes: u64,
    },
}

/// A disk's descriptor and extents, checked against the files that are there. It holds no open file.
#[derive(Clone, Debug)]
pub struct DiskLayout {
    path: StoragePath,
    descriptor: Descriptor,
    place: DescriptorPlace,
    extents: Vec<Extent>,
    capacity_bytes: u64,
}

/// One extent.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Its first byte on the virtual disk.
    pub(crate) virtual_byte: u64,
    pub(crate) len_bytes: u64,
    pub(crate) access: ExtentAccess,
    pub(crate) kind: Place,
}

/// Where the bytes of an extent lie.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Flat {
        path: StoragePath,
        offset_bytes: u64,
    },
    Sparse {
        path: StoragePath,
        header: Box<SparseHeader>,
    },
    /// An extent that is read and never written.
    ReadOnly {
        path: StoragePath,
        header: Box<ReadOnlyHeader>,
    },
    Zero,
    /// Nowhere: only salvage knows of it.
    Missing,
}

impl Place {
    pub(crate) fn path(&self) -> Option<&StoragePath> {
        match self {
            Self::Flat { path, .. } | Self::Sparse { path, .. } | Self::ReadOnly { path, .. } => Some(path),
            Self::Zero | Self::Missing => None,
        }
    }

    /// The bytes of a grain, where it has grains.
    fn grain_len(&self) -> Option<u64> {
        match self {
            Self::Sparse { header, .. } => Some(header.grain_sectors * SECTOR_LEN),
            Self::ReadOnly { header, .. } => Some(header.grain_sectors() * SECTOR_LEN),
            Self::Flat { .. } | Self::Zero | Self::Missing => None,
        }
    }
}

impl DiskLayout {
    /// Reads the disk whose descriptor is `path`, or lies inside it. All of its extents are flat or hosted sparse: those that can be converted.
    ///
    /// # Errors
    /// [`Error::Format`] where a file cannot be understood, [`Error::ExtentTooShort`] where one is cut off, [`Error::Unsupported`] for other kinds
    /// of disks, [`Error::Storage`] where a file is missing.
    pub fn open(storage: &dyn Storage, path: &StoragePath) -> Result<Self, Error> {
        let (descriptor, _) = Self::read_descriptor(storage, path)?;
        // Told before the files are looked at: of a snapshot link nothing but its keys is ever touched.
        let is_delta = |kind: &ExtentKind| matches!(kind, ExtentKind::VmfsSparse | ExtentKind::SeSparse);
        if let Some(kind) = descriptor.extents().iter().map(|extent| extent.kind).find(is_delta) {
            let what =
                format!("extents of type {} are read and never converted; consolidate the snapshot first", kind.name());
            return Err(Error::Unsupported { path: path.to_string(), what });
        }
        let layout = Self::read(storage, path, None)?;
        if let Some((file, _)) = layout.read_only_extent() {
            let what = "a streamOptimized disk is not encrypted in place; convert it to another type first".to_owned();
            return Err(Error::Unsupported { path: file.to_string(), what });
        }
        Ok(layout)
    }

    /// Reads a disk of any kind. With `damage`, extents that cannot be had are left out and the reasons told.
    pub(crate) fn read(
        storage: &dyn Storage,
        path: &StoragePath,
        damage: Option<&mut Vec<Error>>,
    ) -> Result<Self, Error> {
        let (descriptor, place) = Self::read_descriptor(storage, path)?;
        let mut layout = Self { path: path.clone(), descriptor, place, extents: Vec::new(), capacity_bytes: 0 };
        layout.place_extents(storage, damage)?;
        Ok(layout)
    }

    /// The first extent that is read and never written, with its file.
    pub(crate) fn read_only_extent(&self) -> Option<(&StoragePath, &ReadOnlyHeader)> {
        self.extents.iter().find_map(|extent| match &extent.kind {
            Place::ReadOnly { path, header } => Some((path, header.as_ref())),
            _ => None,
        })
    }

    /// Reads the descriptor of a disk alone, whatever its extents.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for what is wrong with extents.
    pub fn read_descriptor(storage: &dyn Storage, path: &StoragePath) -> Result<(Descriptor, DescriptorPlace), Error> {
        let file = storage.open(path, Access::Read)?;
        let start = read_start(file.as_ref(), SECTOR_LEN as usize)?;
        if let Some(what) = foreign_kind(&start) {
            return Err(Error::Unsupported { path: path.to_string(), what: what.to_owned() });
        }
        if start.starts_with(&vmseal_formats::sparse_header::MAGIC) {
            let header = parse_header(path, &start)?;
            let place = DescriptorPlace::Embedded {
                offset_bytes: header.descriptor_offset_sectors * SECTOR_LEN,
                len_bytes: header.descriptor_sectors * SECTOR_LEN,
            };
            return Ok((read_embedded(path, file.as_ref(), &header)?, place));
        }
        let bytes = storage.read(path, DESCRIPTOR_LEN_MAX)?;
        Ok((parse_descriptor(path, &bytes)?, DescriptorPlace::OwnFile))
    }

    pub(crate) fn path(&self) -> &StoragePath {
        &self.path
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Where the descriptor lies.
    pub fn descriptor_place(&self) -> DescriptorPlace {
        self.place
    }

    /// The size that the guest sees, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The extent files in the order of the disk, each once. The file that holds an embedded descriptor is one of them.
    pub fn files(&self) -> Vec<StoragePath> {
        let mut files: Vec<StoragePath> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for path in self.extents.iter().filter_map(|extent| extent.kind.path()) {
            if seen.insert(path.clone()) {
                files.push(path.clone());
            }
        }
        files
    }

    /// Checks that data units of this size fit: none may lie in two extents or two grains.
    ///
    /// # Errors
    /// [`Error::UnitDoesNotFit`].
    pub fn check_unit(&self, unit: UnitSize) -> Result<(), Error> {
        let unit_bytes = u64::from(unit.bytes());
        let refuse = |what: String| Err(Error::UnitDoesNotFit { path: self.path.to_string(), unit, what });
        for extent in &self.extents {
            if !extent.virtual_byte.is_multiple_of(unit_bytes) {
                return refuse(format!("an extent begins at byte {} of the disk", extent.virtual_byte));
            }
            if let Some(grain_len) = extent.kind.grain_len()
                && !grain_len.is_multiple_of(unit_bytes)
            {
                return refuse(format!("its grains have {grain_len} bytes"));
            }
        }
        Ok(())
    }

    /// Reads all tables of the disk, and checks that no two grains share bytes.
    ///
    /// # Errors
    /// [`Error::DamagedTables`].
    pub fn check_tables(&self, storage: &dyn Storage) -> Result<(), Error> {
        self.each_piece(storage, |_, _, _, _| Ok(()))
    }

    /// The same, and that nothing lies in its flat files but the disk: what is outside of it would be copied as it is, in the clear.
    ///
    /// # Errors
    /// [`Error::DamagedTables`]; [`Error::Unsupported`] for bytes that belong to no extent.
    pub fn check_files(&self, storage: &dyn Storage) -> Result<(), Error> {
        self.each_piece(storage, |path, file, is_flat, piece| {
            if is_flat && piece.kind == PieceKind::Other && holds_data(file, piece.file_range.clone())? {
                let what = format!(
                    "it holds data from byte {} on that belongs to no extent and would stay in the clear; cut the file, or correct the descriptor",
                    piece.file_range.start
                );
                return Err(Error::Unsupported { path: path.to_string(), what });
            }
            Ok(())
        })
    }

    fn each_piece(
        &self,
        storage: &dyn Storage,
        check: impl Fn(&StoragePath, &dyn File, bool, &Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for path in self.files() {
            let file = storage.open(&path, Access::Read)?;
            let is_flat = self
                .extents
                .iter()
                .any(|extent| matches!(&extent.kind, Place::Flat { path: flat, .. } if *flat == path));
            for piece in self.pieces(file.as_ref(), &path)? {
                check(&path, file.as_ref(), is_flat, &piece?)?;
            }
        }
        Ok(())
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    fn place_extents(&mut self, storage: &dyn Storage, mut damage: Option<&mut Vec<Error>>) -> Result<(), Error> {
        let extents = self.descriptor.extents();
        if extents.len() > EXTENTS_MAX {
            let what = format!("it has {} extents, and no disk has more than {EXTENTS_MAX}", extents.len());
            return Err(Error::Unsupported { path: self.path.to_string(), what });
        }
        if self.descriptor.kind().is_none() && damage.is_none() {
            let what = format!("createType {:?} is not known; convert the disk first", self.descriptor.create_type());
            return Err(Error::Unsupported { path: self.path.to_string(), what });
        }
        let mut virtual_byte: u64 = 0;
        let mut placed = Vec::with_capacity(extents.len());
        for extent in extents {
            let len_bytes = extent.sector_count.checked_mul(SECTOR_LEN).ok_or_else(|| self.too_large())?;
            let kind = match (self.place_extent(storage, extent, len_bytes, damage.is_some()), &mut damage) {
                (Ok(kind), _) => kind,
                (Err(error), None) => return Err(error),
                (Err(error), Some(damage)) => {
                    damage.push(error);
                    Place::Missing
                }
            };
            placed.push(Extent { virtual_byte, len_bytes, access: extent.access, kind });
            virtual_byte = virtual_byte.checked_add(len_bytes).ok_or_else(|| self.too_large())?;
        }
        if let Some(overlap) = overlapping(&placed) {
            let what = format!("two of its extents use the same bytes of {overlap}");
            return Err(Error::Unsupported { path: self.path.to_string(), what });
        }
        self.extents = placed;
        self.capacity_bytes = virtual_byte;
        Ok(())
    }

    fn place_extent(
        &self,
        storage: &dyn Storage,
        extent: &vmseal_formats::Extent,
        len_bytes: u64,
        may_be_short: bool,
    ) -> Result<Place, Error> {
        let check_capacity = |path: &StoragePath, capacity_sectors: u64| {
            if capacity_sectors < extent.sector_count {
                let (path, wanted_bytes) = (path.to_string(), len_bytes);
                return Err(Error::ExtentTooShort { path, len_bytes: capacity_sectors * SECTOR_LEN, wanted_bytes });
            }
            Ok(())
        };
        match extent.kind {
            ExtentKind::Zero => Ok(Place::Zero),
            ExtentKind::Flat | ExtentKind::Vmfs => {
                let path = self.extent_path(extent.file.as_deref())?;
                let offset_bytes = extent.offset_sectors.checked_mul(SECTOR_LEN).ok_or_else(|| self.too_large())?;
                let wanted_bytes = offset_bytes.checked_add(len_bytes).ok_or_else(|| self.too_large())?;
                check_flat(storage, &path, if may_be_short { 0 } else { wanted_bytes })?;
                Ok(Place::Flat { path, offset_bytes })
            }
            ExtentKind::Sparse => {
                // The descriptor inside an extent may name that extent by the name that it had when it was made.
                let path = match self.place {
                    DescriptorPlace::Embedded { .. } if self.descriptor.extents().len() == 1 => self.path.clone(),
                    _ => self.extent_path(extent.file.as_deref())?,
                };
                let file = storage.open(&path, Access::Read)?;
                let header = parse_header(&path, &read_start(file.as_ref(), SECTOR_LEN as usize)?)?;
                if header.is_compressed() || header.is_at_end() {
                    let header = Box::new(ReadOnlyHeader::parse(file.as_ref(), &path, extent.kind)?);
                    check_capacity(&path, header.capacity_sectors())?;
                    return Ok(Place::ReadOnly { path, header });
                }
                check_capacity(&path, header.capacity_sectors)?;
                Ok(Place::Sparse { path, header: Box::new(header) })
            }
            ExtentKind::VmfsSparse | ExtentKind::SeSparse => {
                let path = self.extent_path(extent.file.as_deref())?;
                let file = storage.open(&path, Access::Read)?;
                let header = Box::new(ReadOnlyHeader::parse(file.as_ref(), &path, extent.kind)?);
                check_capacity(&path, header.capacity_sectors())?;
                Ok(Place::ReadOnly { path, header })
            }
            kind => {
                let what =
                    format!("extents of type {} are not read in this version; convert the disk first", kind.name());
                Err(Error::Unsupported { path: self.path.to_string(), what })
            }
        }
    }

    fn too_large(&self) -> Error {
        let what = "its extents are larger together than a disk can be".to_owned();
        Error::Unsupported { path: self.path.to_string(), what }
    }

    fn extent_path(&self, name: Option<&str>) -> Result<StoragePath, Error> {
        let name = name.ok_or_else(|| Error::Unsupported {
            path: self.path.to_string(),
            what: "an extent names no file; restore the descriptor from a copy".to_owned(),
        })?;
        Ok(self.path.sibling(name)?)
    }
}

/// Whether something else than zeros lies in a range of a file.
fn holds_data(file: &dyn File, range: core::ops::Range<u64>) -> Result<bool, Error> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        file.read_at(&mut buffer[..len], at)?;
        if buffer[..len].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at += len as u64;
    }
    Ok(false)
}

/// Kinds of files that are no descriptor and no hosted sparse extent.
fn foreign_kind(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"COWD") {
        return Some("it is a COWD extent (vmfsSparse) and has no descriptor; name the disk's own descriptor file");
    }
    if start.starts_with(&0xcafe_babe_u64.to_le_bytes()) {
        return Some("it is an SESparse extent and has no descriptor; name the disk's own descriptor file");
    }
    None
}

fn parse_descriptor(path: &StoragePath, bytes: &[u8]) -> Result<Descriptor, Error> {
    Descriptor::parse(bytes).map_err(|source| Error::Format { path: path.to_string(), source })
}

fn parse_header(path: &StoragePath, start: &[u8]) -> Result<SparseHeader, Error> {
    SparseHeader::parse(start).map_err(|source| Error::Format { path: path.to_string(), source })
}

/// The first `len` bytes of a file, or all of a shorter one.
pub(crate) fn read_start(file: &dyn File, len: usize) -> Result<Vec<u8>, Error> {
    let mut start = vec![0; len.min(usize::try_from(file.len()?).unwrap_or(usize::MAX))];
    file.read_at(&mut start, 0)?;
    Ok(start)
}

fn read_embedded(path: &StoragePath, file: &dyn File, header: &SparseHeader) -> Result<Descriptor, Error> {
    if header.descriptor_sectors == 0 {
        let what = "it is an extent without a descriptor; name the disk's own descriptor file";
        return Err(Error::Unsupported { path: path.to_string(), what: what.to_owned() });
    }
    let offset_bytes = header.descriptor_offset_sectors * SECTOR_LEN;
    let len_bytes = (header.descriptor_sectors * SECTOR_LEN).min(DESCRIPTOR_LEN_MAX);
    let mut text = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
    file.read_at(&mut text, offset_bytes)?;
    parse_descriptor(path, &text)
}

fn check_flat(storage: &dyn Storage, path: &StoragePath, wanted_bytes: u64) -> Result<(), Error> {
    let metadata = storage.metadata(path)?.ok_or_else(|| vmseal_storage::Error::NotFound { path: path.to_string() })?;
    if metadata.kind != Kind::File {
        return Err(vmseal_storage::Error::WrongKind { path: path.to_string(), wanted: "regular file" }.into());
    }
    if metadata.len < wanted_bytes {
        return Err(Error::ExtentTooShort { path: path.to_string(), len_bytes: metadata.len, wanted_bytes });
    }
    Ok(())
}

/// The file of which two extents use the same bytes: encrypted under two numbers, one of them would be lost.
fn overlapping(extents: &[Extent]) -> Option<&StoragePath> {
    let mut ranges: Vec<(&StoragePath, u64, u64)> = extents
        .iter()
        .filter_map(|extent| match &extent.kind {
            Place::Flat { path, offset_bytes } => Some((path, *offset_bytes, offset_bytes + extent.len_bytes)),
            Place::Sparse { path, .. } | Place::ReadOnly { path, .. } => Some((path, 0, u64::MAX)),
            Place::Zero | Place::Missing => None,
        })
        .collect();
    ranges.sort();
    ranges.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2).map(|pair| pair[0].0)
}

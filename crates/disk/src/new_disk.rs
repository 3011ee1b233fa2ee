//! New, empty disks in the clear, as VMware's products and `qemu-img` make them.

use rand_core::TryRng;
use vmseal_formats::{CreateType, Extent, ExtentKind, NewDescriptor, SparseWriter};
use vmseal_keys::system_rng;
use vmseal_storage::{Access, Storage, StoragePath};

use crate::disk::Disk;
use crate::error::Error;
use crate::layout::SECTOR_LEN;

/// 64 KiB, as all products write.
const GRAIN_SECTORS: u64 = 128;
/// `qemu-img` makes extents of 2 GiB less 64 KiB and VMware 2 GiB less 1 MiB; both are read.
const SPLIT_SECTORS: u64 = 0x8000_0000 / SECTOR_LEN - GRAIN_SECTORS;
/// A hosted sparse extent addresses 2^32 sectors.
const SPARSE_SECTORS_MAX: u64 = 1 << 32;

/// The kinds of disks that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewDiskType {
    /// One flat file beside the descriptor.
    MonolithicFlat,
    /// One sparse file with the descriptor inside.
    MonolithicSparse,
    /// Flat files of up to 2 GiB.
    TwoGbMaxExtentFlat,
    /// Sparse files of up to 2 GiB.
    TwoGbMaxExtentSparse,
    /// ESXi's flat disk, thin.
    Vmfs,
}

impl NewDiskType {
    fn create_type(self) -> CreateType {
        match self {
            Self::MonolithicFlat => CreateType::MonolithicFlat,
            Self::MonolithicSparse => CreateType::MonolithicSparse,
            Self::TwoGbMaxExtentFlat => CreateType::TwoGbMaxExtentFlat,
            Self::TwoGbMaxExtentSparse => CreateType::TwoGbMaxExtentSparse,
            Self::Vmfs => CreateType::Vmfs,
        }
    }

    fn is_split(self) -> bool {
        matches!(self, Self::TwoGbMaxExtentFlat | Self::TwoGbMaxExtentSparse)
    }

    fn is_sparse(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::TwoGbMaxExtentSparse)
    }

    fn extent_kind(self) -> ExtentKind {
        match self {
            Self::MonolithicFlat | Self::TwoGbMaxExtentFlat => ExtentKind::Flat,
            Self::MonolithicSparse | Self::TwoGbMaxExtentSparse => ExtentKind::Sparse,
            Self::Vmfs => ExtentKind::Vmfs,
        }
    }

    /// The name of the extent file at `index`, for a disk named `stem`.
    fn extent_name(self, stem: &str, index: usize) -> String {
        match self {
            Self::MonolithicFlat | Self::Vmfs => format!("{stem}-flat.vmdk"),
            Self::MonolithicSparse => format!("{stem}.vmdk"),
            Self::TwoGbMaxExtentFlat => format!("{stem}-f{:03}.vmdk", index + 1),
            Self::TwoGbMaxExtentSparse => format!("{stem}-s{:03}.vmdk", index + 1),
        }
    }
}

/// A disk to be made.
#[derive(Clone, Debug)]
pub struct NewDisk {
    disk_type: NewDiskType,
    capacity_bytes: u64,
}

impl NewDisk {
    /// A disk of `capacity_bytes`, which is a multiple of 512.
    pub fn new(disk_type: NewDiskType, capacity_bytes: u64) -> Self {
        Self { disk_type, capacity_bytes }
    }

    /// Makes the disk: its descriptor is `path`, which ends in `.vmdk`, and its extents lie beside it. Every byte of it is zero, and its files
    /// are holes where storage has such. Use [`Disk`](crate::Disk) to write to it.
    ///
    /// # Errors
    /// [`Error::NewSize`]; [`Error::Storage`] where a file is there already or the storage is full.
    pub fn create(&self, storage: &dyn Storage, path: &StoragePath) -> Result<(), Error> {
        let capacity_bytes = self.capacity_bytes;
        let refuse = |what| Err(Error::NewSize { capacity_bytes, what });
        if capacity_bytes == 0 || !capacity_bytes.is_multiple_of(SECTOR_LEN) {
            return refuse("it is not a multiple of 512 bytes from 512 on");
        }
        let sectors = capacity_bytes / SECTOR_LEN;
        if self.disk_type == NewDiskType::MonolithicSparse && sectors > SPARSE_SECTORS_MAX - (1 << 24) {
            return refuse("one sparse file holds less than 2 TiB; choose a split or flat type");
        }
        let extents = self.extents(path, sectors);
        let random = system_rng().try_next_u32().map_err(|_| vmseal_keys::Error::Random)?;
        let format = |source| Error::Format { path: path.to_string(), source };
        let descriptor = NewDescriptor::new(self.disk_type.create_type(), random & 0x7fff_ffff, extents.clone());
        let descriptor = descriptor.build().map_err(format)?;
        for extent in &extents {
            let file_path = path.sibling(extent.file.as_deref().unwrap_or_default())?;
            let file = storage.create(&file_path, None)?;
            if self.disk_type.is_sparse() {
                let embedded = (self.disk_type == NewDiskType::MonolithicSparse).then_some(&descriptor);
                let empty = SparseWriter::new(extent.sector_count, GRAIN_SECTORS, embedded).map_err(format)?;
                file.write_at(&empty.finish(), 0)?;
            } else {
                file.set_len(extent.sector_count * SECTOR_LEN)?;
            }
            file.sync()?;
        }
        if self.disk_type != NewDiskType::MonolithicSparse {
            let file = storage.create(path, None)?;
            file.write_at(&descriptor.to_bytes(), 0)?;
            file.sync()?;
        }
        Ok(storage.sync_folder(&path.folder())?)
    }

    /// Makes a descriptor for the raw image `image` beside it, which becomes the disk's one flat extent as it is.
    ///
    /// # Errors
    /// [`Error::NewSize`] where the image is no whole number of sectors; [`Error::Storage`] where it is missing or the descriptor is there already.
    pub fn describe(storage: &dyn Storage, path: &StoragePath, image: &str) -> Result<(), Error> {
        let capacity_bytes = storage.open(&path.sibling(image)?, Access::Read)?.len()?;
        if capacity_bytes == 0 || !capacity_bytes.is_multiple_of(SECTOR_LEN) {
            return Err(Error::NewSize { capacity_bytes, what: "it is not a multiple of 512 bytes from 512 on" });
        }
        let extent = Extent::new(ExtentKind::Flat, capacity_bytes / SECTOR_LEN, Some(image));
        let random = system_rng().try_next_u32().map_err(|_| vmseal_keys::Error::Random)?;
        let descriptor = NewDescriptor::new(CreateType::MonolithicFlat, random & 0x7fff_ffff, vec![extent])
            .build()
            .map_err(|source| Error::Format { path: path.to_string(), source })?;
        let file = storage.create(path, None)?;
        file.write_at(&descriptor.to_bytes(), 0)?;
        file.sync()?;
        Ok(storage.sync_folder(&path.folder())?)
    }

    /// The files that [`create`](Self::create) makes.
    ///
    /// # Errors
    /// [`Error::Storage`] where a name beside `path` cannot be made.
    pub fn files(&self, path: &StoragePath) -> Result<Vec<StoragePath>, Error> {
        let mut files = vec![path.clone()];
        for extent in self.extents(path, self.capacity_bytes / SECTOR_LEN) {
            let file = path.sibling(extent.file.as_deref().unwrap_or_default())?;
            if !files.contains(&file) {
                files.push(file);
            }
        }
        Ok(files)
    }

    /// Makes the disk and opens it for writing.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_and_open<'s>(&self, storage: &'s dyn Storage, path: &StoragePath) -> Result<Disk<'s>, Error> {
        self.create(storage, path)?;
        Disk::open(storage, path, None, Access::ReadWrite)
    }

    fn extents(&self, path: &StoragePath, sectors: u64) -> Vec<Extent> {
        let name = path.file_name();
        let stem = name.strip_suffix(".vmdk").unwrap_or(name);
        let step = if self.disk_type.is_split() { SPLIT_SECTORS } else { sectors };
        let mut extents = Vec::new();
        let mut left = sectors;
        while left > 0 {
            let sector_count = left.min(step);
            let file = match self.disk_type {
                NewDiskType::MonolithicSparse => name.to_owned(),
                disk_type => disk_type.extent_name(stem, extents.len()),
            };
            extents.push(Extent::new(self.disk_type.extent_kind(), sector_count, Some(&file)));
            left -= sector_count;
        }
        extents
    }
}

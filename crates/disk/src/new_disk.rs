//! New, empty disks in the clear, as VMware's products and `qemu-img` make them.

use rand_core::TryRng;
use vmseal_formats::{CreateType, Extent, ExtentKind, NewDescriptor, SparseHeader};
use vmseal_keys::system_rng;
use vmseal_storage::{Access, Storage, StoragePath};

use crate::disk::Disk;
use crate::error::Error;
use crate::grains::entries_to_bytes;
use crate::layout::SECTOR_LEN;

/// 64 KiB, as all products write.
const GRAIN_SECTORS: u64 = 128;
const TABLE_ENTRIES: u64 = 512;
/// `qemu-img` makes extents of 2 GiB less 64 KiB and VMware 2 GiB less 1 MiB; both are read.
const SPLIT_SECTORS: u64 = 0x8000_0000 / SECTOR_LEN - GRAIN_SECTORS;
/// The room of a descriptor inside an extent, from sector 1 on.
const DESCRIPTOR_SECTORS: u64 = 20;
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
        let text = NewDescriptor::new(self.disk_type.create_type(), random & 0x7fff_ffff, extents.clone())
            .build()
            .map_err(|source| Error::Format { path: path.to_string(), source })?
            .to_bytes();
        for extent in &extents {
            let file_path = path.sibling(extent.file.as_deref().unwrap_or_default())?;
            let file = storage.create(&file_path, None)?;
            if self.disk_type.is_sparse() {
                let embedded = (self.disk_type == NewDiskType::MonolithicSparse).then_some(text.as_slice());
                let start = sparse_start(extent.sector_count, embedded);
                file.write_at(&start, 0)?;
            } else {
                file.set_len(extent.sector_count * SECTOR_LEN)?;
            }
            file.sync()?;
        }
        if self.disk_type != NewDiskType::MonolithicSparse {
            let file = storage.create(path, None)?;
            file.write_at(&text, 0)?;
            file.sync()?;
        }
        Ok(storage.sync_folder(&path.folder())?)
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

/// The header, the descriptor, both grain directories and all grain tables of an empty sparse extent: redundant directory and tables first.
fn sparse_start(capacity_sectors: u64, descriptor: Option<&[u8]>) -> Vec<u8> {
    let table_sectors = TABLE_ENTRIES * 4 / SECTOR_LEN;
    let table_count = capacity_sectors.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
    let directory_sectors = (table_count * 4).div_ceil(SECTOR_LEN);
    let redundant_gd_sector = 1 + if descriptor.is_some() { DESCRIPTOR_SECTORS } else { 0 };
    let redundant_tables = redundant_gd_sector + directory_sectors;
    let gd_sector = redundant_tables + table_count * table_sectors;
    let tables = gd_sector + directory_sectors;
    let overhead_sectors = (tables + table_count * table_sectors).next_multiple_of(GRAIN_SECTORS);
    let (descriptor_offset_sectors, descriptor_sectors) =
        if descriptor.is_some() { (1, DESCRIPTOR_SECTORS) } else { (0, 0) };
    let header = SparseHeader {
        flags: SparseHeader::FLAG_NEWLINE_TEST | SparseHeader::FLAG_REDUNDANT_GD,
        descriptor_offset_sectors,
        descriptor_sectors,
        redundant_gd_sector,
        gd_sector,
        overhead_sectors,
        ..SparseHeader::new(capacity_sectors, GRAIN_SECTORS)
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(descriptor.unwrap_or_default());
    for (directory, first_table) in [(redundant_gd_sector, redundant_tables), (gd_sector, tables)] {
        bytes.resize((directory * SECTOR_LEN) as usize, 0);
        let entries: Vec<u32> = (0..table_count).map(|index| (first_table + index * table_sectors) as u32).collect();
        bytes.extend_from_slice(&entries_to_bytes(&entries));
        bytes.resize((first_table * SECTOR_LEN) as usize, 0);
    }
    bytes.resize((overhead_sectors * SECTOR_LEN) as usize, 0);
    bytes
}

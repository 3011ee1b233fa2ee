//! Makes links of every kind. COWD and SESparse files are made by hand here, from the format's pages: QEMU reads them (`qemu.rs`), and no product's
//! file was at hand.

use std::collections::BTreeMap;

use vmseal_disk::{Disk, DiskCipher, DiskId, DiskLayout, Encryption, Error, HolePolicy, UnitSize};
use vmseal_formats::{CreateType, Extent, ExtentKind, KeyList, NewDescriptor, SparseWriter, StreamWriter};
use vmseal_keys::{Dek, system_rng};
use vmseal_storage::{Access, Storage, StoragePath};

pub(crate) fn path(text: &str) -> StoragePath {
    StoragePath::new(text).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Flat,
    /// One file, the descriptor inside.
    Monolithic,
    /// Two extents.
    Split,
    Cowd,
    SeSparse,
    Stream,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Flat, Self::Monolithic, Self::Split, Self::Cowd, Self::SeSparse, Self::Stream];

    pub(crate) fn is_written(self) -> bool {
        matches!(self, Self::Flat | Self::Monolithic | Self::Split)
    }

    fn create_type(self) -> CreateType {
        match self {
            Self::Flat => CreateType::MonolithicFlat,
            Self::Monolithic => CreateType::MonolithicSparse,
            Self::Split => CreateType::TwoGbMaxExtentSparse,
            Self::Cowd => CreateType::VmfsSparse,
            Self::SeSparse => CreateType::SeSparse,
            Self::Stream => CreateType::StreamOptimized,
        }
    }
}

/// What a link has at a grain, when it is made; `None` for nothing.
pub(crate) type Grains = BTreeMap<u64, Option<Vec<u8>>>;

/// A link to be made. Its first grains are for the kinds that are not written.
#[derive(Clone, Debug)]
pub(crate) struct NewLink<'p> {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) sectors: u64,
    pub(crate) grain_sectors: u64,
    pub(crate) zeroed_grains: bool,
    pub(crate) parent: Option<&'p str>,
    pub(crate) encryption: Option<(UnitSize, HolePolicy)>,
}

impl<'p> NewLink<'p> {
    pub(crate) fn new(name: &str, kind: Kind, sectors: u64, parent: Option<&'p str>) -> Self {
        let (name, encryption) = (name.to_owned(), None);
        Self { name, kind, sectors, grain_sectors: 128, zeroed_grains: false, parent, encryption }
    }

    /// The size of a grain of the file that is made.
    pub(crate) fn grain_len(&self) -> u64 {
        512 * match self.kind {
            Kind::Cowd => 1,
            Kind::SeSparse => 8,
            _ => self.grain_sectors,
        }
    }

    /// The extents of a split disk: the second begins at a multiple of 4096 bytes.
    fn split(&self) -> Vec<u64> {
        let first = self.sectors / 2 / 8 * 8;
        if first == 0 { vec![self.sectors] } else { vec![first, self.sectors - first] }
    }

    pub(crate) fn make(&self, storage: &dyn Storage, keys: &mut Keys, grains: &Grains) {
        let descriptor_path = path(&format!("{}.vmdk", self.name));
        let file_names: Vec<(String, u64)> = match self.kind {
            Kind::Flat => vec![(format!("{}-flat.vmdk", self.name), self.sectors)],
            Kind::Monolithic | Kind::Stream => vec![(format!("{}.vmdk", self.name), self.sectors)],
            Kind::Split => {
                let extents = self.split().into_iter().enumerate();
                extents.map(|(index, len)| (format!("{}-s{:03}.vmdk", self.name, index + 1), len)).collect()
            }
            Kind::Cowd => vec![(format!("{}-delta.vmdk", self.name), self.sectors)],
            Kind::SeSparse => vec![(format!("{}-sesparse.vmdk", self.name), self.sectors)],
        };
        let extent_kind = match self.kind {
            Kind::Flat => ExtentKind::Flat,
            Kind::Monolithic | Kind::Split | Kind::Stream => ExtentKind::Sparse,
            Kind::Cowd => ExtentKind::VmfsSparse,
            Kind::SeSparse => ExtentKind::SeSparse,
        };
        let extents = file_names.iter().map(|(name, len)| Extent::new(extent_kind, *len, Some(name))).collect();
        let mut descriptor = NewDescriptor::new(self.kind.create_type(), 0x1234_5678, extents);
        if let Some(parent) = self.parent {
            let (parent_descriptor, _) = DiskLayout::read_descriptor(storage, &path(parent)).unwrap();
            descriptor = descriptor.parent(parent_descriptor.cid(), parent);
        }
        let mut descriptor = descriptor.build().unwrap();
        if let Some((unit, holes)) = self.encryption {
            let id = DiskId::from_bytes([self.name.len() as u8; 16]);
            Encryption::new(id, unit, holes, KeyList::new()).write_to(&mut descriptor);
            keys.add(&descriptor_path, unit);
        }
        let grains: Grains = grains
            .iter()
            .map(|(grain, bytes)| {
                (*grain, bytes.clone().map(|bytes| keys.seal(&descriptor_path, bytes, grain * self.grain_len())))
            })
            .collect();
        let create = |name: &str, bytes: &[u8]| {
            let file = storage.create(&path(name), None).unwrap();
            file.write_at(bytes, 0).unwrap();
            file
        };
        match self.kind {
            Kind::Flat => drop(create(&file_names[0].0, &[]).set_len(self.sectors * 512)),
            Kind::Monolithic | Kind::Split => {
                let embedded = (self.kind == Kind::Monolithic).then_some(&descriptor);
                for (name, len) in &file_names {
                    let mut bytes = SparseWriter::new(*len, self.grain_sectors, embedded).unwrap().finish();
                    if self.zeroed_grains {
                        bytes[4] = 2;
                        bytes[8] |= 4;
                    }
                    create(name, &bytes);
                }
            }
            Kind::Stream => {
                let (mut writer, mut bytes) = StreamWriter::new(self.sectors, self.grain_sectors, &descriptor).unwrap();
                for (grain, data) in grains.iter().filter_map(|(grain, data)| Some((grain, data.as_ref()?))) {
                    bytes.extend(writer.grain(*grain, data).unwrap());
                }
                bytes.extend(writer.finish().unwrap());
                create(&file_names[0].0, &bytes);
            }
            Kind::Cowd => drop(create(&file_names[0].0, &cowd(self.sectors, &grains))),
            Kind::SeSparse => {
                let file = create(&file_names[0].0, &[]);
                for (offset, bytes) in se_sparse(self.sectors, &grains) {
                    file.write_at(&bytes, offset).unwrap();
                }
            }
        }
        if !matches!(self.kind, Kind::Monolithic | Kind::Stream) {
            create(&format!("{}.vmdk", self.name), &descriptor.to_bytes());
        }
    }
}

fn words(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_le_bytes()).collect()
}

fn short_words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_le_bytes()).collect()
}

/// A COWD file with grains of one sector.
fn cowd(sectors: u64, grains: &Grains) -> Vec<u8> {
    let tables = (sectors as u32).div_ceil(4096);
    let gd_sectors = (tables * 4).div_ceil(512);
    let first = 4 + gd_sectors + tables * 32;
    let next_free = first + grains.len() as u32;
    let mut bytes = b"COWD".to_vec();
    bytes.extend(short_words(&[1, 3, sectors as u32, 1, 4, tables, next_free]));
    bytes.resize(2048, 0);
    let directory: Vec<u32> = (0..tables).map(|table| 4 + gd_sectors + table * 32).collect();
    bytes.extend(short_words(&directory));
    bytes.resize(((4 + gd_sectors) * 512) as usize, 0);
    let mut entries = vec![0; (tables * 4096) as usize];
    let mut data = Vec::new();
    for (grain, stored) in grains.iter().filter_map(|(grain, stored)| Some((grain, stored.as_ref()?))) {
        entries[*grain as usize] = first + (data.len() / 512) as u32;
        data.extend_from_slice(stored);
    }
    bytes.extend(short_words(&entries));
    bytes.extend(data);
    bytes
}

/// The parts of an SESparse file; a grain of `None` is one of zeros.
fn se_sparse(sectors: u64, grains: &Grains) -> Vec<(u64, Vec<u8>)> {
    const TABLES: u64 = 0x1800;
    let table_count = sectors.div_ceil(8).div_ceil(4096);
    let first = TABLES + table_count * 64;
    let areas = [
        (1, 1),
        (2, 2),
        (0x800, 0x800),
        (0x1000, 0x800),
        (TABLES, table_count * 64),
        (first, 0),
        (first, 0),
        (first, grains.len() as u64 * 8),
    ];
    let mut header = vec![0xcafe_babe, 0x0000_0002_0000_0001, sectors, 8, 64, 0, 0, 0, 0, 0];
    header.extend(areas.iter().flat_map(|(sector, count)| [*sector, *count]));
    let mut entries = vec![0_u64; (table_count * 4096) as usize];
    let mut data = Vec::new();
    for (grain, stored) in grains {
        entries[*grain as usize] = match stored {
            None => 2 << 60,
            Some(stored) => {
                let cluster = data.len() as u64 / 4096;
                data.extend_from_slice(stored);
                data.resize(data.len().next_multiple_of(4096), 0);
                3 << 60 | (cluster & 0xfff) << 48 | cluster >> 12
            }
        };
    }
    let directory: Vec<u64> = (0..table_count).map(|table| 0x1000_0000 << 32 | table).collect();
    let mut constant = words(&header);
    constant.resize(512, 0);
    let mut volatile = words(&[0xcafe_cafe, table_count, 1, 0]);
    volatile.resize(512, 0);
    data.resize(grains.len() * 4096, 0);
    vec![
        (0, constant),
        (512, volatile),
        (0x1000 * 512, words(&directory)),
        (TABLES * 512, words(&entries)),
        (first * 512, data),
    ]
}

/// A DEK for each encrypted link.
#[derive(Default)]
pub(crate) struct Keys(BTreeMap<StoragePath, (Dek, UnitSize)>);

impl Keys {
    fn add(&mut self, path: &StoragePath, unit: UnitSize) {
        self.0.insert(path.clone(), (Dek::generate(&mut system_rng()).unwrap(), unit));
    }

    /// The cipher of a link.
    pub(crate) fn cipher(&self, path: &StoragePath) -> Option<DiskCipher> {
        self.0.get(path).map(|(dek, unit)| DiskCipher::new(dek, *unit).unwrap())
    }

    /// Enciphers a grain; data units that are all zero stay as if they had never been written.
    fn seal(&self, path: &StoragePath, mut bytes: Vec<u8>, virtual_byte: u64) -> Vec<u8> {
        let Some((_, unit)) = self.0.get(path) else { return bytes };
        let unit = unit.bytes() as usize;
        for (index, part) in bytes.chunks_mut(unit).enumerate().filter(|(_, part)| part.iter().any(|byte| *byte != 0)) {
            self.cipher(path).unwrap().encrypt(part, virtual_byte + (index * unit) as u64).unwrap();
        }
        bytes
    }

    pub(crate) fn open<'s>(&self, storage: &'s dyn Storage, path: &StoragePath, access: Access) -> Disk<'s> {
        self.try_open(storage, path, access).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn try_open<'s>(
        &self,
        storage: &'s dyn Storage,
        path: &StoragePath,
        access: Access,
    ) -> Result<Disk<'s>, Error> {
        Disk::open_chain(storage, path, access, &mut |path, _| Ok(self.cipher(path)))
    }

    pub(crate) fn salvage<'s>(&self, storage: &'s dyn Storage, path: &StoragePath) -> Disk<'s> {
        Disk::open_salvage::<Error>(storage, path, &mut |path, _| Ok(self.cipher(path))).unwrap()
    }
}

/// The whole disk.
pub(crate) fn read_all(disk: &Disk<'_>) -> Vec<u8> {
    let mut bytes = vec![0xaa; disk.size_bytes() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

//! The VMs of the campaign: every kind of place in which a guest's bytes lie.

use vmseal_disk::{Disk, DiskLayout, Encryption, NewDisk, NewDiskType, UnitSize};
use vmseal_formats::SparseWriter;
use vmseal_keys::TestKeys;
use vmseal_rekey::{open_plain_disk, survey, unlock};
use vmseal_storage::testing::Simulated;
use vmseal_storage::{Access, Storage, StoragePath};

use crate::testing::{encrypt_with, path, vmx};

const FOLDER: &str = "vms/web01";

/// A VM, what its guest reads, and the states that runs begin with.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    disks: Vec<(StoragePath, Vec<u8>)>,
    /// Of each descriptor, what it says in the clear.
    descriptors: Vec<Vec<u8>>,
    vmx_text: Vec<u8>,
    nvram: Vec<u8>,
    pub(crate) plain: Simulated,
    /// With data units of 512 and of 4096 bytes, where those fit.
    pub(crate) encrypted: Vec<(UnitSize, Simulated)>,
    /// Whether the encrypted ones have a snapshot.
    pub(crate) is_chain: bool,
}

/// Content without a pattern that a mistake could keep.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = super::Random(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

/// The extents of a disk that is made by hand: sectors of each, in one file or in one each.
enum By<'a> {
    Product(NewDiskType, u64),
    SplitFlat(&'a [u64]),
    SplitSparse(&'a [u64]),
    /// One file with the extents in the opposite order, the first of them at an odd sector.
    OneFile(&'a [u64]),
}

fn create(storage: &dyn Storage, name: &str, by: &By<'_>) {
    let descriptor = path(&format!("{FOLDER}/{name}.vmdk"));
    let put = |file: &str, bytes: &[u8], len: u64| {
        let file = storage.create(&path(&format!("{FOLDER}/{file}")), None).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.set_len(len.max(bytes.len() as u64)).unwrap();
        file.sync().unwrap();
    };
    let (kind, lines) = match by {
        By::Product(disk_type, bytes) => return NewDisk::new(*disk_type, *bytes).create(storage, &descriptor).unwrap(),
        By::SplitFlat(sectors) => {
            let lines = sectors.iter().enumerate().map(|(index, count)| {
                put(&format!("{name}-f00{index}.vmdk"), &[], count * 512);
                format!("RW {count} FLAT \"{name}-f00{index}.vmdk\" 0\n")
            });
            ("twoGbMaxExtentFlat", lines.collect::<String>())
        }
        By::SplitSparse(sectors) => {
            let lines = sectors.iter().enumerate().map(|(index, count)| {
                let empty = SparseWriter::new(*count, 16, None).unwrap().finish();
                put(&format!("{name}-s00{index}.vmdk"), &empty, 0);
                format!("RW {count} SPARSE \"{name}-s00{index}.vmdk\"\n")
            });
            ("twoGbMaxExtentSparse", lines.collect())
        }
        By::OneFile(sectors) => {
            let mut at: u64 = sectors.iter().sum();
            put(&format!("{name}-flat.vmdk"), &[], at * 512);
            let lines = sectors.iter().map(|count| {
                at -= count;
                format!("RW {count} FLAT \"{name}-flat.vmdk\" {at}\n")
            });
            ("twoGbMaxExtentFlat", lines.collect())
        }
    };
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n{lines}\nddb.virtualHWVersion = \"4\"\n"
    );
    storage.replace(&descriptor, text.as_bytes()).unwrap();
}

/// Bytes that the guest writes at a place; zeros where the seed is 0.
type Spot = (u64, usize, u64);

impl Shape {
    fn new(
        name: &'static str,
        keys: &mut TestKeys,
        disks: &[(&str, By<'_>, &[Spot])],
        units: &[UnitSize],
        is_chain: bool,
    ) -> Self {
        let plain = Simulated::new(0);
        for folder in ["vms", FOLDER] {
            plain.create_folder(&path(folder)).unwrap();
        }
        let mut vmx_text = "displayName = \"web01\"\nnvram = \"web01.nvram\"\n".to_owned();
        let nvram = noise(99, 9000);
        plain.replace(&path("vms/web01/web01.nvram"), &nvram).unwrap();
        let mut contents = Vec::new();
        let mut descriptors = Vec::new();
        for (index, (stem, by, spots)) in disks.iter().enumerate() {
            vmx_text += &format!("scsi0:{index}.fileName = \"{stem}.vmdk\"\n");
            create(&plain, stem, by);
            let path = path(&format!("{FOLDER}/{stem}.vmdk"));
            let mut disk = Disk::open(&plain, &path, None, Access::ReadWrite).unwrap();
            let mut content = vec![0; disk.size_bytes() as usize];
            for &(offset, len, seed) in *spots {
                let bytes = if seed == 0 { vec![0; len] } else { noise(seed, len) };
                disk.write_at(&bytes, offset).unwrap();
                content[offset as usize..][..len].copy_from_slice(&bytes);
            }
            disk.flush().unwrap();
            descriptors.push(DiskLayout::read_descriptor(&plain, &path).unwrap().0.text().to_vec());
            contents.push((path, content));
        }
        plain.replace(&vmx(), vmx_text.as_bytes()).unwrap();
        plain.settle();
        let mut shape = Self {
            name,
            disks: contents,
            descriptors,
            vmx_text: vmx_text.into_bytes(),
            nvram,
            plain,
            encrypted: Vec::new(),
            is_chain,
        };
        for unit in units {
            let storage = shape.plain.snapshot(1);
            encrypt_with(&storage, keys, *unit);
            if is_chain {
                snapshot(&storage, &shape.disks[0].0);
            }
            storage.settle();
            shape.encrypted.push((*unit, storage));
        }
        shape
    }

    /// All of them.
    pub(crate) fn all(keys: &mut TestKeys) -> Vec<Self> {
        const K: usize = 1 << 10;
        let both = [UnitSize::B512, UnitSize::B4096];
        let (vmfs, sparse) = (NewDiskType::Vmfs, NewDiskType::MonolithicSparse);
        vec![
            Self::new(
                "products",
                keys,
                &[
                    ("flat", By::Product(vmfs, 1 << 20), &[(70_000, 130 * K, 1), (600 * K as u64, 40 * K, 2)]),
                    ("sparse", By::Product(sparse, 1 << 20), &[(70_000, 130 * K, 3), (900 * K as u64, 9 * K, 4)]),
                ],
                &both,
                false,
            ),
            Self::new(
                "odd extents",
                keys,
                &[
                    ("split", By::SplitFlat(&[131, 77, 9]), &[(0, 217 * 512, 5)]),
                    ("grains", By::SplitSparse(&[131, 77]), &[(3000, 40 * K, 6), (100 * 512, 50 * K, 7)]),
                    ("one", By::OneFile(&[77, 131, 3]), &[(512, 100 * K, 8)]),
                ],
                &[UnitSize::B512],
                false,
            ),
            Self::new(
                "split",
                keys,
                &[
                    ("flat", By::SplitFlat(&[128, 64, 99]), &[(0, 20 * K, 9), (60 * K as u64, 291 * 512 - 60 * K, 10)]),
                    ("grains", By::SplitSparse(&[128, 99]), &[(9 * K as u64, 227 * 512 - 9 * K, 11)]),
                ],
                &both,
                false,
            ),
            Self::new(
                "zeros",
                keys,
                &[
                    (
                        "zeros",
                        By::SplitFlat(&[300]),
                        &[(0, 60 * K, 0), (64 * K as u64, 20 * K, 12), (90 * K as u64, 40 * K, 0)],
                    ),
                    ("empty", By::Product(vmfs, 1 << 20), &[]),
                    ("nothing", By::Product(sparse, 1 << 20), &[]),
                    ("mixed", By::Product(sparse, 1 << 20), &[(0, 70 * K, 0), (66 * K as u64, 5 * K, 13)]),
                ],
                &both,
                false,
            ),
            Self::new(
                "no data",
                keys,
                &[("empty", By::Product(vmfs, 1 << 20), &[]), ("nothing", By::Product(sparse, 1 << 20), &[])],
                &both,
                false,
            ),
            Self::new(
                "snapshot",
                keys,
                &[
                    ("base", By::Product(sparse, 1 << 20), &[(70_000, 20 * K, 14)]),
                    ("flat", By::Product(vmfs, 1 << 20), &[(4096, 9 * K, 15)]),
                ],
                &both,
                true,
            ),
        ]
    }

    /// The guest reads what it wrote, and nothing but keys has changed in the texts.
    pub(crate) fn check(&self, storage: &Simulated, keys: &mut TestKeys) {
        let is_plain = survey(storage, &vmx()).unwrap().encryption.is_none();
        if is_plain {
            assert!(storage.read(&vmx(), 1 << 20).unwrap() == self.vmx_text, "the VMX");
            assert!(storage.read(&path("vms/web01/web01.nvram"), 1 << 20).unwrap() == self.nvram, "the NVRAM");
        } else {
            let unlocked = unlock(storage, &vmx(), keys).unwrap();
            let nvram = unlocked.read_file(storage, &path("vms/web01/web01.nvram")).unwrap();
            assert!(nvram.as_slice() == self.nvram, "the NVRAM");
        }
        if self.is_chain && !is_plain {
            // The link below the snapshot is looked at as if that was deleted.
            let text = String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap()).unwrap();
            storage.replace(&vmx(), text.replace("base-000001.vmdk", "base.vmdk").as_bytes()).unwrap();
        }
        for ((path, content), text) in self.disks.iter().zip(&self.descriptors) {
            let mut bytes = vec![1; content.len()];
            if is_plain {
                open_plain_disk(storage, &vmx(), path, Access::Read).unwrap().read_at(&mut bytes, 0).unwrap();
            } else {
                let unlocked = unlock(storage, &vmx(), keys).unwrap();
                unlocked.open_disk(storage, path, Access::Read, keys).unwrap().read_at(&mut bytes, 0).unwrap();
            }
            let differs = bytes.iter().zip(content).position(|(found, wanted)| found != wanted);
            assert_eq!(differs, None, "{} of the VM \"{}\"", path.file_name(), self.name);
            let (mut descriptor, _) = DiskLayout::read_descriptor(storage, path).unwrap();
            Encryption::remove_from(&mut descriptor);
            assert_eq!(String::from_utf8_lossy(descriptor.text()), String::from_utf8_lossy(text));
        }
    }
}

/// Gives an encrypted disk a child in the clear, as a hypervisor does that takes a snapshot.
fn snapshot(storage: &Simulated, base: &StoragePath) {
    let (descriptor, _) = DiskLayout::read_descriptor(storage, base).unwrap();
    let child = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID={:08x}\ncreateType=\"vmfsSparse\"\n\
         parentFileNameHint=\"base.vmdk\"\nRW 2048 VMFSSPARSE \"base-000001-delta.vmdk\"\n",
        descriptor.cid()
    );
    storage.replace(&path("vms/web01/base-000001.vmdk"), child.as_bytes()).unwrap();
    let text = String::from_utf8(storage.read(&vmx(), 1 << 20).unwrap()).unwrap();
    storage.replace(&vmx(), text.replace("\"base.vmdk\"", "\"base-000001.vmdk\"").as_bytes()).unwrap();
}

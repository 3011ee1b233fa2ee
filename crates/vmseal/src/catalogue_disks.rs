//! What is told of disks: descriptors, extents, images of other makers.

use vmseal_disk::{DiskLayout, Encryption, Error as DiskError};
use vmseal_formats::{CowdHeader, Descriptor, ExtentKind, ForeignImage, SeSparseHeader, SparseHeader};
use vmseal_formats::{cowd, se_sparse};
use vmseal_storage::{Error as StorageError, StoragePath};

use crate::catalogue::{CatalogueEntry, Look};
use crate::file_error::FileError;
use crate::opened_by::OpenedBy;
use crate::report::Size;

/// An embedded descriptor is 20 sectors long, and none is longer than this.
const DESCRIPTOR_LEN_MAX: u64 = 1 << 20;
/// Why nothing is done with VMware's encrypted disks.
const NOT_PUBLIC: &str =
    "read or write its data, whose layout is not public; decrypt it in the product that encrypted it";

/// The disk that an extent is a part of, as its descriptor tells.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    descriptor: String,
    kind: ExtentKind,
    encryption: &'static str,
    method: Option<String>,
    opened_by: Vec<OpenedBy>,
    can: Vec<&'static str>,
    cannot: Option<String>,
}

impl Owner {
    /// The descriptor that the usual names point to: `web01.vmdk` for `web01-flat.vmdk` and `web01-s001.vmdk`.
    pub(crate) fn by_name(extent: &StoragePath) -> Option<StoragePath> {
        let stem = extent.as_str().strip_suffix(".vmdk")?;
        let (base, end) = stem.rsplit_once('-')?;
        let is_numbered = end
            .strip_prefix(['s', 'f'])
            .is_some_and(|digits| digits.len() >= 3 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        let is_extent = is_numbered || ["flat", "delta", "sesparse", "rdm", "rdmp"].contains(&end);
        is_extent.then(|| StoragePath::new(&format!("{base}.vmdk")).ok()).flatten()
    }

    /// Says of an extent what is known of its disk.
    pub(crate) fn mark(&self, entry: &mut CatalogueEntry) {
        // A descriptor cannot make a VMX, or what could not even be read, a part of a disk.
        let is_text = ["keystore", "vmdk-descriptor", "vmsd", "vmx", "vmxf"].contains(&entry.kind);
        if is_text || entry.kind.starts_with("vmseal-") || entry.kind == "unknown" && entry.error.is_some() {
            return;
        }
        match self.kind {
            // Whatever the guest has at its start: nothing is said by it of the file.
            ExtentKind::Flat | ExtentKind::Vmfs => {
                entry.is_raw();
                entry.is("flat-extent", format!("flat extent, {}", Size(entry.len_bytes)), self.encryption);
            }
            ExtentKind::VmfsRdm | ExtentKind::VmfsRaw => {
                entry.is("rdm-pointer", "pointer to a raw device", self.encryption);
            }
            _ => entry.encryption = self.encryption,
        }
        entry.belongs_to = Some(self.descriptor.clone());
        entry.method.clone_from(&self.method);
        entry.opened_by.clone_from(&self.opened_by);
        entry.can.clone_from(&self.can);
        entry.cannot.clone_from(&self.cannot);
    }
}

impl Look<'_> {
    pub(crate) fn tell_descriptor_file(&mut self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("vmdk-descriptor", "descriptor of a virtual disk", "unknown");
        let descriptor = Descriptor::parse(&self.text()?).map_err(FileError::format(self.path.as_str()))?;
        let (name, size) = (descriptor.create_type(), Size(descriptor.capacity_sectors().saturating_mul(512)));
        let parent = if descriptor.parent_cid().is_some() { ", a snapshot link" } else { "" };
        entry.description = format!("descriptor, {name}, {size}{parent}");
        self.tell_descriptor(&descriptor, entry)
    }

    /// Hosted sparse and streamOptimized extents, most often with the descriptor inside.
    pub(crate) fn tell_sparse(&mut self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("sparse-extent", "hosted sparse extent", "unknown");
        let format = FileError::format(self.path.as_str());
        let header = SparseHeader::parse(&self.start).map_err(&format)?;
        let (kind, what) = match header.is_compressed() {
            true => ("stream-optimized", "streamOptimized extent"),
            false => ("sparse-extent", "hosted sparse extent"),
        };
        let size = Size(header.capacity_sectors.saturating_mul(512));
        entry.is(kind, format!("{what}, {size}"), "unknown");
        header.check_file_len(self.len).map_err(&format)?;
        drop(format);
        let Some(range) = header.descriptor_range() else { return Ok(()) };
        let bytes = self.range(range.start, (range.end - range.start).min(DESCRIPTOR_LEN_MAX))?;
        // A part of a split disk may have room for a descriptor, and none in it.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let descriptor = Descriptor::parse(&bytes).map_err(FileError::format(self.path.as_str()))?;
        let parent = if descriptor.parent_cid().is_some() { ", a snapshot link" } else { "" };
        entry.description = format!("{}, descriptor inside, {size}{parent}", descriptor.create_type());
        entry.belongs_to = Some(self.path.to_string());
        self.tell_descriptor(&descriptor, entry)
    }

    pub(crate) fn tell_cowd(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("cowd-extent", "COWD extent of a snapshot", "unknown");
        let start = &self.start[..self.start.len().min(cowd::HEADER_LEN)];
        let header = CowdHeader::parse(start).map_err(FileError::format(self.path.as_str()))?;
        let size = Size(u64::from(header.capacity_sectors) * 512);
        entry.is("cowd-extent", format!("COWD extent of a snapshot, {size}"), "unknown");
        Ok(())
    }

    pub(crate) fn tell_se_sparse(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("sesparse-extent", "SESparse extent of a snapshot", "unknown");
        let start = &self.start[..self.start.len().min(se_sparse::HEADERS_LEN)];
        let header = SeSparseHeader::parse(start).map_err(FileError::format(self.path.as_str()))?;
        let size = Size(header.capacity_sectors.saturating_mul(512));
        entry.is("sesparse-extent", format!("SESparse extent of a snapshot, {size}"), "unknown");
        Ok(())
    }

    pub(crate) fn tell_foreign_image(&self, image: ForeignImage, entry: &mut CatalogueEntry) {
        let (kind, encryption, method) = match image {
            ForeignImage::Luks { .. } => ("luks", "foreign", Some(image.name())),
            ForeignImage::Qcow { encryption: 0, .. } => ("qcow2", "none", None),
            ForeignImage::Qcow { encryption: 1, .. } => ("qcow2", "foreign", Some("AES-CBC (obsolete)")),
            ForeignImage::Qcow { encryption: 2, .. } => ("qcow2", "foreign", Some("LUKS inside qcow2")),
            ForeignImage::Qcow { .. } => ("qcow2", "foreign", Some("a method that is not known here")),
            ForeignImage::Qed => ("qed", "none", None),
            // These two can hold encrypted data, which their first bytes do not tell.
            ForeignImage::Vdi => ("vdi", "unknown", None),
            ForeignImage::Vhd => ("vhd", "none", None),
            ForeignImage::Vhdx => ("vhdx", "none", None),
            _ => ("unknown", "unknown", None),
        };
        let what = if kind == "luks" { "volume or header" } else { "image" };
        entry.is(kind, format!("{} {what}, {} stored", image.name(), Size(self.len)), encryption);
        entry.method = method.map(str::to_owned);
        if encryption == "foreign" {
            entry.opened_by = vec![OpenedBy::Password];
        }
        entry.cannot = Some(match kind {
            "luks" => "open it: `cryptsetup` and QEMU do".to_owned(),
            _ => "work on it; `qemu-img convert -O vmdk` makes a disk of it that vmseal encrypts".to_owned(),
        });
    }

    fn tell_descriptor(&mut self, descriptor: &Descriptor, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        let format = FileError::format(self.path.as_str());
        let mut damage = None;
        match Encryption::from_descriptor(descriptor) {
            Ok(None) => {
                entry.encryption = "none";
                entry.can = vec!["encrypt"];
            }
            Ok(Some(encryption)) => {
                entry.encryption = "vmseal";
                entry.method = Some(format!("XTS-AES-256, data units of {} bytes", encryption.unit().bytes()));
                entry.opened_by = OpenedBy::of_list(encryption.keys());
                entry.can = vec!["decrypt", "recrypt", "verify"];
            }
            Err(DiskError::ForeignEncryption { .. }) => {
                entry.encryption = "foreign";
                entry.method = Some("vSphere VM encryption (vmwarevmcrypt)".to_owned());
                entry.cannot = Some(NOT_PUBLIC.to_owned());
                match descriptor.encryption_keys() {
                    Ok(list) => entry.opened_by = list.as_ref().map(OpenedBy::of_list).unwrap_or_default(),
                    Err(error) => damage = Some(format(error)),
                }
                if let Some(key) = descriptor.header("keyID")
                    && !entry
                        .opened_by
                        .iter()
                        .any(|way| matches!(way, OpenedBy::Key { key: known, .. } if *known == key))
                {
                    entry.opened_by.push(OpenedBy::Key { provider: None, key });
                }
            }
            Err(error) => {
                entry.encryption = "vmseal";
                damage = Some(vmseal_rekey::Error::Disk(error).into());
            }
        }
        // Which extents there are, and whether this version can read them, is told by the crate that does.
        match DiskLayout::open(self.storage, self.path) {
            Ok(_) => {}
            Err(DiskError::Unsupported { what, .. }) => {
                entry.can.clear();
                entry.cannot.get_or_insert(format!("read or write its data: {what}"));
            }
            // A device, or a file elsewhere.
            Err(DiskError::Storage(StorageError::PathRefused { path, .. })) => {
                entry.can.clear();
                entry.cannot.get_or_insert(format!("read or write its data: {path} lies outside the folder"));
            }
            Err(error) => damage = damage.or(Some(vmseal_rekey::Error::Disk(error).into())),
        }
        let extents = descriptor.extents().iter().filter_map(|extent| {
            let path = self.path.sibling(extent.file.as_ref()?).ok()?;
            let owner = Owner {
                descriptor: self.path.to_string(),
                kind: extent.kind,
                encryption: entry.encryption,
                method: entry.method.clone(),
                opened_by: entry.opened_by.clone(),
                can: entry.can.clone(),
                cannot: entry.cannot.clone(),
            };
            (path != *self.path).then_some((path, owner))
        });
        self.extents = extents.collect();
        damage.map_or(Ok(()), Err)
    }
}

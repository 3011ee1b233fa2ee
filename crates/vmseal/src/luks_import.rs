//! A LUKS disk becomes a disk of an encrypted VM, without a byte of its data moved.

use vmseal_disk::DiskId;
use vmseal_formats::{Error as FormatError, Extent, ExtentKind, LuksHeader};
use vmseal_keys::{Dek, KeySource};
use vmseal_storage::{Access, File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::vm::Vm;

const SECTOR_LEN: u64 = 512;

/// What is to be imported.
#[derive(Clone, Copy)]
pub struct LuksImport<'a> {
    /// The file with the data, relative to the root of the VM's storage.
    pub image: &'a str,
    /// The detached header, where there is one, on its own storage.
    pub header: Option<(&'a dyn Storage, &'a StoragePath)>,
    /// The new descriptor, in the folder of the image or above; relative to the root of the VM's storage.
    pub descriptor: &'a str,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LuksImported {
    /// The version of the header, 1 or 2.
    pub version: u16,
    /// The slot that the passphrase opened.
    pub slot: u32,
    /// Where the data begins in the image.
    pub offset_bytes: u64,
    /// The size that the guest sees.
    pub size_bytes: u64,
    /// The new disk's identity.
    pub id: DiskId,
}

impl Vm<'_> {
    /// Makes a LUKS1 or LUKS2 disk (`aes-xts-plain64`, a key of 512 bits, sectors of 512 bytes) a disk of the VM, which is encrypted: the
    /// descriptor names the image's data as a flat extent, and the LUKS master key is its DEK, wrapped under the VM's KEK. The image and its
    /// header stay as they are: their passphrases go on opening it.
    ///
    /// # Errors
    /// [`FileError::Refused`] with the reason where the data is laid out otherwise; [`FileError::Format`] for a wrong passphrase and for damage;
    /// see [`vmseal_rekey::adopt`] for the rest.
    pub fn import_luks(
        &self,
        import: &LuksImport<'_>,
        passphrase: &[u8],
        keys: &mut dyn KeySource,
    ) -> Result<LuksImported, FileError> {
        let image = StoragePath::new(import.image)?;
        let path = StoragePath::new(import.descriptor)?;
        let len_bytes = self.storage.open(&image, Access::Read)?.len()?;
        let (header_storage, header_path) = import.header.unwrap_or((self.storage, &image));
        let opened = open_header(header_storage, header_path, passphrase)?;
        let header = &opened.header;
        let offset_bytes = header.payload_offset_bytes();
        let refused = |what: String| FileError::Refused { path: image.to_string(), what };
        if import.header.is_none() && offset_bytes < header.header_end_bytes() {
            let what = "this is a detached header; name the file with the data, and this one with `--header`";
            return Err(refused(what.to_owned()));
        }
        let rest = len_bytes.saturating_sub(offset_bytes);
        let size_bytes = header.payload_len_bytes().unwrap_or(rest / SECTOR_LEN * SECTOR_LEN);
        if size_bytes == 0 || size_bytes > rest {
            let what = format!("its data begins at byte {offset_bytes}, and the file has {len_bytes}; it is cut off");
            return Err(refused(what));
        }
        let name = name_beside(&path, &image).ok_or_else(|| {
            let what =
                "the descriptor has to lie in the folder of the image, or above it: it names the image from there";
            refused(what.to_owned())
        })?;
        let extent = Extent {
            offset_sectors: offset_bytes / SECTOR_LEN,
            ..Extent::new(ExtentKind::Flat, size_bytes / SECTOR_LEN, Some(&name))
        };
        let id = vmseal_rekey::adopt(self.storage, &self.vmx, &path, extent, &opened.dek, keys)?;
        let (version, slot) = (header.version(), opened.slot);
        Ok(LuksImported { version, slot, offset_bytes, size_bytes, id })
    }
}

struct OpenHeader {
    header: LuksHeader,
    slot: u32,
    dek: Dek,
}

/// Reads a header, and opens the first slot that the passphrase opens.
fn open_header(storage: &dyn Storage, path: &StoragePath, passphrase: &[u8]) -> Result<OpenHeader, FileError> {
    let failed = |error: FormatError| match error {
        FormatError::Unsupported { .. } | FormatError::Unknown { .. } => {
            FileError::Refused { path: path.to_string(), what: error.to_string() }
        }
        source => FileError::Format { path: path.to_string(), source },
    };
    let file = storage.open(path, Access::Read)?;
    let start = read(file.as_ref(), 0, LuksHeader::START_LEN)?;
    let bytes = read(file.as_ref(), 0, LuksHeader::len_of(&start).map_err(failed)?)?;
    let header = LuksHeader::parse(&bytes).map_err(failed)?;
    let mut error = FormatError::WrongKey { key_ids: Vec::new() };
    for slot in header.slots() {
        let area = slot.area_bytes();
        let len = usize::try_from(area.end - area.start).unwrap_or(usize::MAX);
        let material = read(file.as_ref(), area.start, len)?;
        match slot.open(&material, passphrase) {
            Ok(dek) => return Ok(OpenHeader { slot: slot.number(), header: header.clone(), dek }),
            Err(FormatError::WrongKey { .. }) => {}
            // Another slot may open; what this one is says why none does.
            Err(other) => error = other,
        }
    }
    Err(failed(error))
}

/// Bytes of a file, or fewer where it ends.
fn read(file: &dyn File, offset: u64, len: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let there = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(vec![0; len.min(there)]);
    file.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The name of `file` in a descriptor at `path`: relative to the descriptor's folder.
fn name_beside(path: &StoragePath, file: &StoragePath) -> Option<String> {
    let folder = path.folder();
    if folder.is_root() {
        return Some(file.to_string());
    }
    file.as_str().strip_prefix(folder.as_str())?.strip_prefix('/').map(str::to_owned)
}

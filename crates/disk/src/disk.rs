//! Random access to a virtual disk: the guest's bytes, whatever its extents and its encryption.

use std::collections::BTreeMap;

use rand_core::TryRng;
use vmseal_formats::{Access as ExtentAccess, Descriptor};
use vmseal_keys::system_rng;
use vmseal_storage::{Access, File, Lock, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::cipher::DiskCipher;
use crate::encryption::Encryption;
use crate::error::Error;
use crate::layout::{DescriptorPlace, DiskLayout, Place, SECTOR_LEN};
use crate::sparse::SparseExtent;

/// Bytes that are enciphered at once when they are written.
const CHUNK_LEN: usize = 256 << 10;

/// An open virtual disk. Positions and lengths are bytes of the guest's disk.
pub struct Disk<'s> {
    storage: &'s dyn Storage,
    path: StoragePath,
    layout: DiskLayout,
    extents: Vec<OpenExtent>,
    pub(crate) cipher: Option<DiskCipher>,
    access: Access,
    /// Whether the content ID says already that the content has changed.
    content_id_changed: bool,
    _lock: Option<Box<dyn Lock>>,
}

#[derive(Debug)]
struct OpenExtent {
    virtual_byte: u64,
    len_bytes: u64,
    access: ExtentAccess,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Flat { file: std::sync::Arc<dyn File>, offset_bytes: u64 },
    Sparse(Box<SparseExtent>),
    Zero,
}

impl<'s> Disk<'s> {
    /// Opens the disk whose descriptor is `path`: with the cipher that its DEK makes where it is encrypted, without one where it is not.
    ///
    /// # Errors
    /// [`Error::Encrypted`], [`Error::NotEncrypted`] or [`Error::ForeignEncryption`] where the cipher does not go with the disk;
    /// [`Error::HasParent`]; otherwise as [`DiskLayout::open`].
    pub fn open(
        storage: &'s dyn Storage,
        path: &StoragePath,
        cipher: Option<DiskCipher>,
        access: Access,
    ) -> Result<Self, Error> {
        let layout = DiskLayout::open(storage, path)?;
        match (Encryption::from_descriptor(layout.descriptor())?, &cipher) {
            (None, Some(_)) => return Err(Error::NotEncrypted { path: path.to_string() }),
            (Some(_), None) => return Err(Error::Encrypted { path: path.to_string() }),
            (Some(_), Some(cipher)) => layout.check_unit(cipher.unit())?,
            (None, None) => {}
        }
        if layout.descriptor().parent_cid().is_some() {
            let parent = layout.descriptor().parent_hint().unwrap_or_else(|| "an unnamed parent".to_owned());
            return Err(Error::HasParent { path: path.to_string(), parent });
        }
        let mut files: BTreeMap<StoragePath, std::sync::Arc<dyn File>> = BTreeMap::new();
        let mut extents = Vec::with_capacity(layout.extents().len());
        for extent in layout.extents() {
            let body = match &extent.kind {
                Place::Zero => Body::Zero,
                Place::Sparse { path, header } => {
                    Body::Sparse(Box::new(SparseExtent::open(storage.open(path, access)?, path, header)?))
                }
                Place::Flat { path, offset_bytes } => {
                    let file = match files.get(path) {
                        Some(file) => file.clone(),
                        None => files.entry(path.clone()).or_insert(storage.open(path, access)?.into()).clone(),
                    };
                    Body::Flat { file, offset_bytes: *offset_bytes }
                }
            };
            extents.push(OpenExtent {
                virtual_byte: extent.virtual_byte,
                len_bytes: extent.len_bytes,
                access: extent.access,
                body,
            });
        }
        Ok(Self {
            storage,
            path: path.clone(),
            layout,
            extents,
            cipher,
            access,
            content_id_changed: false,
            _lock: None,
        })
    }

    /// Holds `lock` for as long as the disk is open.
    #[must_use]
    pub fn holding(mut self, lock: Box<dyn Lock>) -> Self {
        self._lock = Some(lock);
        self
    }

    /// The size that the guest sees, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layout.capacity_bytes()
    }

    pub(crate) fn path(&self) -> &StoragePath {
        &self.path
    }

    /// Fills `buffer` with the guest's bytes from byte `offset` on. What was never written is zeros.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`]; [`Error::ExtentAccess`]; [`Error::DamagedTables`]; [`Error::Storage`].
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check_range(buffer.len(), offset)?;
        let Some(cipher) = &self.cipher else { return self.read_stored(buffer, offset) };
        for part in self.unit_parts(cipher, buffer.len(), offset, usize::MAX) {
            let here = &mut buffer[part.buffer.clone()];
            if part.is_whole {
                self.read_stored(here, part.start)?;
                cipher.decrypt(here, part.start)?;
            } else {
                let unit = self.read_units(cipher, part.start, part.len)?;
                here.copy_from_slice(&unit[part.skip..part.skip + here.len()]);
            }
        }
        Ok(())
    }

    /// Writes the guest's bytes at byte `offset`. Durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`Error::ExtentFull`].
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.check_range(data.len(), offset)?;
        if self.access == Access::Read {
            let path = self.path.to_string();
            return Err(vmseal_storage::Error::PermissionDenied {
                path,
                operation: "writing a disk opened for reading",
            }
            .into());
        }
        self.check_writable(data.len() as u64, offset)?;
        self.change_content_id()?;
        let Some(cipher) = self.cipher.take() else { return self.write_stored(data, offset) };
        let written = self.write_encrypted(&cipher, data, offset);
        self.cipher = Some(cipher);
        written
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// [`Error::Storage`]; the disk has to be opened again then.
    pub fn flush(&mut self) -> Result<(), Error> {
        for extent in &mut self.extents {
            match &mut extent.body {
                Body::Flat { file, .. } if self.access == Access::ReadWrite => file.sync()?,
                Body::Sparse(sparse) if self.access == Access::ReadWrite => sparse.flush()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_range(&self, len: usize, offset: u64) -> Result<(), Error> {
        let end = offset.saturating_add(len as u64);
        if end > self.size_bytes() {
            let (path, capacity_bytes) = (self.path.to_string(), self.size_bytes());
            return Err(Error::BeyondEnd { path, capacity_bytes, offset, end });
        }
        Ok(())
    }

    /// The stored bytes of a range, which is checked.
    pub(crate) fn read_stored(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut rest = buffer;
        let mut at = offset;
        for extent in &self.extents[self.extent_index(offset)..] {
            if rest.is_empty() {
                break;
            }
            let within = at - extent.virtual_byte;
            let len = rest.len().min(usize::try_from(extent.len_bytes - within).unwrap_or(usize::MAX));
            let (here, tail) = rest.split_at_mut(len);
            if extent.access == ExtentAccess::NoAccess {
                return Err(Error::ExtentAccess { path: self.path.to_string(), access: "NOACCESS" });
            }
            match &extent.body {
                Body::Flat { file, offset_bytes } => file.read_at(here, offset_bytes + within)?,
                Body::Sparse(sparse) => sparse.read(here, within)?,
                Body::Zero => here.fill(0),
            }
            rest = tail;
            at += len as u64;
        }
        Ok(())
    }

    pub(crate) fn write_stored(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        let mut rest = data;
        let mut at = offset;
        let first = self.extent_index(offset);
        for extent in &mut self.extents[first..] {
            if rest.is_empty() {
                break;
            }
            let within = at - extent.virtual_byte;
            let len = rest.len().min(usize::try_from(extent.len_bytes - within).unwrap_or(usize::MAX));
            let (here, tail) = rest.split_at(len);
            match &mut extent.body {
                Body::Flat { file, offset_bytes } => file.write_at(here, *offset_bytes + within)?,
                Body::Sparse(sparse) => sparse.write(here, within)?,
                Body::Zero => return Err(Error::ExtentAccess { path: self.path.to_string(), access: "ZERO" }),
            }
            rest = tail;
            at += len as u64;
        }
        Ok(())
    }

    fn write_encrypted(&mut self, cipher: &DiskCipher, data: &[u8], offset: u64) -> Result<(), Error> {
        let mut scratch = Zeroizing::new(Vec::with_capacity(CHUNK_LEN.min(data.len())));
        for part in self.unit_parts(cipher, data.len(), offset, CHUNK_LEN) {
            let here = &data[part.buffer.clone()];
            if part.is_whole {
                scratch.clear();
                scratch.extend_from_slice(here);
                cipher.encrypt(&mut scratch, part.start)?;
                self.write_stored(&scratch, part.start)?;
            } else {
                let mut unit = self.read_units(cipher, part.start, part.len)?;
                unit[part.skip..part.skip + here.len()].copy_from_slice(here);
                cipher.encrypt(&mut unit, part.start)?;
                self.write_stored(&unit, part.start)?;
            }
        }
        Ok(())
    }

    /// The guest's bytes of whole data units.
    fn read_units(&self, cipher: &DiskCipher, start: u64, len: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut units = Zeroizing::new(vec![0; len]);
        self.read_stored(&mut units, start)?;
        cipher.decrypt(&mut units, start)?;
        Ok(units)
    }

    /// Cuts a request into runs of whole data units of at most `len_max` bytes, and the units that it touches in part.
    fn unit_parts(&self, cipher: &DiskCipher, len: usize, offset: u64, len_max: usize) -> Vec<UnitPart> {
        let unit_len = u64::from(cipher.unit().bytes());
        let size = self.size_bytes();
        let end = offset + len as u64;
        let mut parts = Vec::new();
        let mut at = offset;
        while at < end {
            let start = at - at % unit_len;
            let unit_end = size.min(start + unit_len);
            let (part_end, is_whole) = if at == start && end >= unit_end {
                // The last data unit of the disk may be shorter than the others: it is whole where the disk ends.
                let whole_end = if end == size { end } else { end - end % unit_len };
                let limit = (len_max as u64 / unit_len * unit_len).max(unit_len);
                (whole_end.min(start.saturating_add(limit)), true)
            } else {
                (end.min(unit_end), false)
            };
            parts.push(UnitPart {
                buffer: (at - offset) as usize..(part_end - offset) as usize,
                start,
                len: if is_whole { (part_end - start) as usize } else { (unit_end - start) as usize },
                skip: (at - start) as usize,
                is_whole,
            });
            at = part_end;
        }
        parts
    }

    fn extent_index(&self, offset: u64) -> usize {
        self.extents.partition_point(|extent| extent.virtual_byte + extent.len_bytes <= offset)
    }

    /// Refuses before the first byte what an extent in the range does not allow.
    pub(crate) fn check_writable(&self, len: u64, offset: u64) -> Result<(), Error> {
        let end = offset + len;
        for extent in self.extents[self.extent_index(offset)..].iter().take_while(|extent| extent.virtual_byte < end) {
            let access = match (&extent.body, extent.access) {
                (Body::Zero, _) => "ZERO",
                (_, ExtentAccess::NoAccess) => "NOACCESS",
                (_, ExtentAccess::ReadOnly) => "RDONLY",
                (_, ExtentAccess::ReadWrite) => continue,
            };
            return Err(Error::ExtentAccess { path: self.path.to_string(), access });
        }
        Ok(())
    }

    /// Gives the disk a new content ID before its content changes for the first time, so that a child made before
    /// is recognised as broken.
    fn change_content_id(&mut self) -> Result<(), Error> {
        if self.content_id_changed {
            return Ok(());
        }
        let mut descriptor = self.layout.descriptor().clone();
        descriptor.set_header("CID", &new_content_id(&descriptor)?);
        match self.layout.descriptor_place() {
            DescriptorPlace::OwnFile => self.storage.replace(&self.path, &descriptor.to_bytes())?,
            DescriptorPlace::Embedded { offset_bytes, .. } => {
                // The text keeps its length: the one or two sectors that hold the eight digits change, and nothing else.
                let file = self.storage.open(&self.path, Access::ReadWrite)?;
                let (new, old) = (descriptor.text(), self.layout.descriptor().text());
                let sector_len = SECTOR_LEN as usize;
                for (index, (new, old)) in new.chunks(sector_len).zip(old.chunks(sector_len)).enumerate() {
                    if new != old {
                        file.write_at(new, offset_bytes + (index * sector_len) as u64)?;
                    }
                }
                file.sync()?;
            }
        }
        self.content_id_changed = true;
        Ok(())
    }
}

/// Another content ID of as many digits: the text inside an extent must not move. It is never ffffffff, which stands for no parent, nor
/// fffffffe, which a new disk of ESXi has.
fn new_content_id(descriptor: &Descriptor) -> Result<String, Error> {
    let random = system_rng().try_next_u32().map_err(|_| vmseal_keys::Error::Random)?;
    let digits = descriptor.header("CID").map_or(8, |text| text.len().clamp(1, 8));
    let mask = u32::MAX >> (32 - 4 * digits) >> 1;
    let id = random & mask;
    Ok(format!("{:0digits$x}", if id == descriptor.cid() { id ^ 1 } else { id }))
}

/// What was written is made durable as far as that goes; who needs to know calls [`Disk::flush`].
impl Drop for Disk<'_> {
    fn drop(&mut self) {
        if self.content_id_changed {
            let _ = self.flush();
        }
    }
}

impl core::fmt::Debug for Disk<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

/// A part of a request.
struct UnitPart {
    /// Where it lies in the caller's buffer.
    buffer: core::ops::Range<usize>,
    /// The first byte on the disk of its first data unit.
    start: u64,
    /// The bytes of its data units.
    len: usize,
    /// The bytes of the first data unit that do not belong to the request.
    skip: usize,
    /// Whether it is made of whole data units.
    is_whole: bool,
}

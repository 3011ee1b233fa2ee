//! Random access to a virtual disk: the guest's bytes, whatever its extents and its encryption.

use core::ops::Range;

use rand_core::TryRng;
use vmseal_formats::Descriptor;
use vmseal_keys::system_rng;
use vmseal_storage::{Access, Lock, Storage, StoragePath};

use crate::cipher::DiskCipher;
use crate::damage::OnDamage;
use crate::encryption::Encryption;
use crate::error::Error;
use crate::holes::sync_for_holes;
use crate::layout::{DescriptorPlace, DiskLayout, SECTOR_LEN};
use crate::link::Link;
use crate::parent::{LinkCiphers, check_cipher, open_links};

/// An open virtual disk. Positions and lengths are bytes of the guest's disk.
///
/// Several threads may read at once. A read waits for no other but while tables are added to those in memory.
pub struct Disk<'s> {
    storage: &'s dyn Storage,
    pub(crate) path: StoragePath,
    layout: DiskLayout,
    pub(crate) top: Link,
    /// Nearest first.
    pub(crate) parents: Vec<Link>,
    access: Access,
    /// What was found missing or wrong when it was opened for salvage.
    damage: Vec<Error>,
    /// Whether the content ID says already that the content has changed.
    content_id_changed: bool,
    _lock: Option<Box<dyn Lock>>,
}

impl<'s> Disk<'s> {
    /// Opens a disk that has no parent, and whose descriptor is `path`: with the cipher that its DEK makes where it is encrypted, without one
    /// where it is not. Flat and hosted sparse disks are read and written, streamOptimized, COWD and SESparse ones read.
    ///
    /// # Errors
    /// [`Error::Encrypted`], [`Error::NotEncrypted`] or [`Error::ForeignEncryption`] where the cipher does not go with the disk;
    /// [`Error::HasParent`]; [`Error::ReadOnlyKind`]; [`Error::DamagedTables`]; otherwise as [`DiskLayout::open`].
    pub fn open(
        storage: &'s dyn Storage,
        path: &StoragePath,
        cipher: Option<DiskCipher>,
        access: Access,
    ) -> Result<Self, Error> {
        let layout = DiskLayout::read(storage, path, None)?;
        check_cipher(path, Encryption::from_descriptor(layout.descriptor())?.as_ref(), cipher.as_ref())?;
        if layout.descriptor().parent_cid().is_some() {
            let parent = layout.descriptor().parent_hint().unwrap_or_else(|| "an unnamed parent".to_owned());
            return Err(Error::HasParent { path: path.to_string(), parent });
        }
        let top = Link::open(storage, &layout, cipher, access, None)?;
        Ok(Self::with(storage, layout, vec![top], access, Vec::new()))
    }

    /// Opens a disk with all of its parents: a snapshot link, or a disk that has none. `keys` is asked for the cipher of each link, from the
    /// disk itself down, by its descriptor's path and what that says of its encryption. Parents are looked for beside the child first, inside the
    /// storage alone, and are never written.
    ///
    /// # Errors
    /// As [`open`](Self::open), of each link; [`Error::NoParent`], [`Error::ParentChanged`] and [`Error::EndlessChain`] where the chain is broken;
    /// [`Error::MixedChain`] where some links are encrypted and some are not; what `keys` fails with.
    pub fn open_chain<E: From<Error>>(
        storage: &'s dyn Storage,
        path: &StoragePath,
        access: Access,
        keys: &mut LinkCiphers<'_, E>,
    ) -> Result<Self, E> {
        let (links, layout) = open_links(storage, path, access, keys, None)?;
        Ok(Self::with(storage, layout, links, access, Vec::new()))
    }

    /// Opens what is left of a damaged disk, for reading with [`salvage_read`](Self::salvage_read). Extents and parents may be missing or cut off, a
    /// parent changed, links in the clear and encrypted ones mixed: [`damage`](Self::damage) tells what was found. Where the tables of a hosted
    /// sparse extent are damaged, or know nothing of a grain, the redundant ones are asked.
    ///
    /// # Errors
    /// Where there is nothing to go by: the descriptor, or that of a parent, cannot be understood; no cipher for an encrypted link.
    pub fn open_salvage<E: From<Error>>(
        storage: &'s dyn Storage,
        path: &StoragePath,
        keys: &mut LinkCiphers<'_, E>,
    ) -> Result<Self, E> {
        let mut damage = Vec::new();
        let (links, layout) = open_links(storage, path, Access::Read, keys, Some(&mut damage))?;
        Ok(Self::with(storage, layout, links, Access::Read, damage))
    }

    fn with(
        storage: &'s dyn Storage,
        layout: DiskLayout,
        mut links: Vec<Link>,
        access: Access,
        damage: Vec<Error>,
    ) -> Self {
        let top = links.remove(0);
        let path = layout.path().clone();
        Self { storage, path, layout, top, parents: links, access, damage, content_id_changed: false, _lock: None }
    }

    /// Holds `lock` for as long as the disk is open.
    #[must_use]
    pub fn holding(mut self, lock: Box<dyn Lock>) -> Self {
        self._lock = Some(lock);
        self
    }

    /// The descriptor as it was when the disk was opened. Its content ID tells whether the content is still what it was.
    pub fn descriptor(&self) -> &vmseal_formats::Descriptor {
        self.layout.descriptor()
    }

    /// The size that the guest sees, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layout.capacity_bytes()
    }

    /// What was found missing or wrong when the disk was opened for salvage.
    pub fn damage(&self) -> &[Error] {
        &self.damage
    }

    /// Fills `buffer` with the guest's bytes from byte `offset` on. What was never written is zeros.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`]; [`Error::ExtentAccess`]; [`Error::DamagedTables`]; [`Error::Format`]; [`Error::Storage`].
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.check_range(buffer.len() as u64, offset)?;
        self.top.read(&self.parents, buffer, offset, &mut OnDamage::Fail)
    }

    /// Fills `buffer` with what can be read of the guest's bytes from byte `offset` on, and tells which ranges of the disk cannot: ascending, and
    /// filled with zeros.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`].
    pub fn salvage_read(&self, buffer: &mut [u8], offset: u64) -> Result<Vec<Range<u64>>, Error> {
        self.check_range(buffer.len() as u64, offset)?;
        let mut lost = Vec::new();
        self.top.read(&self.parents, buffer, offset, &mut OnDamage::Note(&mut lost))?;
        Ok(lost)
    }

    /// The next range at or after byte `offset` that may hold something else than zeros, cut at `offset`; `None` where there is none. Everything
    /// that is passed over reads as zeros. Ranges that touch may be told one by one.
    ///
    /// What was written is synced first where that has not been done: storage tells holes truly only then.
    ///
    /// # Errors
    /// [`Error::DamagedTables`]; [`Error::Storage`].
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        self.top.sync_for_holes()?;
        sync_for_holes(&self.parents)?;
        self.top.next_data(&self.parents, offset, self.size_bytes())
    }

    /// Writes the guest's bytes at byte `offset`. Durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`Error::ExtentFull`].
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.begin_change(data.len() as u64, offset, "writing a disk opened for reading")?;
        self.top.write(&self.parents, data, offset)
    }

    /// Makes `len_bytes` bytes from byte `offset` on read as zeros, and gives their room back where that can be: whole data units of what is stored
    /// become holes. Durable after [`flush`](Self::flush).
    ///
    /// A disk whose hole policy is `fill` keeps its room: zeros are enciphered there.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn discard(&mut self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.begin_change(len_bytes, offset, "discarding from a disk opened for reading")?;
        self.top.discard(&self.parents, offset..offset + len_bytes)
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// [`Error::Storage`]; the disk has to be opened again then.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.access == Access::Read {
            return Ok(());
        }
        self.top.flush()
    }

    fn begin_change(&mut self, len_bytes: u64, offset: u64, operation: &'static str) -> Result<(), Error> {
        self.check_range(len_bytes, offset)?;
        if self.access == Access::Read {
            return Err(vmseal_storage::Error::PermissionDenied { path: self.path.to_string(), operation }.into());
        }
        self.top.check_writable(len_bytes, offset)?;
        self.change_content_id()
    }

    fn check_range(&self, len_bytes: u64, offset: u64) -> Result<(), Error> {
        let end = offset.saturating_add(len_bytes);
        if end > self.size_bytes() {
            let (path, capacity_bytes) = (self.path.to_string(), self.size_bytes());
            return Err(Error::BeyondEnd { path, capacity_bytes, offset, end });
        }
        Ok(())
    }

    /// Gives the disk a new content ID before its content changes for the first time, so that a child made before
    /// is recognised as broken.
    ///
    /// Writing does so by itself; whoever has others change the descriptor while the disk is open does it before.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn change_content_id(&mut self) -> Result<(), Error> {
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
        f.debug_struct("Disk").field("path", &self.path).field("cipher", &self.top.cipher).finish_non_exhaustive()
    }
}

//! One link of a disk's chain: its extents, its cipher, and how it is read.

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmseal_formats::Access as ExtentAccess;
use vmseal_storage::{Access, File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::cipher::DiskCipher;
use crate::damage::OnDamage;
use crate::encryption::{Encryption, HolePolicy};
use crate::error::Error;
use crate::grains::{Grain, GrainMap};
use crate::layout::{DiskLayout, Place, ReadOnlyHeader};
use crate::sparse::GrainExtent;
use crate::stream::StreamExtent;

/// What is read again when a longer read fails and what can be had is wanted: a block of a medium.
const SALVAGE_LEN: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) path: StoragePath,
    pub(crate) size_bytes: u64,
    pub(crate) extents: Vec<OpenExtent>,
    pub(crate) cipher: Option<DiskCipher>,
    /// Whether zeros are enciphered where a hole would do.
    pub(crate) fills: bool,
    /// Whether bytes may be missing, and what storage says of holes is not to be trusted.
    is_salvage: bool,
    /// Whether everything that was written is on storage, so that storage tells holes truly.
    synced: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct OpenExtent {
    pub(crate) virtual_byte: u64,
    pub(crate) len_bytes: u64,
    pub(crate) access: ExtentAccess,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Flat {
        file: Arc<dyn File>,
        offset_bytes: u64,
    },
    Grains(Box<GrainExtent>),
    Stream(Box<StreamExtent>),
    Zero,
    /// Nowhere: only salvage has such.
    Missing {
        path: String,
    },
}

/// Where a run of a link's bytes lies.
#[derive(Clone, Copy)]
pub(crate) enum Source<'l> {
    /// The parent shows, or zeros.
    Absent,
    Zero,
    /// In a file, from this byte on.
    File(&'l dyn File, u64),
    /// In grains, from this byte of their file on.
    Grains(&'l GrainExtent, u64),
    /// In a compressed grain: the byte of the extent that comes first, and that of the grain's marker.
    Stream(&'l StreamExtent, u64, u64),
}

impl Link {
    /// Opens the extents of a disk. With `damage`, those that cannot be opened are left out and the reasons told.
    pub(crate) fn open(
        storage: &dyn Storage,
        layout: &DiskLayout,
        cipher: Option<DiskCipher>,
        access: Access,
        mut damage: Option<&mut Vec<Error>>,
    ) -> Result<Self, Error> {
        if let Some(cipher) = &cipher {
            layout.check_unit(cipher.unit())?;
        }
        if let (Access::ReadWrite, Some((file, header))) = (access, layout.read_only_extent()) {
            return Err(Error::ReadOnlyKind { path: file.to_string(), kind: header.name() });
        }
        let encryption = Encryption::from_descriptor(layout.descriptor())?;
        let mut files: BTreeMap<StoragePath, Arc<dyn File>> = BTreeMap::new();
        let mut extents = Vec::with_capacity(layout.extents().len());
        for extent in layout.extents() {
            let body = match (open_body(storage, &extent.kind, access, &mut files, damage.is_some()), &mut damage) {
                (Ok(body), _) => body,
                (Err(error), None) => return Err(error),
                (Err(error), Some(damage)) => {
                    damage.push(error);
                    Body::Missing { path: extent.kind.path().unwrap_or(layout.path()).to_string() }
                }
            };
            let (virtual_byte, len_bytes, access) = (extent.virtual_byte, extent.len_bytes, extent.access);
            extents.push(OpenExtent { virtual_byte, len_bytes, access, body });
        }
        Ok(Self {
            path: layout.path().clone(),
            size_bytes: layout.capacity_bytes(),
            extents,
            cipher,
            fills: encryption.is_some_and(|encryption| encryption.holes() == HolePolicy::Fill),
            is_salvage: damage.is_some(),
            synced: AtomicBool::new(false),
        })
    }

    /// A link of which nothing is there, below a disk of `size_bytes`.
    pub(crate) fn missing(path: &StoragePath, size_bytes: u64) -> Self {
        let body = Body::Missing { path: path.to_string() };
        let extent = OpenExtent { virtual_byte: 0, len_bytes: size_bytes, access: ExtentAccess::ReadOnly, body };
        Self {
            path: path.clone(),
            size_bytes,
            extents: vec![extent],
            cipher: None,
            fills: false,
            is_salvage: true,
            synced: AtomicBool::new(true),
        }
    }

    /// Fills `buffer` with the guest's bytes from `offset` on, which lie on this link's disk: those of this link, or of `parents`, nearest
    /// first, where this has none.
    pub(crate) fn read(
        &self,
        parents: &[Self],
        buffer: &mut [u8],
        offset: u64,
        damage: &mut OnDamage<'_>,
    ) -> Result<(), Error> {
        let mut rest = buffer;
        let mut at = offset;
        while !rest.is_empty() {
            let extent = &self.extents[self.extent_index(at)];
            let within = at - extent.virtual_byte;
            let wanted = (rest.len() as u64).min(extent.len_bytes - within);
            let run = self.run(extent, within, wanted);
            let len = match &run {
                Ok((_, len)) => *len,
                Err(_) => wanted.min(extent.unknown_len(within)),
            };
            let (here, tail) = rest.split_at_mut(len as usize);
            match run {
                Err(error) => damage.lose(error, here, at)?,
                Ok((Source::Absent, _)) => Self::read_below(parents, here, at, damage)?,
                Ok((Source::Zero, _)) => here.fill(0),
                Ok((source, _)) => self.read_source(source, here, at, at, damage)?,
            }
            rest = tail;
            at += len;
        }
        Ok(())
    }

    /// What lies below a link in a range where it has nothing: zeros behind the end of the parent.
    pub(crate) fn read_below(
        parents: &[Self],
        buffer: &mut [u8],
        offset: u64,
        damage: &mut OnDamage<'_>,
    ) -> Result<(), Error> {
        let Some((parent, grandparents)) = parents.split_first() else {
            buffer.fill(0);
            return Ok(());
        };
        let there = usize::try_from(parent.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (below, beyond) = buffer.split_at_mut(there.min(buffer.len()));
        beyond.fill(0);
        parent.read(grandparents, below, offset, damage)
    }

    /// The next range at or after `offset` and before `end` that may hold something else than zeros.
    pub(crate) fn next_data(&self, parents: &[Self], offset: u64, end: u64) -> Result<Option<Range<u64>>, Error> {
        let end = end.min(self.size_bytes);
        let mut at = offset;
        while at < end {
            let extent = &self.extents[self.extent_index(at)];
            let within = at - extent.virtual_byte;
            let wanted = (end - at).min(extent.len_bytes - within);
            let run = match self.run(extent, within, wanted) {
                // What is lost has to be read, so that its loss is told.
                Err(_) if self.is_salvage => return Ok(Some(at..at + wanted.min(extent.unknown_len(within)))),
                run => run?,
            };
            let here = at..at + run.1;
            let data = match run.0 {
                Source::Zero => None,
                Source::Absent => match parents.split_first() {
                    Some((parent, grandparents)) => parent.next_data(grandparents, here.start, here.end)?,
                    None => None,
                },
                Source::File(..) | Source::Grains(..) if self.is_salvage => Some(here.clone()),
                Source::File(file, byte) => self.stored_data(file, byte, &here)?,
                Source::Grains(grains, byte) => self.stored_data(grains.file(), byte, &here)?,
                Source::Stream(..) => Some(here.clone()),
            };
            if data.is_some() {
                return Ok(data);
            }
            at = here.end;
        }
        Ok(None)
    }

    /// Makes storage tell holes truly: what was written and is not on storage yet may look like one.
    pub(crate) fn sync_for_holes(&self) -> Result<(), Error> {
        if self.synced.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = self.extents.iter().try_for_each(|extent| match &extent.body {
            Body::Flat { file, .. } => file.sync(),
            Body::Grains(grains) => grains.file().sync(),
            Body::Stream(stream) => stream.file().sync(),
            Body::Zero | Body::Missing { .. } => Ok(()),
        });
        if synced.is_err() {
            self.synced.store(false, Ordering::Release);
        }
        Ok(synced?)
    }

    pub(crate) fn mark_unsynced(&mut self) {
        *self.synced.get_mut() = false;
    }

    /// The first part of `here`, which lies in a file from `byte` on, that is no hole there, in whole data units.
    fn stored_data(&self, file: &dyn File, byte: u64, here: &Range<u64>) -> Result<Option<Range<u64>>, Error> {
        let unit = self.cipher.as_ref().map(DiskCipher::unit);
        // A data unit of which any byte is stored has other bytes for the guest everywhere.
        let start = unit.map_or(here.start, |unit| unit.around(here, self.size_bytes).start);
        let Some(data) = file.next_data(byte + start - here.start)? else { return Ok(None) };
        let guest = |at: u64| (at + here.start).saturating_sub(byte);
        let found = guest(data.start).max(start)..guest(data.end).max(start);
        let found = unit.map_or(found.clone(), |unit| unit.around(&found, self.size_bytes));
        let found = found.start.max(here.start)..found.end.min(here.end);
        Ok((found.start < found.end).then_some(found))
    }

    /// Where the bytes from `within` of an extent on lie, and how many of `len_bytes` lie so.
    pub(crate) fn run<'l>(
        &self,
        extent: &'l OpenExtent,
        within: u64,
        len_bytes: u64,
    ) -> Result<(Source<'l>, u64), Error> {
        if extent.access == ExtentAccess::NoAccess {
            return Err(Error::ExtentAccess { path: self.path.to_string(), access: "NOACCESS" });
        }
        Ok(match &extent.body {
            Body::Zero => (Source::Zero, len_bytes),
            Body::Flat { file, offset_bytes } => (Source::File(file.as_ref(), offset_bytes + within), len_bytes),
            Body::Grains(grains) => match grains.run(within, len_bytes)? {
                (Grain::Absent, len) => (Source::Absent, len),
                (Grain::Zero, len) => (Source::Zero, len),
                (Grain::At(byte), len) => (Source::Grains(grains, byte), len),
            },
            Body::Stream(stream) => match stream.run(within, len_bytes)? {
                (Grain::Absent, len) => (Source::Absent, len),
                (Grain::Zero, len) => (Source::Zero, len),
                (Grain::At(marker), len) => (Source::Stream(stream, within, marker), len),
            },
            Body::Missing { path } => return Err(vmseal_storage::Error::NotFound { path: path.clone() }.into()),
        })
    }

    /// Fills `buffer` with the guest's bytes from `at` on, which lie in `source`; that begins at byte `start` of the disk. In pieces where that
    /// fails and what can be had is wanted.
    fn read_source(
        &self,
        source: Source<'_>,
        buffer: &mut [u8],
        at: u64,
        start: u64,
        damage: &mut OnDamage<'_>,
    ) -> Result<(), Error> {
        let Err(error) = self.read_units(source, buffer, at, start) else { return Ok(()) };
        let end = at + buffer.len() as u64;
        if !damage.is_noted() || end <= (at + 1).next_multiple_of(SALVAGE_LEN) {
            return damage.lose(error, buffer, at);
        }
        let mut rest = buffer;
        let mut at = at;
        while at < end {
            let piece_end = end.min((at + 1).next_multiple_of(SALVAGE_LEN));
            let (piece, tail) = rest.split_at_mut((piece_end - at) as usize);
            if let Err(error) = self.read_units(source, piece, at, start) {
                damage.lose(error, piece, at)?;
            }
            rest = tail;
            at = piece_end;
        }
        Ok(())
    }

    fn read_units(&self, source: Source<'_>, buffer: &mut [u8], at: u64, start: u64) -> Result<(), Error> {
        let Some(cipher) = &self.cipher else { return source.read(buffer, at, start) };
        let range = at..at + buffer.len() as u64;
        let mut rest = buffer;
        let [head, whole, tail] = cipher.unit().cut(&range, self.size_bytes);
        for (part, is_whole) in [(head, false), (whole, true), (tail, false)] {
            if part.is_empty() {
                continue;
            }
            let (here, after) = rest.split_at_mut((part.end - part.start) as usize);
            if is_whole {
                source.read(here, part.start, start)?;
                cipher.decrypt(here, part.start)?;
            } else {
                let around = cipher.unit().around(&part, self.size_bytes);
                let unit = self.read_around(cipher, source, &around, start)?;
                let skip = (part.start - around.start) as usize;
                here.copy_from_slice(&unit[skip..skip + here.len()]);
            }
            rest = after;
        }
        Ok(())
    }

    /// The guest's bytes of the data units that `around` is made of.
    pub(crate) fn read_around(
        &self,
        cipher: &DiskCipher,
        source: Source<'_>,
        around: &Range<u64>,
        start: u64,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut units = Zeroizing::new(vec![0; (around.end - around.start) as usize]);
        source.read(&mut units, around.start, start)?;
        cipher.decrypt(&mut units, around.start)?;
        Ok(units)
    }

    /// The extent that holds a byte of the disk.
    pub(crate) fn extent_index(&self, offset: u64) -> usize {
        self.extents.partition_point(|extent| extent.virtual_byte + extent.len_bytes <= offset)
    }
}

impl Source<'_> {
    /// Fills `buffer` with stored bytes: those of byte `at` of the disk on, where the source begins at byte `start`, or a little before in the
    /// same data unit.
    fn read(self, buffer: &mut [u8], at: u64, start: u64) -> Result<(), Error> {
        match self {
            Self::Absent | Self::Zero => buffer.fill(0),
            Self::File(file, byte) => file.read_at(buffer, byte + at - start)?,
            Self::Grains(grains, byte) => grains.read_at(buffer, byte + at - start)?,
            Self::Stream(stream, within, marker) => stream.read(buffer, within + at - start, marker)?,
        }
        Ok(())
    }
}

impl OpenExtent {
    /// How much of the extent from `within` on shares the fate of the byte there, where nothing is known of that.
    fn unknown_len(&self, within: u64) -> u64 {
        match &self.body {
            Body::Grains(grains) => grains.grain_len() - within % grains.grain_len(),
            Body::Stream(stream) => stream.grain_len() - within % stream.grain_len(),
            _ => self.len_bytes - within,
        }
    }
}

fn open_body(
    storage: &dyn Storage,
    place: &Place,
    access: Access,
    files: &mut BTreeMap<StoragePath, Arc<dyn File>>,
    is_salvage: bool,
) -> Result<Body, Error> {
    Ok(match place {
        Place::Zero => Body::Zero,
        Place::Missing => Body::Missing { path: "the extent".to_owned() },
        Place::Flat { path, offset_bytes } => {
            let file = match files.get(path) {
                Some(file) => file.clone(),
                None => files.entry(path.clone()).or_insert(storage.open(path, access)?.into()).clone(),
            };
            Body::Flat { file, offset_bytes: *offset_bytes }
        }
        Place::Sparse { path, header } => {
            let file = storage.open(path, access)?;
            Body::Grains(Box::new(if is_salvage {
                GrainExtent::salvage(file, path, GrainMap::hosted(header), Some(header))?
            } else {
                GrainExtent::hosted(file, path, header)?
            }))
        }
        Place::ReadOnly { path, header } => {
            let file = storage.open(path, Access::Read)?;
            let map = match header.as_ref() {
                ReadOnlyHeader::Cowd(header) => GrainMap::cowd(header),
                ReadOnlyHeader::SeSparse(header) => GrainMap::Long(header.clone()),
                ReadOnlyHeader::Stream(header) if header.is_compressed() => {
                    return Ok(Body::Stream(Box::new(StreamExtent::open(file, path, header, is_salvage)?)));
                }
                ReadOnlyHeader::Stream(header) => GrainMap::hosted(header),
            };
            Body::Grains(Box::new(if is_salvage {
                GrainExtent::salvage(file, path, map, None)?
            } else {
                GrainExtent::read_only(file, path, map)?
            }))
        }
    })
}

//! How the top link of a chain is written, and how ranges of it are given back.
//!
//! A grain that the link does not have is made whole: what the parents have of it is read and enciphered under the link's own key. No table
//! names it before its bytes are written.

use core::ops::Range;

use vmseal_formats::Access as ExtentAccess;
use zeroize::Zeroizing;

use crate::damage::OnDamage;
use crate::error::Error;
use crate::link::{Body, Link, Source};
use crate::sparse::GrainExtent;

/// Bytes that are enciphered at once; whole data units of any size.
const CHUNK_LEN: u64 = 256 << 10;

impl Link {
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

    /// Writes the guest's bytes at `offset`.
    pub(crate) fn write(&mut self, parents: &[Self], data: &[u8], offset: u64) -> Result<(), Error> {
        self.mark_unsynced();
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let index = self.extent_index(at);
            let extent = &self.extents[index];
            let within = at - extent.virtual_byte;
            let wanted = (rest.len() as u64).min(extent.len_bytes - within);
            let (source, len) = self.run(extent, within, wanted)?;
            let (here, tail) = rest.split_at(len as usize);
            match source {
                Source::Absent => self.write_new(index, Some(parents), here, at)?,
                Source::Zero => self.write_new(index, None, here, at)?,
                source => self.write_source(source, here, at, at)?,
            }
            rest = tail;
            at += len;
        }
        Ok(())
    }

    /// Makes a range read as zeros, and gives its room back where that can be.
    pub(crate) fn discard(&mut self, parents: &[Self], range: Range<u64>) -> Result<(), Error> {
        self.mark_unsynced();
        let mut at = range.start;
        while at < range.end {
            let index = self.extent_index(at);
            let extent = &self.extents[index];
            let within = at - extent.virtual_byte;
            let wanted = (range.end - at).min(extent.len_bytes - within);
            let (source, len) = self.run(extent, within, wanted)?;
            let here = at..at + len;
            at = match source {
                Source::Zero => here.end,
                Source::Absent => self.discard_absent(index, parents, here)?,
                source => {
                    self.discard_source(source, &here)?;
                    here.end
                }
            };
        }
        Ok(())
    }

    /// Makes everything that was written durable.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        for extent in &mut self.extents {
            match &mut extent.body {
                Body::Flat { file, .. } => file.sync()?,
                Body::Grains(grains) => grains.flush()?,
                Body::Stream(_) | Body::Zero | Body::Missing { .. } => {}
            }
        }
        Ok(())
    }

    /// Writes the guest's bytes from `at` on into `source`, which begins at byte `start` of the disk.
    fn write_source(&self, source: Source<'_>, data: &[u8], at: u64, start: u64) -> Result<(), Error> {
        let Some(cipher) = &self.cipher else { return source.write(data, at, start) };
        let unit = cipher.unit();
        let [head, whole, tail] = unit.cut(&(at..at + data.len() as u64), self.size_bytes);
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let around = unit.around(&part, self.size_bytes);
            let mut units = self.read_around(cipher, source, &around, start)?;
            overlay(&mut units, around.start, data, at);
            cipher.encrypt(&mut units, around.start)?;
            source.write(&units, around.start, start)?;
        }
        let mut scratch = Zeroizing::new(Vec::new());
        for chunk in chunks(whole) {
            scratch.clear();
            scratch.extend_from_slice(&data[(chunk.start - at) as usize..(chunk.end - at) as usize]);
            cipher.encrypt(&mut scratch, chunk.start)?;
            source.write(&scratch, chunk.start, start)?;
        }
        Ok(())
    }

    /// Writes the guest's bytes from `at` on into grains that are not there, on what `below` has.
    fn write_new(&mut self, index: usize, below: Option<&[Self]>, data: &[u8], at: u64) -> Result<(), Error> {
        let end = at + data.len() as u64;
        let mut next = at;
        while next < end {
            let (first, grain_len, extent_end) = self.grain_of(index, next)?;
            let here = &data[(next - at) as usize..];
            if next == first.start && end >= first.end {
                let count = ((end - next) / grain_len).clamp(1, (CHUNK_LEN / grain_len).max(1));
                let range = next..(next + count * grain_len).min(extent_end);
                let here = &here[..(range.end - range.start) as usize];
                let number = first.number;
                let byte = self.grains_mut(index)?.append_grains(count)?;
                match &self.cipher {
                    None => self.grains(index)?.file().write_at(here, byte)?,
                    Some(cipher) => {
                        let mut stored = Zeroizing::new(here.to_vec());
                        cipher.encrypt(&mut stored, range.start)?;
                        self.grains(index)?.file().write_at(&stored, byte)?;
                    }
                }
                self.grains_mut(index)?.place_grains(number, count, byte)?;
                next = range.end;
            } else {
                let written = next..end.min(first.end);
                let here = &here[..(written.end - written.start) as usize];
                let byte = self.grains_mut(index)?.append_grains(1)?;
                for window in chunks(first.start..first.end) {
                    self.fill_grain(index, below, &window, byte + (window.start - first.start), here, next)?;
                }
                self.grains_mut(index)?.place_grains(first.number, 1, byte)?;
                next = written.end;
            }
        }
        Ok(())
    }

    /// Fills `window` of a new grain, which lies in the file from `byte` on and holds zeros: with what `below` has, and over that `data`, which
    /// begins at byte `at` of the disk. What neither has stays a hole.
    fn fill_grain(
        &self,
        index: usize,
        below: Option<&[Self]>,
        window: &Range<u64>,
        byte: u64,
        data: &[u8],
        at: u64,
    ) -> Result<(), Error> {
        let written = at.max(window.start)..(at + data.len() as u64).min(window.end);
        let parents = below.unwrap_or_default();
        let mut ranges = if self.fills { vec![window.clone()] } else { data_in(parents, window.clone())? };
        let is_below_empty = parents.is_empty() || ranges.is_empty();
        if written.start < written.end {
            ranges.push(written);
        }
        if ranges.is_empty() {
            return Ok(());
        }
        let mut bytes = Zeroizing::new(vec![0; (window.end - window.start) as usize]);
        if !is_below_empty {
            Self::read_below(parents, &mut bytes, window.start, &mut OnDamage::Fail)?;
        }
        overlay(&mut bytes, window.start, data, at);
        let file = self.grains(index)?.file();
        let around = |range: Range<u64>| match &self.cipher {
            Some(cipher) => cipher.unit().around(&range, self.size_bytes),
            None => range,
        };
        for range in merged(ranges.into_iter().map(around).collect()) {
            let skip = range.start - window.start;
            let stored = &mut bytes[skip as usize..(range.end - window.start) as usize];
            if let Some(cipher) = &self.cipher {
                cipher.encrypt(stored, range.start)?;
            }
            file.write_at(stored, byte + skip)?;
        }
        Ok(())
    }

    /// Makes a range zeros where it is stored.
    fn discard_source(&self, source: Source<'_>, here: &Range<u64>) -> Result<(), Error> {
        let [head, whole, tail] = match &self.cipher {
            None => [here.start..here.start, here.clone(), here.end..here.end],
            Some(_) if self.fills => [here.clone(), here.end..here.end, here.end..here.end],
            Some(cipher) => cipher.unit().cut(here, self.size_bytes),
        };
        for part in [head, tail] {
            for chunk in chunks(part) {
                let zeros = vec![0; (chunk.end - chunk.start) as usize];
                self.write_source(source, &zeros, chunk.start, here.start)?;
            }
        }
        if !whole.is_empty() {
            source.punch(&whole, here.start)?;
        }
        Ok(())
    }

    /// Hides what the parents have in a range where this link has nothing: in one grain, or none at all where they have nothing. Tells up to where
    /// that is done.
    fn discard_absent(&mut self, index: usize, parents: &[Self], here: Range<u64>) -> Result<u64, Error> {
        sync_for_holes(parents)?;
        let Some((parent, grandparents)) = parents.split_first() else { return Ok(here.end) };
        let Some(data) = parent.next_data(grandparents, here.start, here.end)? else { return Ok(here.end) };
        let (grain, ..) = self.grain_of(index, data.start)?;
        let part = grain.start.max(here.start)..grain.end.min(here.end);
        let is_whole = part == (grain.start..grain.end);
        if is_whole && !self.fills {
            let grains = self.grains_mut(index)?;
            if grains.has_zeroed_grains() {
                grains.zero_grain(grain.number)?;
            } else {
                let byte = grains.append_grains(1)?;
                grains.place_grains(grain.number, 1, byte)?;
            }
            return Ok(part.end);
        }
        // The first write makes the grain; what is left of a large one is then there.
        let part = part.start..part.end.min(part.start + CHUNK_LEN);
        let zeros = vec![0; (part.end - part.start) as usize];
        self.write_new(index, Some(parents), &zeros, part.start)?;
        Ok(part.end)
    }

    /// The grain that holds a byte of the disk, the length of grains, and where the extent ends on the disk.
    fn grain_of(&self, index: usize, at: u64) -> Result<(GrainRange, u64, u64), Error> {
        let grain_len = self.grains(index)?.grain_len();
        let extent = &self.extents[index];
        let number = (at - extent.virtual_byte) / grain_len;
        let start = extent.virtual_byte + number * grain_len;
        let extent_end = extent.virtual_byte + extent.len_bytes;
        Ok((GrainRange { number, start, end: (start + grain_len).min(extent_end) }, grain_len, extent_end))
    }

    fn grains(&self, index: usize) -> Result<&GrainExtent, Error> {
        match &self.extents[index].body {
            Body::Grains(grains) => Ok(grains),
            _ => Err(Error::ExtentAccess { path: self.path.to_string(), access: "RDONLY" }),
        }
    }

    fn grains_mut(&mut self, index: usize) -> Result<&mut GrainExtent, Error> {
        match &mut self.extents[index].body {
            Body::Grains(grains) => Ok(grains),
            _ => Err(Error::ExtentAccess { path: self.path.to_string(), access: "RDONLY" }),
        }
    }
}

/// A grain: its number in its extent, and its bytes on the disk.
#[derive(Clone, Copy)]
struct GrainRange {
    number: u64,
    start: u64,
    end: u64,
}

impl Source<'_> {
    /// Writes stored bytes: those of byte `at` of the disk on, where the source begins at byte `start`.
    fn write(self, data: &[u8], at: u64, start: u64) -> Result<(), Error> {
        let (file, byte) = self.place()?;
        Ok(file.write_at(data, byte + at - start)?)
    }

    fn punch(self, range: &Range<u64>, start: u64) -> Result<(), Error> {
        let (file, byte) = self.place()?;
        Ok(file.punch_hole(byte + range.start - start, range.end - range.start)?)
    }

    fn place(&self) -> Result<(&dyn vmseal_storage::File, u64), Error> {
        match self {
            Self::File(file, byte) => Ok((*file, *byte)),
            Self::Grains(grains, byte) => Ok((grains.file(), *byte)),
            Self::Absent | Self::Zero | Self::Stream(..) => {
                Err(Error::ReadOnlyKind { path: String::new(), kind: "a compressed grain" })
            }
        }
    }
}

/// Makes storage tell the holes of a chain truly.
pub(crate) fn sync_for_holes(links: &[Link]) -> Result<(), Error> {
    links.iter().try_for_each(Link::sync_for_holes)
}

/// The parts of a range in which a chain may hold something else than zeros.
fn data_in(links: &[Link], range: Range<u64>) -> Result<Vec<Range<u64>>, Error> {
    sync_for_holes(links)?;
    let mut found = Vec::new();
    let Some((link, parents)) = links.split_first() else { return Ok(found) };
    let mut at = range.start;
    while let Some(data) = link.next_data(parents, at, range.end)? {
        at = data.end;
        found.push(data);
    }
    Ok(found)
}

/// Copies what lies in `bytes`, which begin at byte `start` of the disk, of `data`, which begins at byte `at`.
fn overlay(bytes: &mut [u8], start: u64, data: &[u8], at: u64) {
    let from = at.max(start);
    let to = (at + data.len() as u64).min(start + bytes.len() as u64);
    if from < to {
        bytes[(from - start) as usize..(to - start) as usize]
            .copy_from_slice(&data[(from - at) as usize..(to - at) as usize]);
    }
}

/// Ranges in order, those that touch made one.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A range in parts that are enciphered at once.
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        let end = range.end.min(at.saturating_add(CHUNK_LEN));
        let chunk = at..end;
        at = end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

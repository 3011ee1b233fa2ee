//! What a VMDK descriptor says, read from its lines and checked.

use core::ops::Range;

use encoding_rs::Encoding;

use crate::descriptor_line::{Content, ExtentLine};
use crate::error::{Error, Kind, Place};
use crate::extent::Extent;
use crate::lines::{self, Line};
use crate::locator::Locator;

/// The CID of a parent where there is none.
const NO_PARENT: u32 = 0xffff_ffff;

/// What is read once, and checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Fields {
    pub(crate) encoding: &'static Encoding,
    pub(crate) version: u32,
    pub(crate) cid: u32,
    pub(crate) parent_cid: Option<u32>,
    pub(crate) parent_hint: Option<String>,
    pub(crate) create_type: String,
    pub(crate) extents: Vec<Extent>,
    pub(crate) capacity_sectors: u64,
}

/// Whether the first line that is not blank is the signature of a descriptor.
pub(crate) fn has_signature(text: &[u8]) -> bool {
    matches!(signature_line(text), Some((_, true)))
}

/// Where the first line that is not blank begins, and whether it is the signature: letters in any case, with or without
/// blanks.
fn signature_line(text: &[u8]) -> Option<(usize, bool)> {
    const LETTERS: &[u8] = b"#diskdescriptorfile";
    let mut all = lines::split(text).map(|line| (line.content.start, text[line.content].trim_ascii()));
    let (start, first) = all.find(|(_, line)| !line.is_empty())?;
    let letters = first.iter().filter(|byte| !byte.is_ascii_whitespace()).map(u8::to_ascii_lowercase);
    Some((start, letters.eq(LETTERS.iter().copied())))
}

pub(crate) fn check_signature(text: &[u8]) -> Result<(), Error> {
    match signature_line(text) {
        Some((_, true)) => Ok(()),
        Some((start, false)) => Err(Error::BadMagic { format: "VMDK descriptor", place: Place::Byte(start as u64) }),
        None => {
            let what = "this VMDK descriptor is empty; restore it from a copy";
            Err(Error::Syntax { what, place: Place::Byte(0) })
        }
    }
}

/// The lines while they become a descriptor.
pub(crate) struct Reader<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) lines: &'a [Line],
    pub(crate) contents: &'a [Content],
}

impl Reader<'_> {
    pub(crate) fn fields(&self) -> Result<Fields, Error> {
        const PART: &str = "VMDK descriptor";
        let missing = |name| Error::Missing { name, part: PART };
        let encoding = self.encoding()?;
        self.check_encoding(encoding)?;
        let (version_place, version) = self.unique("version")?.ok_or_else(|| missing("version"))?;
        let version = match version.trim_ascii() {
            b"1" => 1,
            b"2" => 2,
            b"3" => 3,
            other if !other.is_empty() && other.iter().all(u8::is_ascii_digit) => {
                let version = String::from_utf8_lossy(other).into_owned();
                return Err(Error::UnsupportedVersion { format: "the VMDK descriptor", version });
            }
            other => {
                let found = String::from_utf8_lossy(other).into_owned();
                return Err(Error::Value { what: "the version of a VMDK descriptor", found, place: version_place });
            }
        };
        let cid = self.unique("CID")?.map(content_id).transpose()?.ok_or_else(|| missing("CID"))?;
        let parent_cid = self.unique("parentCID")?.map(content_id).transpose()?.filter(|&cid| cid != NO_PARENT);
        let create_type = self.unique("createType")?.ok_or_else(|| missing("createType"))?;
        let create_type = decode(encoding, "createType", create_type)?;
        let parent_hint = self.first("parentFileNameHint").map(|found| decode(encoding, "parentFileNameHint", found));
        let parent_hint = parent_hint.transpose()?;
        if parent_cid.is_some() && parent_hint.is_none() {
            return Err(missing("parentFileNameHint"));
        }
        if let Some((Place::Line { line, column }, value)) = self.first("encryptionKeys") {
            let text = decode(encoding, "encryptionKeys", (Place::Line { line, column }, value))?;
            Locator::parse(&text).map_err(|error| error.within(line, column))?;
        }
        let (extents, capacity_sectors) = self.extents(encoding)?;
        Ok(Fields { encoding, version, cid, parent_cid, parent_hint, create_type, extents, capacity_sectors })
    }

    fn encoding(&self) -> Result<&'static Encoding, Error> {
        let Some((place, label)) = self.first("encoding") else { return Ok(encoding_rs::UTF_8) };
        Encoding::for_label_no_replacement(label).ok_or_else(|| Error::Unknown {
            kind: Kind::Encoding,
            name: String::from_utf8_lossy(label).into_owned(),
            place,
        })
    }

    /// Every name and value, so that later reads of them cannot fail.
    fn check_encoding(&self, encoding: &'static Encoding) -> Result<(), Error> {
        for (index, content) in self.contents.iter().enumerate() {
            let Content::Entry { name, value, .. } = content else { continue };
            let line = &self.text[self.lines[index].content.clone()];
            let text = String::from_utf8_lossy(&line[name.clone()]).into_owned();
            for range in [name, value] {
                let place = Place::Line { line: index + 1, column: range.start + 1 };
                decode(encoding, &text, (place, &line[range.clone()]))?;
            }
        }
        Ok(())
    }

    fn extents(&self, encoding: &'static Encoding) -> Result<(Vec<Extent>, u64), Error> {
        let mut extents = Vec::new();
        let mut capacity_sectors = 0_u64;
        for (index, content) in self.contents.iter().enumerate() {
            let Content::Extent(found) = content else { continue };
            let place = |column: usize| Place::Line { line: index + 1, column: column + 1 };
            let line = &self.text[self.lines[index].content.clone()];
            let text = |range: &Range<usize>| {
                decode(encoding, "the file of an extent", (place(range.start), &line[range.clone()]))
            };
            let ExtentLine { access, sector_count, kind, offset_sectors, .. } = *found;
            let file = found.file.as_ref().map(text).transpose()?;
            let extra = found.extra.iter().map(text).collect::<Result<_, _>>()?;
            extents.push(Extent { access, sector_count, kind, file, offset_sectors, extra, line: index + 1 });
            capacity_sectors = capacity_sectors
                .checked_add(sector_count)
                .filter(|sum| *sum <= Extent::SECTORS_MAX)
                .ok_or_else(|| Error::Value {
                    what: "the sum of the extents' sectors, of which the bytes fit 63 bits,",
                    found: format!("{capacity_sectors} + {sector_count}"),
                    place: place(0),
                })?;
        }
        match extents.is_empty() {
            true => Err(Error::Missing { name: "extent", part: "VMDK descriptor" }),
            false => Ok((extents, capacity_sectors)),
        }
    }

    /// The entries of a name: index of the line, value in the line, whether it is quoted.
    fn all(&self, wanted: &str) -> impl Iterator<Item = (usize, Range<usize>, bool)> {
        self.contents.iter().enumerate().filter_map(move |(index, content)| match content {
            Content::Entry { name, value, quoted } => {
                let line = &self.text[self.lines[index].content.clone()];
                line[name.clone()].eq_ignore_ascii_case(wanted.as_bytes()).then(|| (index, value.clone(), *quoted))
            }
            _ => None,
        })
    }

    pub(crate) fn find(&self, name: &str) -> Option<(usize, Range<usize>, bool)> {
        self.all(name).next()
    }

    fn first(&self, name: &str) -> Option<(Place, &[u8])> {
        let (index, range, _) = self.find(name)?;
        let place = Place::Line { line: index + 1, column: range.start + 1 };
        Some((place, &self.text[self.lines[index].content.clone()][range]))
    }

    /// An entry that tools look for in different ways, so that two of them would mean two disks.
    fn unique(&self, name: &str) -> Result<Option<(Place, &[u8])>, Error> {
        let mut all = self.all(name);
        if let (Some((first, ..)), Some((second, ..))) = (all.next(), all.next()) {
            return Err(Error::Duplicate { name: name.to_owned(), first_line: first + 1, line: second + 1 });
        }
        Ok(self.first(name))
    }
}

fn content_id((place, value): (Place, &[u8])) -> Result<u32, Error> {
    let text = String::from_utf8_lossy(value.trim_ascii()).into_owned();
    let is_hex = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u32::from_str_radix(&text, 16) {
        Ok(cid) if is_hex => Ok(cid),
        _ => Err(Error::Value { what: "a content ID, 8 hexadecimal digits,", found: text, place }),
    }
}

fn decode(encoding: &'static Encoding, name: &str, (place, value): (Place, &[u8])) -> Result<String, Error> {
    let text = encoding.decode_without_bom_handling_and_without_replacement(value);
    text.map(|text| text.into_owned()).ok_or_else(|| Error::Encoding {
        name: name.to_owned(),
        encoding: encoding.name(),
        place,
    })
}

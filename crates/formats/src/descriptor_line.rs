//! One line of a VMDK descriptor (`docs/formats/vmdk-descriptor.md`).

use core::ops::Range;

use crate::error::{Error, Kind, Place};
use crate::extent::{Access, Extent, ExtentKind};

/// What a line holds, as ranges into it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// `name = value`, the value without quotes; `quoted` tells whether there are some.
    Entry { name: Range<usize>, value: Range<usize>, quoted: bool },
    /// An extent.
    Extent(ExtentLine),
    /// A comment, a blank line, or something unknown that is kept.
    Other,
}

/// An extent's line, its file name not yet decoded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ExtentLine {
    pub(crate) access: Access,
    pub(crate) sector_count: u64,
    pub(crate) kind: ExtentKind,
    pub(crate) file: Option<Range<usize>>,
    pub(crate) offset_sectors: u64,
    pub(crate) extra: Vec<Range<usize>>,
}

/// Reads a line without its ending; `number` is for errors.
pub(crate) fn parse(line: &[u8], number: usize) -> Result<Content, Error> {
    let start = line.len() - line.trim_ascii_start().len();
    if matches!(line.get(start), None | Some(b'#')) {
        return Ok(Content::Other);
    }
    if let Some(content) = entry(line, start, number)? {
        return Ok(content);
    }
    let words: Vec<Range<usize>> = words(line).take(3).collect();
    let word = |index: usize| words.get(index).map_or(&[][..], |range| &line[range.clone()]);
    let known_access = Access::ALL.into_iter().find(|access| word(0).eq_ignore_ascii_case(access.name().as_bytes()));
    // What has the form of an extent and is none of those known must not be passed over: sectors would be missing.
    let is_like_extent = word(1).first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-') && words.len() > 2
        || kind(word(2)).is_some();
    match known_access {
        Some(access) => extent(line, access, number).map(Content::Extent),
        None if is_like_extent => {
            let what = "an extent begins with RW, RDONLY or NOACCESS; correct the line";
            Err(Error::Syntax { what, place: Place::Line { line: number, column: start + 1 } })
        }
        None => Ok(Content::Other),
    }
}

/// Whether a byte can stand in the name of an entry.
pub(crate) fn is_name_byte(byte: u8) -> bool {
    !matches!(byte, b'=' | b'"' | 0) && !byte.is_ascii_whitespace()
}

fn entry(line: &[u8], start: usize, number: usize) -> Result<Option<Content>, Error> {
    let end = start + line[start..].iter().position(|&byte| !is_name_byte(byte)).unwrap_or(line.len() - start);
    let equals = skip_blanks(line, end);
    if end == start || line.get(equals) != Some(&b'=') {
        return Ok(None);
    }
    let value = skip_blanks(line, equals + 1);
    if line.get(value) == Some(&b'"') {
        let Some(len) = line[value + 1..].iter().position(|&byte| byte == b'"') else {
            let what = "the quote that begins here does not end; correct the line";
            return Err(Error::Syntax { what, place: Place::Line { line: number, column: value + 1 } });
        };
        return Ok(Some(Content::Entry { name: start..end, value: value + 1..value + 1 + len, quoted: true }));
    }
    let len = line[value..].trim_ascii_end().len();
    Ok(Some(Content::Entry { name: start..end, value: value..value + len, quoted: false }))
}

fn extent(line: &[u8], access: Access, number: usize) -> Result<ExtentLine, Error> {
    let place = |index: usize| Place::Line { line: number, column: index + 1 };
    let syntax = |what, index| Err(Error::Syntax { what, place: place(index) });
    let value = |what, range: &Range<usize>| {
        let found = String::from_utf8_lossy(&line[range.clone()]).into_owned();
        Error::Value { what, found, place: place(range.start) }
    };
    let mut words = words(line).skip(1);
    let Some(size) = words.next() else {
        return syntax("the number of sectors expected; correct the line", line.len());
    };
    if line[size.clone()].first().is_some_and(u8::is_ascii_alphabetic) {
        return syntax("the number of sectors expected; correct the line", size.start);
    }
    let sector_count = number_of(&line[size.clone()])
        .filter(|count| (1..=Extent::SECTORS_MAX).contains(count))
        .ok_or_else(|| value("the number of an extent's sectors, of which the bytes fit 63 bits,", &size))?;
    let Some(kind_range) = words.next() else {
        return syntax("the type of an extent expected; correct the line", line.len());
    };
    let Some(kind) = kind(&line[kind_range.clone()]) else {
        let name = String::from_utf8_lossy(&line[kind_range.clone()]).into_owned();
        return Err(Error::Unknown { kind: Kind::ExtentType, name, place: place(kind_range.start) });
    };
    let mut extent = ExtentLine { access, sector_count, kind, file: None, offset_sectors: 0, extra: Vec::new() };
    let quote = skip_blanks(line, kind_range.end);
    let rest = match line.get(quote) {
        Some(b'"') => {
            let Some(len) = line[quote + 1..].iter().position(|&byte| byte == b'"') else {
                return syntax("the quote that begins here does not end; correct the line", quote);
            };
            extent.file = Some(quote + 1..quote + 1 + len);
            quote + len + 2
        }
        None => quote,
        Some(_) => return syntax("the name of the extent's file in quotes expected; correct the line", quote),
    };
    if extent.file.as_ref().is_none_or(Range::is_empty) && kind != ExtentKind::Zero {
        return syntax("the name of the extent's file expected; correct the line", quote.min(line.len()));
    }
    let mut rest_words = words_from(line, rest);
    if let Some(offset) = rest_words.next() {
        extent.offset_sectors = number_of(&line[offset.clone()])
            .filter(|count| *count <= Extent::SECTORS_MAX)
            .ok_or_else(|| value("where an extent begins in its file, in sectors,", &offset))?;
        extent.extra = rest_words.collect();
    }
    Ok(extent)
}

fn kind(word: &[u8]) -> Option<ExtentKind> {
    ExtentKind::ALL.into_iter().find(|kind| word.eq_ignore_ascii_case(kind.name().as_bytes()))
}

fn number_of(word: &[u8]) -> Option<u64> {
    let is_number = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(word).ok().filter(|_| is_number)?.parse().ok()
}

fn words(line: &[u8]) -> impl Iterator<Item = Range<usize>> {
    words_from(line, 0)
}

fn words_from(line: &[u8], mut at: usize) -> impl Iterator<Item = Range<usize>> {
    core::iter::from_fn(move || {
        let start = skip_blanks(line, at);
        let len = line[start..].iter().position(u8::is_ascii_whitespace).unwrap_or(line.len() - start);
        at = start + len;
        (len > 0).then_some(start..at)
    })
}

fn skip_blanks(line: &[u8], at: usize) -> usize {
    let at = at.min(line.len());
    line.len() - line[at..].trim_ascii_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_in_all_their_forms() {
        for (line, kind, file, offset, extra) in [
            ("RW 64 FLAT \"a b.vmdk\" 7", ExtentKind::Flat, Some("a b.vmdk"), 7, 0),
            ("\trw\t 64   flat  \"a=b\"  ", ExtentKind::Flat, Some("a=b"), 0, 0),
            ("NOACCESS 64 ZERO", ExtentKind::Zero, None, 0, 0),
            ("RW 64 ZERO \"/dev/sdc2\" 0", ExtentKind::Zero, Some("/dev/sdc2"), 0, 0),
            ("RW 64 FLAT \"d\" 0 partitionUUID x", ExtentKind::Flat, Some("d"), 0, 2),
        ] {
            let Ok(Content::Extent(extent)) = parse(line.as_bytes(), 1) else { panic!("{line}") };
            assert_eq!((extent.kind, extent.offset_sectors, extent.extra.len()), (kind, offset, extra), "{line}");
            assert_eq!(extent.file.map(|range| &line[range]), file, "{line}");
        }
    }

    #[test]
    fn what_is_not_known_is_kept_unless_it_is_like_an_extent() {
        for line in ["something", "a b c", "# RW 1 FLAT", "  "] {
            assert_eq!(parse(line.as_bytes(), 1).unwrap(), Content::Other, "{line}");
        }
        for line in ["XX 64 FLAT \"f\" 0", "RW", "RW x", "RW 64", "RW 64 VMFS", "RW 64 FLAT \"\" 0", "RW 0 ZERO"] {
            assert!(parse(line.as_bytes(), 1).is_err(), "{line}");
        }
    }
}

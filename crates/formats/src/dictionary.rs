//! Dictionary files: VMX, VMSD, VMXF and `encryption.info`.

use core::fmt;
use core::ops::Range;

use encoding_rs::Encoding;
use zeroize::Zeroizing;

use crate::dictionary_line::{self, Content};
use crate::error::{Error, Kind, Place};
use crate::lines::{self, Line};

/// The entry that names the encoding of a file.
const ENCODING: &str = ".encoding";

/// A dictionary file as it is written, byte for byte, with its entries found.
///
/// Names compare without case. Of entries with the same name the first counts; what is no entry is kept where it is.
/// The text may hold keys, and is wiped when it goes or is changed.
#[derive(Clone, Default)]
pub struct Dictionary {
    text: Zeroizing<Vec<u8>>,
    lines: Vec<Line>,
    /// The content of each line, as ranges into the text.
    contents: Vec<Content>,
}

/// A name that is given again.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Duplicate {
    /// The name as the later line spells it.
    pub name: String,
    /// The first line with it, which counts.
    pub first_line: usize,
    /// The later line, which does not.
    pub line: usize,
}

impl Dictionary {
    /// A file without lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file. Every file is one: a line that is no entry is kept as it is, and told by
    /// [`malformed`](Self::malformed).
    pub fn parse(bytes: &[u8]) -> Self {
        Self::from_text(Zeroizing::new(bytes.to_vec()))
    }

    /// Sets the value of an entry.
    ///
    /// Where there is such an entry its value alone is replaced, on its own line; otherwise a line `name = "value"` is
    /// added at the end, with the line ending of the file. Bytes that no name can have (see [`is_name`](Self::is_name))
    /// become `_`.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let escaped = dictionary_line::escape(value);
        if let Some((_, _, range, quoted)) = self.find(name) {
            let plain = !quoted && dictionary_line::is_plain(value);
            let mut new = Zeroizing::new(Vec::with_capacity(escaped.len() + 3));
            if range.is_empty() && self.text[..range.start].ends_with(b"=") {
                new.push(b' ');
            }
            let quote: &[u8] = if plain || quoted { b"" } else { b"\"" };
            for part in [quote, escaped.as_slice(), quote] {
                new.extend_from_slice(part);
            }
            *self = Self::from_text(lines::replace(&self.text, range, &new));
        } else {
            let mut line = Zeroizing::new(Vec::with_capacity(name.len() + escaped.len() + 5));
            line.extend(name.bytes().map(|byte| if dictionary_line::is_name_byte(byte) { byte } else { b'_' }));
            if name.is_empty() {
                line.push(b'_');
            }
            for part in [b" = \"", escaped.as_slice(), b"\""] {
                line.extend_from_slice(part);
            }
            *self = Self::from_text(lines::insert_after(&self.text, self.lines.last(), &line));
        }
    }

    /// Sets the value of an entry to a text, in the encoding of the file.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::Encoding`] where the file's encoding is not known, or has no such characters.
    pub fn set_text(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let encoding = self.encoding()?;
        let (bytes, _, has_unmappable) = encoding.encode(value);
        let bytes = Zeroizing::new(bytes.into_owned());
        if has_unmappable {
            let place = Place::Line { line: self.line(ENCODING).unwrap_or(1), column: 1 };
            return Err(Error::Encoding { name: name.to_owned(), encoding: encoding.name(), place });
        }
        self.set(name, &bytes);
        Ok(())
    }

    /// Removes every entry of this name with its line.
    pub fn remove(&mut self, name: &str) {
        self.retain_lines(|found| found.is_none_or(|found| !found.eq_ignore_ascii_case(name.as_bytes())));
    }

    /// The names and unescaped values of the entries in order, those that are given again included.
    pub fn entries(&self) -> impl Iterator<Item = (Vec<u8>, Zeroizing<Vec<u8>>)> {
        self.ranges()
            .map(|(_, name, value, _)| (self.text[name].to_vec(), dictionary_line::unescape(&self.text[value])))
    }

    /// The unescaped value of an entry.
    pub fn value(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.find(name).map(|(_, _, value, _)| dictionary_line::unescape(&self.text[value]))
    }

    /// The value of an entry as text, by the file's `.encoding`, or UTF-8 where it names none.
    ///
    /// # Errors
    /// [`Error::Encoding`] where it is not valid in it; [`Error::Unknown`] for an encoding that is not known.
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some((index, _, range, _)) = self.find(name) else { return Ok(None) };
        let encoding = self.encoding()?;
        let value = dictionary_line::unescape(&self.text[range.clone()]);
        match encoding.decode_without_bom_handling_and_without_replacement(&value) {
            Some(text) => Ok(Some(text.into_owned())),
            None => {
                let column = range.start - self.lines[index].content.start + 1;
                let place = Place::Line { line: index + 1, column };
                Err(Error::Encoding { name: name.to_owned(), encoding: encoding.name(), place })
            }
        }
    }

    /// The encoding that the file names; UTF-8 where it names none.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn encoding(&self) -> Result<&'static Encoding, Error> {
        let Some((index, _, range, _)) = self.find(ENCODING) else { return Ok(encoding_rs::UTF_8) };
        let label = dictionary_line::unescape(&self.text[range.clone()]);
        Encoding::for_label_no_replacement(&label).ok_or_else(|| Error::Unknown {
            kind: Kind::Encoding,
            name: String::from_utf8_lossy(&label).into_owned(),
            place: Place::Line { line: index + 1, column: range.start - self.lines[index].content.start + 1 },
        })
    }

    /// Where the value of an entry begins.
    pub fn place(&self, name: &str) -> Option<Place> {
        let (index, _, value, _) = self.find(name)?;
        Some(Place::Line { line: index + 1, column: value.start - self.lines[index].content.start + 1 })
    }

    /// The line of an entry, from 1.
    pub fn line(&self, name: &str) -> Option<usize> {
        self.find(name).map(|(index, ..)| index + 1)
    }

    /// Whether a text can be the name of an entry: without blanks, control characters that end lines, `#` and `=`.
    pub fn is_name(text: &str) -> bool {
        dictionary_line::is_name(text.as_bytes())
    }

    /// The lines, from 1, that are neither entry, comment nor blank.
    pub fn malformed(&self) -> impl Iterator<Item = usize> {
        let lines = self.contents.iter().enumerate();
        lines.filter(|(_, content)| matches!(content, Content::Malformed)).map(|(index, _)| index + 1)
    }

    /// The entries whose name was given before.
    pub fn duplicates(&self) -> Vec<Duplicate> {
        let mut first_lines = std::collections::BTreeMap::new();
        let mut found = Vec::new();
        for (index, name, ..) in self.ranges() {
            let name = &self.text[name];
            let first_line = *first_lines.entry(name.to_ascii_lowercase()).or_insert(index + 1);
            if first_line != index + 1 {
                found.push(Duplicate { name: String::from_utf8_lossy(name).into_owned(), first_line, line: index + 1 });
            }
        }
        found
    }

    /// The file.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.text.clone()
    }

    /// The names and values of the entries as text, and where each value begins.
    pub(crate) fn decoded(&self) -> Result<Vec<(String, Zeroizing<String>, Place)>, Error> {
        let encoding = self.encoding()?;
        let decoded = self.ranges().map(|(index, name, value, _)| {
            let column = value.start - self.lines[index].content.start + 1;
            let place = Place::Line { line: index + 1, column };
            let name = String::from_utf8_lossy(&self.text[name]).into_owned();
            let value = dictionary_line::unescape(&self.text[value]);
            match encoding.decode_without_bom_handling_and_without_replacement(&value) {
                Some(text) => Ok((name, Zeroizing::new(text.into_owned()), place)),
                None => Err(Error::Encoding { name, encoding: encoding.name(), place }),
            }
        });
        decoded.collect()
    }

    /// The lines without their endings, with the name of the entry where there is one.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.lines.iter().zip(&self.contents).map(|(line, content)| {
            let name = match content {
                Content::Entry { name, .. } => Some(&self.text[name.clone()]),
                _ => None,
            };
            (&self.text[line.content.clone()], name)
        })
    }

    /// Adds lines at the end, as [`set`](Self::set) adds one.
    pub(crate) fn push_lines<'a>(&mut self, added: impl Iterator<Item = &'a [u8]>) {
        let ending = lines::ending(&self.text);
        let mut content = Zeroizing::new(Vec::new());
        for (index, line) in added.enumerate() {
            if index > 0 {
                content.extend_from_slice(ending);
            }
            content.extend_from_slice(line);
        }
        if !content.is_empty() {
            *self = Self::from_text(lines::insert_after(&self.text, self.lines.last(), &content));
        }
    }

    /// Keeps the lines for which `keep` is true, by the name of their entry.
    pub(crate) fn retain_lines(&mut self, mut keep: impl FnMut(Option<&[u8]>) -> bool) {
        let kept: Vec<bool> = self.lines().map(|(_, name)| keep(name)).collect();
        *self = Self::from_text(lines::retain(&self.text, &self.lines, &kept));
    }

    pub(crate) fn from_text(text: Zeroizing<Vec<u8>>) -> Self {
        let (mut lines, mut contents) = (Vec::new(), Vec::new());
        for line in lines::split(&text) {
            let start = line.content.start;
            let within = |range: Range<usize>| range.start + start..range.end + start;
            contents.push(match dictionary_line::parse(&text[line.content.clone()]) {
                Content::Entry { name, value, quoted } => {
                    Content::Entry { name: within(name), value: within(value), quoted }
                }
                content => content,
            });
            lines.push(line);
        }
        Self { text, lines, contents }
    }

    /// Index of the line, name, value and whether it is quoted, of each entry.
    fn ranges(&self) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>, bool)> {
        self.contents.iter().enumerate().filter_map(|(index, content)| match content {
            Content::Entry { name, value, quoted } => Some((index, name.clone(), value.clone(), *quoted)),
            _ => None,
        })
    }

    fn find(&self, name: &str) -> Option<(usize, Range<usize>, Range<usize>, bool)> {
        self.ranges().find(|(_, range, ..)| self.text[range.clone()].eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Prints names, and no value.
impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.ranges().map(|(_, name, ..)| String::from_utf8_lossy(&self.text[name]));
        f.debug_list().entries(names).finish()
    }
}

impl PartialEq for Dictionary {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Dictionary {}

/// Whatever the bytes: written as it was read, and one edit changes one line.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let dictionary = Dictionary::parse(data);
    assert_eq!(dictionary.to_bytes().as_slice(), data);
    for (name, value) in dictionary.entries() {
        if let Ok(name) = core::str::from_utf8(&name) {
            let first = dictionary.value(name).unwrap_or_default();
            let mut edited = dictionary.clone();
            edited.set(name, &value);
            assert_eq!(edited.value(name).as_deref(), Some(&*value));
            edited.set(name, &first);
            assert_eq!(edited.value(name).as_deref(), Some(&*first));
        }
    }
    let _ = (dictionary.duplicates(), dictionary.malformed().count(), dictionary.text("displayName"));
    let mut added = dictionary.clone();
    added.remove("vmseal.fuzz");
    let before = added.to_bytes();
    added.set("vmseal.fuzz", data);
    assert_eq!(added.value("vmseal.fuzz").as_deref().map(Vec::as_slice), Some(data));
    added.remove("vmseal.fuzz");
    assert_eq!(added.to_bytes(), before);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_is_replaced_on_its_own_line() {
        for (before, after) in [
            ("A.b\t=  \"old\"  # why\r\nc = 1\r\n", "A.b\t=  \"n|22w\"  # why\r\nc = 1\r\n"),
            ("a.b = old # why", "a.b = \"n|22w\" # why"),
            ("a.b=\n", "a.b= \"n|22w\"\n"),
            ("x = 1", "x = 1\na.b = \"n|22w\""),
            ("x = 1\r\n", "x = 1\r\na.b = \"n|22w\"\r\n"),
            ("", "a.b = \"n|22w\"\n"),
            ("a.b = \"1\"\na.b = \"2\"\n", "a.b = \"n|22w\"\na.b = \"2\"\n"),
        ] {
            let mut dictionary = Dictionary::parse(before.as_bytes());
            dictionary.set("a.b", b"n\"w");
            assert_eq!(dictionary.to_bytes().as_slice(), after.as_bytes(), "{before:?}");
            assert_eq!(dictionary.value("A.B").unwrap().as_slice(), b"n\"w");
        }
        let mut dictionary = Dictionary::parse(b"a = 12 # c\n");
        dictionary.set("a", b"34");
        assert_eq!(dictionary.to_bytes().as_slice(), b"a = 34 # c\n");
    }

    #[test]
    fn text_is_decoded_by_the_files_encoding() {
        let dictionary = Dictionary::parse(b".encoding = \"windows-1252\"\nname = \"caf\xe9\"\n");
        assert_eq!(dictionary.text("NAME").unwrap().as_deref(), Some("caf\u{e9}"));
        assert_eq!(dictionary.text("other").unwrap(), None);
        let wrong = Dictionary::parse(b"x = 1\nname = \"caf\xe9\"\n").text("name").unwrap_err();
        assert_eq!(wrong.to_string(), "line 2, column 9: name is not valid UTF-8; correct the file's encoding entry");
        assert!(matches!(
            Dictionary::parse(b".encoding = x\na = b").text("a").unwrap_err(),
            Error::Unknown { kind: Kind::Encoding, .. }
        ));
        let mut dictionary = dictionary;
        dictionary.set_text("name", "na\u{ef}ve").unwrap();
        assert_eq!(dictionary.value("name").unwrap().as_slice(), b"na\xefve");
        assert!(dictionary.set_text("name", "\u{6771}").is_err());
    }

    #[test]
    fn what_is_wrong_is_reported_with_its_line() {
        let dictionary = Dictionary::parse(b"a = 1\nnonsense\n# c\nA = 2\n");
        assert_eq!(dictionary.malformed().collect::<Vec<_>>(), [2]);
        assert_eq!(dictionary.duplicates(), [Duplicate { name: "A".to_owned(), first_line: 1, line: 4 }]);
        assert_eq!(dictionary.value("a").unwrap().as_slice(), b"1");
        assert_eq!(format!("{dictionary:?}"), "[\"a\", \"A\"]");
    }

    #[test]
    fn a_name_cannot_break_out_of_its_line() {
        let mut dictionary = Dictionary::new();
        dictionary.set("a = \"x\"\nb", b"1");
        assert_eq!(dictionary.entries().count(), 1);
        assert!(!Dictionary::is_name("a b") && !Dictionary::is_name("") && Dictionary::is_name("scsi0:0.fileName"));
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![proptest::sample::select(b"ab.=\"#| \t\r\n\0\xef\xbb\xbf4".to_vec()), any::<u8>()];
        let lines =
            ["a = \"b\"\n", "B=1\r\n", "\tA = c # x\n", "c =#\n", "b = \"|4"].map(|line| line.as_bytes().to_vec());
        let part = prop_oneof![proptest::collection::vec(byte, 0..30), proptest::sample::select(lines.to_vec())];
        proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn parse_then_write_is_the_identity(text in text()) {
            prop_assert_eq!(&*Dictionary::parse(&text).to_bytes(), &text);
        }

        #[test]
        fn an_edit_touches_only_its_line(text in text(), at in any::<prop::sample::Index>(), value: Vec<u8>) {
            let dictionary = Dictionary::parse(&text);
            let names: Vec<_> = dictionary.entries().filter_map(|(name, _)| String::from_utf8(name).ok()).collect();
            if names.is_empty() {
                return Ok(());
            }
            let name = &names[at.index(names.len())];
            let line = dictionary.line(name).unwrap() - 1;
            let mut edited = dictionary.clone();
            edited.set(name, &value);
            prop_assert_eq!(&*edited.value(name).unwrap(), &value);
            prop_assert_eq!(edited.lines.len(), dictionary.lines.len());
            let old = dictionary.lines[line].content.clone();
            let new = edited.lines[line].content.clone();
            prop_assert_eq!(&edited.text[..new.start], &dictionary.text[..old.start]);
            prop_assert_eq!(&edited.text[new.end..], &dictionary.text[old.end..]);
        }

        #[test]
        fn set_then_remove_restores_every_byte(text in text(), value: Vec<u8>) {
            let mut dictionary = Dictionary::parse(&text);
            dictionary.set("not.there", &value);
            prop_assert_eq!(&*dictionary.value("not.there").unwrap(), &value);
            dictionary.remove("NOT.THERE");
            prop_assert_eq!(&*dictionary.to_bytes(), &text);
        }
    }
}

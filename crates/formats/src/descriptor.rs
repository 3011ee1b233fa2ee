//! VMDK descriptors: what a virtual disk is made of.

use core::fmt;

use encoding_rs::Encoding;

use crate::create_type::CreateType;
use crate::descriptor_fields::{self, Fields, Reader};
use crate::descriptor_line::{self, Content};
use crate::error::Error;
use crate::extent::Extent;
use crate::key_list::KeyList;
use crate::lines::{self, Line};

/// The most bytes that a descriptor may have.
pub(crate) const LEN_MAX: usize = 1 << 20;
/// What the names of the disk data base begin with.
const DDB: &str = "ddb.";

/// A descriptor as it is written, byte for byte, with its entries and extents found.
///
/// It ends at the first NUL; what follows is padding, and is written back as it was. Who writes it into a room of fixed length inside an
/// extent takes [`text`](Self::text) and fills the room with zeros.
/// Names compare without case. What is not known is kept where it is.
#[derive(Clone, Eq, PartialEq)]
pub struct Descriptor {
    text: Vec<u8>,
    /// The first NUL and what follows it.
    suffix: Vec<u8>,
    lines: Vec<Line>,
    contents: Vec<Content>,
    fields: Fields,
}

impl Descriptor {
    /// Reads a descriptor, alone or embedded.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than 1 MiB; [`Error::BadMagic`] without the signature in the first line;
    /// [`Error::Syntax`], [`Error::Missing`], [`Error::Duplicate`], [`Error::Value`], [`Error::Unknown`],
    /// [`Error::UnsupportedVersion`] and [`Error::Encoding`] with the line; for `encryptionKeys` those of
    /// [`Locator::parse`](crate::Locator::parse).
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        if len > LEN_MAX || bytes.len() > 2 * LEN_MAX {
            let found = bytes.len().to_string();
            return Err(Error::Limit { what: "bytes of a VMDK descriptor", found, max: LEN_MAX as u64 });
        }
        let (text, rest) = bytes.split_at(len);
        Self::from_text(text.to_vec(), rest.to_vec())
    }

    /// Sets a header entry, as `encryptionKeys`.
    ///
    /// Where there is one its value alone is replaced; otherwise a line `name="value"` is added below the other header
    /// entries, before the extents. The format has no escapes: quotes and control characters become `_`. A name that
    /// [`parse`](Self::parse) reads itself, as `CID`, is left as it is where the value cannot be one of its.
    pub fn set_header(&mut self, name: &str, value: &str) {
        let first_extent = self.contents.iter().position(|content| matches!(content, Content::Extent(_))).unwrap_or(0);
        let last_header = (0..first_extent).rev().find(|&index| self.name_at(index).is_some_and(|name| !is_ddb(name)));
        self.set(name, value, "=", last_header.or(first_extent.checked_sub(1)));
    }

    /// Removes a header entry with its line. Those that have to be there stay.
    pub fn remove_header(&mut self, name: &str) {
        self.remove(name);
    }

    /// Sets an entry of the disk data base; `name` without `ddb.`.
    ///
    /// Where there is one its value alone is replaced; otherwise a line `ddb.name = "value"` is added below the others.
    pub fn set_ddb(&mut self, name: &str, value: &str) {
        let last = (0..self.contents.len()).rev().find(|&index| self.name_at(index).is_some_and(is_ddb));
        self.set(&[DDB, name].concat(), value, " = ", last.or(self.contents.len().checked_sub(1)));
    }

    /// Removes an entry of the disk data base with its line; `name` without `ddb.`.
    pub fn remove_ddb(&mut self, name: &str) {
        self.remove(&[DDB, name].concat());
    }

    /// The version of the descriptor: 1, 2, or 3 with change tracking.
    pub fn version(&self) -> u32 {
        self.fields.version
    }

    /// The content ID, which changes when the guest's data does.
    pub fn cid(&self) -> u32 {
        self.fields.cid
    }

    /// The content ID that the parent has to have; none where there is no parent.
    pub fn parent_cid(&self) -> Option<u32> {
        self.fields.parent_cid
    }

    /// The parent's descriptor as the child names it: relative, absolute on ESXi, or a Windows path.
    pub fn parent_hint(&self) -> Option<String> {
        self.fields.parent_hint.clone()
    }

    /// The type of the disk as it is written.
    pub fn create_type(&self) -> &str {
        &self.fields.create_type
    }

    /// The type of the disk; none where it is not known here.
    pub fn kind(&self) -> Option<CreateType> {
        CreateType::from_name(&self.fields.create_type)
    }

    /// The extents in the order of their sectors on the disk.
    pub fn extents(&self) -> &[Extent] {
        &self.fields.extents
    }

    /// The size of the disk in sectors of 512 bytes; its bytes fit 63 bits.
    pub fn capacity_sectors(&self) -> u64 {
        self.fields.capacity_sectors
    }

    /// The encoding of the text.
    pub fn encoding(&self) -> &'static Encoding {
        self.fields.encoding
    }

    /// A header entry.
    pub fn header(&self, name: &str) -> Option<String> {
        if is_ddb(name.as_bytes()) {
            return None;
        }
        self.value(name)
    }

    /// An entry of the disk data base; `name` without `ddb.`.
    pub fn ddb(&self, name: &str) -> Option<String> {
        self.value(&[DDB, name].concat())
    }

    /// The header entries in order, with the spelling of the file.
    pub fn headers(&self) -> impl Iterator<Item = (String, String)> {
        self.entries().filter(|(name, _)| !is_ddb(name.as_bytes()))
    }

    /// The entries of the disk data base in order, their names with `ddb.` in the spelling of the file.
    pub fn ddb_entries(&self) -> impl Iterator<Item = (String, String)> {
        self.entries().filter(|(name, _)| is_ddb(name.as_bytes()))
    }

    /// The list of locked keys that ESXi writes beside an encrypted disk.
    ///
    /// # Errors
    /// [`Error::NoUsableLocator`] where it is another locator than a list of pairs.
    pub fn encryption_keys(&self) -> Result<Option<KeyList>, Error> {
        self.header("encryptionKeys").map(|text| KeyList::parse(&text)).transpose()
    }

    /// Whether ESXi encrypted the disk: its data is ciphertext of a form that is not public.
    ///
    /// The `vmwarevmcrypt` filter or a `keyID` tells, or locked keys that no entries of vmseal's own profile go with.
    pub fn is_esxi_encrypted(&self) -> bool {
        let filters = self.ddb("iofilters").unwrap_or_default();
        let is_ours = self.ddb_entries().any(|(name, _)| name.to_ascii_lowercase().starts_with("ddb.vmseal."));
        filters.split(',').any(|filter| filter.trim().eq_ignore_ascii_case("vmwarevmcrypt"))
            || self.header("keyID").is_some()
            || !is_ours && self.header("encryptionKeys").is_some()
    }

    /// The text without padding.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The file: the text, and what followed it.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.text.as_slice(), &self.suffix].concat()
    }

    fn from_text(text: Vec<u8>, suffix: Vec<u8>) -> Result<Self, Error> {
        descriptor_fields::check_signature(&text)?;
        let (mut lines, mut contents) = (Vec::new(), Vec::new());
        for line in lines::split(&text) {
            contents.push(descriptor_line::parse(&text[line.content.clone()], lines.len() + 1)?);
            lines.push(line);
        }
        let fields = Reader { text: &text, lines: &lines, contents: &contents }.fields()?;
        Ok(Self { text, suffix, lines, contents, fields })
    }

    fn set(&mut self, name: &str, value: &str, equals: &str, after: Option<usize>) {
        let value: String =
            value.chars().map(|character| if is_writable(character) { character } else { '_' }).collect();
        let value = self.fields.encoding.encode(&value).0;
        let text = if let Some((index, range, quoted)) = self.reader().find(name) {
            let start = self.lines[index].content.start;
            let quote: &[u8] = if quoted || is_plain(&value) { b"" } else { b"\"" };
            lines::replace(&self.text, start + range.start..start + range.end, &[quote, &value, quote].concat())
        } else {
            let mut line: Vec<u8> =
                name.bytes().map(|byte| if descriptor_line::is_name_byte(byte) { byte } else { b'_' }).collect();
            if line.is_empty() || line[0] == b'#' {
                line.insert(0, b'_');
            }
            line.extend_from_slice(&[equals.as_bytes(), b"\"", &value, b"\""].concat());
            lines::insert_after(&self.text, after.map(|index| &self.lines[index]), &line)
        };
        self.adopt(text.to_vec());
    }

    fn remove(&mut self, name: &str) {
        while let Some((index, ..)) = self.reader().find(name) {
            if !self.adopt(lines::remove(&self.text, &self.lines, index).to_vec()) {
                break;
            }
        }
    }

    /// Takes a text that was edited, unless it is no descriptor any more.
    fn adopt(&mut self, text: Vec<u8>) -> bool {
        match Self::from_text(text, self.suffix.clone()) {
            Ok(new) => {
                *self = new;
                true
            }
            Err(_) => false,
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader { text: &self.text, lines: &self.lines, contents: &self.contents }
    }

    fn name_at(&self, index: usize) -> Option<&[u8]> {
        match &self.contents[index] {
            Content::Entry { name, .. } => Some(&self.text[self.lines[index].content.clone()][name.clone()]),
            _ => None,
        }
    }

    fn value(&self, name: &str) -> Option<String> {
        let (index, range, _) = self.reader().find(name)?;
        let bytes = &self.text[self.lines[index].content.clone()][range];
        Some(self.fields.encoding.decode_without_bom_handling(bytes).0.into_owned())
    }

    fn entries(&self) -> impl Iterator<Item = (String, String)> {
        let decode = |bytes: &[u8]| self.fields.encoding.decode_without_bom_handling(bytes).0.into_owned();
        self.lines.iter().zip(&self.contents).filter_map(move |(line, content)| match content {
            Content::Entry { name, value, .. } => {
                let line = &self.text[line.content.clone()];
                Some((decode(&line[name.clone()]), decode(&line[value.clone()])))
            }
            _ => None,
        })
    }
}

/// Prints the text, which holds locked keys only.
impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({:?})", String::from_utf8_lossy(&self.text))
    }
}

fn is_ddb(name: &[u8]) -> bool {
    name.get(..DDB.len()).is_some_and(|start| start.eq_ignore_ascii_case(DDB.as_bytes()))
}

fn is_writable(character: char) -> bool {
    character != '"' && !character.is_control()
}

/// Whether a value can be written without quotes.
fn is_plain(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What parses is written as it was, and an entry that is added and removed leaves nothing.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let Ok(descriptor) = Descriptor::parse(data) else { return };
    assert_eq!(descriptor.to_bytes(), data);
    let _ = (descriptor.encryption_keys(), descriptor.headers().count(), descriptor.ddb_entries().count());
    let mut edited = descriptor.clone();
    edited.remove_header("vmseal.fuzz");
    edited.remove_ddb("vmseal.fuzz");
    let before = edited.text().to_vec();
    edited.set_header("vmseal.fuzz", "value");
    edited.set_ddb("vmseal.fuzz", "value");
    assert_eq!(edited.header("vmseal.fuzz").as_deref(), Some("value"));
    assert_eq!(edited.ddb("vmseal.fuzz").as_deref(), Some("value"));
    edited.remove_header("vmseal.fuzz");
    edited.remove_ddb("vmseal.fuzz");
    assert_eq!(edited.text(), before);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: &str = "# Disk DescriptorFile\nversion=1\nCID=0000000c\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\
        # Extent description\nRW 64 VMFS \"x-flat.vmdk\"\n\n#DDB\n";

    #[test]
    fn entries_are_added_where_tools_expect_them() {
        let mut descriptor = Descriptor::parse(SMALL.as_bytes()).unwrap();
        descriptor.set_header("encryptionKeys", "vmware:key/list/()");
        descriptor.set_ddb("iofilters", "vmwarevmcrypt");
        descriptor.set_ddb("uuid", "1");
        let text = String::from_utf8(descriptor.to_bytes()).unwrap();
        assert!(text.contains("createType=\"vmfs\"\nencryptionKeys=\"vmware:key/list/()\"\n\n# Extent"), "{text}");
        assert!(text.ends_with("#DDB\nddb.iofilters = \"vmwarevmcrypt\"\nddb.uuid = \"1\"\n"), "{text}");
        descriptor.set_header("cid", "12345678");
        assert_eq!((descriptor.cid(), descriptor.ddb("IOFilters").as_deref()), (0x1234_5678, Some("vmwarevmcrypt")));
        descriptor.set_header("CID", "no number");
        descriptor.remove_header("version");
        assert_eq!((descriptor.cid(), descriptor.version()), (0x1234_5678, 1));
        assert!(String::from_utf8(descriptor.to_bytes()).unwrap().contains("\nCID=12345678\n"));
    }

    #[test]
    fn what_follows_the_text_stays() {
        let padded = [SMALL.as_bytes(), &[0; 300], b"rest"].concat();
        let mut descriptor = Descriptor::parse(&padded).unwrap();
        assert_eq!(descriptor.to_bytes(), padded);
        descriptor.set_ddb("a", &"b".repeat(1000));
        assert_eq!(descriptor.to_bytes(), [descriptor.text(), &[0; 300], b"rest"].concat());
        descriptor.remove_ddb("a");
        assert_eq!(descriptor.to_bytes(), padded);
    }

    #[test]
    fn a_value_cannot_break_out_of_its_line() {
        let mut descriptor = Descriptor::parse(SMALL.as_bytes()).unwrap();
        descriptor.set_ddb("comment", "a\"\nRW 1 ZERO");
        assert_eq!(descriptor.ddb("comment").as_deref(), Some("a__RW 1 ZERO"));
        assert_eq!(descriptor.capacity_sectors(), 64);
    }

    /// Lines in any order around those that have to be there, with any endings.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("# Extent description".to_owned()),
            Just("RW 8 ZERO".to_owned()),
            Just("\tddb.x=\"1\"".to_owned()),
            Just("Future = kept".to_owned()),
            // No word of these letters is an access, which would make the line an extent.
            "[a-m ]{0,6}",
        ];
        let needed = ["version=1", "CID=1", "parentCID = ffffffff", "createType=\"custom\"", "NOACCESS 8 ZERO"];
        let ending = || prop_oneof![Just("\n"), Just("\r\n")];
        let parts =
            (proptest::collection::vec((line, ending()), 0..8), ending(), any::<bool>(), any::<bool>(), 0..3_usize);
        parts.prop_flat_map(move |(mut lines, ending, is_cut, has_carriage, padding)| {
            lines.extend(needed.map(|line| (line.to_owned(), ending)));
            Just(lines).prop_shuffle().prop_map(move |lines| {
                let mut text = format!("# Disk DescriptorFile{ending}");
                for (line, ending) in lines {
                    text.extend([&line, ending]);
                }
                if is_cut {
                    text.pop();
                }
                if has_carriage {
                    text.push('\r');
                }
                [text.as_bytes(), &vec![0; padding * 100]].concat()
            })
        })
    }

    proptest! {
        #[test]
        fn an_edit_touches_only_its_line(text in texts(), value in "[ -~]{0,20}", is_ddb: bool) {
            let descriptor = Descriptor::parse(&text).unwrap();
            let name = if is_ddb { "ddb.x" } else { "future" };
            let Some((line, ..)) = descriptor.reader().find(name) else { return Ok(()) };
            let mut edited = descriptor.clone();
            if is_ddb { edited.set_ddb("X", &value) } else { edited.set_header("FUTURE", &value) }
            prop_assert_eq!(edited.value(name), Some(value.replace('"', "_")));
            let (old, new) = (descriptor.lines[line].content.clone(), edited.lines[line].content.clone());
            prop_assert_eq!(&edited.text[..new.start], &descriptor.text[..old.start]);
            prop_assert_eq!(&edited.text[new.end..], &descriptor.text[old.end..]);
        }

        #[test]
        fn set_then_remove_restores_every_byte(text in texts(), value in "\\PC{0,20}") {
            let mut descriptor = Descriptor::parse(&text).unwrap();
            prop_assert_eq!(&descriptor.to_bytes(), &text);
            descriptor.set_header("encryption.x", &value);
            descriptor.set_ddb("vmseal.x", &value);
            descriptor.set_ddb("vmseal.y", &value);
            let value = value.replace('"', "_");
            prop_assert_eq!(descriptor.header("Encryption.X"), Some(value.clone()));
            prop_assert_eq!(descriptor.ddb("VMSEAL.x"), Some(value));
            let again = Descriptor::parse(&descriptor.to_bytes()).unwrap();
            prop_assert_eq!(again.text(), descriptor.text());
            descriptor.remove_ddb("vmseal.y");
            descriptor.remove_header("encryption.x");
            descriptor.remove_ddb("vmseal.x");
            prop_assert_eq!(&descriptor.to_bytes(), &text);
        }
    }
}

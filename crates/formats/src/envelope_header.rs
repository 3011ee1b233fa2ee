//! The header of an envelope: what it says without a key.

use bytes::Buf;

use crate::error::{Error, Kind, Place};

/// The blocks that envelopes are made of.
pub(crate) const BLOCK_LEN: usize = 4096;
/// The first bytes of the header, and zeros up to the fields behind them.
pub(crate) const MAGIC: &[u8] = b"DataTransformEnvelope";
/// The only version.
pub(crate) const VERSION: u32 = 2;
/// The only cipher.
pub(crate) const CIPHER: &str = "AES-256-GCM";

pub(crate) const IV: &str = "vmware.iv";
pub(crate) const KEY_INFO: &str = "vmware.keyInfo";
pub(crate) const CIPHER_NAME: &str = "vmware.cipherName";
pub(crate) const KEY_HASH: &str = "vmware.keyHash";

// Layout: each field begins where the one before it ends.
pub(crate) const MAGIC_LEN: usize = 504;
pub(crate) const LEN_OFFSET: usize = MAGIC_LEN;
pub(crate) const VERSION_OFFSET: usize = LEN_OFFSET + 4;
pub(crate) const ATTRIBUTES_OFFSET: usize = VERSION_OFFSET + 4;

/// The longest header that is taken; the one that is written has 4096 bytes.
const LEN_MAX: u64 = 1 << 20;
/// The most attributes that are taken.
const ATTRIBUTES_MAX: usize = 1024;

/// A value in the header.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum AttributeValue {
    /// Types 1 to 4.
    Unsigned(u64),
    /// Types 5 to 8.
    Signed(i64),
    /// Types 9 and 10.
    Float(f64),
    /// Type 11: bytes, by custom UTF-8.
    Text(Vec<u8>),
    /// Type 12.
    Bytes(Vec<u8>),
}

/// A named value in the header.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// A byte of unknown meaning, 0 in every file known.
    pub flag: u8,
    /// Its value.
    pub value: AttributeValue,
}

/// What the header of an envelope says. Nothing of it is authenticated before the envelope has been opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    attributes: Vec<Attribute>,
    key_info: String,
    key_hash: [u8; 32],
    iv: [u8; 12],
    raw: Vec<u8>,
    slack_offset: usize,
}

impl Header {
    /// How many bytes the header has, from its first 512.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::BadMagic`], [`Error::UnsupportedVersion`], [`Error::Length`].
    pub fn len_of(start: &[u8]) -> Result<usize, Error> {
        let known = start.len().min(MAGIC.len());
        if start[..known] != MAGIC[..known] {
            return Err(Error::BadMagic { format: "envelope", place: Place::Byte(0) });
        }
        let Some((head, _)) = start.split_first_chunk::<ATTRIBUTES_OFFSET>() else {
            return Err(truncated(start, ATTRIBUTES_OFFSET));
        };
        if head[MAGIC.len()..MAGIC_LEN].iter().any(|&byte| byte != 0) {
            return Err(Error::BadMagic { format: "envelope", place: Place::Byte(MAGIC.len() as u64) });
        }
        let mut fields = &head[LEN_OFFSET..];
        let len = u64::from(fields.get_u32_le()) + ATTRIBUTES_OFFSET as u64;
        let version = fields.get_u32_le();
        if version != VERSION {
            return Err(Error::UnsupportedVersion { format: "the envelope", version: version.to_string() });
        }
        if !len.is_multiple_of(BLOCK_LEN as u64) || len > LEN_MAX {
            let wanted = "needs a multiple of 4096, at most 1 MiB";
            return Err(Error::Length { what: "the header of an envelope", found: len, wanted });
        }
        Ok(len as usize)
    }

    /// Reads the header; `bytes` may go on behind it.
    ///
    /// # Errors
    /// As [`len_of`](Self::len_of); [`Error::Unknown`] for an attribute's type and for the cipher, [`Error::Missing`],
    /// [`Error::Length`], [`Error::Syntax`], [`Error::Encoding`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let len = Self::len_of(bytes)?;
        let raw = bytes.get(..len).ok_or_else(|| truncated(bytes, len))?;
        let mut reader = Reader { bytes: raw, at: ATTRIBUTES_OFFSET };
        let mut attributes = Vec::new();
        while let Some(attribute) = reader.attribute()? {
            if attributes.len() == ATTRIBUTES_MAX {
                let found = "more".to_owned();
                return Err(Error::Limit { what: "attributes of an envelope", found, max: ATTRIBUTES_MAX as u64 });
            }
            attributes.push(attribute);
        }
        let slack_offset = reader.at;
        let cipher = text(&attributes, CIPHER_NAME)?;
        if cipher != CIPHER {
            let place = Place::Byte(ATTRIBUTES_OFFSET as u64);
            return Err(Error::Unknown { kind: Kind::Cipher, name: cipher, place });
        }
        let key_info = text(&attributes, KEY_INFO)?;
        let key_hash = fixed(&attributes, KEY_HASH, "the key hash of an envelope", "needs 32")?;
        let iv = fixed(&attributes, IV, "the IV of an envelope", "needs 12")?;
        Ok(Self { attributes, key_info, key_hash, iv, raw: raw.to_vec(), slack_offset })
    }

    /// Every attribute, in order.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The name of the cipher.
    pub fn cipher(&self) -> &'static str {
        CIPHER
    }

    /// Identifies the key.
    pub fn key_info(&self) -> &str {
        &self.key_info
    }

    /// SHA-256 of the cipher's name and the key: tells a wrong key, to anyone.
    pub fn key_hash(&self) -> &[u8; 32] {
        &self.key_hash
    }

    /// The IV.
    pub fn iv(&self) -> &[u8; 12] {
        &self.iv
    }

    /// The header as it is in the file: the first part of what the tag covers.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Whether bytes behind the attributes are not zero, and where the first is.
    pub(crate) fn slack(&self) -> Option<usize> {
        self.raw[self.slack_offset..].iter().position(|&byte| byte != 0).map(|index| self.slack_offset + index)
    }
}

fn truncated(bytes: &[u8], wanted: usize) -> Error {
    Error::Truncated { format: "envelope", len_bytes: bytes.len() as u64, wanted_bytes: wanted as u64 }
}

fn find<'a>(attributes: &'a [Attribute], name: &'static str) -> Result<&'a AttributeValue, Error> {
    let attribute = attributes.iter().find(|attribute| attribute.name == name);
    attribute.map(|attribute| &attribute.value).ok_or(Error::Missing { name, part: "header of an envelope" })
}

fn text(attributes: &[Attribute], name: &'static str) -> Result<String, Error> {
    match find(attributes, name)? {
        AttributeValue::Text(bytes) => String::from_utf8(bytes.clone()).map_err(|_| Error::Encoding {
            name: name.to_owned(),
            encoding: "UTF-8",
            place: Place::Byte(ATTRIBUTES_OFFSET as u64),
        }),
        _ => Err(Error::Missing { name, part: "header of an envelope, as text" }),
    }
}

fn fixed<const N: usize>(
    attributes: &[Attribute],
    name: &'static str,
    what: &'static str,
    wanted: &'static str,
) -> Result<[u8; N], Error> {
    match find(attributes, name)? {
        AttributeValue::Bytes(bytes) => {
            bytes.as_slice().try_into().map_err(|_| Error::Length { what, found: bytes.len() as u64, wanted })
        }
        _ => Err(Error::Missing { name, part: "header of an envelope, as bytes" }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next attribute; none at the zero that ends them, or at the end of the header.
    fn attribute(&mut self) -> Result<Option<Attribute>, Error> {
        let type_offset = self.at;
        let kind = match self.bytes.get(self.at) {
            None | Some(0) => return Ok(None),
            Some(&kind) => kind,
        };
        let [_, flag, reserved @ ..] = self.take::<4>()?;
        if reserved != [0; 2] {
            let what = "the two bytes before the name of an attribute are not zero";
            return Err(Error::Corrupt { what, place: Place::Byte(type_offset as u64 + 2) });
        }
        let name = String::from_utf8(self.text()?).map_err(|_| Error::Encoding {
            name: "the name of an attribute".to_owned(),
            encoding: "UTF-8",
            place: Place::Byte(type_offset as u64 + 4),
        })?;
        let value = match kind {
            1 => AttributeValue::Unsigned(u8::from_le_bytes(self.take()?).into()),
            2 => AttributeValue::Unsigned(u16::from_le_bytes(self.take()?).into()),
            3 => AttributeValue::Unsigned(u32::from_le_bytes(self.take()?).into()),
            4 => AttributeValue::Unsigned(u64::from_le_bytes(self.take()?)),
            5 => AttributeValue::Signed(i8::from_le_bytes(self.take()?).into()),
            6 => AttributeValue::Signed(i16::from_le_bytes(self.take()?).into()),
            7 => AttributeValue::Signed(i32::from_le_bytes(self.take()?).into()),
            8 => AttributeValue::Signed(i64::from_le_bytes(self.take()?)),
            9 => AttributeValue::Float(f32::from_le_bytes(self.take()?).into()),
            10 => AttributeValue::Float(f64::from_le_bytes(self.take()?)),
            11 => AttributeValue::Text(self.text()?),
            12 => AttributeValue::Bytes(self.bytes()?),
            other => {
                let place = Place::Byte(type_offset as u64);
                return Err(Error::Unknown { kind: Kind::AttributeType, name: other.to_string(), place });
            }
        };
        Ok(Some(Attribute { name, flag, value }))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let Some(bytes) = self.bytes[self.at..].first_chunk() else {
            return Err(truncated(self.bytes, self.at + N));
        };
        self.at += N;
        Ok(*bytes)
    }

    /// Text up to the NUL that ends it.
    fn text(&mut self) -> Result<Vec<u8>, Error> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == 0) else {
            let what = "the text that begins here does not end inside the header; use a copy";
            return Err(Error::Syntax { what, place: Place::Byte(self.at as u64) });
        };
        self.at += len + 1;
        Ok(rest[..len].to_vec())
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        let len = u64::from_le_bytes(self.take()?);
        let rest = &self.bytes[self.at..];
        let Some(bytes) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            let wanted = "the header ends before";
            return Err(Error::Length { what: "an attribute of an envelope", found: len, wanted });
        };
        self.at += bytes.len();
        Ok(bytes.to_vec())
    }
}

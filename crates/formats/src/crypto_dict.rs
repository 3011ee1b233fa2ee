//! Crypto dicts: `key=value:key=value`, the text of keys and of key derivation parameters.

use core::fmt::Write;

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use crate::error::{Error, Place};

/// A crypto dict: names and values in order. A value may be a key: it is wiped when it goes.
#[derive(Clone, Default)]
pub(crate) struct CryptoDict {
    fields: Vec<(String, Zeroizing<String>)>,
    part: &'static str,
}

impl CryptoDict {
    /// Reads a dict; `part` names it in errors.
    pub(crate) fn parse(text: &str, part: &'static str) -> Result<Self, Error> {
        let mut fields = Vec::new();
        let mut offset = 0;
        for field in text.split(':') {
            let Some((name, value)) = field.split_once('=') else {
                let what = "`name=value` expected; the text was cut or changed";
                return Err(Error::Syntax { what, place: Place::Byte(offset as u64) });
            };
            let value_offset = offset + name.len() + 1;
            let value = Zeroizing::new(unescape(value, value_offset)?);
            let value = String::from_utf8(value.to_vec()).map(Zeroizing::new).map_err(|error| {
                drop(Zeroizing::new(error.into_bytes()));
                let place = Place::Byte(value_offset as u64);
                Error::Encoding { name: name.to_owned(), encoding: "UTF-8", place }
            })?;
            fields.push((name.to_owned(), value));
            offset += field.len() + 1;
        }
        Ok(Self { fields, part })
    }

    /// A field that has to be there.
    pub(crate) fn field(&self, name: &'static str) -> Result<&str, Error> {
        let field = self.fields.iter().find(|(found, _)| found == name);
        field.map(|(_, value)| value.as_str()).ok_or(Error::Missing { name, part: self.part })
    }

    /// A field of bytes in base64.
    pub(crate) fn bytes(&self, name: &'static str) -> Result<Zeroizing<Vec<u8>>, Error> {
        decode_base64(self.field(name)?, name, Place::Byte(0))
    }
}

/// Bytes from base64, strictly: whole groups, no blanks, no stray bits.
pub(crate) fn decode_base64(text: &str, what: &'static str, place: Place) -> Result<Zeroizing<Vec<u8>>, Error> {
    Base64::decode_vec(text).map(Zeroizing::new).map_err(|_| Error::Base64 { what, place })
}

/// A value as VMware writes it: `=`, `:` and `%` escaped, nothing else.
pub(crate) fn escape_value(value: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(value.len() + 8));
    for character in value.chars() {
        match character {
            '=' => text.push_str("%3d"),
            ':' => text.push_str("%3a"),
            '%' => text.push_str("%25"),
            other => text.push(other),
        }
    }
    text
}

/// `%` and two hexadecimal digits is one byte, every other byte is itself.
pub(crate) fn unescape(text: &str, offset: usize) -> Result<Vec<u8>, Error> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        if byte == b'%' {
            let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
            let (Some(high), Some(low)) = (digit(index + 1), digit(index + 2)) else {
                return Err(Error::Escape { place: Place::Byte((offset + index) as u64) });
            };
            plain.push((high << 4 | low) as u8);
            index += 3;
        } else {
            plain.push(byte);
            index += 1;
        }
    }
    Ok(plain)
}

/// Every byte but letters and digits becomes `%` and two lower-case hexadecimal digits.
pub(crate) fn escape_element(bytes: &[u8], out: &mut impl Write) -> core::fmt::Result {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() {
            out.write_char(char::from(byte))?;
        } else {
            write!(out, "%{byte:02x}")?;
        }
    }
    Ok(())
}

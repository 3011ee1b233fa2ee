//! Keys of 32 bytes in files: as they are, in hexadecimal, or in base64.

use std::io::Read;
use std::path::Path;

use base64ct::{Base64, Encoding};
use vmseal::{FileKey, Kek};
use zeroize::Zeroizing;

use crate::lock::is_dash;
use crate::status::{Failure, Status};

const KEY_LEN: usize = 32;
/// 64 hexadecimal digits and the end of a line.
const LEN_MAX: usize = 2 * KEY_LEN + 2;

/// Reads a KEK.
pub(crate) fn read(file: &Path) -> Result<Kek, Failure> {
    Kek::from_bytes(&*bytes(file)?).map_err(|_| wrong(file))
}

/// Reads the key of an envelope.
pub(crate) fn read_file_key(file: &Path) -> Result<FileKey, Failure> {
    FileKey::from_bytes(&*bytes(file)?).map_err(|_| wrong(file))
}

fn bytes(file: &Path) -> Result<Zeroizing<[u8; KEY_LEN]>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Status::Key, format!("{}: the key cannot be read: {error}", file.display()))
    };
    let mut text = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    match is_dash(file) {
        true => std::io::stdin().lock().take(LEN_MAX as u64 + 1).read_to_end(&mut text),
        false => std::fs::File::open(file).and_then(|file| file.take(LEN_MAX as u64 + 1).read_to_end(&mut text)),
    }
    .map_err(failed)?;
    parse(&text).ok_or_else(|| wrong(file))
}

fn parse(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let digits = text.trim_ascii();
    if text.len() == KEY_LEN {
        key.copy_from_slice(text);
    } else if digits.len() == 2 * KEY_LEN {
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let pair =
                core::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
    } else if Base64::decode(digits, key.as_mut_slice()).ok()?.len() != KEY_LEN {
        return None;
    }
    Some(key)
}

fn wrong(file: &Path) -> Failure {
    let what = "a key is 32 bytes, as they are, as 64 hexadecimal digits, or in base64";
    Failure::new(Status::Key, format!("{}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_has_three_forms() {
        let key: Vec<u8> = (1..=32).collect();
        let hex: String = key.iter().map(|byte| format!("{byte:02X}")).collect();
        let base64 = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n";
        for text in [key.as_slice(), hex.as_bytes(), format!("{hex}\r\n").as_bytes(), base64.as_bytes()] {
            assert_eq!(super::parse(text).unwrap().as_slice(), key);
        }
        for text in [&key[1..], &hex.as_bytes()[2..], b"", b"AQID", hex.replace('0', "g").as_bytes()] {
            assert!(super::parse(text).is_none());
        }
    }
}

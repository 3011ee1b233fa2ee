//! Which entries of a VMX are hidden, and which stay in the clear.

use std::collections::BTreeSet;

use encoding_rs::Encoding;
use zeroize::Zeroizing;

use crate::dictionary::Dictionary;
use crate::dictionary_line;
use crate::error::{Error, Place};

/// What a fully encrypted VMX shows besides its locks: inventories read these without a key.
const ALWAYS_CLEAR: [&str; 5] =
    [".encoding", "displayName", "guestOS.detailed.data", "guestInfo.detailed.data", "encryptedVM.guid"];

pub(crate) fn is_always_clear(name: &[u8]) -> bool {
    ALWAYS_CLEAR.iter().any(|clear| name.eq_ignore_ascii_case(clear.as_bytes()))
}

/// Takes a VMX apart: in the clear, hidden. Hidden are the entries with these names, or all but [`ALWAYS_CLEAR`].
pub(crate) fn split(vmx: &Dictionary, names: Option<&[&str]>) -> Result<(Dictionary, Dictionary), Error> {
    let encoding = vmx.encoding()?;
    let is_hidden = |name: Option<&[u8]>| match (name, names) {
        (Some(name), Some(names)) => names.iter().any(|hidden| name.eq_ignore_ascii_case(hidden.as_bytes())),
        (Some(name), None) => !is_always_clear(name),
        // Comments may tell what the entries beside them do.
        (None, names) => names.is_none(),
    };
    let mut text = Zeroizing::new(Vec::with_capacity(2 * vmx.to_bytes().len()));
    for (line, name) in vmx.lines().filter(|(_, name)| is_hidden(*name)) {
        match name {
            _ if encoding == encoding_rs::UTF_8 => text.extend_from_slice(line),
            // The hidden entries are UTF-8, whatever the file is.
            Some(name) => text.extend_from_slice(&recoded(line, name, encoding, encoding_rs::UTF_8)?),
            None => text.extend_from_slice(encoding.decode_without_bom_handling(line).0.as_bytes()),
        }
        text.push(b'\n');
    }
    let mut outer = vmx.clone();
    outer.retain_lines(|name| !is_hidden(name));
    Ok((outer, Dictionary::from_text(text)))
}

/// Puts the hidden entries back, behind those in the clear.
pub(crate) fn join(mut vmx: Dictionary, hidden: &Dictionary) -> Result<Dictionary, Error> {
    let encoding = vmx.encoding()?;
    let clear: BTreeSet<Vec<u8>> = vmx.entries().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let mut added = Vec::new();
    for (line, name) in hidden.lines() {
        let Some(name) = name else {
            added.push(Zeroizing::new(line.to_vec()));
            continue;
        };
        let line = match encoding == encoding_rs::UTF_8 {
            true => Zeroizing::new(line.to_vec()),
            false => recoded(line, name, encoding_rs::UTF_8, encoding)?,
        };
        if clear.contains(&name.to_ascii_lowercase()) {
            let name = String::from_utf8_lossy(name).into_owned();
            vmx.set(&name, &Dictionary::parse(&line).value(&name).unwrap_or_default());
        } else {
            added.push(line);
        }
    }
    vmx.push_lines(added.iter().map(|line| line.as_slice()));
    Ok(vmx)
}

/// The line of an entry with its value in another encoding; escapes are of bytes, so that they are undone first.
fn recoded(
    line: &[u8],
    name: &[u8],
    from: &'static Encoding,
    to: &'static Encoding,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let error = |encoding: &'static Encoding| Error::Encoding {
        name: String::from_utf8_lossy(name).into_owned(),
        encoding: encoding.name(),
        place: Place::Byte(0),
    };
    let value = Dictionary::parse(line).value(&String::from_utf8_lossy(name)).unwrap_or_default();
    let text = from.decode_without_bom_handling_and_without_replacement(&value).ok_or_else(|| error(from))?;
    let text = Zeroizing::new(text.into_owned());
    let (bytes, _, has_unmappable) = to.encode(&text);
    if has_unmappable {
        return Err(error(to));
    }
    let value = dictionary_line::escape(&Zeroizing::new(bytes.into_owned()));
    Ok(Zeroizing::new([name, b" = \"", value.as_slice(), b"\""].concat()))
}

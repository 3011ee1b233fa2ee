//! Which entries of a VMX are hidden, and which stay in the clear.

use zeroize::Zeroizing;

use crate::dictionary::Dictionary;
use crate::error::Error;

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
    let mut outer = vmx.clone();
    let mut text = Zeroizing::new(Vec::with_capacity(2 * vmx.to_bytes().len()));
    let mut recoded = Dictionary::new();
    for (line, name) in vmx.lines() {
        if !is_hidden(name) {
            continue;
        }
        if encoding == encoding_rs::UTF_8 {
            text.extend_from_slice(line);
            text.push(b'\n');
        } else if let Some(name) = name {
            // The hidden entries are UTF-8, whatever the file is.
            let name = String::from_utf8_lossy(name);
            recoded.set(&name, vmx.text(&name)?.unwrap_or_default().as_bytes());
        } else {
            recoded.push_line(encoding.decode_without_bom_handling(line).0.as_bytes());
        }
    }
    outer.retain_lines(|name| !is_hidden(name));
    let hidden = if encoding == encoding_rs::UTF_8 { Dictionary::from_text(text) } else { recoded };
    Ok((outer, hidden))
}

/// Puts the hidden entries back, behind those in the clear.
pub(crate) fn join(mut vmx: Dictionary, hidden: &Dictionary) -> Result<Dictionary, Error> {
    let is_utf8 = vmx.encoding()? == encoding_rs::UTF_8;
    for (line, name) in hidden.lines() {
        match name.map(String::from_utf8_lossy) {
            Some(name) if !is_utf8 => vmx.set_text(&name, &hidden.text(&name)?.unwrap_or_default())?,
            Some(name) if vmx.line(&name).is_some() => vmx.set(&name, &hidden.value(&name).unwrap_or_default()),
            _ => vmx.push_line(line),
        }
    }
    Ok(vmx)
}

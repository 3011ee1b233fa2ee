//! One line of a dictionary file, and the escapes of its value (`docs/formats/dictionary.md`).

use core::ops::Range;

use zeroize::Zeroizing;

/// What a line holds, as ranges into it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// Nothing, or a comment.
    Blank,
    /// `name = value`, the value without its quotes.
    Entry { name: Range<usize>, value: Range<usize>, quoted: bool },
    /// Neither of these.
    Malformed,
}

/// Reads a line without its ending.
pub(crate) fn parse(line: &[u8]) -> Content {
    let name_start = skip_blanks(line, 0);
    if matches!(line.get(name_start), None | Some(b'#')) {
        return if line.contains(&0) { Content::Malformed } else { Content::Blank };
    }
    let name_end = take(line, name_start, |byte| !matches!(byte, 0 | b' ' | b'\t' | b'#' | b'='));
    let equals = skip_blanks(line, name_end);
    if name_end == name_start || line.get(equals) != Some(&b'=') {
        return Content::Malformed;
    }
    let start = skip_blanks(line, equals + 1);
    let (value, quoted, end) = if line.get(start) == Some(&b'"') {
        let end = take(line, start + 1, |byte| !matches!(byte, 0 | b'"'));
        if line.get(end) != Some(&b'"') {
            return Content::Malformed;
        }
        (start + 1..end, true, end + 1)
    } else {
        let end = take(line, start, |byte| !matches!(byte, 0 | b' ' | b'\t' | b'#'));
        (start..end, false, end)
    };
    let rest = skip_blanks(line, end);
    match line.get(rest) {
        None => Content::Entry { name: name_start..name_end, value, quoted },
        Some(b'#') if !line[rest..].contains(&0) => Content::Entry { name: name_start..name_end, value, quoted },
        Some(_) => Content::Malformed,
    }
}

/// Whether `name` can be the name of an entry.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| is_name_byte(byte))
}

/// Whether a byte can stand in a name that is written; a CR could be taken for a part of the line's ending.
pub(crate) fn is_name_byte(byte: u8) -> bool {
    !matches!(byte, 0 | b' ' | b'\t' | b'#' | b'=' | b'\r' | b'\n')
}

/// Whether a value can be written without quotes, and no reader sees it otherwise.
pub(crate) fn is_plain(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/+".contains(byte))
}

/// The bytes of a value: `|` and two hexadecimal digits is one byte, any other `|` is itself.
///
/// From left to right without overlap, as the products read it: a bar that turns out not to begin an escape takes the
/// bytes that were looked at with it.
pub(crate) fn unescape(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(value.len()));
    let mut rest = value;
    while let Some(bar) = rest.iter().position(|&byte| byte == b'|') {
        bytes.extend_from_slice(&rest[..bar]);
        rest = &rest[bar..];
        let digits = rest.get(1).and_then(|&high| hex(high)).zip(rest.get(2).and_then(|&low| hex(low)));
        let used = match (digits, rest.get(1).copied().and_then(hex)) {
            (Some((high, low)), _) => {
                bytes.push(high << 4 | low);
                rest = &rest[3..];
                continue;
            }
            (None, Some(_)) => 3,
            (None, None) => 2,
        };
        let used = used.min(rest.len());
        bytes.extend_from_slice(&rest[..used]);
        rest = &rest[used..];
    }
    bytes.extend_from_slice(rest);
    bytes
}

/// The text of a value between quotes.
pub(crate) fn escape(value: &[u8]) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let is_escaped = |byte: u8| matches!(byte, 0x00..=0x08 | 0x0a..=0x1f | b'"' | b'|' | 0x7f);
    let escape_count = value.iter().filter(|&&byte| is_escaped(byte)).count();
    let mut text = Zeroizing::new(Vec::with_capacity(value.len() + 2 * escape_count));
    for &byte in value {
        if is_escaped(byte) {
            text.extend_from_slice(&[b'|', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            text.push(byte);
        }
    }
    text
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn take(line: &[u8], start: usize, mut wanted: impl FnMut(u8) -> bool) -> usize {
    line[start..].iter().position(|&byte| !wanted(byte)).map_or(line.len(), |len| start + len)
}

fn skip_blanks(line: &[u8], start: usize) -> usize {
    take(line, start, |byte| matches!(byte, b' ' | b'\t'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_the_products_read_them() {
        let entry = |line: &'static str| match parse(line.as_bytes()) {
            Content::Entry { name, value, .. } => (&line[name], &line[value]),
            other => panic!("{line}: {other:?}"),
        };
        for (line, name, value) in [
            ("a = \"b\"", "a", "b"),
            ("\t .a.b\t=\t\"# = |22\"  # comment \"", ".a.b", "# = |22"),
            ("a=b#c", "a", "b"),
            ("a =", "a", ""),
            ("a = # c", "a", ""),
            ("a = b\"c\"", "a", "b\"c\""),
            ("a=\"\"", "a", ""),
            ("a = b=c", "a", "b=c"),
        ] {
            assert_eq!(entry(line), (name, value), "{line}");
        }
        for line in ["", "  \t", "# a = b", " #"] {
            assert_eq!(parse(line.as_bytes()), Content::Blank, "{line}");
        }
        for line in [
            "a",
            "= b",
            "a b = c",
            "a = b c",
            "a = \"b",
            "a = \"b\"c",
            "a = \"b\" \"c\"",
            "\0",
            "a = b\0",
            "a = \"\0\"",
        ] {
            assert_eq!(parse(line.as_bytes()), Content::Malformed, "{line:?}");
        }
    }

    #[test]
    fn bars_that_begin_no_escape_are_themselves() {
        for (text, value) in [
            ("|41|7c|7C|22", "A||\""),
            ("||41", "||41"),
            ("|4|41", "|4|41"),
            ("|zz|4", "|zz|4"),
            ("|", "|"),
            ("a|4", "a|4"),
        ] {
            assert_eq!(unescape(text.as_bytes()).as_slice(), value.as_bytes(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives(value: Vec<u8>) {
            let escaped = escape(&value);
            prop_assert_eq!(&*unescape(&escaped), &value);
            let line = [b"name = \"", escaped.as_slice(), b"\""].concat();
            prop_assert_eq!(parse(&line), Content::Entry { name: 0..4, value: 8..line.len() - 1, quoted: true });
        }
    }
}

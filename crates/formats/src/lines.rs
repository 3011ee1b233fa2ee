//! Lines of a text file that is edited in place: nothing but the line in question changes.

use core::ops::Range;

use zeroize::Zeroizing;

/// The mark of UTF-8 at the start of a file (Unicode 16, 23.8).
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

/// One line: its content, and where its ending (LF, CRLF or none) ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Line {
    pub(crate) content: Range<usize>,
    pub(crate) end: usize,
}

impl Line {
    fn has_ending(&self) -> bool {
        self.end > self.content.end
    }
}

/// The lines of a text, without a mark at its start. A last line without an ending is a line; an empty text has none.
pub(crate) fn split(text: &[u8]) -> impl Iterator<Item = Line> {
    let mut start = if text.starts_with(BOM) { BOM.len() } else { 0 };
    core::iter::from_fn(move || {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let (end, content_end) = match rest.iter().position(|&byte| byte == b'\n') {
            Some(0) => (start + 1, start),
            Some(index) if rest[index - 1] == b'\r' => (start + index + 1, start + index - 1),
            Some(index) => (start + index + 1, start + index),
            None => (text.len(), text.len()),
        };
        let line = Line { content: start..content_end, end };
        start = end;
        Some(line)
    })
}

/// The ending of the first line that has one; LF where none has.
pub(crate) fn ending(text: &[u8]) -> &'static [u8] {
    match split(text).next() {
        Some(line) if line.end - line.content.end == 2 => b"\r\n",
        _ => b"\n",
    }
}

/// The text with `range` replaced. A new buffer, so that the old one can be wiped as a whole.
pub(crate) fn replace(text: &[u8], range: Range<usize>, with: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut new = Zeroizing::new(Vec::with_capacity(text.len() - range.len() + with.len()));
    new.extend_from_slice(&text[..range.start]);
    new.extend_from_slice(with);
    new.extend_from_slice(&text[range.end..]);
    new
}

/// The text with a new line after `line`, or at its start.
///
/// Where `line` is the last and has no ending, the new line has none either: [`remove`] then gives back the old text.
pub(crate) fn insert_after(text: &[u8], line: Option<&Line>, content: &[u8]) -> Zeroizing<Vec<u8>> {
    let at = match line {
        Some(line) => line.end,
        None if text.starts_with(BOM) => BOM.len(),
        None => 0,
    };
    let mut new_line = Zeroizing::new(Vec::with_capacity(content.len() + 2));
    if line.is_none_or(Line::has_ending) {
        new_line.extend_from_slice(content);
        new_line.extend_from_slice(ending(text));
    } else {
        // A CR that ends the text is content; an LF behind it would make it part of the ending.
        new_line.extend_from_slice(if text.ends_with(b"\r") { b"\r\n" } else { ending(text) });
        new_line.extend_from_slice(content);
    }
    replace(text, at..at, &new_line)
}

/// The text without a line: its ending goes with it or, where it has none, the ending before it.
pub(crate) fn remove(text: &[u8], lines: &[Line], index: usize) -> Zeroizing<Vec<u8>> {
    let kept: Vec<bool> = (0..lines.len()).map(|at| at != index).collect();
    retain(text, lines, &kept)
}

/// The text without the lines that are not kept. Where the last line has no ending and goes, the one that is last then
/// has none.
pub(crate) fn retain(text: &[u8], lines: &[Line], kept: &[bool]) -> Zeroizing<Vec<u8>> {
    let start = lines.first().map_or(text.len(), |line| line.content.start);
    let mut new = Zeroizing::new(Vec::with_capacity(text.len()));
    new.extend_from_slice(&text[..start]);
    let mut last_ending_len = 0;
    for (line, _) in lines.iter().zip(kept).filter(|(_, is_kept)| **is_kept) {
        new.extend_from_slice(&text[line.content.start..line.end]);
        last_ending_len = line.end - line.content.end;
    }
    let last_goes = kept.last().is_some_and(|is_kept| !is_kept);
    if last_goes && lines.last().is_some_and(|line| !line.has_ending()) {
        let len = new.len() - last_ending_len;
        new.truncate(len);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_keep_their_own_endings() {
        let text = b"\xef\xbb\xbfa\r\n\n\rb\nc\r";
        let found: Vec<_> =
            split(text).map(|line| (&text[line.content.clone()], line.end - line.content.end)).collect();
        assert_eq!(found, [(&b"a"[..], 2), (b"", 1), (b"\rb", 1), (b"c\r", 0)]);
    }

    proptest! {
        #[test]
        fn removing_an_inserted_line_restores_the_text(
            text in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..40),
            at in any::<prop::sample::Index>(),
        ) {
            let lines: Vec<Line> = split(&text).collect();
            let after = at.index(lines.len() + 1).checked_sub(1);
            let new = insert_after(&text, after.map(|index| &lines[index]), b"new");
            let new_lines: Vec<Line> = split(&new).collect();
            let index = after.map_or(0, |index| index + 1);
            prop_assert_eq!(new_lines.len(), lines.len() + 1);
            prop_assert_eq!(&new[new_lines[index].content.clone()], b"new");
            prop_assert_eq!(&*remove(&new, &new_lines, index), &text);
        }
    }
}

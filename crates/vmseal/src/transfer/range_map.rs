//! Which parts of an image are there: a map file as GNU ddrescue writes and reads them.

use core::fmt::Write as _;
use core::ops::Range;

use crate::file_error::FileError;

/// What is known of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeState {
    /// It is in the image (`+`).
    There,
    /// It could not be read (`-`).
    Unreadable,
    /// It is not in the image, since it has not changed (`?`).
    Unchanged,
}

impl RangeState {
    fn character(self) -> char {
        match self {
            Self::There => '+',
            Self::Unreadable => '-',
            Self::Unchanged => '?',
        }
    }
}

/// The ranges of an image, in order and without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeMap {
    ranges: Vec<(Range<u64>, RangeState)>,
}

impl RangeMap {
    /// Adds what follows the last range; ranges of one kind grow together.
    pub(crate) fn push(&mut self, range: Range<u64>, state: RangeState) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some((last, known)) if *known == state && last.end == range.start => last.end = range.end,
            _ => self.ranges.push((range, state)),
        }
    }

    /// The ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<u64>, RangeState)> {
        self.ranges.iter().cloned()
    }

    /// Bytes in ranges of one kind.
    pub fn bytes(&self, state: RangeState) -> u64 {
        self.ranges.iter().filter(|(_, known)| *known == state).map(|(range, _)| range.end - range.start).sum()
    }

    /// The map file: a status line and a line for each range, numbers in hexadecimal (GNU ddrescue manual, "Mapfile structure").
    pub fn to_text(&self) -> String {
        let end = self.ranges.last().map_or(0, |(range, _)| range.end);
        let mut text = format!("# Mapfile. Created by vmseal\n# current_pos  current_status  current_pass\n0x{end:X}  +  1\n# pos  size  status\n");
        for (range, state) in &self.ranges {
            // Writing to a string does not fail.
            let _ = writeln!(text, "0x{:X}  0x{:X}  {}", range.start, range.end - range.start, state.character());
        }
        text
    }

    /// Reads a map file; `name` is what an error calls it. Ranges that ddrescue has not tried, trimmed or scraped count as unreadable
    /// but for `?`.
    ///
    /// # Errors
    /// [`FileError::Refused`] with the line that is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileError> {
        let mut map = Self::default();
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        // The first line that is no comment is about ddrescue's own progress.
        for (index, line) in lines.skip(1) {
            let wrong = |what: &str| FileError::Refused { path: name.to_owned(), what: format!("line {}: {what}", index + 1) };
            let mut fields = line.split_whitespace();
            let mut number = || fields.next().and_then(parse_number);
            let (Some(start), Some(len)) = (number(), number()) else {
                return Err(wrong("a range has a position and a size, such as `0x0  0x100000  +`"));
            };
            let state = match fields.next() {
                Some("+") => RangeState::There,
                Some("?") => RangeState::Unchanged,
                Some("-" | "/" | "*") => RangeState::Unreadable,
                _ => return Err(wrong("the status of a range is one of + ? - / *")),
            };
            let end = start.checked_add(len).ok_or_else(|| wrong("the range ends beyond 2^64"))?;
            if map.ranges.last().map_or(0, |(range, _)| range.end) != start {
                return Err(wrong("the range does not begin where the one before ends"));
            }
            map.push(start..end, state);
        }
        Ok(map)
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_text() {
        let mut map = RangeMap::default();
        for (range, state) in [
            (0..10, RangeState::There),
            (10..20, RangeState::There),
            (20..20, RangeState::Unreadable),
            (20..512, RangeState::Unreadable),
            (512..1 << 40, RangeState::Unchanged),
        ] {
            map.push(range, state);
        }
        assert_eq!(map.ranges().count(), 3);
        assert_eq!(map.bytes(RangeState::There), 20);
        assert_eq!(RangeMap::parse(&map.to_text(), "map").unwrap(), map);
    }

    #[test]
    fn a_map_of_ddrescue_is_read_and_a_wrong_one_is_refused() {
        let text = "# Mapfile. Created by GNU ddrescue version 1.27\n# Command line: ddrescue a b map\n0x00117E00     ?               1\n0x00000000  0x00117000  +\n0x00117000  0x00000200  /\n0x00117200  1024  ?\n";
        let map = RangeMap::parse(text, "map").unwrap();
        assert_eq!(map.bytes(RangeState::Unreadable), 512);
        for (wrong, what) in [
            ("0x0 + 1\n0x0 0x10 x\n", "line 2: the status"),
            ("0x0 + 1\n0x10 0x10 +\n", "line 2: the range does not begin"),
            ("0x0 + 1\n0x0\n", "line 2: a range has"),
            ("0x0 + 1\n0x0 0x10 +\n0x10 0xffffffffffffffff -\n", "line 3: the range ends"),
        ] {
            let error = RangeMap::parse(wrong, "map").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}

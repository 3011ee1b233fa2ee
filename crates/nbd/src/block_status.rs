//! Which parts of a range hold data: the descriptors of `base:allocation` ("Metadata contexts").

use std::io;

use crate::export::Export;

/// `NBD_STATE_HOLE` and `NBD_STATE_ZERO`: takes no room and reads as zeros.
const HOLE: u32 = 3;
const DATA: u32 = 0;
/// A reply may cover less than it was asked for; this many descriptors are told at most.
const DESCRIPTORS_MAX: usize = 1024;
/// And this many ranges of data are looked up for it at most, of which neighbours become one descriptor.
const LOOKUPS_MAX: usize = 16 << 10;

/// The descriptors (length in bytes, flags) of a range that is not empty, in order from its start: at least one, not beyond its end.
pub(crate) fn descriptors(export: &dyn Export, offset: u64, len: u32, only_one: bool) -> io::Result<Vec<[u32; 2]>> {
    let end = offset + u64::from(len);
    let limit = if only_one { 1 } else { DESCRIPTORS_MAX };
    let mut descriptors: Vec<[u32; 2]> = Vec::new();
    let mut at = offset;
    for _ in 0..LOOKUPS_MAX {
        if at >= end || descriptors.len() > limit {
            break;
        }
        let data = match export.next_data(at)? {
            Some(data) if data.end <= at => at..end, // no answer: it may be anything
            Some(data) if data.start < end => data.start.max(at)..data.end.min(end),
            _ => end..end,
        };
        push(&mut descriptors, data.start - at, HOLE);
        push(&mut descriptors, data.end - data.start, DATA);
        at = data.end;
    }
    descriptors.truncate(limit);
    Ok(descriptors)
}

fn push(descriptors: &mut Vec<[u32; 2]>, len: u64, flags: u32) {
    // Within a request, whose length has 32 bits.
    let len = len as u32;
    match descriptors.last_mut() {
        _ if len == 0 => {}
        Some(last) if last[1] == flags => last[0] += len,
        _ => descriptors.push([len, flags]),
    }
}

#[cfg(test)]
mod tests {
    use core::ops::Range;

    use super::*;

    struct Ranges(&'static [Range<u64>]);

    impl Export for Ranges {
        fn size_bytes(&self) -> u64 {
            1 << 40
        }
        fn is_read_only(&self) -> bool {
            true
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn trim(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            Ok(self.0.iter().find(|range| range.end > offset).cloned())
        }
    }

    #[test]
    fn ranges_become_descriptors() {
        let export = Ranges(&[10..20, 20..30, 50..60]);
        let all = |offset, len| descriptors(&export, offset, len, false).unwrap();
        assert_eq!(all(0, 100), [[10, HOLE], [20, DATA], [20, HOLE], [10, DATA], [40, HOLE]]);
        assert_eq!(all(15, 3), [[3, DATA]]);
        assert_eq!(all(15, 15), [[15, DATA]]);
        assert_eq!(all(25, 26), [[5, DATA], [20, HOLE], [1, DATA]]);
        assert_eq!(all(60, u32::MAX), [[u32::MAX, HOLE]]);
        assert_eq!(descriptors(&export, 12, 80, true).unwrap(), [[18, DATA]]);
        assert_eq!(descriptors(&export, 0, 80, true).unwrap(), [[10, HOLE]]);
        assert_eq!(descriptors(&Ranges(&[]), 7, 9, false).unwrap(), [[9, HOLE]]);
        assert_eq!(descriptors(&Ranges(&[0..9, 9..1 << 40]), 0, u32::MAX, false).unwrap(), [[u32::MAX, DATA]]);
    }
}

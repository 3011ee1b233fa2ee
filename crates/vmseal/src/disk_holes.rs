//! Ranges of a disk that hold nothing: how they are made, and how they are found.

use core::ops::Range;

use vmseal_disk::{Disk, Error};

/// Bytes that are looked at, or written, at once.
const PIECE_LEN: usize = 1 << 20;

/// Whether [`discard`] gives room back, so that a hint to do so is worth following.
pub(crate) const DISCARD_GIVES_ROOM_BACK: bool = false;

/// Makes a range read as zeros. What reads so already is not written: a thin disk stays thin.
pub(crate) fn discard(disk: &mut Disk<'_>, offset: u64, len_bytes: u64) -> Result<(), Error> {
    each_piece(offset, len_bytes, |offset, len| {
        let mut piece = vec![0; len];
        disk.read_at(&mut piece, offset)?;
        if piece.iter().any(|byte| *byte != 0) {
            piece.fill(0);
            disk.write_at(&piece, offset)?;
        }
        Ok(())
    })
}

/// The next range at or after `offset` that may hold something else than zeros.
pub(crate) fn next_data(disk: &Disk<'_>, offset: u64) -> Result<Option<Range<u64>>, Error> {
    Ok((offset < disk.size_bytes()).then(|| offset..disk.size_bytes()))
}

/// Cuts a range at multiples of [`PIECE_LEN`].
pub(crate) fn each_piece<E>(
    offset: u64,
    len_bytes: u64,
    mut work: impl FnMut(u64, usize) -> Result<(), E>,
) -> Result<(), E> {
    let end = offset + len_bytes;
    let mut at = offset;
    while at < end {
        let piece_end = end.min((at / PIECE_LEN as u64 + 1) * PIECE_LEN as u64);
        work(at, (piece_end - at) as usize)?;
        at = piece_end;
    }
    Ok(())
}

//! The connection to a client, whatever carries it.

use std::io;

/// A two-way stream of bytes. The server reads in one thread at a time and writes in one thread at a time, and does both at once.
pub trait Stream: Send + Sync {
    /// Reads at least a byte into `buffer`, or none where the other side has ended the stream.
    ///
    /// # Errors
    /// Where the connection fails.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes `header` and `data` behind it.
    ///
    /// # Errors
    /// Where the connection fails.
    fn write_all(&self, header: &[u8], data: &[u8]) -> io::Result<()>;

    /// The handshake is over: from now on a client may be silent for as long as it likes.
    fn begin_transmission(&self);

    /// Ends the stream after everything that was written, politely where the carrier knows how.
    fn close(&self);

    /// Ends the stream at once, and wakes whoever reads or writes.
    fn abort(&self);
}

/// Fills `buffer`; `false` where the stream ends before its first byte.
pub(crate) fn read_exact_or_end(stream: &dyn Stream, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(true)
}

pub(crate) fn read_exact(stream: &dyn Stream, buffer: &mut [u8]) -> io::Result<()> {
    match buffer.is_empty() || read_exact_or_end(stream, buffer)? {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads `len` bytes that nobody needs.
pub(crate) fn skip(stream: &dyn Stream, len: u64) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut rest = len;
    while rest > 0 {
        let count = rest.min(buffer.len() as u64) as usize;
        read_exact(stream, &mut buffer[..count])?;
        rest -= count as u64;
    }
    Ok(())
}

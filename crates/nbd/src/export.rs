//! What is served.

use std::io;
use std::ops::Range;

/// A block device as the server needs it. Positions and lengths are bytes; the server calls with ranges that lie within the device, and
/// from several threads at once.
///
/// Errors go to the client as the protocol's codes ("Error values"): [`StorageFull`](io::ErrorKind::StorageFull),
/// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) and [`FileTooLarge`](io::ErrorKind::FileTooLarge) as `ENOSPC`,
/// [`PermissionDenied`](io::ErrorKind::PermissionDenied) and [`ReadOnlyFilesystem`](io::ErrorKind::ReadOnlyFilesystem) as `EPERM`,
/// [`InvalidInput`](io::ErrorKind::InvalidInput) as `EINVAL`, [`Unsupported`](io::ErrorKind::Unsupported) as `ENOTSUP`, all others as `EIO`. The text
/// goes to whoever watches the server, and not to the client.
pub trait Export: Send + Sync {
    /// The size, which does not change while it is served.
    fn size_bytes(&self) -> u64;

    /// Whether nothing may be written. The server refuses writes then, before they get here.
    fn is_read_only(&self) -> bool;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `data` at `offset`; what a later [`read_at`](Self::read_at) of any thread sees. Durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// Where it cannot be written.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes durable what every call that has returned, of any thread, wrote.
    ///
    /// # Errors
    /// Where that fails.
    fn flush(&self) -> io::Result<()>;

    /// The content of a range is not needed any more; it may become anything.
    ///
    /// # Errors
    /// Where that fails.
    fn trim(&self, offset: u64, len_bytes: u64) -> io::Result<()>;

    /// Makes a range read as zeros. With `may_trim` its room may be given back, without it stays allocated.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_trim: bool) -> io::Result<()>;

    /// Whether [`write_zeroes`](Self::write_zeroes) with `may_trim` is a great deal faster than writing zeros.
    fn zeroes_fast(&self) -> bool {
        false
    }

    /// The next range at or after `offset` that may hold something else than zeros; `None` where only zeros follow, which take no room.
    ///
    /// # Errors
    /// Where it cannot be found out.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
}

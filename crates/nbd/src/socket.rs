//! A connected socket as a stream.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::stream::Stream;
use crate::transmission::lock;

/// How long a handshake may take, TLS and all: clients are programs, and do not think about what to answer.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Socket {
    connection: Connection,
    /// When the handshake has to be over, as long as it lasts.
    deadline: Mutex<Option<Instant>>,
}

#[derive(Debug)]
pub(crate) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn new(connection: Connection) -> io::Result<Self> {
        match &connection {
            Connection::Tcp(tcp) => {
                tcp.set_nonblocking(false)?;
                // Replies are written whole: nothing is to be waited for.
                tcp.set_nodelay(true)?;
                // A client whose machine is gone says nothing, for ever.
                rustix::net::sockopt::set_socket_keepalive(tcp, true)?;
            }
            Connection::Unix(unix) => unix.set_nonblocking(false)?,
        }
        Ok(Self { connection, deadline: Mutex::new(Some(Instant::now() + HANDSHAKE_TIME_MAX)) })
    }

    /// Lets nothing more in: whoever reads finds the end of the stream.
    pub(crate) fn end_requests(&self) {
        self.shutdown(Shutdown::Read);
    }

    fn shutdown(&self, how: Shutdown) {
        // A connection that is gone already needs no end.
        let _ = match &self.connection {
            Connection::Tcp(tcp) => tcp.shutdown(how),
            Connection::Unix(unix) => unix.shutdown(how),
        };
    }

    fn set_timeouts(&self, time: Option<Duration>) -> io::Result<()> {
        match &self.connection {
            Connection::Tcp(tcp) => tcp.set_read_timeout(time).and_then(|()| tcp.set_write_timeout(time)),
            Connection::Unix(unix) => unix.set_read_timeout(time).and_then(|()| unix.set_write_timeout(time)),
        }
    }

    /// Lets the next call wait until the handshake has to be over, and not longer.
    fn watch_deadline(&self) -> io::Result<()> {
        let Some(deadline) = *lock(&self.deadline) else { return Ok(()) };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake takes too long")),
            left => self.set_timeouts(Some(left)),
        }
    }

    fn write_some(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.connection {
            Connection::Tcp(tcp) => (&*tcp).write_vectored(parts),
            Connection::Unix(unix) => (&*unix).write_vectored(parts),
        }
    }
}

impl Stream for Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.watch_deadline()?;
            let read = match &self.connection {
                Connection::Tcp(tcp) => (&*tcp).read(buffer),
                Connection::Unix(unix) => (&*unix).read(buffer),
            };
            match read {
                Err(error) if is_to_be_tried_again(&error) => {}
                read => return read,
            }
        }
    }

    fn write_all(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(header), IoSlice::new(data)];
        let mut rest = &mut parts[..];
        while rest.iter().any(|part| !part.is_empty()) {
            self.watch_deadline()?;
            match self.write_some(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if is_to_be_tried_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn begin_transmission(&self) {
        *lock(&self.deadline) = None;
        // Where the system refuses, whoever waits looks at the clock now and then, and waits on.
        let _ = self.set_timeouts(None);
    }

    fn close(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn abort(&self) {
        self.shutdown(Shutdown::Both);
    }
}

/// A signal came, or the time of the handshake is up, of which the next look at the clock tells.
fn is_to_be_tried_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

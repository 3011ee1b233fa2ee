//! Accepts connections, gives each its threads, and ends them all in order.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::export::Export;
use crate::handshake::{Agreed, Ending, Offer, Security, greet, haggle};
use crate::listener::Listener;
use crate::socket::Socket;
use crate::stream::Stream;
use crate::tls::{TlsSettings, TlsStream};
use crate::transmission::{Transmission, lock};
use crate::wire::EXPORT_NAME_LEN_MAX;

/// Connections at a time: each takes threads and memory.
const CONNECTIONS_MAX: usize = 64;
/// How long clients may take, when the server ends, to fetch the replies to what they asked for before.
const ENDING_TIME_MAX: Duration = Duration::from_secs(5);
/// How long to wait where the system lets nobody in.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server of one export.
pub struct Server<'e> {
    export: &'e dyn Export,
    name: String,
    tls: Option<TlsSettings>,
    watch: Box<dyn Fn(&str) + Send + Sync + 'e>,
}

/// Ends a server, from another thread.
#[derive(Debug)]
pub struct Stop {
    is_wanted: AtomicBool,
    /// A byte here wakes who waits for connections.
    bell: UnixStream,
    waiting: UnixStream,
}

impl Stop {
    /// One that a server can be given.
    ///
    /// # Errors
    /// Where the system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        let (bell, waiting) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        Ok(Self { is_wanted: AtomicBool::new(false), bell, waiting })
    }

    /// Lets the server take no more requests, answer those that it has read, and return.
    pub fn stop(&self) {
        self.is_wanted.store(true, Ordering::Release);
        // Where it is full it has been rung already.
        let _ = (&self.bell).write(&[0]);
    }
}

impl<'e> Server<'e> {
    /// Serves `export` as the default export (the empty name), in the clear.
    pub fn new(export: &'e dyn Export) -> Self {
        let watch = Box::new(|_: &str| {});
        Self { export, name: String::new(), tls: None, watch }
    }

    /// Gives the export a name besides, by which clients may ask for it, and which they are told.
    ///
    /// # Errors
    /// Where the name is longer than [`EXPORT_NAME_LEN_MAX`] bytes or has a NUL, which the protocol excludes.
    pub fn named(mut self, name: &str) -> io::Result<Self> {
        if name.len() > EXPORT_NAME_LEN_MAX || name.contains('\0') {
            let what = "the name of an export has at most 4096 bytes, none of which is NUL";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.name = name.to_owned();
        Ok(self)
    }

    /// Requires TLS of every client.
    #[must_use]
    pub fn with_tls(mut self, settings: TlsSettings) -> Self {
        self.tls = Some(settings);
        self
    }

    /// Tells of what went wrong where clients cannot be told: a line of text without its end.
    #[must_use]
    pub fn watched(mut self, watch: impl Fn(&str) + Send + Sync + 'e) -> Self {
        self.watch = Box::new(watch);
        self
    }

    /// Serves until `stop` says that it is enough; then answers what was read, ends every connection, and flushes.
    ///
    /// # Errors
    /// Where the listener fails, or the last flush.
    pub fn serve(&self, listener: &Listener, stop: &Stop) -> io::Result<()> {
        listener.set_nonblocking()?;
        let connections = Connections::default();
        std::thread::scope(|scope| {
            let accepted = loop {
                match wait(listener, stop) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                }
                let socket = match listener.accept().and_then(Socket::new) {
                    Ok(socket) => Arc::new(socket),
                    // Gone before it was accepted.
                    Err(error) if is_over(&error) => continue,
                    Err(error) => {
                        (self.watch)(&format!("a connection could not be accepted: {error}"));
                        std::thread::sleep(ACCEPT_PAUSE);
                        continue;
                    }
                };
                let Some(place) = connections.enter(&socket) else {
                    (self.watch)(&format!("a connection was refused: there are {CONNECTIONS_MAX} already"));
                    continue;
                };
                let serve = move || {
                    let served = self.serve_connection(&*socket, &stop.is_wanted);
                    // When the server ends it is the one that cuts off.
                    if let Err(error) = served
                        && !stop.is_wanted.load(Ordering::Acquire)
                    {
                        (self.watch)(&format!("a connection ended: {error}"));
                    }
                    socket.close();
                    drop(place);
                };
                if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, serve) {
                    (self.watch)(&format!("a connection could not be served: {error}"));
                }
            };
            connections.end();
            accepted
        })?;
        self.export.flush()
    }

    /// Speaks the protocol on a stream that somebody else has connected, until the client leaves.
    ///
    /// # Errors
    /// Where the connection fails, or the client breaks the protocol in a way that has no answer.
    pub fn serve_stream(&self, stream: &dyn Stream) -> io::Result<()> {
        let served = self.serve_connection(stream, &AtomicBool::new(false));
        stream.close();
        served
    }

    fn serve_connection(&self, stream: &dyn Stream, stopping: &AtomicBool) -> io::Result<()> {
        let offer = Offer { name: &self.name, export: self.export };
        let security = if self.tls.is_some() { Security::Required } else { Security::None };
        let wants_zeroes = greet(stream, security)?;
        match haggle(stream, &offer, security, wants_zeroes)? {
            Ending::Left => Ok(()),
            Ending::Transmission(agreed) => self.transmit(stream, agreed, stopping),
            Ending::StartTls => {
                if let Some(settings) = &self.tls {
                    let stream = TlsStream::accept(stream, settings)?;
                    let served = match haggle(&stream, &offer, Security::Active, wants_zeroes) {
                        Ok(Ending::Transmission(agreed)) => self.transmit(&stream, agreed, stopping),
                        Ok(_) => Ok(()),
                        Err(error) => Err(error),
                    };
                    stream.close();
                    return served;
                }
                Ok(())
            }
        }
    }

    fn transmit(&self, stream: &dyn Stream, agreed: Agreed, stopping: &AtomicBool) -> io::Result<()> {
        stream.begin_transmission();
        Transmission::new(stream, self.export, agreed, stopping, &self.watch).run()
    }
}

impl core::fmt::Debug for Server<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Waits for a connection; `false` where the server shall end.
fn wait(listener: &Listener, stop: &Stop) -> io::Result<bool> {
    let mut both = [PollFd::new(listener, PollFlags::IN), PollFd::new(&stop.waiting, PollFlags::IN)];
    match poll(&mut both, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!stop.is_wanted.load(Ordering::Acquire)),
        Err(errno) => Err(errno.into()),
    }
}

fn is_over(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted | Kind::WouldBlock)
}

/// The connections that are open.
#[derive(Default)]
struct Connections {
    sockets: Mutex<BTreeMap<u64, Arc<Socket>>>,
    one_ended: Condvar,
    next: Mutex<u64>,
}

/// A connection's place among them, which it leaves when it ends.
struct Place<'c> {
    connections: &'c Connections,
    number: u64,
}

impl Connections {
    fn enter(&self, socket: &Arc<Socket>) -> Option<Place<'_>> {
        let mut sockets = lock(&self.sockets);
        if sockets.len() >= CONNECTIONS_MAX {
            return None;
        }
        let mut next = lock(&self.next);
        *next += 1;
        sockets.insert(*next, Arc::clone(socket));
        Some(Place { connections: self, number: *next })
    }

    /// Lets no more requests in, waits for what is under way, and cuts off who does not fetch his replies.
    fn end(&self) {
        let mut sockets = lock(&self.sockets);
        sockets.values().for_each(|socket| socket.end_requests());
        let deadline = Instant::now() + ENDING_TIME_MAX;
        while !sockets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                sockets.values().for_each(|socket| socket.abort());
                break;
            }
            sockets = self.one_ended.wait_timeout(sockets, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.connections.sockets).remove(&self.number);
        self.connections.one_ended.notify_all();
    }
}

//! Requests and replies ("Transmission"), several at a time.
//!
//! A few threads share a connection. The one that holds the reading side takes the next request, with its data, and lets the next thread
//! read while it does what was asked; replies go out whole, in whatever order they are ready. Memory is bounded: a buffer of
//! [`PIECE_LEN`] a thread, in which longer requests are handled piece by piece, and one long read that has to be answered in one part.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block_status::descriptors;
use crate::export::Export;
use crate::handshake::{ALLOCATION_ID, Agreed};
use crate::stream::{Stream, read_exact, read_exact_or_end, skip};
use crate::wire::{REQUEST_LEN_MAX, Request, chunk, chunk_header, command, command_flag, error, simple_reply};

/// Threads a connection: two to keep processors busy, and others that wait for storage.
const THREADS: usize = 4;
/// What is read or written at once.
const PIECE_LEN: usize = 2 << 20;
/// What is shown of an error of the export.
const FAILED: &str = "the server could not do this; it tells why where it runs";

/// A connection on which requests are answered.
pub(crate) struct Transmission<'s> {
    stream: &'s dyn Stream,
    export: &'s dyn Export,
    agreed: Agreed,
    /// The server ends: requests that were not read yet are not answered any more.
    stopping: &'s AtomicBool,
    watch: &'s (dyn Fn(&str) + Sync),
    /// Whether more requests may come, and the right to read them.
    requests: Mutex<bool>,
    /// The right to write a reply.
    replies: Mutex<()>,
    /// The right to more memory than a piece.
    long_read: Mutex<()>,
    /// Why the connection had to end.
    failed: Mutex<Option<io::Error>>,
}

/// A request that is whole, and what is wrong with it already.
struct Job {
    request: Request,
    received: Result<(), Fault>,
}

/// An error as the client sees it.
#[derive(Debug)]
struct Fault {
    code: u32,
    message: &'static str,
    /// Where on the device, for those who can use a part of a read.
    offset: Option<u64>,
}

impl<'s> Transmission<'s> {
    pub(crate) fn new(
        stream: &'s dyn Stream,
        export: &'s dyn Export,
        agreed: Agreed,
        stopping: &'s AtomicBool,
        watch: &'s (dyn Fn(&str) + Sync),
    ) -> Self {
        Self {
            stream,
            export,
            agreed,
            stopping,
            watch,
            requests: Mutex::new(true),
            replies: Mutex::new(()),
            long_read: Mutex::new(()),
            failed: Mutex::new(None),
        }
    }

    /// Answers requests until the client leaves, the connection fails or the server stops; every request that was read is answered.
    pub(crate) fn run(self) -> io::Result<()> {
        std::thread::scope(|scope| {
            for _ in 1..THREADS {
                // Where the system has no more threads, fewer do the same work.
                if std::thread::Builder::new().spawn_scoped(scope, || self.work()).is_err() {
                    break;
                }
            }
            self.work();
        });
        match self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn work(&self) {
        let mut buffer = Vec::new();
        loop {
            let mut may_read = lock(&self.requests);
            if !*may_read || self.stopping.load(Ordering::Acquire) {
                return;
            }
            let job = match self.next(&mut buffer) {
                Ok(Some(job)) => job,
                ended => {
                    *may_read = false;
                    if let Err(error) = ended {
                        self.fail(error);
                    }
                    return;
                }
            };
            drop(may_read);
            if let Err(error) = self.answer(job, &mut buffer) {
                self.fail(error);
                // Wakes whoever reads the next request, for which no reply gets through.
                self.stream.abort();
                return;
            }
        }
    }

    fn fail(&self, error: io::Error) {
        // What follows from the first failure explains nothing.
        lock(&self.failed).get_or_insert(error);
    }

    /// Reads a request; the data of a write is in `buffer` then, or written already where it is longer than that. None where the client leaves.
    fn next(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Job>> {
        let mut header = [0; Request::LEN];
        if !read_exact_or_end(self.stream, &mut header)? {
            return Ok(None);
        }
        let request = Request::parse(&header)?;
        if request.command == command::DISC {
            return Ok(None);
        }
        let mut received = self.check(&request);
        if request.command == command::WRITE {
            let len = request.len as usize;
            if received.is_err() {
                skip(self.stream, request.len.into())?;
            } else if len <= PIECE_LEN {
                read_exact(self.stream, room(buffer, len))?;
            } else {
                received = self.receive_long(&request, room(buffer, PIECE_LEN))?;
            }
        }
        Ok(Some(Job { request, received }))
    }

    /// Writes the data of a request piece by piece as it comes.
    fn receive_long(&self, request: &Request, buffer: &mut [u8]) -> io::Result<Result<(), Fault>> {
        let mut done = 0;
        while done < request.len as usize {
            let piece = &mut buffer[..PIECE_LEN.min(request.len as usize - done)];
            read_exact(self.stream, piece)?;
            if let Err(error) = self.export.write_at(piece, request.offset + done as u64) {
                skip(self.stream, (request.len as usize - done - piece.len()) as u64)?;
                return Ok(Err(self.fault(request, &error)));
            }
            done += piece.len();
        }
        Ok(Ok(()))
    }

    /// What "Request types" and "Error values" say of requests that a server need not try.
    fn check(&self, request: &Request) -> Result<(), Fault> {
        use command_flag as flag;
        let structured_flag = |flag| if self.agreed.structured { flag } else { 0 };
        let fast_zero = if self.export.zeroes_fast() { flag::FAST_ZERO } else { 0 };
        let (flags, beyond_end) = match request.command {
            command::READ => (structured_flag(flag::DF), error::EINVAL),
            command::WRITE => (0, error::ENOSPC),
            command::TRIM => (0, error::EINVAL),
            command::WRITE_ZEROES => (flag::NO_HOLE | fast_zero, error::ENOSPC),
            command::BLOCK_STATUS if self.agreed.allocation => (flag::REQ_ONE, error::EINVAL),
            command::BLOCK_STATUS => return Err(Fault::new(error::EINVAL, "no metadata context was chosen")),
            command::FLUSH => (0, error::EINVAL),
            _ => return Err(Fault::new(error::EINVAL, "the server does not know this request")),
        };
        // Every request may have this flag, also where it means nothing.
        if request.flags & !(flags | flag::FUA) != 0 {
            return Err(Fault::new(error::EINVAL, "the request has flags that do not belong to it"));
        }
        let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.export.is_read_only() {
            return Err(Fault::new(error::EPERM, "the export is read-only"));
        }
        match request.command {
            command::FLUSH if request.offset != 0 || request.len != 0 => {
                return Err(Fault::new(error::EINVAL, "a flush has neither offset nor length"));
            }
            command::READ | command::WRITE if request.len > REQUEST_LEN_MAX => {
                return Err(Fault::new(error::EINVAL, "the request is longer than the server announced"));
            }
            command::BLOCK_STATUS if request.len == 0 => {
                return Err(Fault::new(error::EINVAL, "an empty range has no status"));
            }
            command::WRITE_ZEROES if request.has(flag::FAST_ZERO) && request.has(flag::NO_HOLE) => {
                return Err(Fault::new(error::ENOTSUP, "zeros that keep their room have to be written"));
            }
            _ => {}
        }
        match request.offset.checked_add(request.len.into()) {
            Some(end) if end <= self.export.size_bytes() => Ok(()),
            _ => Err(Fault::new(beyond_end, "the range ends beyond the device")),
        }
    }

    fn answer(&self, job: Job, buffer: &mut Vec<u8>) -> io::Result<()> {
        let Job { request, received } = job;
        if let Err(fault) = received {
            return self.reply_fault(&request, &fault);
        }
        match request.command {
            command::READ => self.read(&request, buffer),
            command::BLOCK_STATUS => self.block_status(&request),
            _ => match self.write(&request, buffer) {
                Ok(()) => self.reply(&simple_reply(request.cookie, 0), &[]),
                Err(error) => self.reply_fault(&request, &self.fault(&request, &error)),
            },
        }
    }

    /// Everything that has no data in its reply.
    fn write(&self, request: &Request, buffer: &[u8]) -> io::Result<()> {
        let len = request.len as usize;
        match request.command {
            command::WRITE if len <= PIECE_LEN => self.export.write_at(&buffer[..len], request.offset)?,
            command::TRIM => self.export.trim(request.offset, request.len.into())?,
            command::WRITE_ZEROES => {
                let may_trim = !request.has(command_flag::NO_HOLE);
                self.export.write_zeroes(request.offset, request.len.into(), may_trim)?;
            }
            _ => {}
        }
        if request.command == command::FLUSH || request.has(command_flag::FUA) && !self.export.is_read_only() {
            self.export.flush()?;
        }
        Ok(())
    }

    fn read(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<()> {
        let len = request.len as usize;
        if !self.agreed.structured || request.has(command_flag::DF) || len == 0 {
            if len <= PIECE_LEN {
                return self.read_whole(request, room(buffer, len));
            }
            let _one_at_a_time = lock(&self.long_read);
            return self.read_whole(request, &mut vec![0; len]);
        }
        let buffer = room(buffer, len.min(PIECE_LEN));
        let mut done = 0;
        while done < len {
            let piece = &mut buffer[..PIECE_LEN.min(len - done)];
            let offset = request.offset + done as u64;
            if let Err(error) = self.export.read_at(piece, offset) {
                let fault = Fault { offset: Some(offset), ..self.fault(request, &error) };
                return self.reply_fault(request, &fault);
            }
            done += piece.len();
            self.reply_data(request, offset, piece, done == len)?;
        }
        Ok(())
    }

    /// A read whose reply has one part.
    fn read_whole(&self, request: &Request, buffer: &mut [u8]) -> io::Result<()> {
        if let Err(error) = self.export.read_at(buffer, request.offset) {
            return self.reply_fault(request, &self.fault(request, &error));
        }
        match self.agreed.structured {
            false => self.reply(&simple_reply(request.cookie, 0), buffer),
            true if buffer.is_empty() => self.reply(&chunk_header(request.cookie, chunk::DONE, chunk::NONE, 0), &[]),
            true => self.reply_data(request, request.offset, buffer, true),
        }
    }

    fn block_status(&self, request: &Request) -> io::Result<()> {
        let only_one = request.has(command_flag::REQ_ONE);
        let descriptors = match descriptors(self.export, request.offset, request.len, only_one) {
            Ok(descriptors) => descriptors,
            Err(error) => return self.reply_fault(request, &self.fault(request, &error)),
        };
        let words = core::iter::once(ALLOCATION_ID).chain(descriptors.into_iter().flatten());
        let payload: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
        let header = chunk_header(request.cookie, chunk::DONE, chunk::BLOCK_STATUS, payload.len() as u32);
        self.reply(&header, &payload)
    }

    /// A part of the reply to a read.
    fn reply_data(&self, request: &Request, offset: u64, data: &[u8], is_last: bool) -> io::Result<()> {
        let flags = if is_last { chunk::DONE } else { 0 };
        let mut header = [0; 28];
        header[..20].copy_from_slice(&chunk_header(request.cookie, flags, chunk::OFFSET_DATA, data.len() as u32 + 8));
        header[20..].copy_from_slice(&offset.to_be_bytes());
        self.reply(&header, data)
    }

    fn reply_fault(&self, request: &Request, fault: &Fault) -> io::Result<()> {
        if !self.agreed.structured {
            return self.reply(&simple_reply(request.cookie, fault.code), &[]);
        }
        let message = fault.message.as_bytes();
        let offset = fault.offset.map(u64::to_be_bytes);
        let offset = offset.as_ref().map_or(&[][..], |bytes| bytes);
        let payload = [&fault.code.to_be_bytes(), &(message.len() as u16).to_be_bytes()[..], message, offset].concat();
        let kind = if offset.is_empty() { chunk::ERROR } else { chunk::ERROR_OFFSET };
        self.reply(&chunk_header(request.cookie, chunk::DONE, kind, payload.len() as u32), &payload)
    }

    fn reply(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let _turn = lock(&self.replies);
        self.stream.write_all(header, data)
    }

    /// What the client is told of an error of the export, and whoever watches the server, all of it.
    fn fault(&self, request: &Request, error: &io::Error) -> Fault {
        let what = match request.command {
            command::READ => "reading",
            command::WRITE => "writing",
            command::FLUSH => "flushing",
            command::BLOCK_STATUS => "looking for data in",
            _ => "discarding",
        };
        let (len, offset) = (request.len, request.offset);
        let mut text = format!("{what} {len} bytes at byte {offset} failed: {error}");
        let mut source = core::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        (self.watch)(&text);
        let code = match error.kind() {
            io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull => error::ENOSPC,
            io::ErrorKind::InvalidInput => error::EINVAL,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => error::EPERM,
            io::ErrorKind::Unsupported => error::ENOTSUP,
            _ => error::EIO,
        };
        Fault::new(code, FAILED)
    }
}

impl Fault {
    fn new(code: u32, message: &'static str) -> Self {
        Self { code, message, offset: None }
    }
}

/// The first `len` bytes of a buffer that keeps what it has grown to.
fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// A thread that panicked leaves nothing half done behind these locks but its own connection.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

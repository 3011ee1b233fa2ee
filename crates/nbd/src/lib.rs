//! A server of the Network Block Device protocol: threads, no async runtime, no unsafe code.
//!
//! What is served is anything that implements [`Export`]; [`Server`] speaks the protocol on the connections of a listener, or on any
//! [`Stream`]. Fixed newstyle negotiation, structured replies, block status (`base:allocation`), FUA, TRIM, WRITE_ZEROES, several
//! connections to one export, STARTTLS with or without client certificates (rustls with AWS-LC's cryptography). Section names in this crate's
//! pages are those of the [protocol's text](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
//!
//! ```
//! use std::io;
//! use std::ops::Range;
//! use std::sync::RwLock;
//!
//! use vmseal_nbd::{Export, Listener, Server, Stop, UnixSocket};
//!
//! struct Memory(RwLock<Vec<u8>>);
//!
//! impl Export for Memory {
//!     fn size_bytes(&self) -> u64 {
//!         self.0.read().map_or(0, |bytes| bytes.len() as u64)
//!     }
//!     fn is_read_only(&self) -> bool {
//!         true
//!     }
//!     fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
//!         let bytes = self.0.read().map_err(|_| io::ErrorKind::Other)?;
//!         buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]); // the server has checked the range
//!         Ok(())
//!     }
//!     // …
//! #   fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> { Ok(()) }
//! #   fn flush(&self) -> io::Result<()> { Ok(()) }
//! #   fn trim(&self, _: u64, _: u64) -> io::Result<()> { Ok(()) }
//! #   fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> { Ok(()) }
//! #   fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> { Ok(Some(offset..self.size_bytes())) }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("socket");
//! let disk = Memory(RwLock::new(vec![0; 1 << 20]));
//! let socket = UnixSocket::bind(&path)?;
//! let (server, stop) = (Server::new(&disk), Stop::new()?);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| stop.stop()); // on a signal, for instance
//!     server.serve(&Listener::Unix(socket), &stop)
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! What it does not protect against: whoever may connect may read, and where the export is not read-only write, all of it. A Unix socket
//! is its owner's alone; TCP without TLS is open to everyone who reaches the port.

#![forbid(unsafe_code)]

mod block_status;
mod export;
mod handshake;
mod listener;
mod options;
mod server;
mod socket;
mod stream;
mod tls;
mod transmission;
mod wire;

pub use export::Export;
pub use listener::{BindError, Listener, UnixSocket};
pub use server::{Server, Stop};
pub use stream::Stream;
pub use tls::{TlsError, TlsSettings};
pub use wire::{EXPORT_NAME_LEN_MAX, REQUEST_LEN_MAX};

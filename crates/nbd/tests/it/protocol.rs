//! What a client may send that no honest client sends: each has its answer, and the next request has one too.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::memory::{Memory, serve, serve_with};

const GO: u32 = 7;
const INFO: u32 = 6;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const POLICY: u32 = 0x8000_0002;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

/// A client that sends what it is told to.
struct Client(UnixStream);

impl Client {
    fn connect(path: &Path) -> Self {
        Self::connect_with(path, 3)
    }

    fn connect_with(path: &Path, flags: u32) -> Self {
        let mut client = Self(UnixStream::connect(path).unwrap());
        client.0.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(client.take(18), *b"NBDMAGICIHAVEOPT\0\x03");
        client.send(&flags.to_be_bytes());
        client
    }

    /// One in transmission.
    fn transmitting(path: &Path, structured: bool) -> Self {
        let mut client = Self::connect(path);
        if structured {
            assert_eq!(client.option(STRUCTURED_REPLY, &[]), [(ACK, vec![])]);
        }
        assert_eq!(client.option(GO, &[0; 6]).last().unwrap().0, ACK);
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// Sends an option and takes the replies up to the last.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option_header(option, data.len() as u32);
        self.send(data);
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take(8), 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(self.take_u32(), option);
            let (kind, len) = (self.take_u32(), self.take_u32());
            replies.push((kind, self.take(len as usize)));
            if kind == ACK || kind >= 0x8000_0000 {
                return replies;
            }
        }
    }

    fn option_header(&mut self, option: u32, len: u32) {
        self.send(&[&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes()].concat());
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, len: u32) {
        let numbers = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes(), b"cookie!!"];
        self.send(&[&numbers.concat()[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat());
    }

    /// The error of a simple reply.
    fn simple(&mut self) -> u32 {
        assert_eq!(self.take_u32(), 0x6744_6698);
        let error = self.take_u32();
        assert_eq!(self.take(8), b"cookie!!");
        error
    }

    /// A part of a structured reply: whether it is the last, its type, its payload.
    fn chunk(&mut self) -> (bool, u16, Vec<u8>) {
        assert_eq!(self.take_u32(), 0x668e_33ef);
        let flags = self.take(4);
        assert_eq!(self.take(8), b"cookie!!");
        let len = self.take_u32();
        (flags[1] == 1, u16::from_be_bytes([flags[2], flags[3]]), self.take(len as usize))
    }

    #[track_caller]
    fn assert_over(mut self) {
        let mut rest = Vec::new();
        let read = self.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:x?}");
        assert!(read.is_ok_and(|len| len == 0));
    }
}

fn last(replies: &[(u32, Vec<u8>)]) -> u32 {
    replies.last().unwrap().0
}

#[test]
fn options_that_cannot_be_granted_have_their_errors() {
    let export = Memory::new(1 << 20);
    let named = |server: vmseal_nbd::Server<'static>| server.named("disk").unwrap();
    let export = Box::leak(Box::new(export));
    serve_with(export, named, |path, _| {
        let mut client = Client::connect(path);
        let meta = |query: &[u8]| [&[0, 0, 0, 0, 0, 0, 0, 1], &(query.len() as u32).to_be_bytes()[..], query].concat();
        assert_eq!(last(&client.option(99, b"anything")), UNSUP);
        assert_eq!(last(&client.option(5, &[])), POLICY);
        assert_eq!(last(&client.option(3, b"x")), INVALID);
        assert_eq!(last(&client.option(STRUCTURED_REPLY, b"x")), INVALID);
        assert_eq!(last(&client.option(SET_META_CONTEXT, &meta(b"base:allocation"))), INVALID);
        assert_eq!(last(&client.option(GO, &[0, 0, 0, 5, b'd', b'i', b's', b'k', 0, 0])), INVALID);
        assert_eq!(last(&client.option(GO, b"\0\0\0\x05disk2\0\0")), UNKNOWN);
        assert_eq!(last(&client.option(INFO, &[0, 0, 0, 0, 0, 1])), INVALID);
        assert_eq!(last(&client.option(GO, &vec![0; 70_000])), TOO_BIG);
        assert_eq!(client.option(3, &[]), [(2, b"\0\0\0\x04disk".to_vec()), (ACK, vec![])]);
        assert_eq!(last(&client.option(STRUCTURED_REPLY, &[])), ACK);
        assert_eq!(last(&client.option(SET_META_CONTEXT, &meta(b"no namespace"))), INVALID);
        let chosen = client.option(SET_META_CONTEXT, &meta(b"base:allocation"));
        assert_eq!(chosen, [(4, b"\0\0\0\x01base:allocation".to_vec()), (ACK, vec![])]);
        // Information: size and flags always, name and block sizes where they are wanted.
        let told = client.option(INFO, b"\0\0\0\x04disk\0\x03\0\x01\0\x03\0\x63");
        assert_eq!(told[0], (3, b"\0\0\0\0\0\0\0\x10\0\0\x01\xed".to_vec()));
        assert_eq!(told[1], (3, b"\0\x01disk".to_vec()));
        assert_eq!(told[2], (3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec()));
        assert_eq!(told.len(), 4);
        assert_eq!(last(&client.option(2, &[])), ACK);
        client.assert_over();

        // What has no error ends the connection.
        let mut client = Client::connect(path);
        client.option_header(1, 5);
        client.send(b"disk2");
        client.assert_over();
        let mut client = Client::connect(path);
        client.option_header(1, u32::MAX);
        client.assert_over();
        let mut client = Client::connect(path);
        client.send(b"IHAVEOPX\0\0\0\x07\0\0\0\0");
        client.assert_over();
        Client::connect_with(path, 7).assert_over();
    });
}

#[test]
fn old_clients_get_their_zeros() {
    serve(&Memory::new(1 << 20), |path, _| {
        for (flags, len) in [(0, 134), (1, 134), (3, 10)] {
            let mut client = Client::connect_with(path, flags);
            client.option_header(1, 0);
            let reply = client.take(len);
            assert_eq!(reply[..10], *b"\0\0\0\0\0\x10\0\0\x01\x6d");
            assert!(reply[10..].iter().all(|byte| *byte == 0));
            client.request(0, READ, 0, 16);
            assert_eq!(client.simple(), 0);
            assert_eq!(client.take(16), [0; 16]);
            client.request(0, DISC, 0, 0);
            client.assert_over();
        }
    });
}

#[test]
fn requests_that_cannot_be_met_have_their_errors() {
    const SIZE: u64 = 40 << 20;
    const FUA: u16 = 1;
    const NO_HOLE: u16 = 2;
    const DF: u16 = 4;
    const REQ_ONE: u16 = 8;
    const FAST_ZERO: u16 = 16;
    let mut export = Memory::new(SIZE);
    export.fast_zeroes = true;
    let wrong = [
        (0, READ, SIZE - 3, 4, EINVAL),
        (0, READ, u64::MAX, 4, EINVAL),
        (0, READ, 0, (32 << 20) + 1, EINVAL),
        (NO_HOLE, READ, 0, 4, EINVAL),
        (REQ_ONE, READ, 0, 4, EINVAL),
        (0x8000, READ, 0, 4, EINVAL),
        (0, TRIM, SIZE - 3, 4, EINVAL),
        (DF, TRIM, 0, 4, EINVAL),
        (0, WRITE_ZEROES, SIZE - 3, 4, ENOSPC),
        (0, WRITE_ZEROES, 0, u32::MAX, ENOSPC),
        (FAST_ZERO | NO_HOLE, WRITE_ZEROES, 0, 4, ENOTSUP),
        (0, FLUSH, 1, 0, EINVAL),
        (0, FLUSH, 0, 1, EINVAL),
        (0, BLOCK_STATUS, 0, 4, EINVAL),
        (0, CACHE, 0, 4, EINVAL),
        (0, 0xffff, 0, 4, EINVAL),
    ];
    let told = serve(&export, |path, _| {
        for structured in [false, true] {
            let mut client = Client::transmitting(path, structured);
            let error = |client: &mut Client| {
                if !structured {
                    return client.simple();
                }
                let (is_last, kind, payload) = client.chunk();
                assert!(is_last && kind == 0x8001);
                assert_eq!(usize::from(u16::from_be_bytes([payload[4], payload[5]])), payload.len() - 6);
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            };
            for (flags, command, offset, len, wanted) in wrong {
                client.request(flags, command, offset, len);
                assert_eq!(error(&mut client), wanted, "{command} {flags} {offset} {len}");
            }
            // The data of a write that fails does not become requests.
            for (flags, offset, len, wanted) in [
                (0, SIZE - 3, 4, ENOSPC),
                (0, u64::MAX, 99, ENOSPC),
                (DF, 0, 4, EINVAL),
                (0, 0, (32 << 20) + 1, EINVAL),
            ] {
                client.request(flags, WRITE, offset, len);
                client.send(&vec![0xaa; len as usize]);
                assert_eq!(error(&mut client), wanted, "{flags} {offset} {len}");
            }
            // Nothing is no mistake.
            client.request(FUA, WRITE, SIZE, 0);
            assert_eq!(client.simple(), 0);
            client.request(FUA, READ, SIZE, 0);
            if structured {
                assert_eq!(client.chunk(), (true, 0, vec![]));
            } else {
                assert_eq!(client.simple(), 0);
            }
            client.request(0, WRITE, 5, 3);
            client.send(b"abc");
            assert_eq!(client.simple(), 0);
            client.request(FAST_ZERO, WRITE_ZEROES, 6, 1);
            assert_eq!(client.simple(), 0);
            client.request(0, READ, 4, 5);
            if structured {
                assert_eq!(client.chunk(), (true, 1, b"\0\0\0\0\0\0\0\x04\0a\0c\0".to_vec()));
            } else {
                assert_eq!((client.simple(), client.take(5)), (0, b"\0a\0c\0".to_vec()));
            }
            // Without the magic number nobody knows where the next request begins.
            client.send(&[0x25; 28]);
            client.assert_over();
        }
    });
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|text| text.contains("magic")));
}

#[test]
fn nothing_is_written_to_what_is_read_only() {
    let mut export = Memory::new(1 << 20);
    export.read_only = true;
    serve(&export, |path, _| {
        let mut client = Client::transmitting(path, false);
        client.request(0, WRITE, 0, 4);
        client.send(b"data");
        assert_eq!(client.simple(), EPERM);
        for command in [TRIM, WRITE_ZEROES] {
            client.request(0, command, 0, 4);
            assert_eq!(client.simple(), EPERM);
        }
        client.request(0, FLUSH, 0, 0);
        assert_eq!(client.simple(), 0);
    });
    assert_eq!(export.blocks_allocated(), 0);
}

#[test]
fn an_error_of_the_device_goes_to_the_client_without_its_text() {
    let mut export = Memory::new(40 << 20);
    export.bad = 9 << 20..(9 << 20) + 1;
    let told = serve(&export, |path, _| {
        let mut client = Client::transmitting(path, true);
        // What was read before the fault has gone out; the fault has its place.
        client.request(0, READ, 0, 12 << 20);
        let mut at = 0u64;
        let fault = loop {
            match client.chunk() {
                (false, 1, payload) => {
                    assert_eq!(payload[..8], at.to_be_bytes());
                    at += payload.len() as u64 - 8;
                }
                (is_last, kind, payload) => {
                    assert_eq!((is_last, kind), (true, 0x8002));
                    break payload;
                }
            }
        };
        assert_eq!(fault[..4], EIO.to_be_bytes());
        assert_eq!(fault[fault.len() - 8..], at.to_be_bytes());
        assert!(!String::from_utf8_lossy(&fault).contains("secret"));
        // In one part (DF) there is no part of it.
        client.request(4, READ, 0, 12 << 20);
        assert_eq!(client.chunk().1, 0x8001);
        client.request(4, READ, 0, 8 << 20);
        let (is_last, kind, payload) = client.chunk();
        assert_eq!((is_last, kind, payload.len()), (true, 1, (8 << 20) + 8));
        // A long write stops where it fails, and the rest of its data is read away.
        client.request(0, WRITE, 0, 30 << 20);
        client.send(&vec![1; 30 << 20]);
        assert_eq!(client.chunk().1, 0x8001);
        client.request(0, FLUSH, 0, 0);
        assert_eq!(client.simple(), 0);
    });
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.iter().all(|text| text.contains("secret text")));
}

#[test]
fn flush_and_fua_make_durable_before_they_are_answered() {
    use std::sync::atomic::Ordering;
    let export = Memory::new(1 << 20);
    serve(&export, |path, _| {
        let mut client = Client::transmitting(path, false);
        for (flags, command, data, flushes) in [
            (0, WRITE, &b"data"[..], 0),
            (1, WRITE, b"data", 1),
            (0, TRIM, b"", 1),
            (1, TRIM, b"", 2),
            (1, WRITE_ZEROES, b"", 3),
            (0, FLUSH, b"", 4),
        ] {
            client.request(flags, command, 0, if command == FLUSH { 0 } else { 4 });
            client.send(data);
            assert_eq!(client.simple(), 0);
            assert_eq!(export.flushes.load(Ordering::SeqCst), flushes, "{flags} {command}");
        }
    });
}

#![no_main]
//! What a client sends, against a small device in memory: no panic, no hang, no more memory than a few requests need.
//! The first byte chooses between a read-only device and one that may be written.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use vmseal_nbd::{Export, Server, Stream};

const SIZE: usize = 1 << 20;

struct Device {
    bytes: Mutex<Vec<u8>>,
    is_read_only: bool,
}

impl Device {
    fn range(&self, offset: u64, len: u64) -> Range<usize> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE as u64), "a range beyond the device got through");
        offset as usize..(offset + len) as usize
    }

    fn change(&self, offset: u64, len: u64) -> (std::sync::MutexGuard<'_, Vec<u8>>, Range<usize>) {
        assert!(!self.is_read_only, "a write to a read-only device got through");
        (self.bytes.lock().unwrap(), self.range(offset, len))
    }
}

impl Export for Device {
    fn size_bytes(&self) -> u64 {
        SIZE as u64
    }
    fn is_read_only(&self) -> bool {
        self.is_read_only
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[self.range(offset, buffer.len() as u64)]);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let (mut bytes, range) = self.change(offset, data.len() as u64);
        bytes[range].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn trim(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.write_zeroes(offset, len_bytes, true)
    }
    fn write_zeroes(&self, offset: u64, len_bytes: u64, _: bool) -> io::Result<()> {
        let (mut bytes, range) = self.change(offset, len_bytes);
        bytes[range].fill(0);
        Ok(())
    }
    fn zeroes_fast(&self) -> bool {
        true
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let bytes = self.bytes.lock().unwrap();
        let from = offset as usize;
        let Some(start) = bytes[from..].iter().position(|byte| *byte != 0) else { return Ok(None) };
        let start = from + start;
        let len = bytes[start..].iter().take_while(|byte| **byte != 0).count();
        Ok(Some(start as u64..(start + len) as u64))
    }
}

/// A client that has said everything already.
struct Client<'b> {
    rest: Mutex<&'b [u8]>,
    replied: Mutex<u64>,
}

impl Stream for Client<'_> {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut *self.rest.lock().unwrap(), buffer)
    }
    fn write_all(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let mut replied = self.replied.lock().unwrap();
        *replied += (header.len() + data.len()) as u64;
        // A client that asks for very much has had enough at some time.
        if *replied > 64 << 20 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
    fn begin_transmission(&self) {}
    fn close(&self) {}
    fn abort(&self) {
        *self.rest.lock().unwrap() = &[];
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let device = Device { bytes: Mutex::new(vec![0; SIZE]), is_read_only: first & 1 == 1 };
    let client = Client { rest: Mutex::new(rest), replied: Mutex::new(0) };
    let Ok(server) = Server::new(&device).named("disk") else { return };
    let _ = server.serve_stream(&client);
});

//! Several requests and clients at once, and how a server ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::memory::{Memory, serve};

/// A client that has agreed on simple replies.
fn transmitting(path: &Path) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    client.read_exact(&mut [0; 28]).unwrap();
    client
}

fn request(command: u16, number: u64, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &number.to_be_bytes()];
    [&head.concat()[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

fn reply(client: &mut UnixStream, len: usize) -> u64 {
    let mut bytes = vec![0; 16 + len];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..8], *b"\x67\x44\x66\x98\0\0\0\0");
    u64::from_be_bytes(bytes[8..16].try_into().unwrap())
}

#[test]
fn requests_of_one_connection_are_answered_side_by_side() {
    let mut export = Memory::new(1 << 20);
    export.delay = Duration::from_millis(50);
    serve(&export, |path, _| {
        let mut client = transmitting(path);
        let requests: Vec<u8> = (0..16).flat_map(|number| request(0, number, number * 512, 512)).collect();
        client.write_all(&requests).unwrap();
        let mut answered: Vec<u64> = (0..16).map(|_| reply(&mut client, 512)).collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..16).collect::<Vec<_>>());
    });
    assert_eq!(export.most_reads_at_once(), 4);
}

#[test]
fn a_client_that_stands_still_does_not_stop_others() {
    serve(&Memory::new(64 << 20), |path, _| {
        // One says nothing, one stops in the middle of a request, one in the middle of its data, and one takes no replies.
        let silent = UnixStream::connect(path).unwrap();
        let mut cut = transmitting(path);
        cut.write_all(&request(0, 1, 0, 512)[..20]).unwrap();
        let mut half = transmitting(path);
        half.write_all(&request(1, 1, 0, 4 << 20)).unwrap();
        half.write_all(&[1; 1 << 20]).unwrap();
        let mut deaf = transmitting(path);
        for number in 0..8 {
            deaf.write_all(&request(0, number, 0, 32 << 20)).unwrap();
        }
        let mut client = transmitting(path);
        for number in 0..100 {
            client.write_all(&request(0, number, number * 512, 512)).unwrap();
            assert_eq!(reply(&mut client, 512), number);
        }
        drop((silent, cut, half));
        client.write_all(&request(0, 7, 0, 512)).unwrap();
        assert_eq!(reply(&mut client, 512), 7);
        drop(deaf);
    });
}

#[test]
fn a_server_that_ends_answers_what_it_has_read_and_flushes() {
    let mut export = Memory::new(1 << 20);
    export.delay = Duration::from_millis(300);
    let started = Instant::now();
    serve(&export, |path, stop| {
        let mut client = transmitting(path);
        client.write_all(&request(0, 1, 0, 512)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stop.stop();
        assert_eq!(reply(&mut client, 512), 1);
        let mut rest = Vec::new();
        assert_eq!(client.read_to_end(&mut rest).unwrap(), 0);
    });
    assert_eq!(export.flushes.load(Ordering::SeqCst), 1);
    assert!(started.elapsed() < Duration::from_secs(3), "idle clients do not hold it up");
}

#[test]
fn a_server_that_ends_waits_for_a_deaf_client_only_so_long() {
    let started = Instant::now();
    serve(&Memory::new(64 << 20), |path, stop| {
        let mut deaf = transmitting(path);
        deaf.write_all(&request(0, 1, 0, 32 << 20)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stop.stop();
        std::thread::sleep(Duration::from_millis(6000));
        drop(deaf);
    });
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[test]
fn too_many_clients_are_turned_away() {
    let told = serve(&Memory::new(1 << 20), |path, _| {
        let clients: Vec<_> = (0..64).map(|_| transmitting(path)).collect();
        let mut refused = UnixStream::connect(path).unwrap();
        refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(refused.read(&mut [0; 1]).unwrap(), 0);
        drop(clients);
        std::thread::sleep(Duration::from_millis(200));
        drop(transmitting(path));
    });
    assert_eq!(told, ["a connection was refused: there are 64 already"]);
}

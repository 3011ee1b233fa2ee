//! Clients that others wrote: libnbd (`nbdsh`, `nbdinfo`, `nbdcopy`) and QEMU.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use vmseal_nbd::Export;

use crate::memory::{BLOCK, Memory, serve};

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        // nbdsh takes the first Python that it finds, and only the system's has its module.
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`./test` installs it): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn uri(path: &Path) -> String {
    format!("nbd+unix:///?socket={}", path.display())
}

#[test]
fn libnbd_finds_everything_as_announced() {
    let mut export = Memory::new((64 << 20) - 512);
    export.fast_zeroes = true;
    let script = "
assert h.get_size() == (64 << 20) - 512
assert h.get_structured_replies_negotiated()
assert h.can_meta_context('base:allocation')
assert not h.is_read_only() and h.can_multi_conn() and h.can_df()
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20

def status(length, offset, flags=0):
    found = []
    def extent(name, offset, entries, error):
        assert name == 'base:allocation' and error.value == 0
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(length, offset, extent, flags)
    return found

B = 64 << 10
data = bytes(i * 7 % 251 for i in range(3 * B))
assert status(1 << 20, 0) == [(1 << 20, 3)]
h.pwrite(data, 5 * B - 9, nbd.CMD_FLAG_FUA)
assert status(16 * B, 0) == [(4 * B, 3), (4 * B, 0), (8 * B, 3)]
assert status(16 * B, 0, nbd.CMD_FLAG_REQ_ONE) == [(4 * B, 3)]
assert status(B, 5 * B + 3) == [(B, 0)]
assert h.pread(3 * B, 5 * B - 9) == data
assert h.pread(1, 5 * B - 10) == b'\\0'

# 32 MiB in parts, and in one part
parts = []
whole = h.pread_structured(32 << 20, 0, lambda data, offset, kind, error: parts.append((offset, len(data), kind)))
assert len(parts) > 1 and sum(part[1] for part in parts) == 32 << 20
parts.clear()
one = h.pread_structured(32 << 20, 0, lambda data, offset, kind, error: parts.append((offset, len(data), kind)), nbd.CMD_FLAG_DF)
assert parts == [(0, 32 << 20, nbd.READ_DATA)] and one == whole

h.zero(B, 5 * B)
assert status(16 * B, 0) == [(4 * B, 3), (B, 0), (B, 3), (2 * B, 0), (8 * B, 3)]
h.zero(B, 5 * B, nbd.CMD_FLAG_NO_HOLE)
assert status(16 * B, 0) == [(4 * B, 3), (4 * B, 0), (8 * B, 3)]
h.zero(B, 6 * B, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(B, 6 * B, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert False
except nbd.Error as error:
    assert error.errno == 'ENOTSUP', error
h.trim((64 << 20) - 512, 0)
assert status(1 << 20, 0) == [(1 << 20, 3)]
h.flush()

# Mistakes that libnbd would not let through on its own
h.set_strict_mode(0)
for wrong, errno in [
    (lambda: h.pread(2, (64 << 20) - 513), 'EINVAL'),
    (lambda: h.pwrite(b'xx', (64 << 20) - 513), 'ENOSPC'),
    (lambda: h.zero(2, (64 << 20) - 513), 'ENOSPC'),
    (lambda: h.cache(512, 0), 'EINVAL'),
]:
    try:
        wrong()
        assert False
    except nbd.Error as error:
        assert error.errno == errno, error

# Many at once, answered in any order
buffers = [(i, nbd.Buffer(65536)) for i in range(64)]
h.pwrite(bytes(range(256)) * ((16 << 10) + 1), 0)
cookies = [h.aio_pread(buffer, i * 65536 + i) for i, buffer in buffers]
while h.aio_in_flight():
    h.poll(-1)
for i, buffer in buffers:
    assert bytes(buffer.to_bytearray()) == (bytes(range(256)) * 257)[i:i + 65536]
";
    let told = serve(&export, |path, _| {
        run("nbdsh", &["--base-allocation", "-u", &uri(path), "-c", script]);
        // Without structured replies.
        let simple = "
assert not h.get_structured_replies_negotiated()
h.pwrite(b'x' * (5 << 20), 77)
assert h.pread(32 << 20, 0)[77:77 + (5 << 20)] == b'x' * (5 << 20)
";
        let connect = format!("h.set_request_structured_replies(False); h.connect_uri('{}')", uri(path));
        run("nbdsh", &["-c", &connect, "-c", simple]);
        let info = run("nbdinfo", &["--list", &uri(path)]);
        assert!(info.contains("export-size: 67108352"), "{info}");
        assert!(info.contains("block_size_maximum: 33554432"), "{info}");
        assert!(info.contains("base:allocation"), "{info}");
    });
    assert!(told.is_empty(), "{told:?}");
    assert!(export.flushes.load(Ordering::SeqCst) >= 2);
}

#[test]
fn copies_by_nbdcopy_and_qemu_are_the_same() {
    let export = Memory::new(48 << 20);
    let folder = tempfile::tempdir().unwrap();
    let [raw, by_nbdcopy, by_qemu] = ["raw", "nbdcopy", "qemu"].map(|name| folder.path().join(name));
    let mut bytes = vec![0; 48 << 20];
    for (index, byte) in bytes.iter_mut().enumerate() {
        if index / BLOCK % 5 < 2 {
            *byte = (index * 31 % 251) as u8 | 1;
        }
    }
    std::fs::write(&raw, &bytes).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    serve(&export, |path, _| {
        // Four connections, many requests each, zeros by WRITE_ZEROES.
        run("nbdcopy", &["--connections=4", "--allocated", &text(&raw), &uri(path)]);
        run("nbdcopy", &["--connections=4", "--destination-is-zero", &uri(path), &text(&by_nbdcopy)]);
        assert!(std::fs::read(&by_nbdcopy).unwrap() == bytes);
        // Over what is there, and with holes.
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &text(&raw), &uri(path)]);
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri(path), &text(&by_qemu)]);
        assert!(std::fs::read(&by_qemu).unwrap() == bytes);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &text(&raw), &uri(path)]);
        let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri(path)]);
        let extents = map.matches("\"start\"").count();
        assert_eq!(extents, (48 << 20) / BLOCK / 5 * 2 + 2, "{map}");
        let io = ["write -P 0x5a 4097 9000", "read -P 0x5a 4097 9000", "write -z -u 1M 3M", "discard 8M 1M", "flush"];
        let mut args = vec!["-f", "raw", "-t", "writethrough"];
        args.extend(io.iter().flat_map(|command| ["-c", command]));
        let (uri, zeros) = (uri(path), "read -P 0 1M 3M");
        args.extend(["-c", zeros, &uri]);
        let output = run("qemu-io", &args);
        assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    });
    let mut piece = vec![0; 9000];
    export.read_at(&mut piece, 4097).unwrap();
    assert!(piece.iter().all(|byte| *byte == 0x5a));
    assert!(export.flushes.load(Ordering::SeqCst) > 2);
}

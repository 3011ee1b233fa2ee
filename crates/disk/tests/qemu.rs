//! Against QEMU: it reads what we write, and we read what it writes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

use std::path::Path;
use std::process::Command;

use vmseal_disk::{Disk, NewDisk, NewDiskType};
use vmseal_storage::{Access, LocalDir, StoragePath};

fn qemu(folder: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`./test` installs qemu-utils): {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Bytes that differ from place to place, with holes in between; 2 GiB and more where a disk is split.
fn writes(size: u64) -> Vec<(u64, Vec<u8>)> {
    [0, 65_536 * 3 + 700, size / 2 - 1000, size - 5000]
        .into_iter()
        .map(|offset| (offset, (0..5000).map(|index| ((offset + index) % 253) as u8).collect()))
        .collect()
}

const SUBFORMATS: [(&str, u64); 6] = [
    ("monolithicFlat", 20 << 20),
    ("monolithicSparse", (20 << 20) + 512 * 37),
    ("monolithicSparse", 5 << 30),
    ("twoGbMaxExtentFlat", 5 << 30),
    ("twoGbMaxExtentSparse", (5 << 30) + 512 * 37),
    ("twoGbMaxExtentSparse", 20 << 20),
];

#[test]
fn disks_that_qemu_made_are_read_and_written() {
    for (subformat, size) in SUBFORMATS {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("subformat={subformat}");
        qemu(
            folder.path(),
            "qemu-img",
            &["create", "-q", "-f", "vmdk", "-o", &options, "disk.vmdk", &size.to_string()],
        );
        qemu(folder.path(), "qemu-io", &["-f", "vmdk", "-c", "write -q -P 0x5a 100k 300k", "disk.vmdk"]);

        let storage = LocalDir::open(folder.path()).unwrap();
        let path = StoragePath::new("disk.vmdk").unwrap();
        let mut disk = Disk::open(&storage, &path, None, Access::ReadWrite).unwrap();
        assert_eq!(disk.size_bytes(), size);
        let mut read = vec![0; 302 << 10];
        disk.read_at(&mut read, 99 << 10).unwrap();
        assert!(read[..1024].iter().chain(&read[301 << 10..]).all(|byte| *byte == 0), "{subformat}");
        assert!(read[1024..301 << 10].iter().all(|byte| *byte == 0x5a), "{subformat}");
        for (offset, data) in writes(size) {
            disk.write_at(&data, offset).unwrap();
        }
        disk.flush().unwrap();
        drop(disk);

        compare(folder.path(), size);
    }
}

#[test]
fn disks_that_we_made_are_read_and_written_by_qemu() {
    let types = [
        (NewDiskType::MonolithicFlat, 20 << 20),
        (NewDiskType::MonolithicSparse, (20 << 20) + 512 * 37),
        (NewDiskType::MonolithicSparse, 5 << 30),
        (NewDiskType::TwoGbMaxExtentFlat, 5 << 30),
        (NewDiskType::TwoGbMaxExtentSparse, (5 << 30) + 512 * 37),
        (NewDiskType::Vmfs, 20 << 20),
    ];
    for (disk_type, size) in types {
        let folder = tempfile::tempdir().unwrap();
        let storage = LocalDir::open(folder.path()).unwrap();
        let path = StoragePath::new("disk.vmdk").unwrap();
        let mut disk = NewDisk::new(disk_type, size).create_and_open(&storage, &path).unwrap();
        for (offset, data) in writes(size) {
            disk.write_at(&data, offset).unwrap();
        }
        disk.flush().unwrap();
        drop(disk);
        qemu(folder.path(), "qemu-io", &["-f", "vmdk", "-c", "write -q -P 0x5a 700k 300k", "disk.vmdk"]);
        let disk = Disk::open(&storage, &path, None, Access::Read).unwrap();
        let mut read = vec![0; 300 << 10];
        disk.read_at(&mut read, 700 << 10).unwrap();
        assert!(read.iter().all(|byte| *byte == 0x5a), "{disk_type:?}");
        compare(folder.path(), size);
    }
}

/// QEMU finds no fault in the disk, and reads what we read at the places that were written.
fn compare(folder: &Path, size: u64) {
    let sparse = std::fs::read(folder.join("disk.vmdk")).unwrap().starts_with(b"KDMV");
    if sparse {
        qemu(folder, "qemu-img", &["check", "-q", "disk.vmdk"]);
    }
    qemu(folder, "qemu-img", &["convert", "-f", "vmdk", "-O", "raw", "disk.vmdk", "disk.raw"]);
    let raw = std::fs::File::open(folder.join("disk.raw")).unwrap();
    assert_eq!(raw.metadata().unwrap().len(), size);
    let storage = LocalDir::open(folder).unwrap();
    let disk = Disk::open(&storage, &StoragePath::new("disk.vmdk").unwrap(), None, Access::Read).unwrap();
    let everywhere =
        (0..size.min(24 << 20)).step_by(1 << 20).chain(writes(size).into_iter().map(|(offset, _)| offset & !0xfff));
    for offset in everywhere {
        let len = (1_u64 << 20).min(size - offset) as usize;
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        disk.read_at(&mut ours, offset).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&raw, &mut theirs, offset).unwrap();
        assert!(ours == theirs, "at {offset}");
    }
}

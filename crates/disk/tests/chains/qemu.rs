//! Chains that QEMU made are read here, and chains that were written here are read by QEMU.

use std::path::Path;
use std::process::Command;

use vmseal_disk::{Disk, Error};
use vmseal_storage::{Access, LocalDir};

use crate::links::{Grains, Keys, Kind, NewLink, path, read_all};

fn qemu(folder: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`./test` installs qemu-utils): {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}{text}", String::from_utf8_lossy(&output.stdout));
}

/// What QEMU reads of a disk.
fn convert(folder: &Path, disk: &str) -> Vec<u8> {
    qemu(folder, "qemu-img", &["convert", "-f", "vmdk", "-O", "raw", disk, "disk.raw"]);
    std::fs::read(folder.join("disk.raw")).unwrap()
}

fn data(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index % 253) as u8 ^ (index >> 12) as u8 ^ seed).collect()
}

#[test]
fn chains_of_qemu_are_read_written_and_read_back_by_it() {
    for (base, child) in [
        ("monolithicSparse", "monolithicSparse"),
        ("monolithicFlat", "monolithicSparse"),
        ("twoGbMaxExtentSparse", "twoGbMaxExtentSparse"),
    ] {
        for zeroed_grain in ["off", "on"] {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let size = (10 << 20) + 512 * 37;
            qemu(
                folder,
                "qemu-img",
                &["create", "-q", "-f", "vmdk", "-o", &format!("subformat={base}"), "base.vmdk", &size.to_string()],
            );
            qemu(folder, "qemu-io", &["-f", "vmdk", "-c", "write -q -P 0x11 100k 3000k", "base.vmdk"]);
            let options = format!("subformat={child},zeroed_grain={zeroed_grain}");
            let mut parent = "base.vmdk".to_owned();
            for (index, commands) in [
                ["write -q -P 0x22 1M 200k", "write -q -z 2M 256k"],
                ["write -q -P 0x33 1100k 10k", "write -q -P 0x44 7M 5k"],
            ]
            .iter()
            .enumerate()
            {
                let name = format!("s{index}.vmdk");
                qemu(
                    folder,
                    "qemu-img",
                    &["create", "-q", "-f", "vmdk", "-o", &options, "-b", &parent, "-F", "vmdk", &name],
                );
                for command in commands {
                    qemu(folder, "qemu-io", &["-f", "vmdk", "-c", command, &name]);
                }
                parent = name;
            }
            let storage = LocalDir::open(folder).unwrap();
            let mut model = convert(folder, "s1.vmdk");
            let top = path("s1.vmdk");
            let keys = Keys::default();
            assert!(matches!(Disk::open(&storage, &top, None, Access::Read), Err(Error::HasParent { .. })));
            let mut disk = keys.open(&storage, &top, Access::ReadWrite);
            assert!(read_all(&disk) == model, "{base} {child}");
            // Copy on write, and holes over the parents' data.
            for (offset, len, seed) in [(300_000, 5000, 1), (1 << 20, 70_000, 2), (size - 3000, 3000, 3)] {
                disk.write_at(&data(len, seed), offset as u64).unwrap();
                model[offset..offset + len].copy_from_slice(&data(len, seed));
            }
            for (offset, len) in [(2_000_000, 300_000), (150_000, 1000), (7 << 20, 65_536)] {
                disk.discard(offset as u64, len as u64).unwrap();
                model[offset..offset + len].fill(0);
            }
            disk.flush().unwrap();
            assert!(read_all(&disk) == model, "{base} {child}");
            drop(disk);
            if child == "monolithicSparse" {
                qemu(folder, "qemu-img", &["check", "-q", "s1.vmdk"]);
            }
            assert!(convert(folder, "s1.vmdk") == model, "{base} {child} {zeroed_grain}");
            assert!(read_all(&keys.open(&storage, &top, Access::Read)) == model);
        }
    }
}

#[test]
fn chains_that_were_made_here_are_read_by_qemu() {
    // Both extents of the split link are multiples of a grain: of an extent that ends within an absent grain QEMU 10 takes the first bytes of the
    // next for absent too.
    const SECTORS: u64 = 5120;
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalDir::open(folder.path()).unwrap();
    let mut keys = Keys::default();
    let mut parent: Option<String> = None;
    let kinds = [Kind::Flat, Kind::Monolithic, Kind::Split, Kind::Cowd, Kind::SeSparse, Kind::Monolithic];
    for (depth, kind) in kinds.into_iter().enumerate() {
        let new = NewLink::new(&format!("l{depth}"), kind, SECTORS, parent.as_deref());
        let grains: Grains = if kind.is_written() {
            Grains::new()
        } else {
            let len = new.grain_len();
            let has = |grain: &u64| grain % 7 < 3 && (grain + 1) * len <= SECTORS * 512;
            let content = |grain| (kind != Kind::SeSparse || grain % 7 > 0).then(|| data(len as usize, grain as u8));
            (0..SECTORS * 512 / len).filter(has).map(|grain| (grain, content(grain))).collect()
        };
        new.make(&storage, &mut keys, &grains);
        let link_path = path(&format!("l{depth}.vmdk"));
        if kind.is_written() {
            let mut disk = keys.open(&storage, &link_path, Access::ReadWrite);
            for index in 0..4_u64 {
                disk.write_at(&data(30_000, depth as u8), index * 600_000 + depth as u64 * 40_000).unwrap();
                disk.discard(index * 600_000 + 200_000 + depth as u64 * 30_000, 80_000).unwrap();
            }
            disk.flush().unwrap();
        }
        let ours = read_all(&keys.open(&storage, &link_path, Access::Read));
        let theirs = convert(folder.path(), link_path.as_str());
        let differs = (0..ours.len()).find(|index| ours[*index] != theirs[*index]);
        assert_eq!(differs, None, "{kind:?}: {:?}", (0..ours.len()).rev().find(|index| ours[*index] != theirs[*index]));
        if kind == Kind::Monolithic {
            qemu(folder.path(), "qemu-img", &["check", "-q", link_path.as_str()]);
        }
        parent = Some(link_path.to_string());
    }
}

#[test]
fn stream_optimized_disks_of_qemu_are_read() {
    for size in [10 << 20, (70 << 20) + 512 * 9] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        qemu(folder, "qemu-img", &["create", "-q", "-f", "vmdk", "source.vmdk", &size.to_string()]);
        qemu(
            folder,
            "qemu-io",
            &["-f", "vmdk", "-c", "write -q -P 0x5a 100k 3000k", "-c", "write -q -P 7 5M 9k", "source.vmdk"],
        );
        let noise = data(700_000, 9);
        let storage = LocalDir::open(folder).unwrap();
        let mut source = Keys::default().open(&storage, &path("source.vmdk"), Access::ReadWrite);
        source.write_at(&noise, size as u64 - 800_000).unwrap();
        source.flush().unwrap();
        drop(source);
        qemu(
            folder,
            "qemu-img",
            &[
                "convert",
                "-q",
                "-f",
                "vmdk",
                "-O",
                "vmdk",
                "-o",
                "subformat=streamOptimized",
                "source.vmdk",
                "stream.vmdk",
            ],
        );
        let disk = Disk::open(&storage, &path("stream.vmdk"), None, Access::Read).unwrap();
        let theirs = convert(folder, "stream.vmdk");
        assert!(read_all(&disk) == theirs);
        // Small reads that begin anywhere.
        for offset in (0..size - 5000).step_by(77_777) {
            let mut bytes = vec![1; 5000];
            disk.read_at(&mut bytes, offset as u64).unwrap();
            assert!(bytes == theirs[offset..offset + 5000]);
        }
        let error = Disk::open(&storage, &path("stream.vmdk"), None, Access::ReadWrite).unwrap_err();
        assert!(matches!(error, Error::ReadOnlyKind { .. }), "{error}");
    }
}

//! `vmseal serve`: the guest's bytes through the clients of others, and when it refuses.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::kill::{Operation, kill_published};
use crate::served::{Served, add_disk, disk, inside, run_peer, text, try_peer};
use crate::testing::{DISKS, SIZE, TestVm};

/// Something that no file of an encrypted VM may hold.
const MARK: &[u8] = b"the guest's own words, which nobody else may read";

#[test]
fn a_file_system_goes_in_and_comes_out_clean() {
    for subformat in ["monolithicSparse", "twoGbMaxExtentFlat"] {
        let vm = TestVm::with_disks(&[]);
        add_disk(&vm, "data.vmdk", subformat, "32M");
        vm.ok(&["encrypt", "VM", "--provider", "house"]);
        let (files, image, back) = (inside(&vm, "files"), inside(&vm, "ext4.img"), inside(&vm, "back.img"));
        std::fs::create_dir(&files).unwrap();
        for number in 0..40u8 {
            std::fs::write(files.join(number.to_string()), MARK.repeat(usize::from(number) * 37)).unwrap();
        }
        run_peer("mke2fs", &["-q", "-t", "ext4", "-d", text(&files), text(&image), "32M"]);

        let served = Served::socket(&vm, &[&disk(&vm, "data.vmdk")]);
        assert_eq!(served.ready["size_bytes"], 32 << 20);
        assert!(run_peer("nbdinfo", &[&served.uri]).contains("base:allocation"));
        run_peer("nbdcopy", &["--connections=4", "--flush", text(&image), &served.uri]);
        run_peer("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &served.uri]);
        served.end();

        for entry in std::fs::read_dir(vm.folder()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(MARK.len()).any(|window| window == MARK));
        }
        vm.ok(&["verify", "VM"]);
        let served = Served::socket(&vm, &[&disk(&vm, "data.vmdk"), "--read-only"]);
        run_peer("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.uri, text(&back)]);
        assert!(run_peer("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri]).contains("\"start\": 0"));
        served.end();
        run_peer("e2fsck", &["-fn", text(&back)]);
        assert!(std::fs::read(&back).unwrap() == std::fs::read(&image).unwrap());
    }
}

#[test]
fn every_type_of_disk_is_served_encrypted_or_not() {
    let vm = TestVm::new();
    let read = |args: &[&str], name: &str| {
        let served = Served::socket(&vm, &[&[&*disk(&vm, name)], args].concat());
        let raw = inside(&vm, "disk.raw");
        run_peer("nbdcopy", &[&served.uri, text(&raw)]);
        served.end();
        std::fs::read(&raw).unwrap()
    };
    for (name, _) in DISKS {
        assert!(read(&["--read-only"], name) == vm.disks[name], "{name} in the clear");
    }
    vm.ok(&["encrypt", "VM", "--provider", "house", "--disks", "sparse.vmdk,split-flat.vmdk"]);
    for (name, _) in DISKS {
        assert!(read(&[], name) == vm.disks[name], "{name}");
    }

    // Written in odd places by one peer, read by another.
    let odd = "write -P 0x5a 1000 70000";
    for name in ["flat.vmdk", "sparse.vmdk"] {
        let served = Served::socket(&vm, &[&disk(&vm, name)]);
        let zero = "write -zu 128k 64k";
        let output = run_peer("qemu-io", &["-f", "raw", "-c", odd, "-c", zero, "-c", "flush", &served.uri]);
        assert!(!output.contains("rror"), "{output}");
        // What is not flushed is durable when the server has ended, too.
        run_peer("qemu-io", &["-f", "raw", "-t", "unsafe", "-c", "write -P 0x77 512 1", &served.uri]);
        served.end();
        let mut wanted = vm.disks[name].clone();
        wanted[1000..71000].fill(0x5a);
        wanted[128 << 10..192 << 10].fill(0);
        wanted[512] = 0x77;
        assert!(vm.guest_bytes()[name] == wanted, "{name}");
    }
    vm.ok(&["verify", "VM"]);
}

#[test]
fn what_it_tells_and_what_it_leaves() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let socket = inside(&vm, "a b.sock");
    let served = Served::start(
        &vm,
        &[&disk(&vm, "flat.vmdk"), "--socket", text(&socket), "--export-name", "sys", "--read-only"],
    );
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(served.ready["socket"], text(&socket));
    assert!(served.uri.starts_with("nbd+unix:///sys?socket=/") && served.uri.ends_with("/a%20b.sock"));
    assert_eq!(served.ready["read_only"], true);
    assert_eq!(served.ready["size_bytes"], SIZE as u64);
    assert!(run_peer("nbdinfo", &["--list", &served.uri]).contains("export=\"sys\""));
    let refused = try_peer("qemu-io", &["-f", "raw", "-c", "write 0 512", &served.uri]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("Permission denied"), "{told}");
    let told = served.end();
    assert!(told.contains("Ready: ") && told.contains("to be read, at nbd+unix:///sys?"), "{told}");
    assert!(!socket.exists());
    vm.assert_whole();

    // What a killed server leaves is replaced; what is no dead socket is not.
    let served = Served::socket(&vm, &[&disk(&vm, "flat.vmdk")]);
    served.kill();
    assert!(inside(&vm, "nbd.sock").exists());
    Served::socket(&vm, &[&disk(&vm, "flat.vmdk")]).end();
    let live = UnixListener::bind(&socket).unwrap();
    let args = ["serve", &disk(&vm, "flat.vmdk"), "--socket", text(&socket)];
    vm.fails(&args, 3, "a program listens on this socket already");
    drop(live);
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "mine").unwrap();
    vm.fails(&args, 3, "it is no socket");
    assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
}

#[test]
fn nothing_else_works_on_the_disk_meanwhile() {
    let vm = TestVm::with_disks(&DISKS[..2]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let served = Served::socket(&vm, &[&disk(&vm, "flat.vmdk")]);
    let other = inside(&vm, "other.sock");
    let again = |name: &str| vm.run(&["serve", &disk(&vm, name), "--socket", text(&other)]);
    let ran = again("flat.vmdk");
    assert!(ran.status == 3 && ran.stderr.contains("another vmseal"), "{ran:?}");
    for args in [&["recrypt", "VM", "--deep"][..], &["decrypt", "VM"]] {
        let ran = vm.run(args);
        assert!(ran.status == 3 && ran.stderr.contains("served or written"), "{ran:?}");
    }
    // A shallow recrypt touches no data, and goes on beside it.
    vm.ok(&["recrypt", "VM"]);
    // The other disk of the VM is free.
    let second = Served::start(&vm, &[&disk(&vm, "sparse.vmdk"), "--socket", text(&other)]);
    second.end();
    served.end();
    // Many read at once, and nobody writes beside them.
    let first = Served::socket(&vm, &[&disk(&vm, "flat.vmdk"), "--read-only"]);
    let second = Served::start(&vm, &[&disk(&vm, "flat.vmdk"), "--read-only", "--socket", text(&other)]);
    run_peer("qemu-img", &["compare", "-f", "raw", "-F", "raw", &first.uri, &second.uri]);
    second.end();
    assert_eq!(again("flat.vmdk").status, 3);
    // Data that is converted where it lies would be read under the wrong key.
    assert!(vm.run(&["recrypt", "VM", "--deep"]).stderr.contains("served or written"));
    first.end();
    vm.assert_whole();
}

#[test]
fn it_refuses_what_could_do_harm() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let socket = inside(&vm, "nbd.sock");
    let disk_path = disk(&vm, "flat.vmdk");
    let serve = ["serve", &disk_path, "--socket", text(&socket)];
    let read = [&serve[..], &["--read-only"]].concat();

    // Whose disk it is.
    let copy = vm.folder().join("copy.vmx");
    std::fs::copy(vm.vmx(), &copy).unwrap();
    vm.fails(&serve, 3, "copy.vmx and web01.vmx attach it; name its VM with `--vm`");
    vm.fails(&[&serve[..], &["--vm", "VM"]].concat(), 3, "copy.vmx uses it too");
    std::fs::remove_file(&copy).unwrap();
    let stray = disk(&vm, "stray.vmdk");
    run_peer("qemu-img", &["create", "-q", "-f", "vmdk", &stray, "1M"]);
    let args = ["serve", &stray, "--socket", text(&socket)];
    vm.fails(&args, 3, "no VMX in its folder attaches it");
    vm.fails(&[&args[..], &["--vm", "VM"]].concat(), 3, "does not attach it");
    Served::start(&vm, &[&stray, "--socket", text(&socket), "--read-only", "--vm", text(&vm.vmx())]).end();
    let outside = inside(&vm, "outside.vmdk");
    vm.fails(&["serve", text(&outside), "--socket", text(&socket), "--vm", "VM"], 2, "does not lie in the folder");

    // Whether the VM runs.
    let lock = vm.folder().join("web01.vmx.lck");
    std::fs::create_dir(&lock).unwrap();
    vm.fails(&serve, 3, "web01.vmx is in use (web01.vmx.lck)");
    Served::socket(&vm, &[&disk_path, "--read-only"]).end();
    std::fs::remove_dir(&lock).unwrap();
    std::fs::write(vm.folder().join("web01.vmss"), "state").unwrap();
    vm.fails(&serve, 3, "is suspended");
    std::fs::remove_file(vm.folder().join("web01.vmss")).unwrap();

    // Where it would be reached by others.
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
        vm.fails(&["serve", &disk_path, "--tcp", address], 2, "others than this machine reach this address");
    }
    vm.fails(&["serve", &disk_path, "--tcp", "no address"], 2, "this is no address with a port");
    vm.fails(&["serve", &disk_path], 2, "--socket <PATH>");
    vm.fails(&[&serve[..], &["--tls-cert", "c", "--tls-key", "k"]].concat(), 2, "cannot be used with");

    // What is under way.
    kill_published(&vm, Operation::Encrypt, 0);
    for args in [&serve[..], &read] {
        vm.fails(args, 7, "complete it with `resume`");
    }
    vm.ok(&["resume", "VM"]);

    // Without its keys.
    let other_home = inside(&vm, "other-home");
    let ran = Command::new(env!("CARGO_BIN_EXE_vmseal")).arg("--home").arg(&other_home).args(serve).output().unwrap();
    assert_eq!(ran.status.code(), Some(4), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(!socket.exists());
    vm.ok(&["verify", "VM"]);
}

#[test]
fn tcp_on_this_machine_needs_no_tls() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let served = Served::start(&vm, &[&disk(&vm, "flat.vmdk"), "--tcp", address]);
        let raw = inside(&vm, "disk.raw");
        run_peer("nbdcopy", &[&served.uri, text(&raw)]);
        assert!(std::fs::read(&raw).unwrap() == vm.disks["flat.vmdk"]);
        assert!(served.end().contains("by every user of this machine"));
    }
}

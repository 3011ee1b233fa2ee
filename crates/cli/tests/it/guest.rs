//! A real Linux guest on an encrypted disk, served over NBD and run under emulation: its files survive recrypts between its runs, a shallow
//! recrypt under it, and being killed. `./test` makes the guest (`tests/guest/prepare`) and names it in `VMSEAL_TEST_GUEST`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::testing::{TestVm, qemu};

const DISK_LEN: u64 = 96 << 20;
/// Emulation is slow, and more so where other tests run beside it.
const PATIENCE: Duration = Duration::from_secs(240);

fn guest_folder() -> PathBuf {
    let Some(folder) = std::env::var_os("VMSEAL_TEST_GUEST") else {
        panic!("the guest is made by ./test, which sets VMSEAL_TEST_GUEST");
    };
    PathBuf::from(folder)
}

/// A VM with one sparse disk, which holds an ext4 file system.
fn vm_with_file_system() -> TestVm {
    let vm = TestVm::with_disks(&[]);
    let raw = vm.root.path().join("disk.raw");
    std::fs::File::create(&raw).unwrap().set_len(DISK_LEN).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&raw).env("PATH", path()).status().unwrap();
    assert!(made.success());
    let disk = vm.folder().join("root.vmdk");
    qemu("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicSparse"], &[&raw, &disk]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    std::fs::write(vm.vmx(), format!("{vmx}\nscsi0:0.fileName = \"root.vmdk\"\nscsi0:0.present = \"TRUE\"\n")).unwrap();
    vm
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap())
}

struct Server {
    child: Child,
    socket: PathBuf,
}

/// Serves the disk, and waits until it is served.
fn serve(vm: &TestVm, options: &[&str]) -> Server {
    let socket = vm.root.path().join("disk.sock");
    let disk = vm.folder().join("root.vmdk");
    let mut command = vm.command(&["serve"]);
    command.arg(disk).arg("--socket").arg(&socket).args(options).stdout(Stdio::null());
    let child = command.spawn().unwrap();
    let begin = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(begin.elapsed() < PATIENCE, "the server does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server { child, socket }
}

impl Server {
    /// Ends it as an administrator does.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

struct Guest {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

fn boot(socket: &Path, options: &str) -> Guest {
    let folder = guest_folder();
    let mut child = Command::new(folder.join("root/usr/bin/qemu-system-x86_64"))
        .arg("-L")
        .arg(folder.join("root/usr/share/qemu"))
        .arg("-L")
        .arg(folder.join("root/usr/share/seabios"))
        .args(["-accel", "tcg", "-m", "256", "-display", "none", "-serial", "stdio", "-monitor", "none"])
        .args(["-nic", "none", "-no-reboot", "-append", &format!("console=ttyS0 quiet panic=1 {options}"), "-kernel"])
        .arg(folder.join("kernel"))
        .arg("-initrd")
        .arg(folder.join("initramfs.gz"))
        .args(["-blockdev", &format!("driver=nbd,server.type=unix,server.path={},node-name=d0", socket.display())])
        .args(["-device", "virtio-blk-pci,drive=d0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let console = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in console.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Guest { child, lines }
}

impl Guest {
    /// Waits for a line of the console.
    #[track_caller]
    fn wait_for(&self, text: &str) -> String {
        let begin = Instant::now();
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
            assert!(!line.contains("GUEST FAILED"), "{line}");
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("the guest never said {text:?}; its console: {seen:#?}");
    }

    fn end(mut self) {
        self.wait_for("GUEST DONE");
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The file system as the guest left it, by export.
#[track_caller]
fn assert_file_system_is_clean(vm: &TestVm) {
    let raw = vm.root.path().join("export.raw");
    let disk = vm.folder().join("root.vmdk");
    let (raw, disk) = (raw.to_str().unwrap(), disk.to_str().unwrap());
    vm.ok(&["disk", "export", disk, "-o", raw, "--force"]);
    let checked = Command::new("e2fsck").args(["-fn", raw]).env("PATH", path()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_guest_runs_ten_rounds_with_a_deep_recrypt_between_them() {
    let vm = vm_with_file_system();
    vm.ok(&["encrypt", "VM", "--provider", "house", "--strategy", "in-place"]);
    for round in 0..10 {
        let server = serve(&vm, &[]);
        let guest = boot(&server.socket, &format!("round={round}"));
        guest.end();
        server.end();
        assert_file_system_is_clean(&vm);
        let strategy = if round % 2 == 0 { "in-place" } else { "copy" };
        vm.ok(&["recrypt", "VM", "--deep", "--strategy", strategy]);
        vm.ok(&["verify", "VM"]);
        assert_file_system_is_clean(&vm);
    }
    vm.ok(&["decrypt", "VM", "--strategy", "in-place"]);
    assert_file_system_is_clean(&vm);
}

#[test]
fn under_a_running_guest_a_deep_recrypt_is_refused_and_a_shallow_one_goes_through() {
    let vm = vm_with_file_system();
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let server = serve(&vm, &[]);
    let guest = boot(&server.socket, "round=0 hold");
    guest.wait_for("GUEST SYNCED 3");
    let refused = vm.run(&["recrypt", "VM", "--deep"]);
    assert_eq!(refused.status, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("powered on"), "{}", refused.stderr);
    let before = vm.ok(&["inspect", "VM"]).stdout;
    vm.ok(&["recrypt", "VM"]);
    assert_ne!(vm.ok(&["inspect", "VM"]).stdout, before, "another key");
    // It did not notice.
    guest.wait_for("GUEST SYNCED 12");
    guest.kill();
    server.end();
    let server = serve(&vm, &[]);
    boot(&server.socket, "round=1 held=12").end();
    server.end();
    vm.ok(&["verify", "VM"]);
    assert_file_system_is_clean(&vm);
}

#[test]
fn what_a_guest_had_synced_survives_a_killed_server_and_a_killed_guest() {
    let vm = vm_with_file_system();
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let mut held = 0;
    for round in 0..3 {
        let mut server = serve(&vm, &[]);
        let guest = boot(&server.socket, &format!("round={round} held={held} hold"));
        held = 4 + round * 3;
        guest.wait_for(&format!("GUEST SYNCED {held}"));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        guest.kill();
        vm.ok(&["recrypt", "VM", "--deep", "--strategy", "in-place"]);
    }
    let server = serve(&vm, &[]);
    boot(&server.socket, &format!("round=3 held={held}")).end();
    server.end();
    assert_file_system_is_clean(&vm);
}

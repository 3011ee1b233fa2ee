//! The process is killed at every point of every operation; `vmseal resume` makes the VM whole again.
//!
//! The points are the accesses to storage. The killed process is this test binary itself, which runs the operation through the library over a
//! storage that kills it (SIGKILL) before the access with a given number, or in the middle of it; who resumes is the real command. A second set of
//! tests kills the real command at random moments.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmseal::{Journal, LocalDir, LocalProviders, ProviderName, Request, Storage, StoragePath, Strategy, Unwatched, Vm};
use vmseal_storage::{Access, Error, File, Lock, LockMode, Metadata};

use crate::testing::{DISKS, TestVm, VMX, copy_folder, snapshot};

/// One flat disk, one with an embedded descriptor.
const KILL_DISKS: &[(&str, &str)] = DISKS.first_chunk::<2>().unwrap();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Encrypt,
    ShallowRecrypt,
    DeepRecrypt,
    Decrypt,
    EncryptInPlace,
    DeepRecryptInPlace,
    DecryptInPlace,
    Resume,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::ShallowRecrypt => "shallow",
            Self::DeepRecrypt => "deep",
            Self::Decrypt => "decrypt",
            Self::EncryptInPlace => "encrypt-in-place",
            Self::DeepRecryptInPlace => "deep-in-place",
            Self::DecryptInPlace => "decrypt-in-place",
            Self::Resume => "resume",
        }
    }

    fn from_name(name: &str) -> Self {
        let copy = [Self::Encrypt, Self::ShallowRecrypt, Self::DeepRecrypt, Self::Decrypt, Self::Resume];
        let in_place = [Self::EncryptInPlace, Self::DeepRecryptInPlace, Self::DecryptInPlace];
        copy.into_iter().chain(in_place).find(|operation| operation.name() == name).unwrap()
    }
}

/// A storage that kills its process at the access with a given number. A write is killed half-way.
struct Killing {
    inner: LocalDir,
    left: Arc<AtomicU64>,
}

fn count(left: &AtomicU64) -> bool {
    left.fetch_sub(1, Ordering::SeqCst) == 1
}

fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn step(left: &AtomicU64) {
    if count(left) {
        die();
    }
}

impl Storage for Killing {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error> {
        let file = self.inner.open(path, access)?;
        Ok(Box::new(KillingFile { file, left: self.left.clone() }))
    }

    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, Error> {
        step(&self.left);
        let file = self.inner.create(path, like)?;
        Ok(Box::new(KillingFile { file, left: self.left.clone() }))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error> {
        self.inner.metadata(path)
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error> {
        self.inner.list(folder)
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        step(&self.left);
        self.inner.create_folder(folder)
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error> {
        step(&self.left);
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &StoragePath) -> Result<(), Error> {
        step(&self.left);
        self.inner.remove(path)
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        step(&self.left);
        self.inner.sync_folder(folder)
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
        step(&self.left);
        let lock = self.inner.lock(path, mode)?;
        step(&self.left);
        Ok(lock)
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        self.inner.free_bytes()
    }
}

#[derive(Debug)]
struct KillingFile {
    file: Box<dyn File>,
    left: Arc<AtomicU64>,
}

impl File for KillingFile {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        step(&self.left);
        if count(&self.left) {
            // A kill ends a write between pages; whole sectors are what a conversion in place asks for.
            let half = data.len() / 2;
            let half = if half > 512 { half / 512 * 512 } else { half };
            self.file.write_at(&data[..half], offset)?;
            die();
        }
        self.file.write_at(data, offset)
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), Error> {
        step(&self.left);
        self.file.set_len(len_bytes)
    }

    fn sync(&self) -> Result<(), Error> {
        step(&self.left);
        self.file.sync()
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        step(&self.left);
        self.file.punch_hole(offset, len_bytes)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        self.file.next_data(offset)
    }
}

/// What the process does that is to be killed; a test of its own only in name.
#[test]
fn killed_process() {
    let Some(job) = std::env::var_os("VMSEAL_TEST_KILL") else { return };
    let job = job.into_string().unwrap();
    let [operation, at, root] = job.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let root = Path::new(root);
    let left = Arc::new(AtomicU64::new(at.parse().unwrap()));
    let storage = Killing { inner: LocalDir::open(root.join("vm")).unwrap(), left };
    let home = LocalDir::open(root.join("state")).unwrap();
    let mut keys = LocalProviders::open(&home).unwrap();
    let vm = Vm::at(&storage, VMX).unwrap();
    let house = ProviderName::new("house").unwrap();
    let request = match Operation::from_name(operation) {
        Operation::Encrypt => Request::encrypt(&house),
        Operation::ShallowRecrypt => Request::shallow_recrypt(),
        Operation::DeepRecrypt => Request::deep_recrypt(),
        Operation::Decrypt => Request::decrypt(),
        Operation::EncryptInPlace => in_place(Request::encrypt(&house)),
        Operation::DeepRecryptInPlace => in_place(Request::deep_recrypt()),
        Operation::DecryptInPlace => in_place(Request::decrypt()),
        Operation::Resume => {
            vm.resume(&mut keys, Unwatched).unwrap();
            return;
        }
    };
    vm.execute(vm.plan(&request).unwrap(), &mut keys, Unwatched).unwrap();
}

/// In zones of 512 KiB, of which each disk has several.
fn in_place(request: Request) -> Request {
    request.strategy(Strategy::InPlace(Journal::Digests)).memory_bytes(2 << 20)
}

/// Runs an operation in a process that is killed at access `at`; tells whether it was.
pub(crate) fn kill_at(vm: &TestVm, operation: Operation, at: u64) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::killed_process", "--nocapture"])
        .env("VMSEAL_TEST_KILL", format!("{} {at} {}", operation.name(), vm.root.path().display()))
        .output()
        .unwrap();
    if output.status.success() {
        return false;
    }
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(9), "{operation:?} at {at}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

/// A VM in the state in which the operation begins.
fn start(operation: Operation) -> TestVm {
    let vm = TestVm::with_disks(KILL_DISKS);
    if !matches!(operation, Operation::Encrypt | Operation::EncryptInPlace) {
        vm.ok(&["encrypt", "VM", "--provider", "house"]);
    }
    vm
}

fn restore(vm: &TestVm, from: &Path) {
    std::fs::remove_dir_all(vm.folder()).unwrap();
    copy_folder(from, &vm.folder());
}

/// What `vmseal resume` finds after a kill, and that the VM is whole afterwards. Tells whether something was pending.
#[track_caller]
fn recover(vm: &TestVm, at: u64, args: &[&str]) -> bool {
    let ran = vm.run(args);
    match ran.status {
        0 => {}
        3 if ran.stderr.contains("nothing is pending") => {}
        status => panic!("killed at {at}: {status}: {}", ran.stderr),
    }
    vm.assert_whole();
    ran.status == 0
}

/// Kills an operation right after the given number of files was published; 0 is right after its commit.
pub(crate) fn kill_published(vm: &TestVm, operation: Operation, published: usize) {
    let before = snapshot(&vm.folder());
    let at_first = vm.root.path().join("before-kill");
    copy_folder(&vm.folder(), &at_first);
    for at in 1.. {
        restore(vm, &at_first);
        assert!(kill_at(vm, operation, at), "{published} files are never published alone");
        let record = std::fs::read_to_string(vm.folder().join("web01.vmx.vmseal")).unwrap_or_default();
        let after = snapshot(&vm.folder());
        let changed = before.iter().filter(|(name, bytes)| after.get(*name) != Some(*bytes)).count();
        if record.contains("\"phase\":\"publish\"") && changed == published {
            std::fs::remove_dir_all(&at_first).unwrap();
            return;
        }
    }
}

/// Kills `operation` at every access, and lets the command complete or undo it.
fn every_point(operation: Operation) {
    let vm = start(operation);
    let at_first = vm.root.path().join("at-first");
    copy_folder(&vm.folder(), &at_first);
    let before = snapshot(&vm.folder());
    let (mut killed, mut resumed, mut undone, mut committed) = (0, 0, 0, 0);
    for at in 1.. {
        restore(&vm, &at_first);
        if !kill_at(&vm, operation, at) {
            break;
        }
        killed += 1;
        let after_kill = vm.root.path().join("after-kill");
        copy_folder(&vm.folder(), &after_kill);

        resumed += u32::from(recover(&vm, at, &["resume", "VM"]));

        // The same crash once more, undone this time.
        restore(&vm, &after_kill);
        let ran = vm.run(&["resume", "VM", "--rollback"]);
        match ran.status {
            0 => {
                undone += 1;
                vm.assert_whole();
                assert!(snapshot(&vm.folder()) == before, "killed at {at}: the VM is not as it was");
            }
            3 if ran.stderr.contains("committed") => {
                committed += 1;
                recover(&vm, at, &["resume", "VM"]);
            }
            3 => assert!(ran.stderr.contains("nothing is pending"), "{}", ran.stderr),
            status => panic!("killed at {at}: {status}: {}", ran.stderr),
        }

        // And once more, with the recovery killed too, at a point that differs from crash to crash.
        restore(&vm, &after_kill);
        if vm.folder().join("web01.vmx.vmseal").exists() {
            kill_at(&vm, Operation::Resume, 1 + at * 7 % 23);
            recover(&vm, at, &["resume", "VM"]);
        }
        std::fs::remove_dir_all(&after_kill).unwrap();
    }
    println!("{operation:?}: {killed} points, {resumed} resumed, {undone} undone, {committed} behind the commit point");
    assert!(killed >= 30, "{killed} points");
    assert!(resumed > 10 && undone > 5 && committed > 1);
}

#[test]
fn an_encryption_killed_at_every_point() {
    every_point(Operation::Encrypt);
}

#[test]
fn a_shallow_recrypt_killed_at_every_point() {
    every_point(Operation::ShallowRecrypt);
}

#[test]
fn a_deep_recrypt_killed_at_every_point() {
    every_point(Operation::DeepRecrypt);
}

#[test]
fn a_decryption_killed_at_every_point() {
    every_point(Operation::Decrypt);
}

#[test]
fn an_encryption_in_place_killed_at_every_point() {
    every_point(Operation::EncryptInPlace);
}

#[test]
fn a_deep_recrypt_in_place_killed_at_every_point() {
    every_point(Operation::DeepRecryptInPlace);
}

#[test]
fn a_decryption_in_place_killed_at_every_point() {
    every_point(Operation::DecryptInPlace);
}

/// Kills the real command after `delay`, which grows from kill to kill until it gets through.
#[test]
fn the_command_killed_at_any_moment() {
    let operations: [(Operation, &[&str]); 6] = [
        (Operation::Encrypt, &["encrypt", "VM", "--provider", "house"]),
        (Operation::DeepRecrypt, &["recrypt", "VM", "--deep"]),
        (Operation::Decrypt, &["decrypt", "VM"]),
        (Operation::Encrypt, &["encrypt", "VM", "--provider", "house", "--strategy", "in-place", "--memory", "2"]),
        (Operation::DeepRecrypt, &["recrypt", "VM", "--deep", "--strategy", "in-place", "--memory", "2"]),
        (Operation::Decrypt, &["decrypt", "VM", "--strategy", "in-place", "--journal", "data", "--memory", "2"]),
    ];
    for (operation, args) in operations {
        let vm = start(operation);
        let at_first = vm.root.path().join("at-first");
        copy_folder(&vm.folder(), &at_first);
        let begin = std::time::Instant::now();
        vm.ok(args);
        let whole = begin.elapsed();
        let mut killed = 0;
        for index in 0..34 {
            restore(&vm, &at_first);
            let mut child = vm.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(f64::from(index) / 34.0));
            child.kill().unwrap();
            killed += u32::from(!child.wait().unwrap().success());
            recover(&vm, u64::from(index as u32), &["resume", "VM"]);
        }
        println!("{operation:?}: {killed} of 34 were killed before they ended");
        assert!(killed > 5);
    }
}

#[test]
fn an_interrupt_stops_at_a_point_that_can_be_resumed() {
    let vm = TestVm::with_disks(KILL_DISKS);
    let at_first = vm.root.path().join("at-first");
    copy_folder(&vm.folder(), &at_first);
    let begin = std::time::Instant::now();
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let whole = begin.elapsed();
    let mut stopped = 0;
    for index in 0..40 {
        restore(&vm, &at_first);
        let mut child = vm
            .command(&["encrypt", "VM", "--provider", "house"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(index as f64 / 40.0));
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        match child.wait().unwrap().code() {
            Some(7) => {
                stopped += 1;
                let text = vm.ok(&["inspect", "VM"]).stdout;
                assert!(text.contains("PENDING"), "{text}");
                vm.fails(&["encrypt", "VM", "--provider", "house"], 3, "complete it with `resume`");
                vm.fails(&["verify", "VM"], 7, "has to end first");
                let args: &[&str] = if index % 2 == 0 { &["resume", "VM"] } else { &["resume", "VM", "--rollback"] };
                assert!(recover(&vm, index, args));
            }
            // Before the command listens, the signal ends it; after its last safe point it ends by itself.
            None | Some(0) => {
                recover(&vm, index, &["resume", "VM"]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(stopped > 0);
}

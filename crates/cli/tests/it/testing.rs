//! A VM on real files, the command, and what a folder holds.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vmseal::{LocalDir, LocalProviders, Vm};

pub(crate) const VMX: &str = "web01.vmx";
pub(crate) const SIZE: usize = (2 << 20) + 512 * 37;
/// The disks, each of another type; the last one is alone with data units of its own length at the end.
pub(crate) const DISKS: [(&str, &str); 4] = [
    ("flat.vmdk", "monolithicFlat"),
    ("sparse.vmdk", "monolithicSparse"),
    ("split-flat.vmdk", "twoGbMaxExtentFlat"),
    ("split-sparse.vmdk", "twoGbMaxExtentSparse"),
];

/// A temporary folder with a VM in `vm`, the state folder in `state`, and a copy of what each disk holds.
pub(crate) struct TestVm {
    pub(crate) root: TempDir,
    pub(crate) disks: BTreeMap<String, Vec<u8>>,
}

/// What the command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl TestVm {
    /// A VM with every type of disk, and the provider `house`.
    pub(crate) fn new() -> Self {
        Self::with_disks(&DISKS)
    }

    pub(crate) fn with_disks(disks: &[(&str, &str)]) -> Self {
        let vm = Self { root: TempDir::new().unwrap(), disks: BTreeMap::new() };
        vm.make(disks)
    }

    /// The same in a folder of the caller's.
    pub(crate) fn inside(folder: &Path, disks: &[(&str, &str)]) -> Self {
        let vm = Self { root: TempDir::new_in(folder).unwrap(), disks: BTreeMap::new() };
        vm.make(disks)
    }

    fn make(mut self, disks: &[(&str, &str)]) -> Self {
        std::fs::create_dir(self.folder()).unwrap();
        // Comments, blanks, CRLF and a line that is none are to survive every operation.
        let mut vmx =
            "#!/usr/bin/vmware\n.encoding = \"UTF-8\"\ndisplayName = \"web |22one|22\"\r\n\nthis is no entry\n"
                .to_owned();
        vmx.push_str("nvram = \"web01.nvram\"\nmemsize=2048 # MiB\nscsi0.present = \"TRUE\"\n");
        for (index, (name, subformat)) in disks.iter().enumerate() {
            let content = content(index as u64 + 1);
            let raw = self.root.path().join("disk.raw");
            std::fs::write(&raw, &content).unwrap();
            let options = format!("subformat={subformat}");
            let disk = self.folder().join(name);
            qemu("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", &options], &[&raw, &disk]);
            std::fs::remove_file(&raw).unwrap();
            vmx.push_str(&format!("scsi0:{index}.fileName = \"{name}\"\nscsi0:{index}.present = \"TRUE\"\n"));
            self.disks.insert((*name).to_owned(), content);
        }
        vmx.push_str("# the last line has no ending");
        std::fs::write(self.vmx(), vmx).unwrap();
        std::fs::write(self.folder().join("web01.nvram"), &content(99)[..70_000]).unwrap();
        std::fs::write(self.folder().join("vmware.log"), "a log stays as it is\n").unwrap();
        self.ok(&["provider", "create", "native", "house"]);
        self
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.root.path().join("vm")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub(crate) fn vmx(&self) -> PathBuf {
        self.folder().join(VMX)
    }

    /// Runs the command; `VM` among the arguments stands for the VMX.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmseal"));
        let vmx = self.vmx();
        command.arg("--home").arg(self.home());
        for arg in args {
            match *arg {
                "VM" => command.arg(&vmx),
                arg => command.arg(arg),
            };
        }
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.status, 0, "{args:?}: {}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Runs what has to fail, and checks that the folder is what it was.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], status: i32, message: &str) -> Ran {
        // A killed process leaves its lock file, which the next one takes over.
        let look = || {
            let mut files = snapshot(&self.folder());
            files.retain(|name, _| !name.ends_with(".vmseal-lock") && !name.ends_with(".vmseal-tmp"));
            files
        };
        let before = look();
        let ran = self.run(args);
        assert_eq!(ran.status, status, "{args:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
        assert!(before == look(), "{args:?} changed the folder");
        ran
    }

    /// The guest's bytes of each disk, as the library reads them.
    pub(crate) fn guest_bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let storage = LocalDir::open(self.folder()).unwrap();
        let vm = Vm::open(&storage, VMX).unwrap();
        let home = LocalDir::open(self.home()).unwrap();
        let mut keys = LocalProviders::open(&home).unwrap();
        let encrypted = vm.inspect().unwrap().state.encryption == "vmseal";
        let read = |name: &String| {
            let mut keys = &mut keys;
            let mut bytes = vec![0; SIZE];
            if encrypted {
                vm.unlock(&mut keys).unwrap().open_disk(name).unwrap().read_at(&mut bytes, 0).unwrap();
            } else {
                vm.open_plain_disk(name).unwrap().read_at(&mut bytes, 0).unwrap();
            }
            (name.clone(), bytes)
        };
        self.disks.keys().map(read).collect()
    }

    /// The same of a VM in the clear, for which no state folder has to be there.
    pub(crate) fn guest_bytes_plain(&self) -> BTreeMap<String, Vec<u8>> {
        let storage = LocalDir::open(self.folder()).unwrap();
        let vm = Vm::open(&storage, VMX).unwrap();
        let read = |name: &String| {
            let mut bytes = vec![0; SIZE];
            vm.open_plain_disk(name).unwrap().read_at(&mut bytes, 0).unwrap();
            (name.clone(), bytes)
        };
        self.disks.keys().map(read).collect()
    }

    /// The VM is whole: it holds the guest's bytes, verifies, and nothing is left beside it.
    #[track_caller]
    pub(crate) fn assert_whole(&self) {
        self.ok(&["verify", "VM"]);
        assert!(self.guest_bytes() == self.disks, "the guest's bytes have changed");
        for name in snapshot(&self.folder()).keys() {
            assert!(!name.contains(".vmseal"), "{name} is left");
        }
    }
}

/// Bytes that differ in every sector, with holes of some KiB in between.
pub(crate) fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (index, sector) in bytes.chunks_mut(512).enumerate() {
        // 128 KiB of data, 128 KiB of a hole, and longer holes in between.
        if index / 256 % 2 == 0 && index / 1024 % 2 == 0 {
            let mut state = (seed << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for word in sector.chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
    }
    bytes
}

#[track_caller]
pub(crate) fn qemu(program: &str, args: &[&str], paths: &[&Path]) -> String {
    let output = Command::new(program)
        .args(args)
        .args(paths)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`./test` installs qemu-utils): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file below a folder with its content.
pub(crate) fn snapshot(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// A copy of a folder, holes kept.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// What QEMU reads from a disk.
pub(crate) fn qemu_bytes(disk: &Path) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    qemu("qemu-img", &["convert", "-f", "vmdk", "-O", "raw"], &[disk, raw.path()]);
    let mut bytes = vec![0; SIZE];
    assert_eq!(raw.as_file().metadata().unwrap().len(), SIZE as u64);
    std::fs::File::open(raw.path()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

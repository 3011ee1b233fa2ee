//! A disk that the command serves, and the clients of others.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::testing::TestVm;

/// `vmseal serve` at work. Killed when it is dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) ready: serde_json::Value,
    /// What clients are given.
    pub(crate) uri: String,
}

impl Served {
    /// Serves on the socket `nbd.sock` beside the VM's folder.
    #[track_caller]
    pub(crate) fn socket(vm: &TestVm, args: &[&str]) -> Self {
        let socket = vm.root.path().join("nbd.sock");
        Self::start(vm, &[&["--socket", socket.to_str().unwrap()], args].concat())
    }

    #[track_caller]
    pub(crate) fn start(vm: &TestVm, args: &[&str]) -> Self {
        let mut command = vm.command(&["serve", "--json"]);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str::<serde_json::Value>(&line) else {
            child.kill().unwrap();
            panic!("{line}{}", String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr));
        };
        let uri = ready["uri"].as_str().unwrap().to_owned();
        Self { child, ready, uri }
    }

    /// Ends it as an administrator does; what it told.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let mut told = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{told}");
        told
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn disk(vm: &TestVm, name: &str) -> String {
    vm.folder().join(name).to_str().unwrap().to_owned()
}

/// A command of a peer. nbdsh takes the first Python that it finds, and only the system's has its module.
pub(crate) fn peer(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").stdin(Stdio::null());
    command
}

pub(crate) fn try_peer(program: &str, args: &[&str]) -> Output {
    peer(program, args).output().unwrap_or_else(|error| panic!("{program} is needed (`./test` installs it): {error}"))
}

#[track_caller]
pub(crate) fn run_peer(program: &str, args: &[&str]) -> String {
    let output = try_peer(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A further disk of the VM that holds nothing.
pub(crate) fn add_disk(vm: &TestVm, name: &str, subformat: &str, size: &str) {
    let options = format!("subformat={subformat}");
    run_peer("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &options, &disk(vm, name), size]);
    let vmx = std::fs::read_to_string(vm.vmx()).unwrap();
    let entry = format!("nvme0:0.fileName = \"{name}\"\nnvme0:0.present = \"TRUE\"\n");
    std::fs::write(vm.vmx(), format!("{entry}{vmx}")).unwrap();
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn inside(vm: &TestVm, name: &str) -> PathBuf {
    vm.root.path().join(name)
}

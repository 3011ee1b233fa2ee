//! `vmseal unlock` and `lock`, on the vectors of the formats and on files of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::testing::{Ran, snapshot};

/// A folder for one case.
pub(crate) struct Folder {
    pub(crate) root: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { root: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmseal"));
        command.current_dir(self.root.path()).args(args).stdin(Stdio::null()).env_remove("VISUAL");
        // Whoever runs the tests may have providers of the same names.
        command.env_remove("VMSEAL_HOME").env("XDG_DATA_HOME", self.root.path().join("no-data"));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.status, 0, "{args:?}: {}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Runs what has to fail, and checks that the folder is what it was.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], statuses: &[i32], message: &str) {
        let before = snapshot(self.root.path());
        let ran = self.run(args);
        assert!(statuses.contains(&ran.status), "{args:?}: {} {}{}", ran.status, ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
        assert!(before == snapshot(self.root.path()), "{args:?} changed the folder");
    }
}

pub(crate) fn vectors(folder: &str) -> (PathBuf, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/tests/vectors").join(folder);
    let list = serde_json::from_slice(&std::fs::read(folder.join("vectors.json")).unwrap()).unwrap();
    (folder, list)
}

pub(crate) fn cases<'v>(list: &'v Value, name: &str) -> &'v [Value] {
    let cases = list[name].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text).replace('\u{feff}', "");
    text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The value of an entry in its own line.
pub(crate) fn entry(vmx: &[u8], name: &str) -> Option<String> {
    lines(vmx).iter().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

const PLAIN: &str =
    ".encoding = \"UTF-8\"\ndisplayName = \"web01\"\r\n# a comment\nmemsize = \"4096\"\nannotation = \"a|22b|22\"\n";

#[test]
fn the_vectors_unlock_to_what_they_hold() {
    let (from, list) = vectors("vmx");
    let mut unlocked = 0;
    for case in cases(&list, "valid") {
        let name = case["file"].as_str().unwrap();
        let phrases: Vec<&str> =
            case["locators"].as_array().unwrap().iter().filter_map(|locator| locator["phrase"].as_str()).collect();
        let folder = Folder::new();
        folder.write("in.vmx", std::fs::read(from.join(name)).unwrap());
        folder.write("wrong", "no such password\n");
        folder.fails(&["unlock", "in.vmx", "--password-file", "wrong", "-o", "out.vmx"], &[4], "in.vmx: ");
        for phrase in phrases {
            folder.write("right", format!("{phrase}\n"));
            folder.ok(&["unlock", "in.vmx", "--password-file", "right", "-o", "out.vmx"]);
            let plain = folder.read("out.vmx");
            assert!(entry(&plain, "encryption.keySafe").is_none() && entry(&plain, "encryption.data").is_none());
            let found = lines(&plain);
            for line in lines(case["plaintext"].as_str().unwrap().as_bytes()) {
                let name = line.split('=').next().unwrap().trim().to_ascii_lowercase();
                // A name that is in the clear too keeps its line, with the hidden value.
                let is_there = found.contains(&line)
                    || found.iter().any(|other| other.to_ascii_lowercase().starts_with(&format!("{name} ")));
                assert!(is_there, "{}: {line}", case["file"]);
            }
            std::fs::remove_file(folder.path("out.vmx")).unwrap();
            unlocked += 1;
        }
    }
    assert!(unlocked >= 15, "{unlocked}");
}

#[test]
fn damaged_vectors_are_refused_with_their_status() {
    let (from, list) = vectors("vmx");
    for case in cases(&list, "invalid") {
        let folder = Folder::new();
        folder.write("in.vmx", std::fs::read(from.join(case["file"].as_str().unwrap())).unwrap());
        folder.write("password", case["phrase"].as_str().unwrap_or("base"));
        let statuses: &[i32] = if case["error"] == "wrong_key" { &[4] } else { &[4, 5] };
        folder.fails(&["unlock", "in.vmx", "--password-file", "password"], statuses, "vmseal: in.vmx: ");
    }
}

#[test]
fn what_is_locked_opens_with_its_password_alone() {
    for cipher in ["XTS-AES-256", "AES-256"] {
        let folder = Folder::new();
        folder.write("web01.vmx", PLAIN);
        folder.write("password", "a password\r\n");
        folder.write("other", "another");
        folder.ok(&["lock", "web01.vmx", "--password-file", "password", "--cipher", cipher]);
        let locked = folder.read("web01.vmx");
        let text = String::from_utf8(locked.clone()).unwrap();
        assert!(!text.contains("memsize") && !text.contains("comment") && text.contains("web01"), "{text}");
        assert!(entry(&locked, "encryption.keySafe").unwrap().contains(&cipher.replace('-', "%2d")), "{text}");
        folder.fails(&["lock", "web01.vmx", "--password-file", "password"], &[3], "encrypted already");
        folder.fails(&["unlock", "web01.vmx", "--password-file", "other"], &[4], "wrong");
        folder.fails(&["unlock", "web01.vmx"], &[4], "--password-file");
        folder.ok(&["unlock", "web01.vmx", "--password-file", "password"]);
        let mut back = lines(&folder.read("web01.vmx"));
        let mut before = lines(PLAIN.as_bytes());
        back.sort();
        before.sort();
        assert_eq!(back, before);
        folder.fails(&["unlock", "web01.vmx", "--password-file", "password"], &[3], "not encrypted");
        assert_eq!(snapshot(folder.root.path()).len(), 3, "something is left");
    }
}

#[test]
fn another_password_leaves_the_settings_as_they_lie() {
    let (from, _) = vectors("vmx");
    let folder = Folder::new();
    folder.write("web01.vmx", std::fs::read(from.join("two-phrases.vmx")).unwrap());
    folder.write("old", "second phrase");
    folder.write("new", "third phrase");
    folder.write("first", "first phrase");
    let before = folder.read("web01.vmx");
    folder.fails(
        &["lock", "--change-password", "--password-file", "new", "--new-password-file", "old", "web01.vmx"],
        &[4],
        "wrong",
    );
    folder.ok(&["lock", "--change-password", "--password-file", "old", "--new-password-file", "new", "web01.vmx"]);
    let after = folder.read("web01.vmx");
    assert_eq!(entry(&before, "encryption.data"), entry(&after, "encryption.data"));
    assert_ne!(entry(&before, "encryption.keySafe"), entry(&after, "encryption.keySafe"));
    folder.fails(&["unlock", "web01.vmx", "--password-file", "old", "-o", "out.vmx"], &[4], "wrong");
    for password in ["new", "first"] {
        folder.ok(&["unlock", "web01.vmx", "--password-file", password, "-o", "-"]);
    }
}

#[test]
fn an_output_is_not_replaced_without_force() {
    let folder = Folder::new();
    folder.write("web01.vmx", PLAIN);
    folder.write("password", "a password");
    folder.write("out.vmx", "mine");
    let lock = ["lock", "web01.vmx", "--password-file", "password", "-o", "out.vmx"];
    folder.fails(&lock, &[3], "--force");
    folder.ok(&[lock.as_slice(), &["--force"]].concat());
    assert!(entry(&folder.read("out.vmx"), "encryption.data").is_some());
    assert_eq!(folder.read("web01.vmx"), PLAIN.as_bytes());
}

#[test]
fn standard_input_and_output_carry_a_vmx() {
    let folder = Folder::new();
    folder.write("web01.vmx", PLAIN);
    folder.write("password", "a password");
    let through = |verb: &str, input: &str, output: &str| {
        let mut command = folder.command(&[verb, "-", "--password-file", "password"]);
        command.stdin(std::fs::File::open(folder.path(input)).unwrap());
        command.stdout(std::fs::File::create(folder.path(output)).unwrap());
        assert!(command.status().unwrap().success());
    };
    through("lock", "web01.vmx", "locked.vmx");
    through("unlock", "locked.vmx", "plain.vmx");
    assert_eq!(entry(&folder.read("plain.vmx"), "memsize").unwrap(), "4096");
    folder.fails(&["unlock", "-", "--password-file", "-"], &[2], "one thing only");
}

#[test]
fn a_vm_in_use_is_not_changed_in_its_place() {
    let folder = Folder::new();
    folder.write("web01.vmx", PLAIN);
    folder.write("password", "a password");
    folder.write("web01.vmx.lck", "");
    folder.fails(&["lock", "web01.vmx", "--password-file", "password"], &[3], "powered on");
    folder.write("other.vmx", PLAIN);
    folder.fails(
        &["lock", "other.vmx", "--password-file", "password", "-o", "web01.vmx", "--force"],
        &[3],
        "powered on",
    );
    std::fs::remove_file(folder.path("web01.vmx.lck")).unwrap();
    folder.write("web01-1f.vswp", "");
    folder.fails(&["lock", "web01.vmx", "--password-file", "password"], &[3], "web01-1f.vswp");
    std::fs::remove_file(folder.path("web01-1f.vswp")).unwrap();
    folder.write("text.vmx", "hello\n");
    folder.fails(&["lock", "text.vmx", "--password-file", "password"], &[5], "this is no VMX");
    folder.fails(&["lock", "nowhere.vmx", "--password-file", "password"], &[1], "is not there");
    folder.write("web01.vmx", format!("{PLAIN}vmseal.profile = \"1\"\nencryption.bundle = \"x\"\n"));
    folder.fails(&["unlock", "web01.vmx", "--password-file", "password"], &[3], "vmseal decrypt");
}

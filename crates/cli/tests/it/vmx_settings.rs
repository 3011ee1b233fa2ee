//! `vmseal vmx get`, `set` and `edit`, on plain and on locked files.

use std::os::unix::fs::PermissionsExt;

use crate::kill::{Operation, kill_published};
use crate::testing::{DISKS, TestVm};
use crate::vmx_lock::{Folder, entry, vectors};

const PLAIN: &str = "#!/usr/bin/vmware\n.encoding = \"UTF-8\"\r\ndisplayName = \"web |22one|22\"\n\nno entry\nmemsize=2048 # MiB\n# the end";

/// A folder with a locked `web01.vmx` of 4096 MiB and its password.
fn locked() -> Folder {
    let folder = Folder::new();
    folder.write(
        "web01.vmx",
        ".encoding = \"UTF-8\"\ndisplayName = \"web01\"\nmemsize = \"4096\"\n# kept\nnumvcpus = \"2\"\n",
    );
    folder.write("password", "a password\n");
    folder.ok(&["lock", "web01.vmx", "--password-file", "password"]);
    folder
}

fn get(folder: &Folder, name: &str) -> String {
    folder.ok(&["vmx", "get", "web01.vmx", name, "--password-file", "password"]).stdout.trim_end().to_owned()
}

/// Drafts of this test's folder that are left in memory-backed storage; names are random, so that all are looked at.
fn drafts(marker: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.path().join(marker));
    entries.filter(|file| file.exists()).collect()
}

fn editor(folder: &Folder, script: &str) {
    let path = folder.path("editor");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn edit(folder: &Folder, name: &str) -> (i32, String, String) {
    let mut command = folder.command(&["vmx", "edit", name, "--password-file", "password"]);
    command.env("EDITOR", format!("{} --some-option", folder.path("editor").display()));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn one_setting_of_a_plain_vmx_changes_its_own_line_alone() {
    let folder = Folder::new();
    folder.write("web01.vmx", PLAIN);
    assert_eq!(folder.ok(&["vmx", "get", "web01.vmx", "DISPLAYNAME"]).stdout, "web \"one\"\n");
    folder.ok(&["vmx", "set", "web01.vmx", "memSize=8192"]);
    let text = String::from_utf8(folder.read("web01.vmx")).unwrap();
    assert_eq!(text.replace("8192", "2048").replace("\"2048\"", "2048"), PLAIN);
    folder.ok(&["vmx", "set", "web01.vmx", "annotation=a=\"b\"", "numvcpus=4"]);
    let json = folder.ok(&["vmx", "get", "web01.vmx", "annotation", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["value"], "a=\"b\"");
    folder.fails(&["vmx", "get", "web01.vmx", "nothing"], &[1], "there is no setting nothing");
    folder.fails(&["vmx", "set", "web01.vmx", "memsize"], &[2], "NAME=VALUE");
    folder.fails(&["vmx", "set", "web01.vmx", "a b=1"], &[3], "cannot be the name");
}

#[test]
fn one_setting_of_a_locked_vmx_changes_where_it_lies() {
    let folder = locked();
    let before = folder.read("web01.vmx");
    assert_eq!(get(&folder, "memsize"), "4096");
    folder.ok(&["vmx", "set", "web01.vmx", "memsize=8192", "guestOS=debian12-64", "--password-file", "password"]);
    let after = folder.read("web01.vmx");
    assert_eq!(entry(&before, "encryption.keySafe"), entry(&after, "encryption.keySafe"));
    assert_ne!(entry(&before, "encryption.data"), entry(&after, "encryption.data"));
    assert!(!String::from_utf8_lossy(&after).contains("debian12"), "a new setting is not hidden");
    assert_eq!((get(&folder, "memsize").as_str(), get(&folder, "guestos").as_str()), ("8192", "debian12-64"));
    // The same again needs no new ciphertext.
    folder.ok(&["vmx", "set", "web01.vmx", "memsize=8192", "--password-file", "password"]);
    assert!(folder.read("web01.vmx") == after);
    folder.write("wrong", "another");
    folder.fails(&["vmx", "get", "web01.vmx", "memsize", "--password-file", "wrong"], &[4], "wrong");
    folder.fails(&["vmx", "set", "web01.vmx", "memsize=1", "--password-file", "wrong"], &[4], "wrong");
    folder.fails(&["vmx", "get", "web01.vmx", "memsize"], &[4], "--password-file");
}

#[test]
fn what_the_encryption_consists_of_is_not_set() {
    let folder = locked();
    for name in
        ["encryption.data", "Encryption.keySafe", "encryption.bundle", "vmseal.profile", "dataFileKey", ".encoding"]
    {
        let setting = format!("{name}=x");
        folder.fails(&["vmx", "set", "web01.vmx", &setting, "--password-file", "password"], &[3], "belongs to");
    }
}

#[test]
fn an_edit_is_shown_and_locked_again() {
    let folder = locked();
    let looked = folder.path("looked");
    editor(
        &folder,
        &format!(
            "[ \"$1\" = --some-option ] || exit 9\nstat -c '%a %n' \"$2\" > {0}\nstat -c '%a' \"$(dirname \"$2\")\" >> {0}\n\
             cat \"$2\" >> {0}\necho swap > \"$2.swp\"\nsed -i 's/4096/6144/' \"$2\"\necho 'remote.key = \"hush\"' >> \"$2\"",
            looked.display()
        ),
    );
    let (status, stdout, stderr) = edit(&folder, "web01.vmx");
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout, "- memsize = \"4096\"\n+ memsize = \"6144\"\n+ remote.key = (not shown)\n");
    let looked = std::fs::read_to_string(looked).unwrap();
    let mut lines = looked.lines();
    let file = lines.next().unwrap().strip_prefix("600 /dev/shm/").unwrap();
    assert_eq!(lines.next(), Some("700"));
    assert!(
        looked.contains("# kept") && !looked.contains("encryption.") && !looked.contains("displayName"),
        "{looked}"
    );
    let left = std::path::Path::new("/dev/shm").join(file);
    assert!(!left.exists() && !left.parent().unwrap().exists(), "the draft is left");
    assert_eq!((get(&folder, "memsize").as_str(), get(&folder, "remote.key").as_str()), ("6144", "hush"));
    assert!(!String::from_utf8(folder.read("web01.vmx")).unwrap().contains("6144"));
}

#[test]
fn an_edit_that_is_given_up_changes_nothing() {
    let folder = locked();
    let name = "given-up-by-its-editor.vmx";
    std::fs::rename(folder.path("web01.vmx"), folder.path(name)).unwrap();
    let before = folder.read(name);
    for (script, status, message) in [
        ("true", 0, "Nothing was changed"),
        ("sed -i 's/4096/1/' \"$2\"\nexit 3", 1, "exit status: 3"),
        (": > \"$2\"", 3, "no line of the form"),
        ("rm \"$2\"", 1, "cannot be read"),
        ("echo 'encryption.data = \"x\"' >> \"$2\"", 3, "belong to the encryption"),
    ] {
        editor(&folder, script);
        let (found, _, stderr) = edit(&folder, name);
        assert_eq!(found, status, "{script}: {stderr}");
        assert!(stderr.contains(message), "{script}: {stderr}");
        assert!(folder.read(name) == before, "{script}");
        assert!(drafts(name).is_empty(), "{script}: a draft is left");
    }
    // A change by someone else meanwhile is kept.
    editor(&folder, &format!("echo '# theirs' >> {}\nsed -i 's/4096/1/' \"$2\"", folder.path(name).display()));
    let (found, _, stderr) = edit(&folder, name);
    assert!(found == 1 && stderr.contains("changed by another program"), "{stderr}");
    assert_eq!(folder.read(name), [before.as_slice(), b"# theirs\n"].concat());
}

#[test]
fn a_signal_during_an_edit_leaves_no_draft() {
    let folder = locked();
    let name = "signalled-during-its-edit.vmx";
    std::fs::rename(folder.path("web01.vmx"), folder.path(name)).unwrap();
    let marker = folder.path("editing");
    for signal in ["-INT", "-HUP", "-TERM"] {
        editor(&folder, &format!("touch {}\nsleep 1\nsed -i 's/4096/6144/' \"$2\"", marker.display()));
        let mut command = folder.command(&["vmx", "edit", name, "--password-file", "password"]);
        command.env("EDITOR", format!("{} --some-option", folder.path("editor").display()));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        while !marker.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the editor was not started");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(drafts(name).len(), 1);
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert!(child.wait().unwrap().success(), "{signal}: the editor decides");
        assert!(drafts(name).is_empty(), "{signal}: a draft is left");
        std::fs::remove_file(&marker).unwrap();
    }
    let memory = folder.ok(&["vmx", "get", name, "memsize", "--password-file", "password"]).stdout;
    assert_eq!(memory, "6144\n");
}

#[test]
fn plain_and_partly_encrypted_files_are_edited_as_they_lie() {
    let folder = Folder::new();
    folder.write("web01.vmx", PLAIN);
    editor(&folder, "sed -i 's/2048/1024/' \"$2\"");
    folder.write("password", "partial");
    assert_eq!(edit(&folder, "web01.vmx").0, 0);
    assert_eq!(String::from_utf8(folder.read("web01.vmx")).unwrap(), PLAIN.replace("2048", "1024"));

    let (from, _) = vectors("vmx");
    let partial = String::from_utf8(std::fs::read(from.join("partial.vmx")).unwrap()).unwrap();
    folder.write("partial.vmx", &partial);
    editor(&folder, "echo 'memsize = \"512\"' >> \"$2\"");
    let (status, stdout, stderr) = edit(&folder, "partial.vmx");
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("+ memsize = \"512\""), "{stdout}");
    let edited = folder.read("partial.vmx");
    assert_eq!(entry(&edited, "encryption.data"), entry(partial.as_bytes(), "encryption.data"));
    folder.ok(&["vmx", "set", "partial.vmx", "memsize=256", "--password-file", "password"]);
    assert_eq!(entry(&folder.read("partial.vmx"), "memsize").unwrap(), "256");
    editor(&folder, "sed -i '/^encryption.data/d' \"$2\"");
    assert_eq!(edit(&folder, "partial.vmx").0, 3);
}

#[test]
fn a_vm_of_vmseal_keeps_its_bundle() {
    let vm = TestVm::with_disks(&[("flat.vmdk", "monolithicFlat")]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    vm.ok(&["vmx", "set", "VM", "memsize=512"]);
    assert_eq!(vm.ok(&["vmx", "get", "VM", "memsize"]).stdout, "512\n");
    vm.fails(&["vmx", "set", "VM", "encryption.bundle=x"], 3, "belongs to");
    vm.ok(&["verify", "VM"]);
}

#[test]
fn a_vmx_is_not_changed_while_an_operation_is_pending() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let password = vm.root.path().join("password");
    std::fs::write(&password, "a password").unwrap();
    let password = password.to_str().unwrap();
    kill_published(&vm, Operation::Encrypt, 0);
    vm.fails(&["vmx", "set", "VM", "memsize=513"], 3, "complete it with `resume`");
    vm.fails(&["vmx", "edit", "VM"], 3, "complete it with `resume`");
    vm.fails(&["lock", "VM", "--password-file", password], 3, "complete it with `resume`");
    vm.ok(&["resume", "VM"]);
    vm.fails(&["lock", "VM", "--password-file", password], 3, "encrypted already");
    vm.ok(&["vmx", "set", "VM", "memsize=513"]);
    vm.assert_whole();
}

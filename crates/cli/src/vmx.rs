//! `vmseal vmx get`, `set` and `edit`.

use std::path::Path;

use serde::Serialize;
use vmseal::{LocalDir, StoragePath, VmxFile, VmxInPlace, VmxSettings};

use crate::args::{VmxEditArgs, VmxGetArgs, VmxSetArgs};
use crate::difference;
use crate::editor::Draft;
use crate::lock::{PASSWORD_FILE, one_stdin, read};
use crate::output::Output;
use crate::password;
use crate::progress::catch_interrupts;
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

#[derive(Serialize)]
struct Setting<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct ChangeReport {
    changed: bool,
}

pub(crate) fn get(args: &VmxGetArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[Some(&args.vmx), args.password_file.as_deref()])?;
    let settings = open(read(&args.vmx)?, args.password_file.as_deref())?;
    match settings.value(&args.name)? {
        Some(value) => output.result(&Setting { name: &args.name, value: &value }, &value),
        None => Err(Failure::new(
            Status::Failed,
            format!("{}: there is no setting {} in it, or none in the clear", args.vmx.display(), args.name),
        )),
    }
}

pub(crate) fn set(args: &VmxSetArgs, output: &mut Output) -> Result<(), Failure> {
    let mut settings = Vec::with_capacity(args.settings.len());
    for setting in &args.settings {
        let Some((name, value)) = setting.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Failure::usage(format!("{setting:?} is no setting; write NAME=VALUE")));
        };
        settings.push((name, value));
    }
    let path = VmPath::new(&args.vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    let change = VmxInPlace::begin(&storage, &StoragePath::new(&path.name)?)?;
    let mut vmx = open(change.file()?, args.password_file.as_deref())?;
    for (name, value) in settings {
        vmx.set(name, value)?;
    }
    let changed = change.replace(&vmx.to_bytes()?)?;
    output.result(&ChangeReport { changed }, if changed { "Set." } else { "Nothing to change." })
}

pub(crate) fn edit(args: &VmxEditArgs, output: &mut Output) -> Result<(), Failure> {
    let path = VmPath::new(&args.vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    let change = VmxInPlace::begin(&storage, &StoragePath::new(&path.name)?)?;
    let mut vmx = open(change.file()?, args.password_file.as_deref())?;
    let before = vmx.text();
    // An interrupt is the editor's: the draft has to be wiped whatever happens.
    catch_interrupts()?;
    let draft = Draft::new(&path.name, &before)?;
    draft.open_in_editor()?;
    let after = draft.read()?;
    drop(draft);
    if *after == *before {
        output.note("Nothing was changed.");
        return Ok(());
    }
    vmx.set_text(&after)?;
    change.replace(&vmx.to_bytes()?)?;
    for line in vmx.doubtful_lines() {
        output.warning(&line);
    }
    output.text(&difference::of(&before, &after))
}

/// Opens the settings; asks for a password only where one is needed.
fn open(vmx: VmxFile, password_file: Option<&Path>) -> Result<VmxSettings, Failure> {
    if !vmx.needs_password()? {
        return Ok(vmx.settings(None)?);
    }
    let password = password::from_file_or_ask(password_file, "Password of the VM", PASSWORD_FILE)?;
    Ok(vmx.settings(Some(&password))?)
}

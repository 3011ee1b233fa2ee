//! `vmseal vmx get`, `set` and `edit`.

use serde::Serialize;
use vmseal::{LocalDir, StoragePath, VmxInPlace};

use crate::args::Cli;
use crate::difference;
use crate::editor::Draft;
use crate::file_args::{VmxEditArgs, VmxGetArgs, VmxSetArgs};
use crate::lock::{one_stdin, read};
use crate::output::Output;
use crate::progress::catch_interrupts;
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;
use crate::vmx_keys::{self, Ask};

#[derive(Serialize)]
struct Setting<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct ChangeReport {
    changed: bool,
}

pub(crate) fn get(cli: &Cli, args: &VmxGetArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[&[Some(args.vmx.as_path())], &args.keys.files()[..]].concat())?;
    let vmx = read(&args.vmx)?;
    let settings = vmx_keys::with(cli, &vmx, &args.keys, Ask::WhereNeeded, output, |keys| Ok(vmx.settings(keys)?))?;
    match settings.value(&args.name)? {
        Some(value) => output.result(&Setting { name: &args.name, value: &value }, &value),
        None => Err(Failure::new(
            Status::Failed,
            format!("{}: there is no setting {} in it", args.vmx.display(), args.name),
        )),
    }
}

pub(crate) fn set(cli: &Cli, args: &VmxSetArgs, output: &mut Output) -> Result<(), Failure> {
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
    let vmx = change.file()?;
    let content = vmx_keys::with(cli, &vmx, &args.keys, Ask::WhereNeeded, output, |keys| {
        let mut vmx = vmx.settings(keys)?;
        for (name, value) in settings {
            vmx.set(name, value)?;
        }
        Ok(vmx.to_bytes(keys)?)
    })?;
    let changed = change.replace(&content)?;
    output.result(&ChangeReport { changed }, if changed { "Set." } else { "Nothing to change." })
}

pub(crate) fn edit(cli: &Cli, args: &VmxEditArgs, output: &mut Output) -> Result<(), Failure> {
    let path = VmPath::new(&args.vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    let change = VmxInPlace::begin(&storage, &StoragePath::new(&path.name)?)?;
    let vmx = change.file()?;
    let edited = vmx_keys::with(cli, &vmx, &args.keys, Ask::WhereNeeded, output, |keys| {
        let mut vmx = vmx.settings(keys)?;
        let before = vmx.text();
        // An interrupt is the editor's: the draft has to be wiped whatever happens.
        catch_interrupts()?;
        let draft = Draft::new(&path.name, &before)?;
        draft.open_in_editor()?;
        let after = draft.read()?;
        drop(draft);
        if *after == *before {
            return Ok(None);
        }
        vmx.set_text(&after)?;
        let content = vmx.to_bytes(keys)?;
        Ok(Some((vmx, content, difference::of(&before, &after))))
    })?;
    let Some((vmx, content, difference)) = edited else {
        output.note("Nothing was changed.");
        return Ok(());
    };
    change.replace(&content)?;
    for line in vmx.doubtful_lines() {
        output.warning(&line);
    }
    output.text(&difference)
}

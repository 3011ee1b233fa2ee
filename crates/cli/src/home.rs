//! The state folder of this machine, and what the process does to keep secrets to itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use vmseal::{LocalDir, Memory, Storage};

use crate::args::Cli;
use crate::output::Output;
use crate::status::Failure;

/// Opens the state folder, and makes it where it is not there.
pub(crate) fn open(cli: &Cli, output: &Output) -> Result<LocalDir, Failure> {
    let path = path(cli)?;
    let home = LocalDir::create_private(&path)?;
    // Whoever can read a primary key has every VM under it.
    for folder in [path.clone(), path.join("providers")] {
        if std::fs::metadata(&folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            let what =
                "others than its owner may use this folder, and keys lie in it; take that right away with `chmod go=`";
            output.warning(&format!("{}: {what}", folder.display()));
        }
    }
    Ok(home)
}

/// The state folder, or an empty one in memory where it is not there: a recovery password opens a VM without any.
pub(crate) fn open_existing(cli: &Cli, output: &Output) -> Result<Box<dyn Storage>, Failure> {
    let path = path(cli)?;
    if path.exists() {
        return Ok(Box::new(open(cli, output)?));
    }
    if cli.home.is_some() {
        output.warning(&format!("{}: there is no such state folder; `provider create` makes it", path.display()));
    }
    Ok(Box::new(Memory::new()))
}

/// `--home`, else `VMSEAL_HOME`, else the platform's data directory.
fn path(cli: &Cli) -> Result<PathBuf, Failure> {
    cli.home.clone().or_else(default_path).ok_or_else(|| {
        Failure::usage("there is no home directory for the state folder; name one with --home DIR or VMSEAL_HOME")
    })
}

/// `$XDG_DATA_HOME/vmseal`, else `~/.local/share/vmseal` (XDG Base Directory Specification, 0.8).
fn default_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("vmseal"))
}

/// A core dump of this process would hold keys: none is written, and no other process of the user may look in.
pub(crate) fn keep_secrets_out_of_core_dumps() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
        // Where the system refuses, the locked pages of the keys are still left out of dumps.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    }
}

//! `vmseal unlock` and `vmseal lock`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use vmseal::{LocalDir, PairCipher, Storage, StoragePath, VmxFile, VmxInPlace, write_new};
use zeroize::Zeroizing;

use crate::args::Cli;
use crate::file_args::{LockArgs, OutArgs, UnlockArgs, VmxCipher};
use crate::output::Output;
use crate::password;
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;
use crate::vmx_keys::{self, Ask};

/// The option that names a password's file.
pub(crate) const PASSWORD_FILE: &str = "--password-file";

pub(crate) fn unlock(cli: &Cli, args: &UnlockArgs, output: &Output) -> Result<(), Failure> {
    one_stdin(&[&[Some(args.vmx.as_path())], &args.keys.files()[..]].concat())?;
    change(&args.vmx, &args.out, output, |vmx| {
        vmx_keys::with(cli, vmx, &args.keys, Ask::Always, output, |keys| Ok(vmx.unlock(keys)?))
    })?;
    output.note("The VMX is in the clear. The VM's disks, NVRAM, snapshots and memory are as they were.");
    Ok(())
}

pub(crate) fn lock(cli: &Cli, args: &LockArgs, output: &Output) -> Result<(), Failure> {
    let files = [Some(args.vmx.as_path()), args.new_password_file.as_deref()];
    one_stdin(&[&files, &args.keys.files()[..]].concat())?;
    let file = args.keys.password_file.as_deref();
    if !args.change_password && (args.keys.key_file.is_some() || args.keys.provider_password_file.is_some()) {
        return Err(Failure::usage(
            "a VMX is locked with a password; a provider's key serves `--change-password` alone",
        ));
    }
    change(&args.vmx, &args.out, output, |vmx| {
        if args.change_password {
            return vmx_keys::with(cli, vmx, &args.keys, Ask::Always, output, |keys| {
                let new = args.new_password_file.as_deref();
                let new = password::new_from_file_or_ask(new, "New password", "--new-password-file")?;
                Ok(vmx.change_password(keys, &new)?)
            });
        }
        let cipher = match args.cipher {
            VmxCipher::Aes256 => PairCipher::Aes256,
            VmxCipher::XtsAes256 => PairCipher::XtsAes256,
        };
        let password = password::new_from_file_or_ask(file, "New password of the VM", PASSWORD_FILE)?;
        Ok(vmx.lock(&password, cipher)?)
    })?;
    output.note(match args.change_password {
        true => "The password is changed. Copies of the old VMX still open with the old one.",
        false => "The VMX is locked. Whoever loses its password loses the VM's settings.",
    });
    Ok(())
}

/// Standard input gives one thing.
pub(crate) fn one_stdin(files: &[Option<&Path>]) -> Result<(), Failure> {
    if files.iter().flatten().filter(|file| is_dash(file)).count() > 1 {
        return Err(Failure::usage("standard input can give one thing only; put the others into files"));
    }
    Ok(())
}

pub(crate) fn is_dash(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Makes new content of a VMX, in its place or elsewhere.
fn change(
    vmx: &Path,
    out: &OutArgs,
    output: &Output,
    make: impl FnOnce(&VmxFile) -> Result<Zeroizing<Vec<u8>>, Failure>,
) -> Result<(), Failure> {
    let target = match &out.output {
        Some(target) => target.as_path(),
        None if is_dash(vmx) => Path::new("-"),
        None => {
            let path = VmPath::new(vmx)?;
            let storage = LocalDir::open(&path.folder)?;
            let change = VmxInPlace::begin(&storage, &StoragePath::new(&path.name)?)?;
            let content = make(&change.file()?)?;
            change.replace(&content)?;
            return Ok(());
        }
    };
    let file = read(vmx)?;
    if is_dash(target) {
        return write_stdout(&make(&file)?);
    }
    let path = VmPath::of_file(target)?;
    let storage = LocalDir::open(&path.folder)?;
    let name = StoragePath::new(&path.name)?;
    if out.force && storage.metadata(&name)?.is_some() {
        // It may be the VMX of a VM that is in use.
        let change = VmxInPlace::begin(&storage, &name)?;
        change.replace(&make(&file)?)?;
    } else {
        write_new(&storage, &name, &make(&file)?, false)?;
    }
    output.note(&format!("{} is written.", target.display()));
    Ok(())
}

/// Reads a VMX, from standard input too.
pub(crate) fn read(vmx: &Path) -> Result<VmxFile, Failure> {
    if is_dash(vmx) {
        let mut bytes = Zeroizing::new(Vec::new());
        // One byte more than a VMX may have makes it too long.
        std::io::stdin().lock().take((4 << 20) + 1).read_to_end(&mut bytes)?;
        return Ok(VmxFile::parse("standard input", &bytes)?);
    }
    let path = VmPath::new(vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    Ok(VmxFile::read(&storage, &StoragePath::new(&path.name)?)?)
}

fn write_stdout(content: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    if stdout.is_terminal() && content.contains(&0) {
        return Err(Failure::new(Status::Usage, "this is no text for a terminal; name a file with -o"));
    }
    stdout.write_all(content)?;
    Ok(stdout.flush()?)
}

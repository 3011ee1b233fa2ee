//! `vmseal vmfile decrypt`.

use std::io::Write;

use vmseal::encrypted_object::{EncryptedObject, Form};
use vmseal::{FileError, LocalDir, StoragePath};

use crate::args::Cli;
use crate::envelope::{Source, refuse_terminal, source};
use crate::file_args::VmfileDecryptArgs;
use crate::lock::{is_dash, one_stdin, read};
use crate::output::Output;
use crate::status::Failure;
use crate::vm_path::VmPath;
use crate::vmx_keys::{self, Ask};

pub(crate) fn decrypt(cli: &Cli, args: &VmfileDecryptArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[&[Some(args.file.as_path()), Some(&args.vm)], &args.keys.files()[..]].concat())?;
    let Source { name, reader, len_bytes } = source(&args.file, output)?;
    let object = EncryptedObject::begin(&name, reader, len_bytes)?;
    let is_memory = object.is_memory();
    let vmx = read(&args.vm)?;
    let key = vmx_keys::with(cli, &vmx, &args.keys, Ask::Always, output, |keys| Ok(vmx.data_file_key(keys)?))?;
    let form = if args.flat { Form::FlatMemory } else { Form::AsItIs };
    let decrypted = if is_dash(&args.output) {
        refuse_terminal()?;
        let mut stdout = std::io::stdout().lock();
        let failed = |source| FileError::Stream { path: "standard output".to_owned(), source };
        let decrypted = object.decrypt(&key, form, |data| stdout.write_all(data).map_err(failed))?;
        stdout.flush()?;
        decrypted
    } else {
        let out = VmPath::of_file(&args.output)?;
        let folder = LocalDir::open(&out.folder)?;
        object.write(&key, form, &folder, &StoragePath::new(&out.name)?, args.force)?
    };
    output.note(&format!("{}: {} bytes.", args.output.display(), decrypted.len_bytes));
    output.warning(&format!(
        "{name}: nobody can authenticate such a file: what was read may have been changed, or be garbage where the VMX is another VM's"
    ));
    let is_state =
        args.file.extension().is_some_and(|end| end.eq_ignore_ascii_case("vmsn") || end.eq_ignore_ascii_case("vmss"));
    if is_state && decrypted.len_bytes > 0 && !decrypted.begins_as_snapshot {
        output.warning(&format!("{name}: what came out does not begin as a snapshot does: the key is probably wrong"));
    }
    if is_memory && !args.flat {
        output.note("Memory is a sequence of compressed blocks; `--flat` expands it.");
    }
    Ok(())
}

//! `vmseal disk luks-header` and `vmseal disk import-luks`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmseal::{LocalDir, LuksImport, LuksVersion, Storage, StoragePath, UnwrittenUnits, Vm, write_secret};

use crate::args::{Cli, ImportLuksArgs, KeyArgs, LuksHeaderArgs};
use crate::home;
use crate::keys;
use crate::lock::{PASSWORD_FILE, one_stdin};
use crate::output::Output;
use crate::password;
use crate::progress::{Bar, catch_interrupts};
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

#[derive(Serialize)]
struct HeaderReport {
    disk: String,
    header: String,
    version: u16,
    /// What QEMU's `--image-opts` takes.
    image_options: String,
    /// Data units that QEMU and dm-crypt read as noise.
    unwritten_units: u64,
    /// Data units that `--fill` wrote.
    filled_units: u64,
    hole_policy: &'static str,
}

#[derive(Serialize)]
struct ImportReport {
    descriptor: String,
    image: String,
    version: u16,
    key_slot: u32,
    offset_bytes: u64,
    size_bytes: u64,
    id: String,
}

pub(crate) fn header(cli: &Cli, args: &LuksHeaderArgs, output: &mut Output) -> Result<(), Failure> {
    check_stdin(&args.keys, args.password_file.as_deref())?;
    let vm_path = vm_of(&args.disk, args.vm.as_deref())?;
    let disk = inside(&vm_path, &args.disk)?;
    let storage = LocalDir::open(&vm_path.folder)?;
    let vm = Vm::open(&storage, &vm_path.name)?;
    let out = VmPath::of_file(&args.output)?;
    let out_storage = LocalDir::open(&out.folder)?;
    let out_name = StoragePath::new(&out.name)?;
    // Before any work; and no file of a VM is taken for an old header.
    if out_storage.metadata(&out_name)?.is_some() {
        if !args.force {
            return Err(vmseal::FileError::Exists { path: out.name }.into());
        }
        check_is_header(&out_storage, &out_name)?;
    }
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &keys::ids(&vm.inventory()?), None)?;
    let file = args.password_file.as_deref();
    let password = password::new_from_file_or_ask(file, "Password of the header", PASSWORD_FILE)?;
    catch_interrupts()?;
    let version = if args.luks2 { LuksVersion::Luks2 } else { LuksVersion::Luks1 };
    // Before the disk is gone through: it says whether it can be done.
    let header = vm.luks_header(&disk, version, &password, &mut keys)?;
    let filled_units = if args.fill { vm.fill_disk(&disk, &mut keys, Bar::new(output))? } else { 0 };
    let unwritten = vm.unwritten_units(&disk, &mut keys, Bar::new(output))?;
    write_secret(&out_storage, &out_name, &header, args.force)?;
    let flat = vm.flat_file(&disk)?.map(|file| vm_path.folder.join(file));
    let report = HeaderReport {
        disk: args.disk.display().to_string(),
        header: args.output.display().to_string(),
        version: if args.luks2 { 2 } else { 1 },
        image_options: image_options(&args.disk, flat.as_deref(), &args.output),
        unwritten_units: unwritten.count,
        filled_units,
        hole_policy: if unwritten.is_filled { "fill" } else { "zero" },
    };
    output.result(&report, &header_text(&report, flat.as_deref(), args))?;
    if let UnwrittenUnits { count: count @ 1.., is_filled: false } = unwritten {
        output.warning(&format!(
            "{count} data units of {} were never written: they are zeros to vmseal and noise to QEMU and dm-crypt; `--fill` writes them",
            report.disk
        ));
    }
    output.note("Whoever has the header and its password has the disk's key, whatever becomes of the VM's KEK; a deep recrypt of the VM ends that.");
    Ok(())
}

pub(crate) fn import(cli: &Cli, args: &ImportLuksArgs, output: &mut Output) -> Result<(), Failure> {
    check_stdin(&args.keys, args.password_file.as_deref())?;
    let vm_path = VmPath::new(&args.vm)?;
    let (image, descriptor) = (inside(&vm_path, &args.image)?, inside(&vm_path, &args.output)?);
    let storage = LocalDir::open(&vm_path.folder)?;
    let vm = Vm::open(&storage, &vm_path.name)?;
    let header = args.header.as_deref().map(|header| -> Result<_, Failure> {
        let path = VmPath::of_file(header)?;
        Ok((LocalDir::open(&path.folder)?, StoragePath::new(&path.name)?))
    });
    let header = header.transpose()?;
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &keys::ids(&vm.inventory()?), None)?;
    let password =
        password::from_file_or_ask(args.password_file.as_deref(), "Passphrase of the LUKS disk", PASSWORD_FILE)?;
    let import = LuksImport {
        image: &image,
        header: header.as_ref().map(|(storage, path)| (storage as &dyn Storage, path)),
        descriptor: &descriptor,
    };
    let imported = vm.import_luks(&import, &password, &mut keys)?;
    let report = ImportReport {
        descriptor: args.output.display().to_string(),
        image: args.image.display().to_string(),
        version: imported.version,
        key_slot: imported.slot,
        offset_bytes: imported.offset_bytes,
        size_bytes: imported.size_bytes,
        id: imported.id.to_string(),
    };
    let text = format!(
        "{} is made: the data of {} (LUKS{}, key slot {}) from byte {} on, {} bytes. {} knows its key.",
        report.descriptor,
        report.image,
        report.version,
        report.key_slot,
        report.offset_bytes,
        report.size_bytes,
        args.vm.display()
    );
    output.result(&report, &text)?;
    let vm = args.vm.display();
    output.note(&format!(
        "Left to do: attach it, where a controller has room: `vmseal vmx set {vm} scsi0:1.fileName={descriptor} scsi0:1.present=TRUE`."
    ));
    output.note("The LUKS header opens the data with its old passphrases as well; a deep recrypt of the VM ends that, `cryptsetup erase` destroys the header's key slots.");
    Ok(())
}

fn check_stdin(keys: &KeyArgs, password: Option<&Path>) -> Result<(), Failure> {
    one_stdin(&[password, keys.provider_password_file.as_deref(), keys.recovery_password_file.as_deref()])
}

/// Replacing is for headers alone.
fn check_is_header(storage: &dyn Storage, path: &StoragePath) -> Result<(), Failure> {
    const MAGIC: &[u8] = b"LUKS\xba\xbe";
    let file = storage.open(path, vmseal::Access::Read)?;
    let mut start = [0; MAGIC.len()];
    if file.len()? >= start.len() as u64 {
        file.read_at(&mut start, 0)?;
    }
    if start == MAGIC {
        return Ok(());
    }
    let what = "this is no LUKS header, and is not replaced by one; name another file";
    Err(Failure::new(Status::Refused, format!("{path}: {what}")))
}

/// The VM of a disk: the one that is named, or the only one in the disk's folder.
fn vm_of(disk: &Path, vm: Option<&Path>) -> Result<VmPath, Failure> {
    if let Some(vm) = vm {
        return VmPath::new(vm);
    }
    let folder = VmPath::of_file(disk)?.folder;
    let storage = LocalDir::open(&folder)?;
    let mut names = storage.list(&StoragePath::root())?;
    names.retain(|name| name.to_ascii_lowercase().ends_with(".vmx"));
    match names.as_slice() {
        [name] => Ok(VmPath { folder, name: name.clone() }),
        found => {
            let count = if found.is_empty() { "no VMX" } else { "several VMX" };
            let what = format!("{}: there is {count} beside it; name its VM with --vm VM.vmx", disk.display());
            Err(Failure::usage(what))
        }
    }
}

/// A file as a path in the VM's folder.
fn inside(vm: &VmPath, file: &Path) -> Result<String, Failure> {
    let name = VmPath::of_file(file)?;
    let whole = |folder: &Path| -> Result<PathBuf, Failure> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().map_err(|error| Failure::new(Status::Failed, format!("{}: {error}", folder.display())))
    };
    let path = whole(&name.folder)?.join(&name.name);
    let path = path.strip_prefix(whole(&vm.folder)?).ok().and_then(Path::to_str).map(str::to_owned);
    path.ok_or_else(|| {
        let what = "it lies outside of the VM's folder; move it there";
        Failure::usage(format!("{}: {what}", file.display()))
    })
}

/// What QEMU's `--image-opts` takes: a comma in a value is doubled.
fn image_options(disk: &Path, flat: Option<&Path>, header: &Path) -> String {
    let quoted = |path: &Path| path.display().to_string().replace(',', ",,");
    let file = match flat {
        Some(flat) => format!("file.driver=file,file.filename={}", quoted(flat)),
        None => format!("file.driver=vmdk,file.file.driver=file,file.file.filename={}", quoted(disk)),
    };
    format!("driver=luks,key-secret=password,{file},header.driver=file,header.filename={}", quoted(header))
}

fn header_text(report: &HeaderReport, flat: Option<&Path>, args: &LuksHeaderArgs) -> String {
    let mut lines = vec![format!("{} is written: a LUKS{} header for {}.", report.header, report.version, report.disk)];
    if report.filled_units > 0 {
        lines.push(format!("{} data units that were never written are zeros, enciphered, now.", report.filled_units));
    }
    let password = args.password_file.as_deref().map_or("FILE".to_owned(), |file| file.display().to_string());
    if report.version == 1 {
        let secret = format!("--object secret,id=password,file={password}");
        lines.push(format!("  qemu-img info {secret} --image-opts {}", report.image_options));
    }
    if let Some(flat) = flat {
        lines.push(format!("  cryptsetup open --header {} {} NAME", report.header, flat.display()));
    } else if report.version == 2 {
        lines.push(
            "No program reads a LUKS2 header over this type of disk: QEMU reads LUKS1, dm-crypt flat disks.".to_owned(),
        );
    }
    lines.join("\n")
}

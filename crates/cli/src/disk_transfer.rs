//! `vmseal disk export` and `vmseal disk import`.

use std::io::{IsTerminal, Write};
use std::path::Path;

use serde::Serialize;
use vmseal::transfer::{DigestList, Export, Exported, Import, Imported, RangeMap, RangeState};
use vmseal::{
    Access, Disk, FileError, KeyId, LocalDir, NewDiskType, Progress, Storage, StoragePath, UnitSize, Vm, Watch,
    write_new,
};
use zeroize::Zeroizing;

use crate::args::{Cli, DataUnit, DiskType, ExportArgs, ImportArgs};
use crate::disk_path::{inside, vm_of};
use crate::home;
use crate::keys;
use crate::lock::is_dash;
use crate::output::{Output, hex};
use crate::progress::{Bar, catch_interrupts};
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

/// A digest list of any disk fits, and so does a map that a person can do anything with.
const SMALL_FILE_LEN_MAX: u64 = 64 << 20;

#[derive(Serialize)]
struct ExportReport {
    disk: String,
    output: String,
    size_bytes: u64,
    /// Bytes of the disk that are in the image.
    image_bytes: u64,
    unchanged_bytes: u64,
    unreadable_bytes: u64,
    resumed_bytes: u64,
    block_bytes: u64,
    /// SHA-256 over the digests of all blocks.
    digest: String,
    /// What was found missing or wrong by a salvage.
    damage: Vec<String>,
}

#[derive(Serialize)]
struct ImportReport {
    image: String,
    disk: String,
    size_bytes: u64,
    written_bytes: u64,
    resumed_bytes: u64,
}

pub(crate) fn export(cli: &Cli, args: &ExportArgs, output: &mut Output) -> Result<(), Failure> {
    let vm_path = vm_of(&args.disk, args.vm.as_deref())?;
    let name = inside(&vm_path, &args.disk)?;
    let storage = LocalDir::open(&vm_path.folder)?;
    let vm = if args.salvage { Vm::at(&storage, &vm_path.name)? } else { Vm::open(&storage, &vm_path.name)? };
    for extra in [&args.digests, &args.map].into_iter().flatten() {
        refuse_existing(extra, args.force)?;
    }
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &vm.key_ids(&name)?, None)?;
    let disk = if args.salvage { vm.open_salvage(&name, &mut keys)? } else { vm.open_any_disk(&name, &mut keys)? };
    catch_interrupts()?;
    if is_dash(&args.output) {
        if args.digests.is_some() || args.map.is_some() {
            return Err(Failure::usage("an image on standard output has no digests and no map; name a file with -o"));
        }
        return stream(&disk, &name, Bar::new(output));
    }
    let since = args.changed_since.as_deref().map(read_digests).transpose()?;
    let mut export = Export::new(&disk);
    if let Some(since) = &since {
        export = export.changed_since(since);
    }
    if args.salvage {
        export = export.salvage();
    }
    let out = VmPath::of_file(&args.output)?;
    let out_storage = LocalDir::open(&out.folder)?;
    let exported = export.run(&out_storage, &StoragePath::new(&out.name)?, args.force, &mut Bar::new(output))?;
    if let Some(file) = &args.digests {
        put(file, &exported.digests.to_bytes(), args.force)?;
    }
    if let Some(file) = &args.map {
        put(file, exported.map.to_text().as_bytes(), args.force)?;
    }
    report_export(args, &exported, &disk, output)
}

fn report_export(args: &ExportArgs, exported: &Exported, disk: &Disk<'_>, output: &mut Output) -> Result<(), Failure> {
    let report = ExportReport {
        disk: args.disk.display().to_string(),
        output: args.output.display().to_string(),
        size_bytes: exported.digests.size_bytes(),
        image_bytes: exported.map.bytes(RangeState::There),
        unchanged_bytes: exported.map.bytes(RangeState::Unchanged),
        unreadable_bytes: exported.map.bytes(RangeState::Unreadable),
        resumed_bytes: exported.resumed_bytes,
        block_bytes: exported.digests.block_bytes(),
        digest: hex(&exported.digests.digest()),
        damage: disk.damage().iter().map(ToString::to_string).collect(),
    };
    let mut text = format!("{}: {} bytes of {}", report.output, report.image_bytes, report.disk);
    if report.resumed_bytes > 0 {
        text.push_str(&format!("; an interrupted export was taken up at byte {}", report.resumed_bytes));
    }
    if args.changed_since.is_some() {
        text.push_str(&format!("; {} bytes have not changed and are not in it", report.unchanged_bytes));
    }
    text.push_str(&format!("\ndigest of its blocks: {}", report.digest));
    output.result(&report, &text)?;
    for damage in &report.damage {
        output.warning(damage);
    }
    if report.unreadable_bytes > 0 {
        let map = args.map.as_deref().unwrap_or(Path::new("the map"));
        output.warning(&format!(
            "{} bytes could not be read and are zeros in the image: {} says which",
            report.unreadable_bytes,
            map.display()
        ));
    }
    output.note(&format!("{} is in the clear.", report.output));
    Ok(())
}

/// The whole disk to standard output.
fn stream(disk: &Disk<'_>, name: &str, mut watch: Bar) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    if stdout.is_terminal() {
        return Err(Failure::usage("the image of a disk is not for a terminal; name a file with -o, or a pipe"));
    }
    let mut buffer = Zeroizing::new(vec![0; 1 << 20]);
    let mut at = 0;
    while at < disk.size_bytes() {
        let len = buffer.len().min(usize::try_from(disk.size_bytes() - at).unwrap_or(usize::MAX));
        disk.read_at(&mut buffer[..len], at).map_err(vmseal::Error::Disk)?;
        stdout.write_all(&buffer[..len])?;
        at += len as u64;
        if watch.progress(&Progress::new(name, at, disk.size_bytes())).is_break() {
            return Err(Failure::new(Status::Failed, "stopped on request; the image is not complete".to_owned()));
        }
    }
    Ok(stdout.flush()?)
}

pub(crate) fn import(cli: &Cli, args: &ImportArgs, output: &mut Output) -> Result<(), Failure> {
    if is_dash(&args.image) {
        return Err(Failure::usage("an import has to know the size of its image; put it into a file first"));
    }
    let vm_path = VmPath::new(&args.vm)?;
    let name = inside(&vm_path, &args.output)?;
    let storage = LocalDir::open(&vm_path.folder)?;
    let vm = Vm::at(&storage, &vm_path.name)?;
    let image = VmPath::of_file(&args.image)?;
    let source = LocalDir::open(&image.folder)?.open(&StoragePath::new(&image.name)?, Access::Read)?;
    let key_id = args.key_id.as_deref().map(key_id).transpose()?;
    let home = home::open_existing(cli, output)?;
    let mut ids = vm.key_ids(&name)?;
    ids.extend(key_id.clone());
    let mut keys = keys::open(home.as_ref(), &args.keys, &ids, None)?;
    catch_interrupts()?;
    let digests = args.digests.as_deref().map(read_digests).transpose()?;
    let mut import = Import::new(source.as_ref());
    let imported = if let Some(map) = &args.map {
        let text = read_small(map)?;
        let text = String::from_utf8_lossy(&text);
        let map = RangeMap::parse(&text, &map.display().to_string())?;
        let mut disk = vm.open_any_disk_for_writing(&name, &mut keys)?;
        import.apply(&mut disk, &name, &map, &mut Bar::new(output))?
    } else {
        import = import.disk_type(disk_type(args.disk_type)).unit_size(match args.data_unit {
            DataUnit::B512 => UnitSize::B512,
            DataUnit::B4096 => UnitSize::B4096,
        });
        if let Some(digests) = &digests {
            import = import.digests(digests);
        }
        if let Some(key_id) = &key_id {
            import = import.key_id(key_id);
        }
        import.run(&vm, &name, &mut keys, &mut Bar::new(output))?
    };
    let Imported { size_bytes, written_bytes, resumed_bytes, .. } = imported;
    let (image, disk) = (args.image.display().to_string(), args.output.display().to_string());
    let mut text =
        format!("{disk}: {written_bytes} of {size_bytes} bytes of {image} were written, the rest is zeros or was left");
    if resumed_bytes > 0 {
        text.push_str(&format!("; an interrupted import was taken up at byte {resumed_bytes}"));
    }
    output.result(&ImportReport { image, disk, size_bytes, written_bytes, resumed_bytes }, &text)?;
    if !vm.inventory().is_ok_and(|inventory| inventory.disks.iter().any(|disk| disk.path == name)) {
        output.note(&format!(
            "{name} is not attached yet: add it to the VMX, for example scsi0:1.fileName = \"{name}\"."
        ));
    }
    Ok(())
}

fn disk_type(disk_type: DiskType) -> NewDiskType {
    match disk_type {
        DiskType::MonolithicFlat => NewDiskType::MonolithicFlat,
        DiskType::MonolithicSparse => NewDiskType::MonolithicSparse,
        DiskType::TwoGbMaxExtentFlat => NewDiskType::TwoGbMaxExtentFlat,
        DiskType::TwoGbMaxExtentSparse => NewDiskType::TwoGbMaxExtentSparse,
        DiskType::Vmfs => NewDiskType::Vmfs,
    }
}

fn key_id(text: &str) -> Result<KeyId, Failure> {
    text.parse().map_err(|error| Failure::usage(format!("--key-id {text}: {error}")))
}

fn read_digests(file: &Path) -> Result<DigestList, Failure> {
    Ok(DigestList::parse(&read_small(file)?, &file.display().to_string())?)
}

fn read_small(file: &Path) -> Result<Vec<u8>, Failure> {
    let path = VmPath::of_file(file)?;
    Ok(LocalDir::open(&path.folder)?.read(&StoragePath::new(&path.name)?, SMALL_FILE_LEN_MAX)?)
}

fn refuse_existing(file: &Path, force: bool) -> Result<(), Failure> {
    let path = VmPath::of_file(file)?;
    if !force && LocalDir::open(&path.folder)?.metadata(&StoragePath::new(&path.name)?)?.is_some() {
        return Err(FileError::Exists { path: file.display().to_string() }.into());
    }
    Ok(())
}

fn put(file: &Path, bytes: &[u8], force: bool) -> Result<(), Failure> {
    let path = VmPath::of_file(file)?;
    Ok(write_new(&LocalDir::open(&path.folder)?, &StoragePath::new(&path.name)?, bytes, force)?)
}

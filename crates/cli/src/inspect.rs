//! `vmseal inspect`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmseal::{DiskReport, LocalDir, Report, Vm};

use crate::args::InspectArgs;
use crate::output::Output;
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

/// A folder tree of VMs is some levels deep; links are not followed.
const DEPTH_MAX: usize = 16;

#[derive(Serialize)]
struct Inspection {
    vms: Vec<VmItem>,
    disks: Vec<DiskItem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorItem>,
}

/// A VM, with the path under which it was found.
#[derive(Serialize)]
struct VmItem {
    path: PathBuf,
    #[serde(flatten)]
    report: Report,
}

/// A disk that was named itself.
#[derive(Serialize)]
struct DiskItem {
    file: PathBuf,
    #[serde(flatten)]
    report: DiskReport,
}

/// What could not be inspected.
#[derive(Serialize)]
struct ErrorItem {
    path: PathBuf,
    message: String,
}

pub(crate) fn run(args: &InspectArgs, output: &mut Output) -> Result<(), Failure> {
    let mut found = Inspection { vms: Vec::new(), disks: Vec::new(), errors: Vec::new() };
    let mut first_failure = None;
    for path in &args.paths {
        let mut files = Vec::new();
        if path.is_dir() {
            vmx_files(path, DEPTH_MAX, &mut files)?;
            if files.is_empty() {
                output.note(&format!("{}: there is no VM in this folder", path.display()));
            }
        } else {
            files.push(path.clone());
        }
        for file in files {
            if let Err(failure) = inspect(&file, &mut found) {
                found.errors.push(ErrorItem { path: file, message: failure.message.clone() });
                first_failure.get_or_insert(failure);
            }
        }
    }
    let mut text = String::new();
    for vm in &found.vms {
        // The report begins with the name of the VMX; people want to know which.
        let report = vm.report.to_string();
        let rest = report.split_once('\n').map_or("", |(_, rest)| rest);
        text.push_str(&format!("{}\n{rest}", vm.path.display()));
    }
    for disk in &found.disks {
        text.push_str(&format!("{}\n  disk        {}\n", disk.file.display(), disk.report));
    }
    // A program gets one document: what was found and what failed, in it.
    if first_failure.is_none() || found.errors.len() + found.vms.len() + found.disks.len() > 1 {
        if !text.is_empty() || output.is_json() {
            output.result(&found, &text)?;
        }
        for error in &found.errors {
            output.warning(&format!("{}: {}", error.path.display(), error.message));
        }
        return match first_failure {
            None => Ok(()),
            Some(failure) => Err(Failure::reported(
                failure.status,
                format!("{} of the files could not be inspected", found.errors.len()),
            )),
        };
    }
    first_failure.map_or(Ok(()), Err)
}

fn inspect(file: &Path, found: &mut Inspection) -> Result<(), Failure> {
    let path = VmPath::new(file)?;
    let storage = LocalDir::open(&path.folder)?;
    if path.name.to_ascii_lowercase().ends_with(".vmdk") {
        let report = DiskReport::read(&storage, &path.name)?;
        found.disks.push(DiskItem { file: file.to_owned(), report });
        return Ok(());
    }
    let report = Vm::open(&storage, &path.name)?.inspect()?;
    found.vms.push(VmItem { path: file.to_owned(), report });
    Ok(())
}

/// The VMX files below a folder, in order.
fn vmx_files(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let status = Failure::from(std::io::Error::from(error.kind())).status;
        Failure::new(status, format!("{}: the folder cannot be read: {error}", folder.display()))
    };
    let mut entries = std::fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        if kind.is_dir() {
            if depth == 0 {
                return Err(Failure::new(Status::Failed, format!("{}: the folders are too deep", path.display())));
            }
            vmx_files(&path, depth - 1, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vmx")) {
            files.push(path);
        }
    }
    Ok(())
}

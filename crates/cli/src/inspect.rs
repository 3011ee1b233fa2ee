//! `vmseal inspect`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmseal::{Catalogue, CatalogueEntry, DiskReport, LocalDir, Report, StoragePath, Vm};

use crate::args::InspectArgs;
use crate::inspect_table::{self, Row};
use crate::inspect_walk::{Found, walk};
use crate::output::Output;
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

#[derive(Default, Serialize)]
struct Inspection {
    vms: Vec<VmItem>,
    disks: Vec<DiskItem>,
    files: Vec<FileItem>,
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

/// A file of any kind.
#[derive(Serialize)]
struct FileItem {
    path: PathBuf,
    #[serde(flatten)]
    entry: CatalogueEntry,
}

/// What could not be inspected.
#[derive(Serialize)]
struct ErrorItem {
    path: PathBuf,
    message: String,
}

/// What is told of one path of the command line.
struct Told {
    text: String,
    /// The path itself is damaged or cannot be read.
    failure: Option<Failure>,
}

pub(crate) fn run(args: &InspectArgs, output: &mut Output) -> Result<(), Failure> {
    let mut found = Inspection::default();
    let mut text = String::new();
    let mut failures = Vec::new();
    for path in &args.paths {
        let told = match path.is_dir() {
            true => folder(path, &mut found, output),
            false => file(path, &mut found),
        };
        let told = told.unwrap_or_else(|failure| Told { text: String::new(), failure: Some(failure) });
        text.push_str(&told.text);
        if let Some(failure) = told.failure {
            found.errors.push(ErrorItem { path: path.clone(), message: failure.message.clone() });
            failures.push((path, failure));
        }
    }
    let is_told = !found.vms.is_empty() || !found.disks.is_empty() || !found.files.is_empty();
    if failures.len() == 1 && args.paths.len() == 1 && !is_told {
        return failures.pop().map_or(Ok(()), |(_, failure)| Err(failure));
    }
    if !text.is_empty() || output.is_json() {
        output.result(&found, &text)?;
    }
    let count = failures.len();
    match failures.pop() {
        None => Ok(()),
        // The document has it; people read it where errors are.
        Some((_, mut failure)) if args.paths.len() == 1 => {
            failure.is_reported = true;
            Err(failure)
        }
        Some((last, failure)) => {
            let status = failures.first().map_or(failure.status, |(_, first)| first.status);
            for (path, failure) in failures.iter().map(|(path, failure)| (*path, failure)).chain([(last, &failure)]) {
                output.warning(&format!("{}: {}", path.display(), failure.message));
            }
            let all = args.paths.len();
            Err(Failure::reported(status, format!("{count} of the {all} paths could not be inspected")))
        }
    }
}

/// Tells of a file that was named itself.
fn file(path: &Path, found: &mut Inspection) -> Result<Told, Failure> {
    let place = VmPath::of_file(path)?;
    let storage = LocalDir::open(&place.folder)?;
    let name = StoragePath::new(&place.name)?;
    let entry = vmseal::inspect_file(&storage, &name);
    // What cannot even be opened is an error and no entry.
    if entry.kind == "unknown"
        && let (Some(kind), Some(error)) = (entry.error_kind(), &entry.error)
    {
        return Err(Failure::new(kind.into(), error.clone()));
    }
    let mut failure = entry
        .error_kind()
        .zip(entry.error.as_ref())
        .map(|(kind, error)| Failure::new(Status::from(kind), format!("{}: {error}", place.name)));
    let mut text = String::new();
    let is_disk = entry.kind == "vmdk-descriptor" || entry.belongs_to.as_deref() == Some(place.name.as_str());
    if entry.kind == "vmx" {
        match Vm::open(&storage, &place.name).and_then(|vm| vm.inspect()) {
            Ok(report) => {
                text.push_str(&vm_text(path, &report));
                found.vms.push(VmItem { path: path.to_owned(), report });
            }
            // What is wrong with the VM says more than what is wrong with its file.
            Err(error) => failure = Some(error.into()),
        }
    } else if is_disk && failure.is_none() {
        match DiskReport::read(&storage, &place.name) {
            Ok(report) => {
                text.push_str(&format!("{}\n  disk        {report}\n", path.display()));
                found.disks.push(DiskItem { file: path.to_owned(), report });
            }
            // A kind of disk that vmseal does not read is no damage: its entry says so.
            Err(_) if entry.cannot.is_some() => {}
            Err(error) => failure = Some(error.into()),
        }
    }
    if text.is_empty() {
        text = format!("{}\n  what        {}\n", path.display(), entry.description);
        text.push_str(&inspect_table::block(&entry, true));
    } else if entry.encryption == "foreign" {
        text.push_str(&inspect_table::block(&entry, false));
    }
    found.files.push(FileItem { path: path.to_owned(), entry });
    Ok(Told { text, failure })
}

/// Tells of everything below a folder.
fn folder(path: &Path, found: &mut Inspection, output: &mut Output) -> Result<Told, Failure> {
    let storage = LocalDir::open(path)?;
    let mut catalogue = Catalogue::new(&storage);
    let mut others = Vec::new();
    for item in walk(path)? {
        match item {
            Found::File(name) => catalogue.add(&name),
            Found::Other { name, what } => others.push((name, what)),
        }
    }
    let (mut text, mut rows) = (String::new(), Vec::new());
    let entries = catalogue.finish();
    let mut damaged = entries.iter().filter(|entry| entry.error.is_some()).count();
    for entry in entries.iter().filter(|entry| entry.kind == "vmx" && entry.error.is_none()) {
        let file = path.join(&entry.name);
        match vm_report(&file) {
            Ok(report) => {
                text.push_str(&vm_text(Path::new(&entry.name), &report));
                found.vms.push(VmItem { path: file, report });
            }
            Err(failure) => {
                output.warning(&format!("{}: {}", entry.name, failure.message));
                found.errors.push(ErrorItem { path: file, message: failure.message });
            }
        }
    }
    if !entries.iter().any(|entry| entry.kind == "vmx") {
        output.note(&format!("{}: there is no VM in this folder", path.display()));
    }
    for entry in entries {
        rows.push(Row::of_entry(&entry));
        if let Some(message) = &entry.error {
            found.errors.push(ErrorItem { path: path.join(&entry.name), message: message.clone() });
        }
        found.files.push(FileItem { path: path.join(&entry.name), entry });
    }
    for (name, what) in others {
        damaged += usize::from(what.is_error);
        if what.is_error {
            found.errors.push(ErrorItem { path: path.join(&name), message: what.text.clone() });
        }
        rows.push(Row::of_other(&name, &what));
    }
    if !rows.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&inspect_table::table(&rows));
    }
    if damaged > 0 {
        output.warning(&format!(
            "{}: files that are damaged or cannot be read: {damaged}; their lines say why",
            path.display()
        ));
    }
    Ok(Told { text, failure: None })
}

fn vm_report(file: &Path) -> Result<Report, Failure> {
    let path = VmPath::new(file)?;
    Ok(Vm::open(&LocalDir::open(&path.folder)?, &path.name)?.inspect()?)
}

/// The report begins with the name of the VMX; people want to know which.
fn vm_text(path: &Path, report: &Report) -> String {
    let report = report.to_string();
    let rest = report.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{}\n{rest}", path.display())
}

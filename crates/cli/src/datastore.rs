//! `vmseal datastore create`.

use std::path::Path;

use serde::Serialize;
use vmseal::{LocalDir, StoragePath, create_datastore};

use crate::output::Output;
use crate::status::Failure;
use crate::vm_path::VmPath;

#[derive(Serialize)]
struct Report {
    image: String,
    header: String,
}

pub(crate) fn create(image: &Path, output: &mut Output) -> Result<(), Failure> {
    let path = VmPath::of_file(image)?;
    let header = create_datastore(&LocalDir::open(&path.folder)?, &StoragePath::new(&path.name)?)?;
    let header = path.folder.join(header.as_str()).display().to_string();
    let text = format!(
        "{header} is the header of {}. Encrypt it with `vmseal encrypt {header} --strategy in-place --provider NAME`.",
        image.display()
    );
    output.result(&Report { image: image.display().to_string(), header }, &text)
}

//! Datastore encryption: one DEK over a whole image file, by the engine and under the header rules of a VM's disk.

use vmseal_disk::NewDisk;
use vmseal_rekey::Error;
use vmseal_storage::{Storage, StoragePath};

use crate::file_error::FileError;

/// The entry that says what a header is for.
const MARK: &str = "vmseal.datastore";

/// Makes the two small files that make an image file a datastore: a descriptor with the image as its one flat extent, and a header in the syntax of a VMX
/// that attaches it, both beside the image and named after it (`pool.vmdk` and `pool.vmx` for `pool.img`). Nothing of the image changes. From
/// then on a [`Vm`](crate::Vm) of the header is the datastore: encrypted in place under one DEK, recrypted, served, exported and decrypted like a VM with
/// one disk. Returns the path of the header.
///
/// # Errors
/// [`FileError::Exists`]; [`FileError::Refused`] where the image is no whole number of 512-byte sectors or its name leaves none for the others.
pub fn create_datastore(storage: &dyn Storage, image: &StoragePath) -> Result<StoragePath, FileError> {
    let refused = |what: String| FileError::Refused { path: image.to_string(), what };
    let name = image.file_name();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let (header, descriptor) = (image.sibling(&format!("{stem}.vmx"))?, image.sibling(&format!("{stem}.vmdk"))?);
    if stem.is_empty() || stem.contains(['"', '|', '\n']) || [&header, &descriptor].contains(&image) {
        let what = format!("its header would be {header} and its descriptor {descriptor}; give the image another name");
        return Err(refused(what));
    }
    for path in [&header, &descriptor] {
        if storage.metadata(path)?.is_some() {
            return Err(FileError::Exists { path: path.to_string() });
        }
    }
    NewDisk::describe(storage, &descriptor, name).map_err(Error::Disk)?;
    let text = format!(
        "displayName = \"{stem}\"\n{MARK} = \"TRUE\"\nscsi0.present = \"TRUE\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"{stem}.vmdk\"\n"
    );
    storage.replace(&header, text.as_bytes())?;
    Ok(header)
}

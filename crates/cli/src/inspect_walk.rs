//! The files below a folder, links left alone.

use std::path::Path;

use vmseal::StoragePath;

use crate::status::Failure;

/// A folder tree of VMs is some levels deep.
const DEPTH_MAX: usize = 32;

/// Something below a folder.
pub(crate) enum Found {
    /// A regular file, by its path relative to the folder.
    File(StoragePath),
    /// Something that is not looked into.
    Other { name: String, what: Other },
}

/// What is not looked into, and why.
pub(crate) struct Other {
    pub(crate) text: String,
    /// Something is wrong with it.
    pub(crate) is_error: bool,
}

/// Everything below `folder`, in the order of names. What is wrong below it is an item; only the folder itself can make it fail.
pub(crate) fn walk(folder: &Path) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    read(folder, "", DEPTH_MAX, &mut found).map_err(|error| {
        let status = Failure::from(std::io::Error::from(error.kind())).status;
        Failure::new(status, format!("{}: the folder cannot be read: {error}", folder.display()))
    })?;
    Ok(found)
}

fn read(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<Found>) -> Result<(), std::io::Error> {
    let mut entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let mut other = |text: String, is_error| {
            found.push(Found::Other { name: name.clone(), what: Other { text, is_error } });
        };
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(error) => {
                other(error.to_string(), true);
                continue;
            }
        };
        let path = entry.file_name().to_str().and_then(|_| StoragePath::new(&name).ok());
        match path {
            _ if kind.is_symlink() => other("a link, which is not followed".to_owned(), false),
            None => other("the name is not UTF-8 or no name of a file here; rename it".to_owned(), true),
            Some(_) if kind.is_dir() && depth == 0 => other("the folders are too deep".to_owned(), true),
            Some(_) if kind.is_dir() => {
                if let Err(error) = read(&entry.path(), &format!("{name}/"), depth - 1, found) {
                    let text = format!("the folder cannot be read: {error}");
                    found.push(Found::Other { name, what: Other { text, is_error: true } });
                }
            }
            Some(path) if kind.is_file() => found.push(Found::File(path)),
            Some(_) => other("a device, socket or pipe".to_owned(), false),
        }
    }
    Ok(())
}

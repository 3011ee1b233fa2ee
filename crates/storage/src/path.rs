//! Names on a storage.

use core::fmt;

use crate::error::Error;

/// A path relative to the root of a [`Storage`](crate::Storage), with `/` between its parts. The empty path is the root.
///
/// It never leads outside: `..` is resolved when the path is made, and refused where it would leave the root.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StoragePath(String);

impl StoragePath {
    /// Parses a relative path. `.` and doubled slashes are dropped.
    ///
    /// # Errors
    /// [`Error::PathRefused`] for absolute paths (also those of Windows), for paths that leave the root, and for text with NUL.
    pub fn new(text: &str) -> Result<Self, Error> {
        Self::resolve("", text)
    }

    /// The root.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// A file in this folder.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn join(&self, name: &str) -> Result<Self, Error> {
        Self::resolve(&self.0, name)
    }

    /// Another file named relative to this one's folder.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn sibling(&self, name: &str) -> Result<Self, Error> {
        Self::resolve(self.folder().as_str(), name)
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// The folder that holds it.
    pub fn folder(&self) -> Self {
        Self(self.0.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned()))
    }

    /// The same path with `suffix` appended to its name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self(format!("{}{suffix}", self.0))
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    fn resolve(base: &str, text: &str) -> Result<Self, Error> {
        let refused = |what| Err(Error::PathRefused { path: text.to_owned(), what });
        if text.contains('\0') {
            return refused("it has a NUL byte");
        }
        if text.starts_with('/') || text.starts_with('\\') {
            return refused("it is absolute");
        }
        if text.as_bytes().get(1) == Some(&b':') && text.as_bytes()[0].is_ascii_alphabetic() {
            return refused("it is a path of Windows");
        }
        let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return refused("it leads outside the folder");
                    }
                }
                part => parts.push(part),
            }
        }
        Ok(Self(parts.join("/")))
    }
}

impl fmt::Display for StoragePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { &self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        for (text, path) in [("a.vmx", "a.vmx"), ("./a//b", "a/b"), ("a/../b", "b"), ("", ""), ("a\\b", "a\\b")] {
            assert_eq!(StoragePath::new(text).unwrap().as_str(), path, "{text}");
        }
        for text in ["/etc/passwd", "..", "a/../../b", "C:\\vms\\a.vmdk", "\\\\.\\PhysicalDrive0", "a\0b"] {
            assert!(matches!(StoragePath::new(text), Err(Error::PathRefused { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_sibling_is_named_from_the_folder() {
        let path = StoragePath::new("web01/web01.vmx").unwrap();
        assert_eq!(path.file_name(), "web01.vmx");
        assert_eq!(path.folder().as_str(), "web01");
        assert_eq!(path.sibling("disk.vmdk").unwrap().as_str(), "web01/disk.vmdk");
        assert_eq!(path.sibling("../base/disk.vmdk").unwrap().as_str(), "base/disk.vmdk");
        assert!(path.sibling("../../disk.vmdk").is_err());
        assert_eq!(path.folder().join("disk.vmdk").unwrap().as_str(), "web01/disk.vmdk");
        assert_eq!(StoragePath::root().join("disk.vmdk").unwrap().as_str(), "disk.vmdk");
        assert_eq!(path.with_suffix(".lck").as_str(), "web01/web01.vmx.lck");
    }
}

//! What a VMX says, in one pass over its entries.

use std::collections::BTreeMap;

use vmseal_formats::{Dictionary, KeyList};
use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::survey::read_start;

/// A VMX or VMSD is a few KiB; none is longer than this.
pub(crate) const DICTIONARY_LEN_MAX: u64 = 4 << 20;
/// More disks than any product attaches to one VM (vSphere 8: 256).
const DISKS_MAX: usize = 1024;
/// The entry of a VMX that says that `encryption.bundle` is vmseal's.
pub(crate) const PROFILE_NAME: &str = "vmseal.profile";
/// The entry that holds the locator list with the wrapped secrets.
pub(crate) const BUNDLE_NAME: &str = "encryption.bundle";

/// The entries of a VMX by their names in lower case.
pub(crate) struct Entries {
    path: StoragePath,
    dictionary: Dictionary,
    values: BTreeMap<String, String>,
}

impl Entries {
    /// Reads and splits a VMX. Of names that are given twice the first counts, as it does for [`Dictionary`].
    pub(crate) fn read(storage: &dyn Storage, path: &StoragePath) -> Result<Self, Error> {
        let dictionary = Dictionary::parse(&storage.read(path, DICTIONARY_LEN_MAX)?);
        let encoding = dictionary.encoding().map_err(|source| Error::Format { path: path.to_string(), source })?;
        let mut values = BTreeMap::new();
        for (name, value) in dictionary.entries() {
            let Ok(name) = String::from_utf8(name) else { continue };
            let (value, _) = encoding.decode_without_bom_handling(&value);
            values.entry(name.to_ascii_lowercase()).or_insert_with(|| value.into_owned());
        }
        Ok(Self { path: path.clone(), dictionary, values })
    }

    /// Reads a VMX: a file without any entry is none, and names that decide about files must not be given twice.
    pub(crate) fn read_vmx(storage: &dyn Storage, vmx: &StoragePath) -> Result<Self, Error> {
        let refuse = |what: String| Err(Error::Vm { path: vmx.to_string(), what });
        let start = read_start(storage, vmx)?;
        let is_descriptor = start.trim_ascii_start().to_ascii_lowercase().starts_with(b"# disk descriptorfile");
        if start.starts_with(&vmseal_formats::sparse_header::MAGIC) || is_descriptor {
            return refuse("this is a disk, and no VM; name the VM's .vmx file".to_owned());
        }
        let entries = Self::read(storage, vmx)?;
        if entries.values.is_empty() {
            return refuse(
                "this is no VMX: it has no line of the form name = \"value\"; name the VM's .vmx file".to_owned(),
            );
        }
        for duplicate in entries.dictionary.duplicates() {
            let lower = duplicate.name.to_ascii_lowercase();
            if lower == "nvram"
                || lower == PROFILE_NAME
                || lower.starts_with("encryption.")
                || is_disk_node(lower.split('.').next().unwrap_or_default())
            {
                let (name, first, second) = (&duplicate.name, duplicate.first_line, duplicate.line);
                return refuse(format!("{name} is given twice, in lines {first} and {second}; remove the wrong one"));
            }
        }
        Ok(entries)
    }

    pub(crate) fn dictionary(&self) -> &Dictionary {
        &self.dictionary
    }

    /// The value of a name in lower case.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All entries: names in lower case, and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The attached disks: node and descriptor, in the order of the nodes.
    pub(crate) fn disks(&self) -> Result<Vec<(String, StoragePath)>, Error> {
        let mut disks = Vec::new();
        for (name, file) in self.iter() {
            let Some(node) = name.strip_suffix(".filename").filter(|node| is_disk_node(node)) else { continue };
            let of_node = |entry: &str| self.value(&format!("{node}.{entry}"));
            if of_node("present").is_some_and(|value| value.eq_ignore_ascii_case("FALSE")) {
                continue;
            }
            let by_name = || file.trim_end().to_ascii_lowercase().ends_with(".vmdk");
            if of_node("devicetype").map_or_else(by_name, |device| device.to_ascii_lowercase().contains("disk")) {
                disks.push((node.to_owned(), self.beside(file)?));
            }
            if disks.len() > DISKS_MAX {
                let what = format!("it has more than {DISKS_MAX} disks, and no VM has so many");
                return Err(Error::Vm { path: self.path.to_string(), what });
            }
        }
        Ok(disks)
    }

    /// The NVRAM, where the VMX names one or one has the VMX's name.
    pub(crate) fn nvram(&self) -> Result<StoragePath, Error> {
        match self.value("nvram") {
            Some(name) if !name.is_empty() => self.beside(name),
            _ => companion(&self.path, "nvram"),
        }
    }

    /// The locator list of the encrypted bundle.
    pub(crate) fn bundle(&self) -> Option<&str> {
        self.value(BUNDLE_NAME)
    }

    /// The same, parsed, where it is vmseal's.
    pub(crate) fn key_list(&self) -> Result<Option<KeyList>, Error> {
        let Some(bundle) = self.bundle().filter(|_| self.value(PROFILE_NAME).is_some()) else { return Ok(None) };
        KeyList::parse(bundle).map(Some).map_err(|source| Error::Format { path: self.path.to_string(), source })
    }

    /// A name that the file uses, as a path: relative to the file's folder.
    pub(crate) fn beside(&self, name: &str) -> Result<StoragePath, Error> {
        beside(&self.path, name)
    }
}

/// A name that a VMX uses, as a path: relative to the folder of the VMX.
fn beside(vmx: &StoragePath, name: &str) -> Result<StoragePath, Error> {
    let refuse = |what: String| Error::Vm { path: vmx.to_string(), what };
    // A file may have such a name; a VM's has not, and it would be shown as something else.
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(refuse(format!("{name:?} cannot be the name of a file; correct the entry")));
    }
    vmx.sibling(name).map_err(|source| {
        refuse(format!(
            "the file {name} cannot be used ({source}); move it into the VM's folder and name it relative to that"
        ))
    })
}

/// `web01.vmsd` for `web01.vmx`.
pub(crate) fn companion(vmx: &StoragePath, extension: &str) -> Result<StoragePath, Error> {
    beside(vmx, &format!("{}.{extension}", stem(vmx)))
}

/// `web01` for `web01.vmx`.
pub(crate) fn stem(vmx: &StoragePath) -> &str {
    let name = vmx.file_name();
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// `scsi0:1` and the like.
fn is_disk_node(node: &str) -> bool {
    let Some(rest) = ["scsi", "sata", "ide", "nvme"].iter().find_map(|bus| node.strip_prefix(bus)) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.split_once(':').is_some_and(|(bus, slot)| digits(bus) && digits(slot))
}

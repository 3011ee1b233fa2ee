//! What files are, whether and how they are encrypted, and what opens them: any files, without any key.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use vmseal_formats::{FileKind, START_LEN, identify};
use vmseal_rekey::ErrorKind;
use vmseal_storage::{Access, File, Kind, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::catalogue_disks::Owner;
use crate::file_error::FileError;
use crate::opened_by::OpenedBy;
use crate::report::Size;

/// A text of VMware's is a few KiB; none is longer than this.
const TEXT_LEN_MAX: u64 = 4 << 20;

/// What is known of a file. The fields' names are those of the JSON document.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CatalogueEntry {
    /// The file, relative to the storage root.
    pub name: String,
    /// What it is, as one word for programs: `vmx`, `vmdk-descriptor`, `sparse-extent`, `luks`, `unknown` and so on.
    pub kind: &'static str,
    /// The same for people, with what distinguishes it.
    pub description: String,
    /// Its length.
    pub len_bytes: u64,
    /// `none`; `vmseal`; `foreign` where something else encrypted it; `unknown` where its bytes do not tell.
    pub encryption: &'static str,
    /// How it is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// What opens it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub opened_by: Vec<OpenedBy>,
    /// The descriptor of the disk that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub belongs_to: Option<String>,
    /// The verbs of vmseal that work on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub can: Vec<&'static str>,
    /// What vmseal does not do with it, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cannot: Option<String>,
    /// Why nothing more can be told: it is damaged, or cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    error_kind: Option<ErrorKind>,
}

impl CatalogueEntry {
    fn new(path: &StoragePath) -> Self {
        Self {
            name: path.to_string(),
            kind: "unknown",
            description: "unknown file".to_owned(),
            len_bytes: 0,
            encryption: "unknown",
            method: None,
            opened_by: Vec::new(),
            belongs_to: None,
            can: Vec::new(),
            cannot: None,
            error: None,
            error_kind: None,
        }
    }

    /// What the error means to whoever asked; none where nothing is wrong.
    pub fn error_kind(&self) -> Option<ErrorKind> {
        self.error_kind
    }

    pub(crate) fn is(&mut self, kind: &'static str, description: impl Into<String>, encryption: &'static str) {
        (self.kind, self.description, self.encryption) = (kind, description.into(), encryption);
    }

    /// Takes back what its first bytes seemed to say.
    pub(crate) fn is_raw(&mut self) {
        (self.error, self.error_kind, self.method) = (None, None, None);
        self.opened_by.clear();
    }

    fn fails(&mut self, error: &FileError) {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            // A message that ends with its cause says all of it.
            if !message.ends_with(&cause.to_string()) {
                message.push_str(&format!(": {cause}"));
            }
            source = cause.source();
        }
        // The entry names the file already.
        let message = message.strip_prefix(&format!("{}: ", self.name)).unwrap_or(&message).to_owned();
        (self.error, self.error_kind) = (Some(message), Some(error.kind()));
    }
}

/// Looks at files one by one, and tells which disks the raw ones among them are parts of.
///
/// Of each file the first 8 KiB are read; of texts (VMX, descriptors and the like) all; of headers that are longer as much as they are. Data
/// is never read, so that a file costs the same whatever its length.
///
/// ```
/// use vmseal::{Catalogue, Memory, Storage, StoragePath};
///
/// let storage = Memory::new();
/// storage.replace(&StoragePath::new("web01.vmx")?, b"displayName = \"web01\"\nmemsize = \"4096\"\n")?;
/// let mut catalogue = Catalogue::new(&storage);
/// catalogue.add(&StoragePath::new("web01.vmx")?);
/// let entries = catalogue.finish();
/// assert_eq!((entries[0].kind, entries[0].encryption), ("vmx", "none"));
/// # Ok::<(), vmseal::StorageError>(())
/// ```
pub struct Catalogue<'s> {
    storage: &'s dyn Storage,
    entries: Vec<CatalogueEntry>,
    seen: BTreeSet<StoragePath>,
    /// Extents by their paths.
    owners: BTreeMap<StoragePath, Owner>,
}

impl<'s> Catalogue<'s> {
    /// An empty catalogue of files on `storage`.
    pub fn new(storage: &'s dyn Storage) -> Self {
        Self { storage, entries: Vec::new(), seen: BTreeSet::new(), owners: BTreeMap::new() }
    }

    /// Looks at a file. What is wrong with it becomes part of its entry. Links are for the caller to leave out: a storage may follow them.
    pub fn add(&mut self, path: &StoragePath) {
        let (entry, extents) = look(self.storage, path);
        self.seen.insert(path.clone());
        self.owners.extend(extents);
        self.entries.push(entry);
    }

    /// The entries in the order in which the files were added.
    pub fn finish(mut self) -> Vec<CatalogueEntry> {
        let mut entries = core::mem::take(&mut self.entries);
        for entry in entries.iter_mut().filter(|entry| entry.belongs_to.is_none()) {
            let Ok(path) = StoragePath::new(&entry.name) else { continue };
            if !self.owners.contains_key(&path)
                && let Some(descriptor) = Owner::by_name(&path)
                && !self.seen.contains(&descriptor)
                && self.storage.metadata(&descriptor).ok().flatten().is_some_and(|found| found.kind == Kind::File)
            {
                let (_, extents) = look(self.storage, &descriptor);
                self.seen.insert(descriptor);
                self.owners.extend(extents);
            }
            if let Some(owner) = self.owners.get(&path) {
                owner.mark(entry);
            }
        }
        entries
    }
}

impl core::fmt::Debug for Catalogue<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Catalogue").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// Looks at one file. See [`Catalogue`].
pub fn inspect_file(storage: &dyn Storage, path: &StoragePath) -> CatalogueEntry {
    let mut catalogue = Catalogue::new(storage);
    catalogue.add(path);
    catalogue.finish().pop().unwrap_or_else(|| CatalogueEntry::new(path))
}

/// A file that is looked at.
pub(crate) struct Look<'s> {
    pub(crate) storage: &'s dyn Storage,
    pub(crate) path: &'s StoragePath,
    file: Box<dyn File>,
    pub(crate) len: u64,
    /// Its first bytes, or all of a shorter one.
    pub(crate) start: Vec<u8>,
    /// Extents that its descriptor names.
    pub(crate) extents: Vec<(StoragePath, Owner)>,
}

fn look(storage: &dyn Storage, path: &StoragePath) -> (CatalogueEntry, Vec<(StoragePath, Owner)>) {
    let mut entry = CatalogueEntry::new(path);
    let mut look = match Look::open(storage, path) {
        Ok(look) => look,
        Err(error) => {
            entry.fails(&error);
            return (entry, Vec::new());
        }
    };
    entry.len_bytes = look.len;
    if let Err(error) = look.tell(&mut entry) {
        entry.fails(&error);
    }
    (entry, look.extents)
}

impl<'s> Look<'s> {
    fn open(storage: &'s dyn Storage, path: &'s StoragePath) -> Result<Self, FileError> {
        let file = storage.open(path, Access::Read)?;
        let len = file.len()?;
        let mut look = Self { storage, path, file, len, start: Vec::new(), extents: Vec::new() };
        look.start = look.range(0, START_LEN as u64)?;
        Ok(look)
    }

    fn tell(&mut self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        if self.tell_own_file(entry)? {
            return Ok(());
        }
        match identify(&self.start) {
            FileKind::ChangeTracking => entry.is("change-tracking", "change tracking file of a disk", "none"),
            FileKind::CowdExtent => self.tell_cowd(entry)?,
            FileKind::Empty if self.is_named(".vmx") => self.tell_vmx(entry)?,
            FileKind::Empty if self.is_named(".vmsd") => self.tell_vmsd(entry)?,
            FileKind::Empty => entry.is("empty", "empty file", "none"),
            FileKind::EncryptedObject => self.tell_encrypted_object(entry)?,
            FileKind::Envelope { offset_bytes } => self.tell_envelope(offset_bytes, entry)?,
            FileKind::Foreign(image) => self.tell_foreign_image(image, entry),
            FileKind::Keystore => self.tell_keystore(entry)?,
            FileKind::Nvram => entry.is("nvram", "NVRAM", "none"),
            FileKind::SeSparseExtent => self.tell_se_sparse(entry)?,
            FileKind::Snapshot => entry.is("snapshot-state", "state of a snapshot or a suspended VM", "none"),
            FileKind::SparseExtent => self.tell_sparse(entry)?,
            FileKind::VmdkDescriptor => self.tell_descriptor_file(entry)?,
            FileKind::Vmsd => self.tell_vmsd(entry)?,
            FileKind::Vmx => self.tell_vmx(entry)?,
            FileKind::Vmxf => entry.is("vmxf", "companion of a VMX", "none"),
            FileKind::Unknown if self.is_named(".vmx") => self.tell_vmx(entry)?,
            FileKind::Unknown => self.tell_by_name(entry),
            // A kind that is new in the formats is named there.
            kind => entry.is("unknown", kind.to_string(), "unknown"),
        }
        Ok(())
    }

    /// Bytes of the file, fewer at its end.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Vec<u8>, FileError> {
        let len = self.len.saturating_sub(offset).min(len);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// All of a text.
    pub(crate) fn text(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        if self.len <= self.start.len() as u64 {
            return Ok(Zeroizing::new(self.start.clone()));
        }
        if self.len > TEXT_LEN_MAX {
            let (len_bytes, limit_bytes) = (self.len, TEXT_LEN_MAX);
            let error = vmseal_storage::Error::TooLong { path: self.path.to_string(), len_bytes, limit_bytes };
            return Err(error.into());
        }
        Ok(Zeroizing::new(self.range(0, self.len)?))
    }

    /// Whether its name ends so, in any case.
    pub(crate) fn is_named(&self, end: &str) -> bool {
        let name = self.path.file_name().as_bytes();
        name.len() >= end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
    }

    /// What has no signature is known by its name, and nothing is claimed of its bytes.
    fn tell_by_name(&self, entry: &mut CatalogueEntry) {
        let what = [
            ("-rdm.vmdk", "rdm-pointer", "pointer to a raw device"),
            ("-rdmp.vmdk", "rdm-pointer", "pointer to a raw device"),
            (".nvram", "nvram", "NVRAM without a known signature"),
            (".vmem", "memory", "memory of a VM"),
            (".vmsn", "snapshot-state", "snapshot state without a known signature"),
            (".vmss", "snapshot-state", "suspended state without a known signature"),
            (".vswp", "swap", "swap file of a VM"),
        ];
        if let Some((_, kind, description)) = what.into_iter().find(|(end, ..)| self.is_named(end)) {
            entry.is(kind, description, "unknown");
        } else if self.is_named(".vmdk") {
            entry.is("flat-extent", format!("raw data, {}", Size(self.len)), "unknown");
        }
        if entry.kind != "unknown" {
            entry.cannot = Some("tell whether it is encrypted: it has no signature".to_owned());
        }
    }
}

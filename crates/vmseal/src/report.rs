//! What `inspect` tells of a VM: for people by `Display`, for programs by serde.

use core::fmt;

use serde::Serialize;
use vmseal_disk::UnitSize;
use vmseal_keys::KeyId;
use vmseal_rekey::{Encryption, Error, Inventory, KeyUse, PowerState, Snapshots, VmDisk, VmFile, Warning, survey_disk};
use vmseal_storage::{Storage, StoragePath};

use crate::catalogue::inspect_file;

/// The state of a VM's encryption. The fields' names are those of the JSON document.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The VMX, relative to the storage root.
    pub vmx: String,
    /// The VM itself: its secrets and its files.
    #[serde(flatten)]
    pub state: State,
    /// `off`, `on` or `suspended`.
    pub power: &'static str,
    /// What shows the power state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_evidence: Option<String>,
    /// How many snapshots there are.
    pub snapshot_count: usize,
    /// The VM's disks.
    pub disks: Vec<DiskReport>,
    /// The VM files with guest data.
    pub files: Vec<FileReport>,
    /// Files with guest memory or device state that a snapshot or a suspended VM left, in the clear.
    pub guest_memory: Vec<String>,
    /// The KEKs that the VM and its disks, every link of them, are under, each with those files.
    pub keys: Vec<KeyUseReport>,
    /// The operation that was interrupted.
    pub pending: Option<PendingReport>,
    /// What the state of the VM makes advisable, in words.
    pub warnings: Vec<String>,
}

/// Whether something is encrypted, and what opens it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct State {
    /// `none`, `vmseal` or `foreign`.
    pub encryption: &'static str,
    /// The KEKs that open it.
    pub key_ids: Vec<KeyIdReport>,
    /// Whether a recovery password opens it too.
    pub recovery_password: bool,
    /// What foreign encryption it is, and what can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The ID of a KEK.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyIdReport {
    /// The key provider.
    pub provider: String,
    /// The key at that provider.
    pub key: String,
}

/// A KEK and what is under it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyUseReport {
    /// The KEK.
    #[serde(flatten)]
    pub id: KeyIdReport,
    /// The VMX and descriptors, relative to the storage root.
    pub files: Vec<String>,
}

/// A disk.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DiskReport {
    /// The descriptor, relative to the storage root.
    pub path: String,
    /// Controller and slot.
    pub node: String,
    /// The type, as the descriptor writes it.
    pub create_type: String,
    /// The size that the guest sees.
    pub capacity_bytes: u64,
    /// What its files take on storage, without holes.
    pub stored_bytes: u64,
    /// The disks that it depends on as a snapshot link, nearest first.
    pub parents: Vec<String>,
    /// Whether it is encrypted.
    #[serde(flatten)]
    pub state: State,
    /// The cipher of vmseal's encryption.
    pub cipher: Option<&'static str>,
    /// The data unit of vmseal's encryption.
    pub data_unit_bytes: Option<u32>,
    /// Why its data cannot be read or written by this version, where it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
}

/// A VM file.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FileReport {
    /// The file, relative to the storage root.
    pub path: String,
    /// Its length as it lies.
    pub len_bytes: u64,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// How, where something else than vmseal encrypted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign: Option<String>,
}

/// An operation that was interrupted.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PendingReport {
    /// The operation.
    pub operation: String,
    /// Whether it can only be completed, not undone.
    pub committed: bool,
    /// Whether somebody is at work on it right now.
    pub running: bool,
    /// The KEKs that completing it needs.
    pub key_ids: Vec<KeyIdReport>,
    /// The KEKs that the VM and its disks had before it.
    pub from_key_ids: Vec<KeyIdReport>,
}

impl DiskReport {
    /// What can be told of a single disk, by the path of its descriptor; needs no key.
    ///
    /// # Errors
    /// Where a file of it is missing or damaged.
    pub fn read(storage: &dyn Storage, path: &str) -> Result<Self, Error> {
        Ok(Self::new(&survey_disk(storage, &StoragePath::new(path)?)?))
    }
}

impl Report {
    pub(crate) fn new(storage: &dyn Storage, inventory: &Inventory) -> Self {
        let mut files: Vec<FileReport> = inventory.files.iter().map(FileReport::new).collect();
        for file in files.iter_mut().filter(|file| !file.encrypted) {
            file.foreign = foreign(storage, &file.path).map(|(_, method)| method);
            file.encrypted = file.foreign.is_some();
        }
        let mut guest_memory = Vec::new();
        for path in &inventory.guest_memory {
            match foreign(storage, path) {
                Some((len_bytes, method)) => {
                    files.push(FileReport { path: path.clone(), len_bytes, encrypted: true, foreign: Some(method) });
                }
                None => guest_memory.push(path.clone()),
            }
        }
        let (power, power_evidence) = match &inventory.power {
            PowerState::Off => ("off", None),
            PowerState::On { evidence } => ("on", Some(format!("{evidence} is there"))),
            PowerState::InUse { file } => ("on", Some(format!("{file} is open in QEMU"))),
            PowerState::Suspended { evidence } => ("suspended", Some(format!("{evidence} is there"))),
        };
        let snapshot_count = match inventory.snapshots {
            Snapshots::None => 0,
            Snapshots::OneBranch { count } | Snapshots::SeveralBranches { count, .. } => count,
        };
        Self {
            vmx: inventory.vmx.clone(),
            state: State::new(&inventory.encryption),
            power,
            power_evidence,
            snapshot_count,
            disks: inventory.disks.iter().map(DiskReport::new).collect(),
            files,
            guest_memory,
            keys: inventory.keys().iter().map(KeyUseReport::new).collect(),
            warnings: inventory.warnings().iter().map(Warning::to_string).collect(),
            pending: inventory.pending.as_ref().map(|pending| PendingReport {
                operation: pending.operation.to_string(),
                committed: pending.committed,
                running: pending.running,
                key_ids: pending.key_ids.iter().map(KeyIdReport::new).collect(),
                from_key_ids: pending.from_key_ids.iter().map(KeyIdReport::new).collect(),
            }),
        }
    }
}

impl State {
    fn new(encryption: &Encryption) -> Self {
        match encryption {
            Encryption::None => Self { encryption: "none", key_ids: Vec::new(), recovery_password: false, note: None },
            Encryption::Vmseal { key_ids, recovery } => Self {
                encryption: "vmseal",
                key_ids: key_ids.iter().map(KeyIdReport::new).collect(),
                recovery_password: *recovery,
                note: None,
            },
            Encryption::Foreign { what } => {
                Self { encryption: "foreign", key_ids: Vec::new(), recovery_password: false, note: Some(what.clone()) }
            }
        }
    }
}

impl KeyIdReport {
    fn new(id: &KeyId) -> Self {
        Self { provider: id.provider().to_string(), key: id.key().to_owned() }
    }
}

impl KeyUseReport {
    fn new(key: &KeyUse) -> Self {
        Self { id: KeyIdReport::new(&key.key_id), files: key.files.clone() }
    }
}

impl DiskReport {
    fn new(disk: &VmDisk) -> Self {
        Self {
            path: disk.path.clone(),
            node: disk.node.clone(),
            create_type: disk.create_type.clone(),
            capacity_bytes: disk.capacity_bytes,
            stored_bytes: disk.stored_bytes,
            parents: disk.links.iter().map(|link| link.path.clone()).collect(),
            state: State::new(&disk.encryption),
            cipher: disk.unit.map(|_| "XTS-AES-256"),
            data_unit_bytes: disk.unit.map(UnitSize::bytes),
            unsupported: disk.unsupported.clone(),
        }
    }
}

impl FileReport {
    fn new(file: &VmFile) -> Self {
        Self { path: file.path.clone(), len_bytes: file.len_bytes, encrypted: file.sealed, foreign: None }
    }
}

/// The length of a file that something else than vmseal encrypted, and how.
fn foreign(storage: &dyn Storage, path: &str) -> Option<(u64, String)> {
    let entry = inspect_file(storage, &StoragePath::new(path).ok()?);
    (entry.encryption == "foreign").then(|| (entry.len_bytes, entry.method.unwrap_or_default()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.vmx)?;
        writeln!(f, "  VM          {}", self.state)?;
        match &self.power_evidence {
            Some(evidence) => writeln!(f, "  power       {} ({evidence})", self.power)?,
            None => writeln!(f, "  power       {}", self.power)?,
        }
        writeln!(f, "  snapshots   {}", self.snapshot_count)?;
        for disk in &self.disks {
            writeln!(f, "  disk        {disk}")?;
        }
        for file in &self.files {
            let state = match &file.foreign {
                Some(method) => format!("encrypted, not by vmseal ({method})"),
                None if file.encrypted => "encrypted (AES-256-GCM envelope)".to_owned(),
                None => "not encrypted".to_owned(),
            };
            writeln!(f, "  file        {}  {}\n              {state}", file.path, Size(file.len_bytes))?;
        }
        for file in &self.guest_memory {
            writeln!(f, "  file        {file}\n              not encrypted: guest memory or device state")?;
        }
        if let Some(pending) = &self.pending {
            let (state, way_out) = match pending {
                PendingReport { running: true, .. } => ("running", "wait until it has ended"),
                PendingReport { committed: true, .. } => ("interrupted", "complete it with `resume`"),
                _ => ("interrupted", "`resume` completes it, `resume --rollback` undoes it"),
            };
            writeln!(f, "  PENDING     {state}: {}; {way_out}", pending.operation)?;
            for id in &pending.key_ids {
                writeln!(f, "              needs key {}/{}", id.provider, id.key)?;
            }
        }
        // Where there is one key, the lines above tell of it.
        for key in self.keys.iter().filter(|_| self.keys.len() > 1) {
            writeln!(f, "  key         {}/{}: {}", key.id.provider, key.id.key, key.files.join(", "))?;
        }
        for warning in &self.warnings {
            writeln!(f, "  WARNING     {warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DiskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (capacity, stored) = (Size(self.capacity_bytes), Size(self.stored_bytes));
        write!(f, "{}  {}  {capacity}, {stored} stored", self.path, self.create_type)?;
        if !self.node.is_empty() {
            write!(f, ", at {}", self.node)?;
        }
        write!(f, "\n              {}", self.state)?;
        if let (Some(cipher), Some(unit)) = (self.cipher, self.data_unit_bytes) {
            write!(f, "\n              {cipher}, data units of {unit} bytes")?;
        }
        for parent in &self.parents {
            write!(f, "\n              a snapshot link on {parent}")?;
        }
        if let Some(what) = &self.unsupported {
            write!(f, "\n              {what}")?;
        }
        Ok(())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.encryption {
            "none" => f.write_str("not encrypted"),
            "vmseal" => {
                f.write_str("encrypted")?;
                for (index, id) in self.key_ids.iter().enumerate() {
                    write!(f, "{} {}/{}", if index == 0 { " under key" } else { " or" }, id.provider, id.key)?;
                }
                if self.recovery_password {
                    f.write_str(" or a recovery password")?;
                }
                Ok(())
            }
            _ => f.write_str(self.note.as_deref().unwrap_or("encrypted by something else")),
        }
    }
}

/// A size in the unit that people read.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut size = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while size >= 1024.0 && unit + 1 < UNITS.len() {
            size /= 1024.0;
            unit += 1;
        }
        write!(f, "{size:.1} {}", UNITS[unit])
    }
}

//! What the planner knows of a virtual machine: plain values, read once by [`survey`](crate::survey).

use vmseal_disk::UnitSize;
use vmseal_keys::KeyId;

/// A virtual machine as it lies on storage, without any key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The VMX file, relative to the storage root.
    pub vmx: String,
    /// Whether the VM runs, and how one can tell.
    pub power: PowerState,
    /// The snapshots that the VMSD and the disk descriptors show.
    pub snapshots: Snapshots,
    /// The parent disk that lies outside the VM's folder, where there is one: the VM is a linked clone.
    pub linked_to: Option<String>,
    /// The state of the VM itself: its secrets and its files.
    pub encryption: Encryption,
    /// The VM files with guest data (NVRAM), in the order of their names.
    pub files: Vec<VmFile>,
    /// Files with guest memory or device state that a snapshot or a suspended VM left beside it.
    pub guest_memory: Vec<String>,
    /// The VM's disks in the order of their nodes.
    pub disks: Vec<VmDisk>,
    /// The operation that was interrupted, where there is one.
    pub pending: Option<Pending>,
}

/// Whether a VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// Nothing shows that it runs.
    Off,
    /// It runs: the file that shows it.
    On {
        /// The lock or swap file found.
        evidence: String,
    },
    /// A program has one of its disks open: QEMU locks what it uses.
    InUse {
        /// The disk or extent.
        file: String,
    },
    /// It is suspended: the file that holds its state.
    Suspended {
        /// The suspend-state file.
        evidence: String,
    },
}

/// The snapshots of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshots {
    /// There are none.
    None,
    /// All on one branch.
    OneBranch {
        /// How many snapshots there are.
        count: usize,
    },
    /// The tree forks.
    SeveralBranches {
        /// How many snapshots there are.
        count: usize,
        /// How many of them have no child.
        branch_count: usize,
    },
}

/// Whether something is encrypted, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// It is in the clear.
    None,
    /// Encrypted by vmseal.
    Vmseal {
        /// The KEKs that open it, by ID.
        key_ids: Vec<KeyId>,
        /// Whether a recovery password opens it too.
        recovery: bool,
    },
    /// Encrypted by something else: what it is, and what can be done.
    Foreign {
        /// What was found, for the reader of a refusal.
        what: String,
    },
}

impl Encryption {
    /// Whether the bytes are in the clear.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The KEKs that open it.
    pub fn key_ids(&self) -> &[KeyId] {
        match self {
            Self::Vmseal { key_ids, .. } => key_ids,
            _ => &[],
        }
    }
}

/// A VM file with guest data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFile {
    /// The file, relative to the storage root.
    pub path: String,
    /// Its length in bytes, as it lies.
    pub len_bytes: u64,
    /// Whether it is an envelope.
    pub sealed: bool,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    /// The descriptor, relative to the storage root.
    pub path: String,
    /// The controller and slot, as the VMX writes it (`scsi0:0`).
    pub node: String,
    /// The size that the guest sees, in bytes.
    pub capacity_bytes: u64,
    /// The bytes that its files take on storage, holes included.
    pub stored_bytes: u64,
    /// Its extent files, relative to the storage root.
    pub extents: Vec<String>,
    /// The type, as the descriptor writes it.
    pub create_type: String,
    /// Whether it is encrypted.
    pub encryption: Encryption,
    /// The data unit of its encryption by vmseal.
    pub unit: Option<UnitSize>,
    /// The disks below a snapshot link, nearest first; empty where the disk is whole.
    pub links: Vec<Link>,
    /// Another VM in the same folder that uses this disk.
    pub shared_with: Option<String>,
    /// Why this version cannot read or write the disk's data, where it cannot.
    pub unsupported: Option<String>,
}

/// A disk that a snapshot link depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The descriptor, relative to the storage root.
    pub path: String,
    /// Whether it is encrypted.
    pub encryption: Encryption,
}

impl VmDisk {
    /// Whether the disk hangs on an IDE controller (which forbids a shallow recrypt of a running VM).
    pub fn is_ide(&self) -> bool {
        self.node.starts_with("ide")
    }
}

/// An operation that was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The record of the operation, relative to the storage root.
    pub record: String,
    /// What it was doing.
    pub operation: crate::Operation,
    /// Whether the commit point is behind it: then it can only be completed.
    pub committed: bool,
    /// Whether data is half converted where it lies: undoing needs keys too.
    pub converting: bool,
    /// Whether somebody is at work on it right now.
    pub running: bool,
    /// The KEKs that completing it needs.
    pub key_ids: Vec<KeyId>,
}

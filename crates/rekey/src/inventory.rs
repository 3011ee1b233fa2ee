//! What the planner knows of a virtual machine: plain values, read once by [`survey`](crate::survey).

use vmseal_disk::UnitSize;
use vmseal_keys::KeyId;

use crate::warning::Warning;

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

impl Inventory {
    /// The KEKs that the VM and its disks, every link of them, are under, each with those files: the VMX first, then in the order of the disks.
    pub fn keys(&self) -> Vec<KeyUse> {
        let mut keys: Vec<KeyUse> = Vec::new();
        for (path, encryption) in self.encrypted() {
            for id in encryption.key_ids() {
                let at = keys.iter().position(|key| key.key_id == *id).unwrap_or_else(|| {
                    keys.push(KeyUse { key_id: id.clone(), files: Vec::new() });
                    keys.len() - 1
                });
                if !keys[at].files.iter().any(|file| file == path) {
                    keys[at].files.push(path.to_owned());
                }
            }
        }
        keys
    }

    /// Every KEK that working on the VM may need, without the new one of an operation that has not begun.
    pub fn key_ids(&self) -> Vec<KeyId> {
        let pending = self.pending.iter().flat_map(|pending| pending.key_ids.iter().chain(&pending.from_key_ids));
        let mut ids: Vec<KeyId> = self.keys().into_iter().map(|key| key.key_id).chain(pending.cloned()).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Whether the VM and its disks are not all under the same KEKs. What only a recovery password opens does not count.
    pub fn has_mixed_keys(&self) -> bool {
        let sorted = |ids: &[KeyId]| {
            let mut ids = ids.to_vec();
            ids.sort();
            ids
        };
        let mut sets =
            self.encrypted().map(|(_, encryption)| sorted(encryption.key_ids())).filter(|ids| !ids.is_empty());
        let first = sets.next();
        sets.any(|ids| Some(&ids) != first.as_ref())
    }

    /// What the state of the VM makes advisable.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        match &self.pending {
            Some(pending) if pending.is_shallow() => warnings.push(Warning::HalfRecrypted {
                from: pending.from_key_ids.clone(),
                to: pending.key_ids.clone(),
                running: pending.running,
            }),
            // Its own way out is told with it.
            Some(_) => {}
            None if self.has_mixed_keys() => warnings.push(Warning::MixedKeys { keys: self.keys() }),
            None => {}
        }
        let disks = self.encrypted_disks_of_plain_vm().into_iter();
        warnings.extend(disks.map(|disk| Warning::EncryptedDiskOnPlainVm { disk: disk.to_owned() }));
        warnings
    }

    /// Encrypted disks, or links of disks, on a VM that has no bundle with their keys.
    pub(crate) fn encrypted_disks_of_plain_vm(&self) -> Vec<&str> {
        let mut paths = Vec::new();
        if !self.encryption.is_none() {
            return paths;
        }
        for link in self.disks.iter().flat_map(VmDisk::chain) {
            if matches!(link.encryption, Encryption::Vmseal { .. }) && !paths.contains(&link.path) {
                paths.push(link.path);
            }
        }
        paths
    }

    fn encrypted(&self) -> impl Iterator<Item = (&str, &Encryption)> {
        let links = self.disks.iter().flat_map(VmDisk::chain).map(|link| (link.path, link.encryption));
        core::iter::once((self.vmx.as_str(), &self.encryption)).chain(links)
    }
}

/// A KEK and what is under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The KEK.
    pub key_id: KeyId,
    /// The VMX and descriptors whose locator lists name it.
    pub files: Vec<String>,
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
    /// Whether the descriptor lies inside an extent.
    pub embedded: bool,
    /// Whether it is encrypted.
    pub encryption: Encryption,
    /// The data unit of its encryption by vmseal.
    pub unit: Option<UnitSize>,
    /// The disks below a snapshot link, nearest first; empty where the disk is whole.
    pub links: Vec<Link>,
    /// Another VM in reach that uses this disk or a link of it: one in the folders of this VM and its disks, or in a folder beside this VM's.
    pub shared_with: Option<String>,
    /// Why this version cannot read or write the disk's data, where it cannot.
    pub unsupported: Option<String>,
}

/// A disk that a snapshot link depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The descriptor, relative to the storage root.
    pub path: String,
    /// Whether the descriptor lies inside an extent.
    pub embedded: bool,
    /// Whether it is encrypted.
    pub encryption: Encryption,
}

/// What decides about a disk or one of its links.
pub(crate) struct ChainLink<'d> {
    pub(crate) path: &'d str,
    pub(crate) embedded: bool,
    pub(crate) encryption: &'d Encryption,
}

impl VmDisk {
    /// The disk and the links below it.
    pub(crate) fn chain(&self) -> impl Iterator<Item = ChainLink<'_>> {
        let own = ChainLink { path: &self.path, embedded: self.embedded, encryption: &self.encryption };
        let links = self.links.iter();
        core::iter::once(own).chain(links.map(|link| ChainLink {
            path: &link.path,
            embedded: link.embedded,
            encryption: &link.encryption,
        }))
    }

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
    /// The KEKs that the VM and its disks had before it.
    pub from_key_ids: Vec<KeyId>,
}

impl Pending {
    /// Whether it is a shallow recrypt: no data is touched, and the VM can be used with the old and new KEKs.
    pub fn is_shallow(&self) -> bool {
        self.operation == crate::Operation::ShallowRecrypt && !self.converting
    }
}

//! Why an operation is refused, and what to do about it.

use core::fmt;

use vmseal_keys::{KeyId, ProviderName};

use crate::plan::Operation;

/// An operation that the rules forbid, with every reason at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for.
    pub operation: Operation,
    /// The VM.
    pub vmx: String,
    /// Why not: at least one.
    pub reasons: Vec<Reason>,
}

impl core::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} is refused:", self.operation, self.vmx)?;
        for reason in &self.reasons {
            write!(f, "\n  - {reason}")?;
        }
        Ok(())
    }
}

/// One rule that forbids an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The VM is encrypted by vmseal already.
    AlreadyEncrypted {
        /// Under these KEKs.
        key_ids: Vec<KeyId>,
    },
    /// A chosen disk is encrypted already.
    DiskAlreadyEncrypted {
        /// The disk.
        disk: String,
    },
    /// A shallow recrypt of a running VM would have to write into a file that its hypervisor writes too.
    EmbeddedDescriptor {
        /// What shows that it runs.
        evidence: String,
        /// The disk whose descriptor lies inside its extent.
        disk: String,
    },
    /// An encrypted disk is attached to a VM that is not encrypted.
    EncryptedDiskOnPlainVm {
        /// The disk.
        disk: String,
    },
    /// A disk is encrypted by something else.
    ForeignDisk {
        /// The disk.
        disk: String,
        /// What was found.
        what: String,
    },
    /// The VM is encrypted by something else.
    ForeignVm {
        /// What was found.
        what: String,
    },
    /// A VM file is an envelope, and the VM is not encrypted: its key is nowhere.
    ForeignFile {
        /// The file.
        file: String,
    },
    /// A file with guest memory would stay in the clear.
    GuestMemory {
        /// The file.
        file: String,
    },
    /// A shallow recrypt of a running VM with a disk on an IDE controller.
    IdeWhilePoweredOn {
        /// What shows that it runs.
        evidence: String,
        /// The disk.
        disk: String,
    },
    /// A program has one of the VM's disks open.
    InUse {
        /// The disk or extent.
        file: String,
    },
    /// The VM's disks depend on a disk of another VM.
    LinkedClone {
        /// The parent disk.
        parent: String,
    },
    /// The VM has no disk, and all disks were asked for.
    NoDisks,
    /// There is no provider to take a KEK from.
    NoProvider,
    /// The VM is not encrypted.
    NotEncrypted,
    /// The VM's KEK is another provider's.
    OtherProvider {
        /// The KEK it has.
        key_id: KeyId,
        /// The provider that was asked for.
        wanted: ProviderName,
    },
    /// An operation was interrupted and has to end first.
    Pending {
        /// The operation.
        operation: Operation,
        /// Whether it can only be completed.
        committed: bool,
        /// Whether somebody is at work on it right now.
        running: bool,
    },
    /// The VM runs.
    PoweredOn {
        /// What shows it.
        evidence: String,
    },
    /// The snapshot tree forks.
    SeveralBranches {
        /// How many snapshots there are.
        count: usize,
        /// How many branches.
        branch_count: usize,
    },
    /// A disk of the VM is served, or open for writing, in vmseal.
    Served {
        /// The process that has it open.
        holder: Option<u32>,
    },
    /// Another VM uses the disk.
    SharedDisk {
        /// The disk.
        disk: String,
        /// The other VM.
        with: String,
    },
    /// The VM has snapshots.
    Snapshots {
        /// How many.
        count: usize,
    },
    /// The VM is suspended.
    Suspended {
        /// The file with its state.
        evidence: String,
    },
    /// A disk's data cannot be read or written by this version.
    UnsupportedDisk {
        /// The disk.
        disk: String,
        /// Why not, and what to do.
        what: String,
    },
    /// A disk was named that the VM does not have.
    UnknownDisk {
        /// The name.
        name: String,
        /// The VM's disks.
        known: Vec<String>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyEncrypted { key_ids } => {
                f.write_str("the VM is already encrypted")?;
                if let Some(id) = key_ids.first() {
                    write!(f, " (key ID {id})")?;
                }
                f.write_str("; use `recrypt` for new keys, or name the disks that are still in the clear")
            }
            Self::DiskAlreadyEncrypted { disk } => write!(f, "{disk} is already encrypted; leave it out"),
            Self::EmbeddedDescriptor { evidence, disk } => write!(
                f,
                "the VM is powered on ({evidence}) and the descriptor of {disk} lies inside the file that it writes to; power it off first"
            ),
            Self::EncryptedDiskOnPlainVm { disk } => write!(
                f,
                "{disk} is encrypted, and the VM that it is attached to is not; detach it, or restore the VMX that has its keys from a copy"
            ),
            Self::ForeignDisk { disk, what } => write!(f, "{disk}: {what}"),
            Self::ForeignVm { what } => f.write_str(what),
            Self::ForeignFile { file } => write!(
                f,
                "{file} is an encrypted envelope, and the VM is not encrypted; restore it, or the VMX that has its key, from a copy"
            ),
            Self::GuestMemory { file } => write!(
                f,
                "{file} holds memory or device state of the guest and would stay in the clear; remove it if no snapshot needs it"
            ),
            Self::IdeWhilePoweredOn { evidence, disk } => {
                write!(f, "the VM is powered on ({evidence}) and {disk} is on an IDE controller; power it off first")
            }
            Self::InUse { file } => {
                write!(
                    f,
                    "the VM is powered on ({file} is open in QEMU); power it off, or end the program that has it open, first"
                )
            }
            Self::LinkedClone { parent } => {
                write!(f, "the VM is a linked clone of {parent}; make it a full clone first")
            }
            Self::NoDisks => {
                f.write_str("the VM has no disk; to encrypt its files alone, choose no disks (`--disks none`)")
            }
            Self::NoProvider => f.write_str("no key provider is named; name one with `--provider`"),
            Self::NotEncrypted => f.write_str("the VM is not encrypted"),
            Self::OtherProvider { key_id, wanted } => write!(
                f,
                "the VM's key {key_id} is not of provider {wanted}; name the VM's own provider, or recrypt the VM to {wanted} first"
            ),
            Self::Pending { operation, running: true, .. } => {
                write!(f, "another {operation} of the VM is under way; wait until it has ended")
            }
            Self::Pending { operation, committed: false, .. } => write!(
                f,
                "an interrupted {operation} has to end first; complete it with `resume`, or undo it with `resume --rollback`"
            ),
            Self::Pending { operation, committed: true, .. } => {
                write!(f, "an interrupted {operation} has to end first; complete it with `resume`")
            }
            Self::PoweredOn { evidence } => write!(
                f,
                "the VM is powered on ({evidence} is there); power it off first, or remove that file if it was left behind"
            ),
            Self::SeveralBranches { count, branch_count } => {
                write!(
                    f,
                    "the VM has {count} snapshot{} on {branch_count} branches; remove all but one branch first",
                    if *count == 1 { "" } else { "s" }
                )
            }
            Self::Served { holder } => {
                let process = holder.map_or_else(String::new, |holder| format!(" by process {holder}"));
                write!(
                    f,
                    "the VM is powered on, or a disk of it is in use: it is served or written{process}; end that first"
                )
            }
            Self::SharedDisk { disk, with } => {
                write!(f, "{disk} is used by {with} too; give each VM its own disk first")
            }
            Self::Snapshots { count } => {
                write!(
                    f,
                    "the VM has {count} snapshot{}; remove all snapshots first",
                    if *count == 1 { "" } else { "s" }
                )
            }
            Self::Suspended { evidence } => {
                write!(f, "the VM is suspended ({evidence}); resume it and power it off first")
            }
            Self::UnsupportedDisk { disk, what } => write!(f, "{disk}: {what}"),
            Self::UnknownDisk { name, known } => {
                write!(f, "the VM has no disk {name}; it has ")?;
                match known.as_slice() {
                    [] => f.write_str("none"),
                    names => f.write_str(&names.join(", ")),
                }
            }
        }
    }
}

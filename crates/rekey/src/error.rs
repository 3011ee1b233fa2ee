//! What can go wrong with an operation on a VM.

use vmseal_keys::{KeyId, KeySourceError};

use crate::plan::Operation;
use crate::refusal::Refusal;

/// An operation that could not be planned, executed or completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The content of an encrypted bundle is not what this version writes.
    #[error("the encrypted bundle of the VMX opens, but {what}; it was written by another version or is damaged")]
    BundleContent {
        /// What is wrong with it.
        what: String,
    },
    /// A file was written, or replaced by a copy, after the commit point and before the operation was complete.
    #[error(
        "{path} was changed after the {operation} was committed; completing it puts the converted file in its place. If nothing was written that you need, complete it with `resume --discard-changes`"
    )]
    ChangedAfterCommit {
        /// The file.
        path: String,
        /// The operation.
        operation: Operation,
    },
    /// The VM is not what it was when the operation was planned.
    #[error("{vmx} has changed since the operation was planned; plan it again")]
    Changed {
        /// The VM.
        vmx: String,
    },
    /// A file was written while it was being converted.
    #[error("{path} was changed by another program during the {operation}; stop that program and try again")]
    ChangedMeanwhile {
        /// The file.
        path: String,
        /// The operation.
        operation: Operation,
    },
    /// The keys in a file were exchanged between the interruption of an operation and the attempt to complete it.
    #[error(
        "the keys in {path} are not those of the {operation} that was interrupted, so that it cannot go on; undo it with `resume --rollback`, then start it again"
    )]
    ChangedSince {
        /// The file.
        path: String,
        /// The operation.
        operation: Operation,
    },
    /// The interrupted operation is behind its commit point.
    #[error(
        "the interrupted {operation} of {vmx} is already committed and cannot be undone; complete it with `resume`"
    )]
    Committed {
        /// The VM.
        vmx: String,
        /// The operation.
        operation: Operation,
    },
    /// A descriptor with its keys does not fit where the old one lies.
    #[error(
        "the descriptor inside {path} has room for {room} bytes and needs {needed}; remove a recovery password or convert the disk to a type with its own descriptor file"
    )]
    DescriptorRoom {
        /// The extent with the descriptor.
        path: String,
        /// The bytes there are.
        room: u64,
        /// The bytes needed.
        needed: u64,
    },
    /// The VMX says that a disk is encrypted, and its descriptor says that it is not.
    #[error(
        "{vmx} says that {disk} is encrypted, and {disk} says that it is not; restore one of the two from a copy that belongs to the other"
    )]
    Disagreement {
        /// The VMX.
        vmx: String,
        /// The descriptor.
        disk: String,
    },
    /// A rule forbids it for this disk or VM.
    #[error("{path}: {what}")]
    DiskRefused {
        /// The disk or VM.
        path: String,
        /// Why, and what to do.
        what: String,
    },
    /// A disk could not be read or written.
    #[error(transparent)]
    Disk(#[from] vmseal_disk::Error),
    /// The converted file of a committed operation is gone or damaged.
    #[error(
        "{path}: the converted file that the {operation} was to put in its place is missing or damaged; keep all files, restore {path}.vmseal-new from a copy, then `resume`"
    )]
    SuccessorLost {
        /// The file that was to be replaced.
        path: String,
        /// The operation.
        operation: Operation,
    },
    /// Another file stands where the operation would write.
    #[error("{path} is in the way: it was left by an operation whose record is gone; look at it, then remove it")]
    StagedInTheWay {
        /// The file.
        path: String,
    },
    /// Going through a disk was stopped. Nothing is pending.
    #[error("stopped on request; the guest's bytes on {path} are what they were, and nothing is pending: run it again")]
    FillStopped {
        /// The disk.
        path: String,
    },
    /// A file could not be understood.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: vmseal_formats::Error,
    },
    /// A key could not be made, wrapped or unwrapped.
    #[error(transparent)]
    Key(#[from] vmseal_keys::Error),
    /// A key could not be had.
    #[error(transparent)]
    KeySource(#[from] KeySourceError),
    /// There is not enough room for the successors of the files.
    #[error(
        "the storage has {available_bytes} bytes free and the {operation} needs {needed_bytes}; make room{}",
        if *in_place { "" } else { ", or convert the disks where they lie (`--strategy in-place`)" }
    )]
    NoRoom {
        /// The operation.
        operation: Operation,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
        /// Whether data is converted in place.
        in_place: bool,
    },
    /// The operation failed behind its commit point.
    #[error("the {operation} is committed but not complete; complete it with `resume`")]
    Incomplete {
        /// The operation.
        operation: Operation,
        /// Why it stopped.
        source: Box<Error>,
    },
    /// A conversion in place failed on its way.
    #[error(
        "the {operation} was interrupted while it converted data; once that is mended, complete it with `resume`, or undo it with `resume --rollback`"
    )]
    Interrupted {
        /// The operation.
        operation: Operation,
        /// What happened.
        source: Box<Error>,
    },
    /// No part of the journal of a conversion in place can be used.
    #[error(
        "the journal of the interrupted operation cannot be used: {what}; keep all files as they are, and restore it from a copy that was made after the interruption"
    )]
    JournalDamaged {
        /// What is wrong.
        what: &'static str,
    },
    /// The journal of a conversion in place is older than the data.
    #[error(
        "{path}: the 512 bytes at byte {offset} have changed, and the journal of the interrupted operation does not know it: it was replaced by an older copy, or something else wrote to the disk; put the newest files back"
    )]
    JournalOutdated {
        /// The extent.
        path: String,
        /// The first of the bytes in it.
        offset: u64,
    },
    /// A part of a zone that a crash cut off is damaged.
    #[error(
        "{path}: the 512 bytes at byte {offset} are neither what they were before the conversion nor what they were to become: something else wrote them, or the storage tears sectors. To go on without them use `resume --discard-changes`"
    )]
    NeitherOldNorNew {
        /// The extent.
        path: String,
        /// The first of the bytes in it.
        offset: u64,
    },
    /// The VM is in the clear.
    #[error("{vmx} is not encrypted; there is nothing to unlock")]
    NotEncrypted {
        /// The VM.
        vmx: String,
    },
    /// The VM's bundle holds keys of what is not attached.
    #[error("the VM holds the keys of {}, not attached now; attach {} again, or give up the keys, and with them the data, with `--forget-detached`", names.join(", "), if names.len() == 1 { "it" } else { "them" })]
    NotAttached {
        /// The disks and files.
        names: Vec<String>,
    },
    /// Nothing was interrupted.
    #[error("nothing is pending for {vmx}: there is nothing to resume")]
    NothingPending {
        /// The VM.
        vmx: String,
    },
    /// An operation was interrupted and has to end first.
    #[error("{}", pending_text(vmx, *operation, *committed, *running))]
    Pending {
        /// The VM.
        vmx: String,
        /// The operation.
        operation: Operation,
        /// Whether it can only be completed.
        committed: bool,
        /// Whether somebody is at work on it right now.
        running: bool,
    },
    /// The system's generator of random bytes failed.
    #[error("the operating system gave no random bytes; no key was made")]
    Random,
    /// The record of an operation cannot be read.
    #[error(
        "{path}: the record of an interrupted operation is damaged: {what}; keep all files as they are and restore the record from a copy; if no vmseal operation was under way here, remove it"
    )]
    RecordDamaged {
        /// The record.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The record of an operation is not authentic.
    #[error(
        "{path}: the record of an interrupted operation was not written with this VM's keys; it is not followed. Find out who wrote it before you remove it"
    )]
    RecordForged {
        /// The record.
        path: String,
    },
    /// The VM has a recovery password, which a deep recrypt has to know to keep it.
    #[error(
        "the VM has a recovery password, which new keys need again; give it with `--recovery-password-file` (a deep recrypt can drop it, with `--drop-recovery`)"
    )]
    RecoveryPhraseNeeded,
    /// A recovery password for a part of a VM that has none.
    #[error(
        "the VM has no recovery password, and one for some disks alone would not open it; set it for all with `recrypt --deep --recovery-password-file`"
    )]
    RecoveryPhraseForPart,
    /// A recovery password that is not the VM's.
    #[error(
        "the recovery password is not the one that the VM has; give that one, or drop it with `recrypt --deep --drop-recovery`"
    )]
    RecoveryPhraseWrong,
    /// The rules forbid it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A VM file and the VM's bundle do not agree about whether it is encrypted.
    #[error("{path} is {}encrypted, and the VM's bundle has {} key for it; restore the file, or the VMX, from a copy that belongs to the other", if *sealed { "" } else { "not " }, if *sealed { "no" } else { "a" })]
    SealedFile {
        /// The file.
        path: String,
        /// Whether it is an envelope.
        sealed: bool,
    },
    /// The watcher stopped the operation.
    #[error("stopped on request; complete it with `resume`, or undo it with `resume --rollback`")]
    Stopped,
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] vmseal_storage::Error),
    /// Undoing a failed operation failed as well.
    #[error(
        "the operation failed ({cause}), and undoing it failed too: {source}; undo it with `resume --rollback` once that is mended"
    )]
    UndoFailed {
        /// Why the operation failed.
        cause: String,
        /// Why undoing failed.
        source: Box<Error>,
    },
    /// A VM has more than it can have, or names something twice.
    #[error("{path}: {what}")]
    Vm {
        /// The VMX or VMSD.
        path: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A disk's DEK or the VM's bundle belongs to something else.
    #[error(
        "{path} holds the keys of another disk or VM: its identity is not in the VM's encrypted bundle; restore the file from a copy"
    )]
    WrongDisk {
        /// The descriptor.
        path: String,
    },
    /// No key that is at hand opens it.
    #[error("{path} is not opened by {}{}; {}", ids_text(key_ids), if *recovery { " nor by a recovery password that was given" } else { "" }, if *any_key_at_hand { "the key is wrong, or the file is damaged" } else { "that key is not at hand: use the state folder (`--home`) of the provider that has it" })]
    WrongKey {
        /// The file with the wrapped key.
        path: String,
        /// The KEKs that it names.
        key_ids: Vec<KeyId>,
        /// Whether one of them was tried.
        any_key_at_hand: bool,
        /// Whether a recovery password opens it too.
        recovery: bool,
    },
}

/// What an error means to whoever asked for the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file is damaged, cut off, missing, or of a kind that is not known.
    Damaged,
    /// Something else failed: storage, the system, another program.
    Failed,
    /// A key or password is missing or wrong.
    Key,
    /// The system does not allow it.
    NotPermitted,
    /// A rule forbids it, or another process is at work.
    Refused,
    /// An operation is interrupted, and [`resume`](crate::resume) completes it.
    Resumable,
}

impl Error {
    /// What the error means to whoever asked for the operation.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::FillStopped { .. }
            | Self::Incomplete { .. }
            | Self::Interrupted { .. }
            | Self::Pending { .. }
            | Self::Stopped
            | Self::UndoFailed { .. } => ErrorKind::Resumable,
            Self::ChangedAfterCommit { .. }
            | Self::Committed { .. }
            | Self::DiskRefused { .. }
            | Self::NotAttached { .. }
            | Self::NotEncrypted { .. }
            | Self::NothingPending { .. }
            | Self::RecoveryPhraseForPart
            | Self::Refused(_) => ErrorKind::Refused,
            Self::KeySource(_) | Self::RecoveryPhraseNeeded | Self::RecoveryPhraseWrong | Self::WrongKey { .. } => {
                ErrorKind::Key
            }
            Self::BundleContent { .. }
            | Self::DescriptorRoom { .. }
            | Self::Disagreement { .. }
            | Self::Format { .. }
            | Self::JournalDamaged { .. }
            | Self::JournalOutdated { .. }
            | Self::NeitherOldNorNew { .. }
            | Self::RecordDamaged { .. }
            | Self::RecordForged { .. }
            | Self::SealedFile { .. }
            | Self::StagedInTheWay { .. }
            | Self::SuccessorLost { .. }
            | Self::Vm { .. }
            | Self::WrongDisk { .. } => ErrorKind::Damaged,
            Self::Storage(error) => kind_of_storage(error),
            // A file of a disk that is not there makes the disk damaged.
            Self::Disk(vmseal_disk::Error::Storage(vmseal_storage::Error::NotFound { .. })) => ErrorKind::Damaged,
            Self::Disk(vmseal_disk::Error::Storage(error)) => kind_of_storage(error),
            Self::Disk(
                vmseal_disk::Error::MixedChain { .. }
                | vmseal_disk::Error::ReadOnlyKind { .. }
                | vmseal_disk::Error::UnitDoesNotFit { .. },
            ) => ErrorKind::Refused,
            Self::Disk(_) => ErrorKind::Damaged,
            Self::Changed { .. }
            | Self::ChangedMeanwhile { .. }
            | Self::ChangedSince { .. }
            | Self::Key(_)
            | Self::NoRoom { .. }
            | Self::Random => ErrorKind::Failed,
        }
    }
}

fn kind_of_storage(error: &vmseal_storage::Error) -> ErrorKind {
    match error {
        vmseal_storage::Error::Locked { .. } => ErrorKind::Refused,
        vmseal_storage::Error::PermissionDenied { .. } => ErrorKind::NotPermitted,
        vmseal_storage::Error::TooLong { .. } | vmseal_storage::Error::UnexpectedEnd { .. } => ErrorKind::Damaged,
        _ => ErrorKind::Failed,
    }
}

fn pending_text(vmx: &str, operation: Operation, committed: bool, running: bool) -> String {
    if running {
        return format!("another {operation} of {vmx} is under way; wait until it has ended");
    }
    let undo = if committed { "" } else { ", or undo it with `resume --rollback`" };
    format!("an interrupted {operation} of {vmx} has to end first; complete it with `resume`{undo}")
}

fn ids_text(key_ids: &[KeyId]) -> String {
    match key_ids {
        [] => "a key".to_owned(),
        ids => {
            let names: Vec<String> = ids.iter().map(KeyId::to_string).collect();
            format!("key {}", names.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_and_what_to_do() {
        let error =
            Error::Pending { vmx: "a.vmx".into(), operation: Operation::Decrypt, committed: false, running: false };
        assert!(error.to_string().ends_with("or undo it with `resume --rollback`"));
        let error =
            Error::Pending { vmx: "a.vmx".into(), operation: Operation::Decrypt, committed: true, running: false };
        assert!(error.to_string().ends_with("complete it with `resume`"));
    }
}

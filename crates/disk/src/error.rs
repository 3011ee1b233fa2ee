//! What can go wrong with a disk.

use crate::unit::UnitSize;

/// A disk that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The guest's bytes end before what is wanted.
    #[error("{path} has {capacity_bytes} bytes for the guest, and bytes {offset} to {end} were asked for")]
    BeyondEnd {
        /// The descriptor.
        path: String,
        /// The size of the disk.
        capacity_bytes: u64,
        /// Where the request begins.
        offset: u64,
        /// Where it ends.
        end: u64,
    },
    /// The tables of a sparse extent contradict themselves.
    #[error("{path}, byte {offset}: {what}; restore the file from a copy, or repair it with the tool that made it")]
    DamagedTables {
        /// The extent file.
        path: String,
        /// Where the table lies.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The wrapped DEK opens, and what it says of itself is not what this version writes.
    #[error("{what}; the disk's keys were written by another version or are damaged")]
    DekContent {
        /// What is wrong with it.
        what: String,
    },
    /// The disk is encrypted and no key was given.
    #[error("{path} is encrypted; unlock its VM first")]
    Encrypted {
        /// The descriptor.
        path: String,
    },
    /// The parents of a disk lead back to one that was met already, or are too many.
    #[error("{path}: its chain of parents does not end ({parent}); restore the descriptors from a copy")]
    EndlessChain {
        /// The descriptor of the child.
        path: String,
        /// What it names as its parent.
        parent: String,
    },
    /// What the descriptor says of vmseal's encryption is incomplete or of another version.
    #[error(
        "the disk's encryption entries: {what}; use the vmseal that wrote them, or restore the descriptor from a copy"
    )]
    EncryptionEntries {
        /// What is wrong with them.
        what: String,
    },
    /// An extent may not be read, or not be written.
    #[error("{path} is marked {access} in its descriptor")]
    ExtentAccess {
        /// The descriptor.
        path: String,
        /// `RDONLY`, `NOACCESS` or `ZERO`.
        access: &'static str,
    },
    /// A sparse extent cannot grow further.
    #[error("{path} cannot grow beyond 2 TiB, which its format cannot address")]
    ExtentFull {
        /// The extent file.
        path: String,
    },
    /// An extent file is shorter than its descriptor says.
    #[error(
        "{path} has {len_bytes} bytes, and its descriptor says {wanted_bytes}; it is cut off: restore it from a copy"
    )]
    ExtentTooShort {
        /// The extent file.
        path: String,
        /// Its length, or what its header says.
        len_bytes: u64,
        /// What the descriptor says.
        wanted_bytes: u64,
    },
    /// The disk is encrypted by something else.
    #[error("{what}")]
    ForeignEncryption {
        /// What it is, and what can be done.
        what: String,
    },
    /// A file could not be understood.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: vmseal_formats::Error,
    },
    /// The disk depends on a parent.
    #[error("{path} is a snapshot link on {parent}; open it together with its parents")]
    HasParent {
        /// The descriptor.
        path: String,
        /// Its parent.
        parent: String,
    },
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] vmseal_keys::Error),
    /// A link in the clear on an encrypted parent, or the other way round.
    #[error(
        "{path} and its parent {parent} do not go together: the {}; the guest's data would lie in the clear in part, or be noise: restore the links from a copy",
        if *is_encrypted { "disk is encrypted and the parent is not" } else { "parent is encrypted and the disk is not" }
    )]
    MixedChain {
        /// The descriptor of the child.
        path: String,
        /// That of its parent.
        parent: String,
        /// Whether the disk that was opened is the encrypted one.
        is_encrypted: bool,
    },
    /// A new disk of no size, or of one that its type cannot have.
    #[error("a disk of {capacity_bytes} bytes cannot be made: {what}")]
    NewSize {
        /// The wanted size.
        capacity_bytes: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The parent of a disk is not on the storage.
    #[error("{path}: its parent {parent} is missing; restore it, or correct parentFileNameHint")]
    NoParent {
        /// The descriptor of the child.
        path: String,
        /// What it names as its parent.
        parent: String,
    },
    /// A key was given for a disk in the clear.
    #[error("{path} is not encrypted, and a key was given for it")]
    NotEncrypted {
        /// The descriptor.
        path: String,
    },
    /// The parent's content is not what it was when the child was made.
    #[error(
        "{path}: its parent {parent} has changed since the snapshot (CID {cid:08x}, expected {wanted:08x}); restore one of the two"
    )]
    ParentChanged {
        /// The descriptor of the child.
        path: String,
        /// That of its parent.
        parent: String,
        /// The parent's content ID.
        cid: u32,
        /// The one that the child names.
        wanted: u32,
    },
    /// A disk of a kind that is never written.
    #[error("{path} is {kind}, which is read and not written; convert the disk, or consolidate the snapshot first")]
    ReadOnlyKind {
        /// The extent file.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] vmseal_storage::Error),
    /// Data units of this size do not fit the disk.
    #[error("{path} cannot have data units of {} bytes: {what}; choose 512", unit.bytes())]
    UnitDoesNotFit {
        /// The descriptor.
        path: String,
        /// The data unit.
        unit: UnitSize,
        /// Why.
        what: String,
    },
    /// A kind of disk that this version does not read.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: String,
        /// What it is, and what can be done.
        what: String,
    },
    /// The wrapped DEK is another disk's.
    #[error("the wrapped key is that of another disk; restore the descriptor from a copy")]
    WrongDisk,
    /// XTS refused a run; a defect of this library.
    #[error("the disk's cipher: {0}")]
    Xts(#[from] vmseal_xts::Error),
}

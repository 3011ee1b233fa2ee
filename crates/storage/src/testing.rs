//! A storage for tests that fails: at every point at which real storage may, and in every way.
//!
//! [`Simulated`] lives in memory and knows what is durable. A run is repeated from the same seed with the power cut at its first
//! operation, its second, and so on; after each cut the storage holds what a real one might, and the program under test has to make good of it:
//!
//! ```
//! use vmseal_storage::testing::Simulated;
//! use vmseal_storage::{Storage, StoragePath};
//!
//! let path = StoragePath::new("web01.vmx")?;
//! let start = Simulated::new(0);
//! start.replace(&path, b"old")?;
//!
//! let whole = start.snapshot(0);
//! whole.replace(&path, b"new")?;
//! for operation in 0..whole.operations() {
//!     for seed in 0..10 {
//!         let storage = start.snapshot(seed);
//!         storage.crash_at(Some(operation));
//!         let error = storage.replace(&path, b"new").unwrap_err();
//!         assert!(Simulated::is_crash(&error));
//!         storage.restart();
//!         let content = storage.read(&path, 100)?;
//!         assert!(content == b"old" || content == b"new", "operation {operation}, seed {seed}");
//!     }
//! }
//! # Ok::<(), vmseal_storage::Error>(())
//! ```
//!
//! # What a power cut leaves
//!
//! - **Data.** What a file held at its last successful [`sync`](crate::File::sync), and of everything done to it since any part: each write, hole and
//!   cut is there, missing, or torn ([`Tearing`]), and where two overlap, either may be the later one. The length is any that the file has had since.
//!   What was never written reads as zeros. Bytes beside those written never change.
//! - **Names.** What a folder held at its last successful [`sync_folder`](crate::Storage::sync_folder), and of the creations, renames and removals since
//!   as many as [`FolderOrder`] allows. A rename happens wholly or not at all. A folder's own name belongs to the folder above it: where that was not
//!   synced, the folder may be gone with all that is in it. A rename between two folders is durable once either is synced, with what had been done in both
//!   before it.
//! - **Versions.** The [version](crate::Metadata::version) of a file that had unsynced changes is its old one or its new one, whatever its content is: a time
//!   of change and the data are written apart. Versions given out later are new.
//! - Locks are free, and every handle from before is dead.
//!
//! The operation at which the cut falls may have happened wholly, in part or not at all.
//!
//! # Determinism
//!
//! The same seed and the same calls give the same result. Each call is one step under one lock, so that the count of operations is well defined for callers
//! with several threads too; which of their calls is the `n`th is then up to the system. A run that is to be repeated has to come from one thread.

mod content;
mod faults;
mod file;
mod names;
mod random;
mod simulated;
mod state;
mod unsynced;

pub use faults::{FolderOrder, SyncFailure, Tearing};
pub use simulated::Simulated;

//! The storage that virtual machines lie on.
//!
//! Everything else reaches files through two traits, [`Storage`] and [`File`]: positional reads and writes, durable sync of files and
//! folders, atomic replacement, advisory locks and holes. [`LocalDir`] is a folder of this machine, [`Memory`] lives in memory; an embedder
//! adds NFS, object storage or a block device with its own. Nothing above this crate knows of a local file system.
//!
//! What a storage has to promise, and what it need not:
//!
//! - what was written before a successful [`File::sync`] is there after a crash; what was written since may be there, in part or in any order;
//! - [`Storage::rename`] replaces atomically, and is durable after [`Storage::sync_folder`]; so are creation and removal;
//! - bytes beside those written do not change;
//! - a file whose write or sync failed refuses further work until it is opened again: what a failed sync left behind is unknown.
//!
//! ```
//! use vmseal_storage::{Access, Memory, Storage, StoragePath};
//!
//! let storage = Memory::new();
//! let path = StoragePath::new("web01/web01.vmx")?;
//! storage.create_folder(&path.folder())?;
//! storage.replace(&path, b"displayName = \"web01\"\n")?;
//! let file = storage.open(&path, Access::Read)?;
//! let mut start = [0; 11];
//! file.read_at(&mut start, 0)?;
//! assert_eq!(&start, b"displayName");
//! # Ok::<(), vmseal_storage::Error>(())
//! ```
//!
//! With the feature `testing` there is also a storage that fails wherever a test wants it: `testing::Simulated`.
//!
//! It does not protect against someone who writes to the same files: locks are advisory.

#![forbid(unsafe_code)]

mod error;
#[cfg(unix)]
mod local;
#[cfg(unix)]
mod local_lock;
mod memory;
mod path;
mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::Error;
#[cfg(unix)]
pub use local::LocalDir;
pub use memory::Memory;
pub use path::StoragePath;
pub use storage::{Access, File, Kind, Lock, LockMode, Metadata, Storage};

//! The keys of virtual machine encryption.
//!
//! A [`Dek`] encrypts a disk (XTS-AES-256), a [`Kek`] of a key provider wraps DEKs, a [`PrimaryKey`] is what a native provider
//! derives its KEKs from, a [`FileKey`] seals one VM file. They are different types, none can be copied or turned into another, and
//! their bytes lie in memory that is locked, left out of core dumps, and wiped when they go.
//!
//! ```
//! use vmseal_keys::{Context, Dek, Kek, Purpose, WrapAlgorithm, system_rng, unwrap, wrap};
//!
//! let mut rng = system_rng();
//! let dek = Dek::generate(&mut rng)?;
//! let kek = Kek::generate(&mut rng)?;
//! let disk = Context::new(Purpose::Disk, &[7; 16]);
//!
//! let wrapped = wrap(WrapAlgorithm::Aes256Gcm, &kek, dek.expose(), &disk, &mut rng)?;
//! let again = Dek::from_slice(&unwrap(WrapAlgorithm::Aes256Gcm, &kek, &wrapped, &disk)?)?;
//! assert!(again == dek);
//!
//! // A wrapped key that was moved to another disk does not open.
//! let other = Context::new(Purpose::Disk, &[8; 16]);
//! assert!(unwrap(WrapAlgorithm::Aes256Gcm, &kek, &wrapped, &other).is_err());
//! # Ok::<(), vmseal_keys::Error>(())
//! ```
//!
//! Where keys come from is behind one trait, [`KeySource`]: what a host can ask, and what an embedder implements.
//!
//! What it does not protect against: whoever can read the memory of the process while a key is in use, registers and the
//! stack of the AES implementation included. Where the system allows no locked memory the keys lie in ordinary pages.

#![deny(unsafe_code)] // memory.rs alone allows it

mod context;
mod error;
pub mod hazmat;
pub mod kdf;
mod key;
mod key_cache;
mod key_id;
pub mod key_safe_pair;
mod key_source;
mod memory;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod wrap;

pub use context::{Context, Purpose};
pub use error::Error;
pub use key::{CheckValue, Dek, FileKey, Kek, PrimaryKey};
pub use key_cache::KeyCache;
pub use key_id::{KeyId, ProviderName};
pub use key_source::{KeySource, KeySourceError};
#[cfg(any(test, feature = "testing"))]
pub use testing::TestKeys;
pub use wrap::{WrapAlgorithm, unwrap, wrap};

/// The operating system's generator of random bytes (`getrandom(2)` and its like).
pub fn system_rng() -> getrandom::SysRng {
    getrandom::SysRng
}

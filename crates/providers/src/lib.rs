//! Key providers: where key encryption keys (KEKs) come from.
//!
//! [`LocalProviders`] keeps native providers in a state folder of this machine: each has a primary key, from which it derives a KEK for every
//! VM. It implements [`KeySource`](vmseal_keys::KeySource), as an embedder's own source of keys does.
//!
//! ```
//! use vmseal_keys::{KeySource, ProviderName};
//! use vmseal_providers::LocalProviders;
//! use vmseal_storage::Memory;
//!
//! let home = Memory::new(); // or `LocalDir::create_private(…)`
//! let mut providers = LocalProviders::open(&home)?;
//! let house = ProviderName::new("house")?;
//! providers.create_native(&house, None)?;
//!
//! let id = providers.create(&house)?; // what is stored beside the data
//! let kek = providers.fetch(&id)?; // what never is
//! assert!(kek == providers.fetch(&id)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it does not protect against: whoever can read the state folder of a provider without a password has all its keys; and a lost
//! primary key is lost with everything under it, so that a copy of the state folder belongs in a safe place.

#![forbid(unsafe_code)]

mod error;
mod local;
mod native;
mod primary_key_file;

pub use error::Error;
pub use local::{LocalProviders, ProviderInfo};

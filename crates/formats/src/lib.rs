//! VMX, VMSD, VMDK, key safe, envelope and LUKS header: bytes in, typed values out, and back.
//!
//! ```
//! use vmseal_formats::{Descriptor, Dictionary, KeyList};
//! use vmseal_keys::{KeySource, TestKeys, system_rng};
//!
//! let mut vmx = Dictionary::parse(b".encoding = \"UTF-8\"\nmemsize = \"4096\" # four GiB\n");
//! vmx.set("memSize", b"8192");
//! assert_eq!(vmx.to_bytes().as_slice(), b".encoding = \"UTF-8\"\nmemsize = \"8192\" # four GiB\n");
//!
//! // A secret under a key of a provider, as an ESXi bundle has it.
//! let mut keys = TestKeys::new();
//! let id = keys.create(&TestKeys::provider("test"))?;
//! let mut bundle = KeyList::new();
//! bundle.push(KeyList::lock_under(&id, &keys.fetch(&id)?, b"secret", &mut system_rng())?);
//! vmx.set("encryption.bundle", bundle.to_string().as_bytes());
//!
//! let found = vmx.text("encryption.bundle")?.unwrap_or_default();
//! assert_eq!(KeyList::parse(&found)?.open_with(&mut keys)?.plaintext.as_slice(), b"secret");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing here reads or writes files. What is not understood is kept byte for byte; lengths, nesting and rounds meet a
//! limit before any work; every error tells the line and column, or the byte.
//!
//! # What it does not protect against
//!
//! Formats have the strength that their makers gave them: the key safe authenticates plaintext and neither IV nor
//! padding, `encobj` pages have a MAC that nobody knows how to verify, and the key hash of an envelope lets anyone test
//! guesses at its key.

#![forbid(unsafe_code)]

mod attached_disks;
pub mod cowd;
mod create_type;
mod crypto_dict;
mod descriptor;
mod descriptor_fields;
mod descriptor_line;
mod dictionary;
mod dictionary_line;
pub mod encobj;
pub mod envelope;
mod envelope_header;
mod error;
mod extent;
mod foreign_image;
mod gcm;
mod gcm_blocks;
#[cfg(target_arch = "x86_64")]
mod gcm_vaes;
mod grain_table;
mod identify;
mod key_dict;
mod key_list;
mod keystore;
mod lines;
mod locator;
mod locator_text;
mod locked_vmx;
pub mod luks;
mod luks1;
mod luks2;
mod luks2_json;
mod luks_af;
mod luks_kdf;
mod luks_slot;
mod new_descriptor;
pub mod parent;
mod phrase;
pub mod se_sparse;
pub mod sparse_header;
mod sparse_writer;
pub mod stream_optimized;
mod unlocked_vmx;
pub mod vmem;
mod vmsd;
mod vmx_split;

pub use attached_disks::{AttachedDisk, attached_disks};
pub use cowd::CowdHeader;
pub use create_type::CreateType;
pub use descriptor::Descriptor;
pub use dictionary::{Dictionary, Duplicate};
pub use error::{Error, Kind, Place};
pub use extent::{Access, Extent, ExtentKind};
pub use foreign_image::ForeignImage;
pub use grain_table::{GrainEntry, GrainLayout};
pub use identify::{FileKind, START_LEN, identify};
pub use key_dict::KeyDict;
pub use key_list::{KeyList, Opened, OpenedBy};
pub use keystore::{Keystore, KeystoreMode};
pub use locator::{Locator, Pair, RawKey, Role};
pub use locked_vmx::{LockedVmx, Style};
pub use luks::LuksHeader;
pub use luks_kdf::{LuksHash, LuksKdf};
pub use luks_slot::LuksSlot;
pub use new_descriptor::NewDescriptor;
pub use phrase::PhraseParameters;
pub use se_sparse::SeSparseHeader;
pub use sparse_header::{Compression, SparseHeader};
pub use sparse_writer::{SparseWriter, StreamWriter};
pub use unlocked_vmx::UnlockedVmx;
pub use vmsd::{Problem, Snapshot, SnapshotDisk, SnapshotList};

/// The bodies of the fuzz targets in `fuzz/`.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::descriptor::fuzz as descriptor;
    pub use crate::dictionary::fuzz as dictionary;
    pub use crate::encobj::fuzz as encobj;
    pub use crate::envelope::fuzz as envelope;
    pub use crate::locator::fuzz as locator;
    pub use crate::locked_vmx::fuzz as keysafe_open;
    pub use crate::luks::fuzz as luks;
    pub use crate::se_sparse::fuzz as sesparse;
    pub use crate::sparse_header::fuzz as sparse_header;
    pub use crate::vmem::fuzz as vmem_expand;
    pub use crate::vmsd::fuzz as vmsd;
}

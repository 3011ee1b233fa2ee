//! Encrypts virtual machines at rest, for any hypervisor, on any storage.
//!
//! A host makes a data encryption key (DEK, XTS-AES-256) for each disk; a key provider's key encryption key (KEK) wraps it; only the
//! wrapped key lies beside the data. VMs are encrypted, decrypted and recrypted (shallow: a new KEK; deep: new DEKs and a new
//! KEK) without losing a byte, whatever fails and whenever.
//!
//! # What it looks like
//!
//! ```
//! use vmseal::{Disks, LocalDir, LocalProviders, ProviderName, Request, Unwatched, Vm};
//! # use vmseal::{NewDisk, NewDiskType, Storage, StoragePath};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (state, vms) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! # let folder = LocalDir::open(vms.path())?;
//! # folder.replace(&StoragePath::new("web01.vmx")?, b"displayName = \"web01\"\nscsi0:0.fileName = \"web01.vmdk\"\n")?;
//! # NewDisk::new(NewDiskType::MonolithicSparse, 1 << 20).create(&folder, &StoragePath::new("web01.vmdk")?)?;
//! // The state folder of this machine, with a native key provider in it.
//! let home = LocalDir::create_private(state.path())?;
//! let mut keys = LocalProviders::open(&home)?;
//! let provider = ProviderName::new("house")?;
//! keys.create_native(&provider, None)?;
//!
//! let storage = LocalDir::open(vms.path())?;               // or any other `Storage`
//! let vm = Vm::open(&storage, "web01.vmx")?;               // reads; needs no key
//!
//! let plan = vm.plan(&Request::encrypt(&provider).disks(Disks::All))?;   // pure; a refusal lists every reason
//! vm.execute(plan, &mut keys, Unwatched)?;                 // crash-safe; `resume` completes it, `rollback` undoes it
//! println!("{}", vm.inspect()?);                           // what is encrypted, how, under which key IDs
//!
//! let disk = vm.unlock(&mut keys)?.open_disk("web01.vmdk")?;             // a locked VM has no `open_disk`
//! let mut sector = [0; 512];
//! disk.read_at(&mut sector, 0)?;                           // the guest's bytes
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not protect against
//!
//! Whoever can write to the storage can put back older files; XTS does not authenticate data; whoever had an old KEK and a copy of the
//! wrapped keys made before a shallow recrypt can still open that copy, and with it the data. Storage that a conversion gave back may hold
//! old plaintext until it is written again. `docs/threat-model.md` says more.
//!
//! # The crates below
//!
//! [`vmseal_rekey`] plans and converts, [`vmseal_disk`] reads and writes virtual disks, `vmseal_formats` knows the files,
//! [`vmseal_keys`] the keys and how they are wrapped, [`vmseal_storage`] where all of it lies, [`vmseal_providers`] where
//! KEKs come from. Common work needs none of them.

#![forbid(unsafe_code)]

mod attached_to;
mod catalogue;
mod catalogue_disks;
mod catalogue_vm_files;
mod datastore;
pub mod encrypted_object;
pub mod envelope_file;
mod file_error;
mod given_keys;
mod luks_export;
mod luks_import;
#[cfg(feature = "nbd")]
pub mod nbd;
mod opened_by;
mod output_file;
mod report;
pub mod transfer;
mod vm;
mod vmx_file;
mod vmx_in_place;
mod vmx_settings;

pub use catalogue::{Catalogue, CatalogueEntry, inspect_file};
pub use datastore::create_datastore;
pub use file_error::FileError;
pub use given_keys::GivenKeys;
pub use luks_export::{LuksVersion, UnwrittenUnits};
pub use luks_import::{LuksImport, LuksImported};
pub use opened_by::OpenedBy;
pub use output_file::{write_new, write_secret};
pub use report::{DiskReport, FileReport, KeyIdReport, KeyUseReport, PendingReport, Report, State};
pub use vm::{UnlockedVm, Vm};
pub use vmseal_disk::{Disk, NewDisk, NewDiskType, UnitSize};
pub use vmseal_formats::Error as FormatError;
pub use vmseal_formats::envelope::AttributeValue;
pub use vmseal_keys::key_safe_pair::PairCipher;
pub use vmseal_keys::{FileKey, Kek, KeyId, KeySource, KeySourceError, ProviderName};
pub use vmseal_providers::{Error as ProviderError, LocalProviders, ProviderInfo};
pub use vmseal_rekey::{
    Disks, Ending, Error, ErrorKind, Inventory, Journal, KekChange, KeyUse, Operation, Outcome, Pending, Plan,
    Progress, Reason, Refusal, Request, Step, Strategy, Unwatched, Verified, Warning, Watch,
};
#[cfg(unix)]
pub use vmseal_storage::LocalDir;
pub use vmseal_storage::{Access, Error as StorageError, Memory, Storage, StoragePath};
pub use vmx_file::{DataFileKey, VmxFile};
pub use vmx_in_place::VmxInPlace;
pub use vmx_settings::VmxSettings;

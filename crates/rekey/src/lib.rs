//! The planner and the crash-safe engine that encrypt, decrypt and recrypt virtual machines.
//!
//! [`survey()`] reads a VM from storage into an [`Inventory`]; [`plan()`] turns that and a [`Request`] into a [`Plan`] or a [`Refusal`]
//! with every reason; [`execute`] does what the plan says, [`resume`] completes it after a crash and [`rollback`] undoes it.
//!
//! The engine never changes a file of the VM before the commit: successors are written beside the old files, one small record is
//! replaced atomically, and the successors take their places. `docs/formats/operation.md` has the record byte by byte; the
//! order of the steps, and what a crash at each of them leaves, stand where they happen, in `execute.rs`.
//!
//! What it does not protect against: someone who can write to the storage can put back older files, and with them older
//! wrapped keys; see `docs/threat-model.md`.

#![forbid(unsafe_code)]

mod adopt;
mod chain;
mod compare;
mod convert;
mod convert_in_place;
mod error;
mod execute;
mod fill;
mod import;
mod in_place;
mod inventory;
mod journal;
mod material;
mod neighbours;
mod plan;
mod power;
mod prepare;
mod progress;
mod publish;
mod record;
mod recover;
mod refusal;
mod request;
mod rules;
mod secrets;
mod snapshots;
mod stage;
mod survey;
mod unlock;
mod verify;
mod vmx;
mod warning;

pub use adopt::adopt;
pub use error::{Error, ErrorKind};
pub use execute::{Ending, Outcome, execute, hold_disks, lock, resume, rollback};
pub use fill::{count_unwritten, fill};
pub use import::{ImportedDisk, complete_disk, make_disk, open_new_disk};
pub use inventory::{Encryption, Inventory, KeyUse, Link, Pending, PowerState, Snapshots, VmDisk, VmFile};
pub use journal::Journal;
pub use plan::{KekChange, Plan, Step, plan};
pub use power::running;
pub use progress::{Progress, Unwatched, Watch};
pub use publish::Changes;
pub use refusal::{Reason, Refusal};
pub use request::{Disks, Operation, Request, Strategy};
pub use secrets::VmSecrets;
pub use survey::{pending, survey, survey_disk};
pub use unlock::{Unlocked, key_ids, open_plain_disk, unlock, unlock_damaged};
pub use verify::{Verified, verify};
pub use warning::Warning;

//! The planner: which operation is allowed on which VM, and what it will do. Pure; no I/O, no keys.
//!
//! The rules are vSphere's, and stand in `rules.rs`; `docs/rules.md` has them as a table.

use vmseal_keys::{KeyId, ProviderName};

use crate::inventory::{Inventory, PowerState};
use crate::journal::Shape;
use crate::refusal::{Reason, Refusal};
pub(crate) use crate::request::{Operation, Request, Strategy};
use crate::rules::{chosen_disks, encrypted_links, finishes, is_more_wanted, reasons};
use crate::warning::Warning;

/// What an operation will do, in order. The executor does exactly this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(crate) request: Request,
    pub(crate) vmx: String,
    pub(crate) kek: KekChange,
    pub(crate) steps: Vec<Step>,
    pub(crate) warnings: Vec<Warning>,
}

impl Plan {
    /// The operation that is planned.
    pub fn operation(&self) -> Operation {
        self.request.operation
    }

    /// The VMX file of the VM, relative to the storage root.
    pub fn vmx(&self) -> &str {
        &self.vmx
    }

    /// How data is converted.
    pub fn strategy(&self) -> Strategy {
        self.request.strategy
    }

    /// The room that the operation needs on storage while it is under way, in bytes.
    pub fn room_bytes(&self) -> u64 {
        /// For the record, descriptors, the VMX and what a file system needs besides.
        const SMALL_FILES_BYTES: u64 = 1 << 20;
        let files = self.steps.iter().map(|step| match (step, self.strategy()) {
            (Step::ConvertDisk { .. }, Strategy::InPlace(_)) => 0,
            _ => step.convert_bytes(),
        });
        let journal = match self.strategy() {
            Strategy::InPlace(mode) => Shape { mode, zone_bytes: self.zone_bytes() }.len_bytes(),
            Strategy::Copy => 0,
        };
        files.sum::<u64>().saturating_add(journal).saturating_add(SMALL_FILES_BYTES)
    }

    /// The data that is converted in place between two syncs: three such zones are in memory, and some buffers.
    pub(crate) fn zone_bytes(&self) -> u64 {
        const ZONE_MIN: u64 = 32 << 10;
        const ZONE_MAX: u64 = 1 << 30;
        (self.request.memory_bytes / 4).clamp(ZONE_MIN, ZONE_MAX) & !(ZONE_MIN - 1)
    }

    /// What happens to the KEK.
    pub fn kek(&self) -> &KekChange {
        &self.kek
    }

    /// The steps, in the order in which they are taken.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What to know before: of the VM as it is, and of the operation.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The bytes on storage that are rewritten.
    pub fn convert_bytes(&self) -> u64 {
        self.steps.iter().map(Step::convert_bytes).sum()
    }

    /// How many wrapped keys are made anew.
    pub fn wrapped_key_count(&self) -> usize {
        match self.kek {
            KekChange::Drop { .. } => 0,
            _ => self
                .steps
                .iter()
                .filter(|step| {
                    matches!(step, Step::ConvertDisk { .. } | Step::RewrapDisk { .. } | Step::ReplaceVmx { .. })
                })
                .count(),
        }
    }
}

/// What happens to the KEK of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekChange {
    /// A new one from this provider.
    New {
        /// The provider.
        provider: ProviderName,
    },
    /// The one that the VM has is used for more.
    Keep {
        /// Its ID.
        key_id: KeyId,
    },
    /// The new one of the interrupted shallow recrypt that is completed.
    Pending {
        /// Its ID.
        key_id: KeyId,
    },
    /// Nothing is under a KEK any longer.
    Drop {
        /// The KEKs that are no longer needed for this VM.
        key_ids: Vec<KeyId>,
    },
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Complete the shallow recrypt that was interrupted. What follows it is planned anew once that is done: what is listed here is what
    /// can be told before.
    FinishRecrypt {
        /// Whether it was behind its commit point.
        committed: bool,
    },
    /// Rewrite a disk's data from one cipher to another.
    ConvertDisk {
        /// The descriptor.
        path: String,
        /// Whether the data is encrypted now.
        from_encrypted: bool,
        /// Whether it will be.
        to_encrypted: bool,
        /// The bytes on storage.
        bytes: u64,
    },
    /// Wrap a disk's DEK under the new KEK.
    RewrapDisk {
        /// The descriptor.
        path: String,
    },
    /// Put a VM file into an envelope, take it out of one, or give it another.
    ConvertFile {
        /// The file.
        path: String,
        /// Whether it is an envelope now.
        from_sealed: bool,
        /// Whether it will be.
        to_sealed: bool,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Write the VMX with its new encrypted bundle, or without one.
    ReplaceVmx {
        /// The VMX.
        path: String,
        /// Whether it will hold a bundle.
        to_encrypted: bool,
    },
}

impl Step {
    fn convert_bytes(&self) -> u64 {
        match self {
            Self::ConvertDisk { bytes, .. } | Self::ConvertFile { bytes, .. } => *bytes,
            Self::FinishRecrypt { .. } | Self::RewrapDisk { .. } | Self::ReplaceVmx { .. } => 0,
        }
    }
}

/// Plans `request` for the VM that `inventory` describes.
///
/// # Errors
/// A [`Refusal`] with every reason at once.
pub fn plan(inventory: &Inventory, request: &Request) -> Result<Plan, Refusal> {
    let reasons = reasons(inventory, request);
    if !reasons.is_empty() {
        return Err(Refusal { operation: request.operation, vmx: inventory.vmx.clone(), reasons });
    }
    let warnings = warnings(inventory, request);
    let mut steps = Vec::new();
    if let Some(pending) = finishes(inventory, request) {
        steps.push(Step::FinishRecrypt { committed: pending.committed });
        if let (Some(key_id), false) = (pending.key_ids.first(), is_more_wanted(pending, request)) {
            let kek = KekChange::Pending { key_id: key_id.clone() };
            return Ok(Plan { request: request.clone(), vmx: inventory.vmx.clone(), kek, steps, warnings });
        }
    }
    let chosen = chosen_disks(inventory, request);
    let kek = match request.operation {
        Operation::Decrypt => {
            let mut key_ids: Vec<KeyId> = inventory.encryption.key_ids().to_vec();
            key_ids.extend(inventory.disks.iter().flat_map(|disk| disk.encryption.key_ids().iter().cloned()));
            key_ids.sort();
            key_ids.dedup();
            KekChange::Drop { key_ids }
        }
        Operation::Encrypt if !inventory.encryption.is_none() => {
            // reasons() has made sure that there is a KEK of the wanted provider
            match inventory.encryption.key_ids().first() {
                Some(key_id) => KekChange::Keep { key_id: key_id.clone() },
                None => return Err(single(inventory, request, Reason::NoProvider)),
            }
        }
        _ => {
            let own = inventory.encryption.key_ids().first().map(|id| id.provider());
            match request.provider.as_ref().or(own) {
                Some(provider) => KekChange::New { provider: provider.clone() },
                None => return Err(single(inventory, request, Reason::NoProvider)),
            }
        }
    };
    if request.operation == Operation::ShallowRecrypt {
        for path in encrypted_links(inventory) {
            steps.push(Step::RewrapDisk { path });
        }
    } else {
        for disk in &chosen {
            steps.push(Step::ConvertDisk {
                path: disk.path.clone(),
                from_encrypted: !disk.encryption.is_none(),
                to_encrypted: request.operation != Operation::Decrypt,
                bytes: disk.stored_bytes,
            });
        }
    }
    if request.operation != Operation::ShallowRecrypt {
        let to_sealed = request.operation != Operation::Decrypt;
        for file in &inventory.files {
            // An encryption that only adds disks leaves the files that are sealed already.
            if file.sealed && request.operation == Operation::Encrypt || !file.sealed && !to_sealed {
                continue;
            }
            steps.push(Step::ConvertFile {
                path: file.path.clone(),
                from_sealed: file.sealed,
                to_sealed,
                bytes: file.len_bytes,
            });
        }
    }
    // The VMX comes last: what opens the rest is complete before it names it.
    steps.push(Step::ReplaceVmx { path: inventory.vmx.clone(), to_encrypted: request.operation != Operation::Decrypt });
    Ok(Plan { request: request.clone(), vmx: inventory.vmx.clone(), kek, steps, warnings })
}

fn single(inventory: &Inventory, request: &Request, reason: Reason) -> Refusal {
    Refusal { operation: request.operation, vmx: inventory.vmx.clone(), reasons: vec![reason] }
}

fn warnings(inventory: &Inventory, request: &Request) -> Vec<Warning> {
    let mut warnings = inventory.warnings();
    if let (Operation::ShallowRecrypt, PowerState::On { evidence } | PowerState::InUse { file: evidence }) =
        (request.operation, &inventory.power)
    {
        warnings.push(Warning::RecryptWhileRunning { evidence: evidence.clone() });
    }
    warnings
}

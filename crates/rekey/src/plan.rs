//! The planner: which operation is allowed on which VM, and what it will do. Pure; no I/O, no keys.
//!
//! The rules are vSphere's ("vSphere Security", virtual machine encryption interoperability and caveats): each is one
//! line of [`reasons`].

use core::fmt;

use serde::{Deserialize, Serialize};
use vmseal_disk::UnitSize;
use vmseal_keys::{KeyId, ProviderName};

use crate::inventory::{Encryption, Inventory, Pending, PowerState, Snapshots, VmDisk};
use crate::journal::{Journal, Shape};
use crate::refusal::{Reason, Refusal};

/// What is wanted of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(crate) operation: Operation,
    pub(crate) provider: Option<ProviderName>,
    pub(crate) disks: Disks,
    pub(crate) unit: UnitSize,
    pub(crate) drop_recovery: bool,
    pub(crate) forget_detached: bool,
    pub(crate) strategy: Strategy,
    pub(crate) memory_bytes: u64,
}

impl Request {
    fn new(operation: Operation, provider: Option<ProviderName>) -> Self {
        Self {
            operation,
            provider,
            disks: Disks::All,
            unit: UnitSize::B512,
            drop_recovery: false,
            forget_detached: false,
            strategy: Strategy::Copy,
            memory_bytes: 64 << 20,
        }
    }

    /// Encrypt the VM, with all its disks, under a new KEK of `provider`.
    pub fn encrypt(provider: &ProviderName) -> Self {
        Self::new(Operation::Encrypt, Some(provider.clone()))
    }

    /// Decrypt the VM and all its disks.
    pub fn decrypt() -> Self {
        Self::new(Operation::Decrypt, None)
    }

    /// A new KEK for every wrapped key; no data is touched.
    pub fn shallow_recrypt() -> Self {
        Self::new(Operation::ShallowRecrypt, None)
    }

    /// A new KEK and new DEKs; all data is rewritten.
    pub fn deep_recrypt() -> Self {
        Self::new(Operation::DeepRecrypt, None)
    }

    /// The provider of the new KEK; a recrypt stays with the VM's provider otherwise.
    #[must_use]
    pub fn provider(mut self, provider: &ProviderName) -> Self {
        self.provider = Some(provider.clone());
        self
    }

    /// Which disks to encrypt; a decryption or a recrypt is always of all.
    #[must_use]
    pub fn disks(mut self, disks: Disks) -> Self {
        self.disks = disks;
        self
    }

    /// The data unit of newly encrypted disks; 512 bytes otherwise.
    #[must_use]
    pub fn unit_size(mut self, unit: UnitSize) -> Self {
        self.unit = unit;
        self
    }

    /// How data is converted; [`Strategy::Copy`] otherwise.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// The memory that converting data in place may use; 64 MiB otherwise. Less than 128 KiB is taken as 128 KiB.
    #[must_use]
    pub fn memory_bytes(mut self, memory_bytes: u64) -> Self {
        self.memory_bytes = memory_bytes;
        self
    }

    /// Lets a deep recrypt go on without the recovery password that the VM has: afterwards it has none.
    #[must_use]
    pub fn drop_recovery(mut self) -> Self {
        self.drop_recovery = true;
        self
    }

    /// Lets a decryption go on although the VM's bundle holds keys of disks or files that are not attached now: those keys are gone afterwards.
    #[must_use]
    pub fn forget_detached(mut self) -> Self {
        self.forget_detached = true;
        self
    }
}

/// The operations on a VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Plain to encrypted.
    Encrypt,
    /// Encrypted to plain.
    Decrypt,
    /// New KEK.
    ShallowRecrypt,
    /// New KEK and DEKs.
    DeepRecrypt,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::ShallowRecrypt => "shallow recrypt",
            Self::DeepRecrypt => "deep recrypt",
        })
    }
}

/// How the data of a disk is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// A converted file beside each old one takes its place at the end. Until then the VM is untouched; there has to be room for it.
    Copy,
    /// The data is converted where it lies, with a journal. No room for a second copy is needed; undoing means converting back.
    InPlace(Journal),
}

/// Which disks an encryption takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disks {
    /// Every disk of the VM.
    All,
    /// None: the VM files alone.
    None,
    /// These, by the names that the VMX uses.
    Only(Vec<String>),
}

/// What an operation will do, in order. The executor does exactly this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(crate) request: Request,
    pub(crate) vmx: String,
    pub(crate) kek: KekChange,
    pub(crate) steps: Vec<Step>,
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
    /// Nothing is under a KEK any longer.
    Drop {
        /// The KEKs that are no longer needed for this VM.
        key_ids: Vec<KeyId>,
    },
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
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
            Self::RewrapDisk { .. } | Self::ReplaceVmx { .. } => 0,
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
    let mut steps = Vec::new();
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
    Ok(Plan { request: request.clone(), vmx: inventory.vmx.clone(), kek, steps })
}

fn single(inventory: &Inventory, request: &Request, reason: Reason) -> Refusal {
    Refusal { operation: request.operation, vmx: inventory.vmx.clone(), reasons: vec![reason] }
}

/// The disks that a request works on, in the order of the VMX.
fn chosen_disks<'i>(inventory: &'i Inventory, request: &Request) -> Vec<&'i VmDisk> {
    inventory
        .disks
        .iter()
        .filter(|disk| match (request.operation, &request.disks) {
            (Operation::Encrypt, Disks::All) => true,
            (Operation::Encrypt, Disks::None) => false,
            (Operation::Encrypt, Disks::Only(names)) => names.iter().any(|name| is_named(inventory, disk, name)),
            _ => !disk.encryption.is_none(),
        })
        .collect()
}

/// Whether a disk goes by this name: its path on the storage, or its path from the VMX.
fn is_named(inventory: &Inventory, disk: &VmDisk, name: &str) -> bool {
    let folder = inventory.vmx.rsplit_once('/').map_or("", |(folder, _)| folder);
    let from_vmx = disk.path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    disk.path == name || from_vmx == Some(name)
}

/// Every encrypted descriptor of the VM, the links of snapshot chains included, in the order of the VMX.
fn encrypted_links(inventory: &Inventory) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for disk in &inventory.disks {
        let links = disk.links.iter().map(|link| (&link.path, &link.encryption));
        for (path, encryption) in core::iter::once((&disk.path, &disk.encryption)).chain(links) {
            if !encryption.is_none() && !paths.contains(path) {
                paths.push(path.clone());
            }
        }
    }
    paths
}

/// Every rule, a line each.
fn reasons(inventory: &Inventory, request: &Request) -> Vec<Reason> {
    let chosen = chosen_disks(inventory, request);
    let mut reasons = Vec::new();
    if let Some(Pending { operation, committed, running, .. }) = inventory.pending {
        reasons.push(Reason::Pending { operation, committed, running });
    }
    reasons.extend(state_reasons(inventory, request.operation, &chosen));
    if let Encryption::Foreign { what } = &inventory.encryption {
        reasons.push(Reason::ForeignVm { what: what.clone() });
    }
    if request.operation == Operation::Encrypt {
        encrypt_reasons(inventory, request, &chosen, &mut reasons);
    } else if inventory.encryption.is_none() {
        reasons.push(Reason::NotEncrypted);
    }
    reasons
}

/// The rules that hold for as long as an operation is under way, also when it is resumed.
pub(crate) fn reasons_to_stop(inventory: &Inventory, operation: Operation) -> Vec<Reason> {
    state_reasons(inventory, operation, &inventory.disks.iter().collect::<Vec<_>>())
}

/// The rules about the VM's state, a row of vSphere's table each.
fn state_reasons(inventory: &Inventory, operation: Operation, chosen: &[&VmDisk]) -> Vec<Reason> {
    let shallow = operation == Operation::ShallowRecrypt;
    let mut reasons = Vec::new();
    match &inventory.power {
        PowerState::Off => {}
        PowerState::On { evidence } | PowerState::InUse { file: evidence } if shallow => {
            if let Some(disk) = chosen.iter().find(|disk| disk.is_ide()) {
                reasons.push(Reason::IdeWhilePoweredOn { evidence: evidence.clone(), disk: disk.path.clone() });
            }
        }
        PowerState::On { evidence } => reasons.push(Reason::PoweredOn { evidence: evidence.clone() }),
        PowerState::InUse { file } => reasons.push(Reason::InUse { file: file.clone() }),
        PowerState::Suspended { .. } if shallow => {}
        PowerState::Suspended { evidence } => reasons.push(Reason::Suspended { evidence: evidence.clone() }),
    }
    match inventory.snapshots {
        Snapshots::None => {}
        Snapshots::OneBranch { .. } if shallow => {}
        Snapshots::OneBranch { count } => reasons.push(Reason::Snapshots { count }),
        Snapshots::SeveralBranches { count, branch_count } => {
            reasons.push(Reason::SeveralBranches { count, branch_count })
        }
    }
    if let Some(parent) = &inventory.linked_to {
        reasons.push(Reason::LinkedClone { parent: parent.clone() });
    }
    for disk in chosen {
        if let Some(other) = &disk.shared_with {
            reasons.push(Reason::SharedDisk { disk: disk.path.clone(), with: other.clone() });
        }
        if let Encryption::Foreign { what } = &disk.encryption {
            reasons.push(Reason::ForeignDisk { disk: disk.path.clone(), what: what.clone() });
        }
        if let (Some(what), false) = (&disk.unsupported, shallow) {
            reasons.push(Reason::UnsupportedDisk { disk: disk.path.clone(), what: what.clone() });
        }
    }
    reasons
}

fn encrypt_reasons(inventory: &Inventory, request: &Request, chosen: &[&VmDisk], reasons: &mut Vec<Reason>) {
    if let Disks::Only(names) = &request.disks {
        for name in names {
            if !inventory.disks.iter().any(|disk| is_named(inventory, disk, name)) {
                let known = inventory.disks.iter().map(|disk| disk.path.clone()).collect();
                reasons.push(Reason::UnknownDisk { name: name.clone(), known });
            }
        }
    }
    if inventory.disks.is_empty() && request.disks == Disks::All {
        reasons.push(Reason::NoDisks);
    }
    // With snapshots or a suspended VM that reason says it already.
    if inventory.snapshots == Snapshots::None {
        reasons.extend(inventory.guest_memory.iter().map(|file| Reason::GuestMemory { file: file.clone() }));
    }
    for file in inventory.files.iter().filter(|file| file.sealed && inventory.encryption.is_none()) {
        reasons.push(Reason::ForeignFile { file: file.path.clone() });
    }
    for disk in chosen {
        // Where all disks of an encrypted VM were asked for, the one reason says it.
        let is_told = !inventory.encryption.is_none() && !matches!(request.disks, Disks::Only(_));
        if matches!(disk.encryption, Encryption::Vmseal { .. }) && !is_told {
            reasons.push(Reason::DiskAlreadyEncrypted { disk: disk.path.clone() });
        }
    }
    if let Encryption::Vmseal { key_ids, .. } = &inventory.encryption {
        if !matches!(request.disks, Disks::Only(_)) {
            reasons.push(Reason::AlreadyEncrypted { key_ids: key_ids.clone() });
        } else if let (Some(provider), Some(key_id)) = (&request.provider, key_ids.first())
            && key_id.provider() != provider
        {
            reasons.push(Reason::OtherProvider { key_id: key_id.clone(), wanted: provider.clone() });
        }
    } else if request.provider.is_none() {
        reasons.push(Reason::NoProvider);
    }
}

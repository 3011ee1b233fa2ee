//! What is asked of a VM.

use core::fmt;

use serde::{Deserialize, Serialize};
use vmseal_disk::UnitSize;
use vmseal_keys::ProviderName;

use crate::journal::Journal;

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

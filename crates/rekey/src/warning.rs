//! What a VM's state makes advisable, without forbidding anything.

use core::fmt;

use vmseal_keys::KeyId;

use crate::inventory::KeyUse;

/// Something to know about a VM before it is worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// An encrypted disk is attached to a VM in the clear: its keys are elsewhere, and nothing can be done with it here.
    EncryptedDiskOnPlainVm {
        /// The disk or link.
        disk: String,
    },
    /// A shallow recrypt is half done. The VM can be used with its old and new KEKs.
    HalfRecrypted {
        /// The KEKs that it leaves.
        from: Vec<KeyId>,
        /// The KEK that it brings.
        to: Vec<KeyId>,
        /// Whether somebody is at work on it right now.
        running: bool,
    },
    /// The VM's files are under different KEKs, and no operation is pending that would explain it.
    MixedKeys {
        /// Each KEK with its files.
        keys: Vec<KeyUse>,
    },
    /// A shallow recrypt of a VM that runs.
    RecryptWhileRunning {
        /// What shows that it runs.
        evidence: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EncryptedDiskOnPlainVm { disk } => write!(
                f,
                "{disk} is encrypted, and the VM that it is attached to is not: its keys are not here. Detach it, or restore the VMX that has its keys from a copy"
            ),
            Self::HalfRecrypted { from, to, running } => write!(
                f,
                "a shallow recrypt from {} to {} is {}; the VM can be used with these keys. No snapshot operation before it is complete{}",
                names(from),
                names(to),
                if *running { "under way" } else { "half done" },
                if *running { "" } else { ": `recrypt`, issued again, completes it" }
            ),
            Self::MixedKeys { keys } => {
                f.write_str("the VM's files are under different keys (")?;
                for (index, key) in keys.iter().enumerate() {
                    write!(f, "{}{}: {}", if index == 0 { "" } else { "; " }, key.key_id, key.files.join(", "))?;
                }
                f.write_str("); keep them all. No snapshot operation before `recrypt` has brought everything under one")
            }
            Self::RecryptWhileRunning { evidence } => write!(
                f,
                "the VM runs ({evidence}), and its hypervisor may write the old keys back into the VMX when it ends; keep the old key until `inspect` shows the new one alone after that"
            ),
        }
    }
}

fn names(ids: &[KeyId]) -> String {
    match ids {
        [] => "a key without an ID".to_owned(),
        ids => ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(" and "),
    }
}

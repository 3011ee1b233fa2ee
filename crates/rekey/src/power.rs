//! Whether a VM runs, by what hypervisors leave beside its files.

use vmseal_formats::Dictionary;
use vmseal_storage::{Storage, StoragePath};

use crate::error::Error;
use crate::inventory::PowerState;
use crate::survey::{beside, companion, disk_names, text};

pub(crate) fn power_state(
    storage: &dyn Storage,
    vmx: &StoragePath,
    dictionary: &Dictionary,
) -> Result<PowerState, Error> {
    let on = |path: StoragePath| PowerState::On { evidence: path.to_string() };
    // Workstation, Fusion and ESXi lock the VMX; a disk in use has its lock too.
    let mut locked = vec![vmx.clone()];
    for (_, name) in disk_names(dictionary, vmx)? {
        locked.push(beside(vmx, &name)?);
    }
    for path in locked {
        let lock = path.with_suffix(".lck");
        if storage.metadata(&lock)?.is_some() {
            return Ok(on(lock));
        }
    }
    // ESXi keeps the swap file of a running VM beside it, and removes it when the VM is powered off.
    let swap = match text(dictionary, vmx, "sched.swap.derivedName")? {
        Some(name) if !name.is_empty() => beside(vmx, name.rsplit('/').next().unwrap_or(&name))?,
        _ => companion(vmx, "vswp")?,
    };
    if storage.metadata(&swap)?.is_some() {
        return Ok(on(swap));
    }
    if let Some(state) = text(dictionary, vmx, "checkpoint.vmState")?.filter(|name| !name.is_empty()) {
        return Ok(PowerState::Suspended { evidence: state });
    }
    let state = companion(vmx, "vmss")?;
    if storage.metadata(&state)?.is_some() {
        return Ok(PowerState::Suspended { evidence: state.to_string() });
    }
    Ok(PowerState::Off)
}

//! Whether a VM runs, by what hypervisors leave beside its files.

use vmseal_disk::DiskLayout;
use vmseal_storage::{Storage, StoragePath};

use crate::chain;
use crate::error::Error;
use crate::inventory::PowerState;
use crate::vmx::{Entries, stem};

pub(crate) fn power_state(storage: &dyn Storage, vmx: &StoragePath, entries: &Entries) -> Result<PowerState, Error> {
    let on = |path: StoragePath| PowerState::On { evidence: path.to_string() };
    if let Some(path) = running(storage, vmx)? {
        return Ok(on(path));
    }
    // A disk in use has its lock too, as has each link below it.
    let mut disks: Vec<StoragePath> = Vec::new();
    for (_, path) in entries.disks()? {
        // A parent outside the folder is another VM's, which may run.
        let links = chain::ancestors(storage, &path).into_iter();
        let links: Vec<StoragePath> = links.filter(|link| chain::is_inside(link, &vmx.folder())).collect();
        disks.push(path);
        disks.extend(links);
    }
    for path in &disks {
        let lock = path.with_suffix(".lck");
        if storage.metadata(&lock)?.is_some() {
            return Ok(on(lock));
        }
    }
    if let Some(name) = entries.value("sched.swap.derivedname").filter(|name| !name.is_empty()) {
        let swap = entries.beside(name.rsplit('/').next().unwrap_or(name))?;
        if storage.metadata(&swap)?.is_some() {
            return Ok(on(swap));
        }
    }
    for path in disks {
        let extents = DiskLayout::open(storage, &path).map(|layout| layout.files()).unwrap_or_default();
        for path in core::iter::once(path).chain(extents) {
            if storage.in_use(&path)? {
                return Ok(PowerState::InUse { file: path.to_string() });
            }
        }
    }
    if let Some(state) = entries.value("checkpoint.vmstate").filter(|name| !name.is_empty()) {
        return Ok(PowerState::Suspended { evidence: state.to_owned() });
    }
    if let Some(state) = own_files(storage, vmx, &["vmss"])?.pop() {
        return Ok(PowerState::Suspended { evidence: state.to_string() });
    }
    Ok(PowerState::Off)
}

/// What shows beside a VMX alone, whatever it says, that the VM runs.
///
/// # Errors
/// Where the folder cannot be read.
pub fn running(storage: &dyn Storage, vmx: &StoragePath) -> Result<Option<StoragePath>, Error> {
    // Workstation, Fusion and ESXi lock the VMX.
    let lock = vmx.with_suffix(".lck");
    if storage.metadata(&lock)?.is_some() {
        return Ok(Some(lock));
    }
    // ESXi keeps the swap file of a running VM beside it, and removes it when the VM is powered off.
    if let Some(swap) = own_files(storage, vmx, &["vswp"])?.pop() {
        return Ok(Some(swap));
    }
    // So it does with that of the process that runs the VM: `vmx-web01-<hash>-1.vswp`.
    let process = format!("vmx-{}-", stem(vmx));
    let is_swap = |name: &String| name.starts_with(&process) && name.to_ascii_lowercase().ends_with(".vswp");
    let swap = storage.list(&vmx.folder())?.into_iter().find(is_swap);
    Ok(swap.map(|name| vmx.sibling(&name)).transpose()?)
}

/// Files with the guest's memory or the state of its devices that lie beside a VM: what a snapshot or a suspended VM left.
pub(crate) fn guest_memory(storage: &dyn Storage, vmx: &StoragePath) -> Result<Vec<String>, Error> {
    Ok(own_files(storage, vmx, &["vmem", "vmsn"])?.iter().map(StoragePath::to_string).collect())
}

/// The files of the VM with one of these extensions: `web01.vswp`, `web01-1f.vswp`.
fn own_files(storage: &dyn Storage, vmx: &StoragePath, extensions: &[&str]) -> Result<Vec<StoragePath>, Error> {
    let mut files = Vec::new();
    for name in storage.list(&vmx.folder())? {
        let Some((rest, extension)) = name.rsplit_once('.') else { continue };
        let is_own = rest.strip_prefix(stem(vmx)).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if is_own && extensions.iter().any(|wanted| extension.eq_ignore_ascii_case(wanted)) {
            files.push(vmx.sibling(&name)?);
        }
    }
    Ok(files)
}

//! The rules: vSphere's ("vSphere Security", virtual machine encryption interoperability and caveats), a line each, and vmseal's own.
//! `docs/rules.md` has them as a table.

use crate::inventory::{Encryption, Inventory, Pending, PowerState, Snapshots, VmDisk};
use crate::refusal::Reason;
use crate::request::{Disks, Operation, Request};

/// Every rule that forbids `request`.
pub(crate) fn reasons(inventory: &Inventory, request: &Request) -> Vec<Reason> {
    let chosen = chosen_disks(inventory, request);
    let mut reasons = Vec::new();
    let finished = finishes(inventory, request);
    if let Some(pending) = finished
        && pending.committed
        && !is_more_wanted(pending, request)
    {
        // Behind its commit point an operation can only be completed, whatever became of the VM.
        embedded_reasons(inventory, &mut reasons);
        return reasons;
    }
    if let (None, Some(Pending { operation, committed, running, .. })) = (finished, &inventory.pending) {
        reasons.push(Reason::Pending { operation: *operation, committed: *committed, running: *running });
    }
    reasons.extend(state_reasons(inventory, request.operation, &chosen));
    if let Encryption::Foreign { what } = &inventory.encryption {
        reasons.push(Reason::ForeignVm { what: what.clone() });
    }
    for disk in inventory.encrypted_disks_of_plain_vm() {
        reasons.push(Reason::EncryptedDiskOnPlainVm { disk: disk.to_owned() });
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

/// The interrupted shallow recrypt that a shallow recrypt completes.
pub(crate) fn finishes<'i>(inventory: &'i Inventory, request: &Request) -> Option<&'i Pending> {
    let is_shallow = request.operation == Operation::ShallowRecrypt;
    inventory.pending.as_ref().filter(|pending| is_shallow && pending.is_shallow() && !pending.running)
}

/// Whether completing what is pending does not give the KEK that is wanted.
pub(crate) fn is_more_wanted(pending: &Pending, request: &Request) -> bool {
    request.provider.as_ref().is_some_and(|wanted| pending.key_ids.iter().all(|id| id.provider() != wanted))
}

/// The disks that a request works on, in the order of the VMX.
pub(crate) fn chosen_disks<'i>(inventory: &'i Inventory, request: &Request) -> Vec<&'i VmDisk> {
    inventory
        .disks
        .iter()
        .filter(|disk| match (request.operation, &request.disks) {
            (Operation::Encrypt, Disks::All) => true,
            (Operation::Encrypt, Disks::None) => false,
            (Operation::Encrypt, Disks::Only(names)) => names.iter().any(|name| is_named(inventory, disk, name)),
            _ => disk.chain().any(|link| !link.encryption.is_none()),
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
pub(crate) fn encrypted_links(inventory: &Inventory) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for link in inventory.disks.iter().flat_map(VmDisk::chain) {
        if !link.encryption.is_none() && !paths.iter().any(|path| path == link.path) {
            paths.push(link.path.to_owned());
        }
    }
    paths
}

/// The rules about the VM's state, a column of vSphere's table each.
fn state_reasons(inventory: &Inventory, operation: Operation, chosen: &[&VmDisk]) -> Vec<Reason> {
    let shallow = operation == Operation::ShallowRecrypt;
    let mut reasons = Vec::new();
    match &inventory.power {
        PowerState::Off => {}
        PowerState::On { evidence } | PowerState::InUse { file: evidence } if shallow => {
            for disk in inventory.disks.iter().filter(|disk| disk.is_ide()) {
                reasons.push(Reason::IdeWhilePoweredOn { evidence: evidence.clone(), disk: disk.path.clone() });
            }
            embedded_reasons(inventory, &mut reasons);
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
    let mut foreign: Vec<&str> = Vec::new();
    for disk in chosen {
        if let Some(other) = &disk.shared_with {
            reasons.push(Reason::SharedDisk { disk: disk.path.clone(), with: other.clone() });
        }
        for link in disk.chain() {
            if let Encryption::Foreign { what } = link.encryption
                && !foreign.contains(&link.path)
            {
                foreign.push(link.path);
                reasons.push(Reason::ForeignDisk { disk: link.path.to_owned(), what: what.clone() });
            }
        }
        if let (Some(what), false) = (&disk.unsupported, shallow) {
            reasons.push(Reason::UnsupportedDisk { disk: disk.path.clone(), what: what.clone() });
        }
    }
    reasons
}

/// A running VM's hypervisor writes into the files that it has open. Where the descriptor lies in one of those, it reads that descriptor,
/// changes the content ID and writes it back: it would put back the old keys, or parts of them.
pub(crate) fn embedded_reasons(inventory: &Inventory, reasons: &mut Vec<Reason>) {
    let (PowerState::On { evidence } | PowerState::InUse { file: evidence }) = &inventory.power else { return };
    let mut told: Vec<&str> = Vec::new();
    for link in inventory.disks.iter().flat_map(VmDisk::chain) {
        if link.embedded && !link.encryption.is_none() && !told.contains(&link.path) {
            told.push(link.path);
            reasons.push(Reason::EmbeddedDescriptor { evidence: evidence.clone(), disk: link.path.to_owned() });
        }
    }
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
    // A VM with snapshots, or one that runs or is suspended, needs them; those reasons say it already.
    if inventory.snapshots == Snapshots::None && inventory.power == PowerState::Off {
        reasons.extend(inventory.guest_memory.iter().map(|file| Reason::GuestMemory { file: file.clone() }));
    }
    for file in inventory.files.iter().filter(|file| file.sealed && inventory.encryption.is_none()) {
        reasons.push(Reason::ForeignFile { file: file.path.clone() });
    }
    if let Encryption::Vmseal { key_ids, .. } = &inventory.encryption {
        if !matches!(request.disks, Disks::Only(_)) {
            // The one reason tells of the disks too.
            reasons.push(Reason::AlreadyEncrypted { key_ids: key_ids.clone() });
            return;
        }
        for disk in chosen.iter().filter(|disk| matches!(disk.encryption, Encryption::Vmseal { .. })) {
            reasons.push(Reason::DiskAlreadyEncrypted { disk: disk.path.clone() });
        }
        if let (Some(provider), Some(key_id)) = (&request.provider, key_ids.first())
            && key_id.provider() != provider
        {
            reasons.push(Reason::OtherProvider { key_id: key_id.clone(), wanted: provider.clone() });
        }
    } else if request.provider.is_none() {
        reasons.push(Reason::NoProvider);
    }
}

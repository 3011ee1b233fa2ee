//! What is told of a VM's files and a host's: VMX, snapshot lists, envelopes, encrypted objects, vmseal's own.

use vmseal_formats::encobj::EncObjHeader;
use vmseal_formats::envelope::{self, Header};
use vmseal_formats::{Dictionary, Error as FormatError, KeystoreMode, LockedVmx, SnapshotList, Style, encobj};

use crate::catalogue::{CatalogueEntry, Look};
use crate::file_error::FileError;
use crate::opened_by::OpenedBy;

/// The entry that says that a VMX is vmseal's.
const PROFILE: &str = "vmseal.profile";
/// What the names of keys in vmseal's own envelopes begin with.
const OWN_KEY: &str = "vmseal/";
/// An envelope ends with its crypto footer and its footer.
const ENVELOPE_TAIL_LEN: u64 = 2 * 4096;

impl Look<'_> {
    /// vmseal's own files are known by their names; gives whether it is one.
    pub(crate) fn tell_own_file(&self, entry: &mut CatalogueEntry) -> Result<bool, FileError> {
        let other = [
            (".vmseal-lock", "vmseal-lock", "lock of vmseal on a VM"),
            (".vmseal-new", "vmseal-successor", "file that an operation of vmseal is writing"),
            (".vmseal-tmp", "vmseal-temporary", "leftover of a write of vmseal that was cut off"),
        ];
        if let Some((_, kind, description)) = other.into_iter().find(|(end, ..)| self.is_named(end)) {
            entry.is(kind, description, if kind == "vmseal-successor" { "unknown" } else { "none" });
            return Ok(true);
        }
        let Some(vmx) = self.path.as_str().strip_suffix(".vmseal") else { return Ok(false) };
        entry.is("vmseal-record", "record of an operation of vmseal", "none");
        if let Some(pending) = vmseal_rekey::pending(self.storage, &vmseal_storage::StoragePath::new(vmx)?)? {
            let state = if pending.running { "under way" } else { "interrupted" };
            entry.description = format!("record of a {} that is {state}", pending.operation);
            let way = |id: &vmseal_keys::KeyId| OpenedBy::Key {
                provider: Some(id.provider().to_string()),
                key: id.key().to_owned(),
            };
            entry.opened_by = pending.key_ids.iter().map(way).collect();
            entry.can = if pending.committed { vec!["resume"] } else { vec!["resume", "resume --rollback"] };
        }
        Ok(true)
    }

    pub(crate) fn tell_vmx(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("vmx", "VMX", "unknown");
        let format = FileError::format(self.path.as_str());
        let vmx = Dictionary::parse(&self.text()?);
        if vmx.entries().next().is_none() {
            return Err(FileError::no_vmx(self.path.as_str()));
        }
        if let Ok(Some(name)) = vmx.text("displayName") {
            entry.description = format!("VMX of {name:?}");
        }
        let is_own = vmx.line(PROFILE).is_some();
        let is_locked =
            ["encryption.keySafe", "encryption.data", "encryption.bundle"].iter().any(|name| vmx.line(name).is_some());
        entry.encryption = match (is_locked, is_own) {
            (false, false) => "none",
            (_, true) => "vmseal",
            (true, false) => "foreign",
        };
        let Some(locked) = LockedVmx::new(vmx).map_err(&format)? else {
            entry.can = vec!["encrypt", "lock", "vmx"];
            return Ok(());
        };
        entry.opened_by = OpenedBy::of_list(locked.key_list());
        let (method, can): (_, &[_]) = match (locked.style(), is_own) {
            (_, true) => ("encrypted bundle of vmseal", &["decrypt", "recrypt", "verify", "vmx"]),
            (Style::KeySafe, _) if locked.is_partial() => (
                "key safe of Workstation or Fusion, some settings hidden",
                &["unlock", "lock --change-password", "vmx", "vmfile decrypt"],
            ),
            (Style::KeySafe, _) => (
                "key safe of Workstation or Fusion, all settings hidden",
                &["unlock", "lock --change-password", "vmx", "vmfile decrypt"],
            ),
            _ => ("encrypted bundle of ESXi", &["unlock", "vmx", "vmfile decrypt"]),
        };
        (entry.method, entry.can) = (Some(method.to_owned()), can.to_vec());
        if !is_own {
            entry.cannot =
                Some("encrypt the VM or read its encrypted disks before that encryption is removed".to_owned());
        }
        Ok(())
    }

    pub(crate) fn tell_vmsd(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("vmsd", "snapshot list", "none");
        let list = SnapshotList::parse(&Dictionary::parse(&self.text()?));
        let count = list.map_err(FileError::format(self.path.as_str()))?.snapshots.len();
        entry.description = match count {
            0 => "snapshot list, no snapshots".to_owned(),
            1 => "snapshot list, 1 snapshot".to_owned(),
            count => format!("snapshot list, {count} snapshots"),
        };
        Ok(())
    }

    pub(crate) fn tell_keystore(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        entry.is("keystore", "keystore of an ESXi host", "unknown");
        let mode = KeystoreMode::parse(&Dictionary::parse(&self.text()?));
        match mode.map_err(FileError::format(self.path.as_str()))? {
            KeystoreMode::None { key_id } => {
                entry.is("keystore", "keystore of an ESXi host, mode NONE", "none");
                entry.method = Some(format!("obfuscated: key {key_id} follows from the file"));
                entry.opened_by = vec![OpenedBy::RawKey];
                entry.can = vec!["envelope extract --keystore"];
            }
            _ => {
                entry.is("keystore", "keystore of an ESXi host, mode TPM", "foreign");
                entry.method = Some("sealed by the host's TPM".to_owned());
                entry.opened_by = vec![OpenedBy::Tpm];
                entry.cannot = Some(
                    "open it: the host's TPM has sealed its key in a form that is not public; use the host's recovery key there"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }

    pub(crate) fn tell_envelope(&self, offset: usize, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        let (kind, what) = match offset {
            0 => ("envelope", "ESXi envelope"),
            _ => ("core-dump", "ESXi core dump, encrypted behind its header"),
        };
        entry.is(kind, what, "foreign");
        let format = FileError::format(self.path.as_str());
        let len = Header::len_of(&self.start[offset..]).map_err(&format)?;
        let header = match self.start.get(offset..offset + len) {
            Some(bytes) => envelope::describe(bytes),
            None => envelope::describe(&self.range(offset as u64, len as u64)?),
        };
        let header = header.map_err(&format)?;
        entry.method = Some(header.cipher().to_owned());
        if header.key_info().starts_with(OWN_KEY) {
            entry.is(kind, "VM file in an envelope of vmseal", "vmseal");
            entry.opened_by = vec![OpenedBy::Vmx];
            entry.can = vec!["decrypt", "recrypt", "verify"];
        } else {
            entry.opened_by = vec![OpenedBy::EnvelopeKey { key: header.key_info().to_owned() }];
            entry.can = match offset {
                0 => vec!["envelope describe", "envelope extract"],
                _ => vec!["envelope describe", "coredump decrypt"],
            };
        }
        let wanted_bytes = (offset as u64 + len as u64 + ENVELOPE_TAIL_LEN).max(self.len.next_multiple_of(4096));
        if self.len < wanted_bytes {
            return Err(format(FormatError::Truncated { format: "envelope", len_bytes: self.len, wanted_bytes }));
        }
        Ok(())
    }

    pub(crate) fn tell_encrypted_object(&self, entry: &mut CatalogueEntry) -> Result<(), FileError> {
        let what = match () {
            () if self.is_named(".nvram") => "NVRAM of Workstation or Fusion",
            () if self.is_named(".vmem") => "memory of a VM of Workstation or Fusion",
            () if self.is_named(".vmsn") => "snapshot state of Workstation or Fusion",
            () if self.is_named(".vmss") => "suspended state of Workstation or Fusion",
            () => "file of an encrypted VM of Workstation or Fusion",
        };
        entry.is("encrypted-object", what, "foreign");
        entry.method = Some("AES-256-CBC in pages".to_owned());
        entry.opened_by = vec![OpenedBy::Vmx];
        let start = &self.start[..self.start.len().min(encobj::HEADER_LEN)];
        let format = FileError::format(self.path.as_str());
        let header = EncObjHeader::parse(start).map_err(&format)?;
        entry.can = vec!["vmfile decrypt"];
        entry.cannot = Some("authenticate or write it: what its authentication codes cover is not public".to_owned());
        header.check_file_len(self.len).map_err(&format)
    }
}

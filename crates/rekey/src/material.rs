//! The keys of one operation, from the wrapped form in its record to values in memory.

use vmseal_disk::{DiskCipher, Encryption, UnitSize};
use vmseal_formats::KeyList;
use vmseal_keys::{Dek, KeySource};

use crate::convert::Transform;
use crate::error::Error;
use crate::plan::Operation;
use crate::record::{Phase, Record, RecordKey};
use crate::secrets::VmSecrets;

/// The keys that an operation in a certain phase works with.
pub(crate) struct Material {
    pub(crate) old: Option<VmSecrets>,
    pub(crate) new: Option<VmSecrets>,
    /// Old and new DEK of each disk of the record.
    pub(crate) deks: Vec<[Option<Dek>; 2]>,
}

impl Material {
    /// Unwraps what the record holds.
    pub(crate) fn open(record: &Record, keys: &mut dyn KeySource) -> Result<Self, Error> {
        let [old_side, new_side] = sides(record.operation, record.phase);
        let bundle =
            |side: bool, list: &Option<String>, keys: &mut dyn KeySource| -> Result<Option<VmSecrets>, Error> {
                match list {
                    Some(list) if side => open_bundle(list, &record.vmx, keys).map(Some),
                    _ => Ok(None),
                }
            };
        let old = bundle(old_side, &record.old_bundle, keys)?;
        let new = bundle(new_side, &record.new_bundle, keys)?;
        let mut deks = Vec::with_capacity(record.disks.len());
        for disk in &record.disks {
            let dek = |side: bool, list: &Option<String>, keys: &mut dyn KeySource| -> Result<Option<Dek>, Error> {
                match list {
                    Some(list) if side => open_dek(&disk.encryption(list)?, &disk.descriptor, keys).map(Some),
                    _ => Ok(None),
                }
            };
            deks.push([dek(old_side, &disk.old_keys, keys)?, dek(new_side, &disk.new_keys, keys)?]);
        }
        Ok(Self { old, new, deks })
    }

    /// The key that authenticates the record in `phase`.
    pub(crate) fn record_key(&self, operation: Operation, phase: Phase) -> RecordKey {
        let [old_side, new_side] = sides(operation, phase);
        let deks: Vec<[Option<&Dek>; 2]> = self
            .deks
            .iter()
            .map(|[old, new]| [old.as_ref().filter(|_| old_side), new.as_ref().filter(|_| new_side)])
            .collect();
        RecordKey::derive([self.old.as_ref().filter(|_| old_side), self.new.as_ref().filter(|_| new_side)], &deks)
    }

    /// How the data of the disk at `index` is transformed.
    pub(crate) fn transform(&self, index: usize, unit: UnitSize) -> Result<Transform, Error> {
        let cipher = |dek: &Option<Dek>| dek.as_ref().map(|dek| DiskCipher::new(dek, unit)).transpose();
        let [old, new] = &self.deks[index];
        Ok(Transform { from: cipher(old)?, to: cipher(new)? })
    }
}

/// Which sides an operation needs, old and new: what is gone after its commit is not asked for again.
fn sides(operation: Operation, phase: Phase) -> [bool; 2] {
    match (operation, phase) {
        (Operation::Decrypt, _) => [true, false],
        (Operation::DeepRecrypt, Phase::Prepare | Phase::Convert | Phase::Revert) => [true, true],
        // A shallow recrypt leaves the keys themselves as they are: either side holds them.
        (Operation::DeepRecrypt | Operation::Encrypt | Operation::ShallowRecrypt, _) => [false, true],
    }
}

/// Opens the locator list of a VM's bundle.
pub(crate) fn open_bundle(list: &str, vmx: &str, keys: &mut dyn KeySource) -> Result<VmSecrets, Error> {
    let list = parse_list(list, vmx)?;
    let opened = list.open_with(keys).map_err(|error| key_error(error, vmx, &list))?;
    VmSecrets::parse(&opened.plaintext)
}

pub(crate) fn parse_list(list: &str, path: &str) -> Result<KeyList, Error> {
    KeyList::parse(list).map_err(|source| Error::Format { path: path.to_owned(), source })
}

/// Opens the DEK of the disk whose descriptor is `path`.
pub(crate) fn open_dek(encryption: &Encryption, path: &str, keys: &mut dyn KeySource) -> Result<Dek, Error> {
    encryption.open_dek(path, keys).map(|(dek, _)| dek).map_err(|error| match error {
        vmseal_disk::Error::Format { source, .. } => key_error(source, path, encryption.keys()),
        vmseal_disk::Error::WrongDisk => Error::WrongDisk { path: path.to_owned() },
        other => Error::Disk(other),
    })
}

/// Says which file a key did not open.
fn key_error(error: vmseal_formats::Error, path: &str, list: &KeyList) -> Error {
    let wrong = |any_key_at_hand| Error::WrongKey {
        path: path.to_owned(),
        key_ids: list.key_ids(),
        any_key_at_hand,
        recovery: list.has_phrase(),
    };
    match error {
        vmseal_formats::Error::KeySource(source) => Error::KeySource(source),
        vmseal_formats::Error::WrongKey { .. } => wrong(true),
        vmseal_formats::Error::NoKey { .. } => wrong(false),
        source => Error::Format { path: path.to_owned(), source },
    }
}

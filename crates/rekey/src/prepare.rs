//! The beginning of an operation: new keys, wrapped, and the record that holds them. Nothing is written here.

use rand_core::TryCryptoRng;
use vmseal_disk::{DiskId, DiskLayout, Encryption, HolePolicy, UnitSize};
use vmseal_formats::{KeyList, Locator, envelope};
use vmseal_keys::{Dek, FileKey, Kek, KeyId, KeySource, system_rng};
use vmseal_storage::{Storage, StoragePath};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::material::{Material, open_bundle, open_dek, parse_list};
use crate::plan::{KekChange, Operation, Plan, Step};
use crate::record::{DiskRecord, FileRecord, Record};
use crate::secrets::{VmSecrets, random_id};
use crate::survey::read_start;
use crate::vmx::Entries;

/// Makes the keys that `plan` asks for, and the record of the operation.
pub(crate) fn begin(storage: &dyn Storage, plan: &Plan, keys: &mut dyn KeySource) -> Result<(Record, Material), Error> {
    let vmx = StoragePath::new(plan.vmx())?;
    let mut rng = system_rng();
    let mut record = Record::begin(plan.operation(), plan.vmx(), random_id(&mut rng)?);
    let entries = Entries::read_vmx(storage, &vmx)?;
    record.old_bundle = entries.bundle().map(str::to_owned);
    let old = record.old_bundle.as_deref().map(|list| open_bundle(list, plan.vmx(), keys)).transpose()?;
    if let Some(old) = &old {
        check_members(storage, &entries, &vmx, old)?;
        check_all_planned(plan, old)?;
    }
    let wrapping = Wrapping::new(plan, record.old_bundle.as_deref(), keys)?;
    let mut new = new_secrets(plan, old.as_ref(), &mut rng)?;
    let mut deks = Vec::new();
    for step in plan.steps() {
        match step {
            Step::ConvertDisk { path, .. } | Step::RewrapDisk { path } => {
                let (disk, dek) = begin_disk(storage, plan, path, old.as_ref(), keys, &mut rng)?;
                let (entry, pair) = disk.wrap(plan.operation(), path, dek, wrapping.as_ref(), &mut rng)?;
                if let Some(new) = &mut new {
                    new.set_disk(path, disk.id);
                }
                record.disks.push(entry);
                deks.push(pair);
            }
            Step::ConvertFile { path, from_sealed, to_sealed, .. } => {
                if let Some(new) = &mut new {
                    new.set_file(path, FileKey::generate(&mut rng)?);
                }
                record.files.push(FileRecord { path: path.clone(), from_sealed: *from_sealed, to_sealed: *to_sealed });
            }
            Step::ReplaceVmx { .. } => {}
        }
    }
    if let (Some(wrapping), Some(new)) = (&wrapping, &new) {
        let list = wrapping.lock(&new.to_bytes(), record.old_bundle.as_deref(), plan.vmx(), &mut rng)?;
        record.new_bundle = Some(list.to_string());
    }
    Ok((record, Material { old, new, deks }))
}

/// The bundle, the descriptors and the VM files have to agree about what is encrypted and which disk is which: a disk that lost its
/// entries would be enciphered twice, one with another's entries would be deciphered to noise.
pub(crate) fn check_members(
    storage: &dyn Storage,
    entries: &Entries,
    vmx: &StoragePath,
    secrets: &VmSecrets,
) -> Result<(), Error> {
    let mut attached = Vec::new();
    for (_, path) in entries.disks()? {
        let (descriptor, _) = DiskLayout::read_descriptor(storage, &path)?;
        let known = secrets.disk_id(path.as_str());
        match (known, Encryption::from_descriptor(&descriptor)?.map(|encryption| encryption.id())) {
            (None, None) => {}
            (Some(_), None) if descriptor.parent_cid().is_some() => {}
            (Some(_), None) => return Err(Error::Disagreement { vmx: vmx.to_string(), disk: path.to_string() }),
            (known, Some(id)) => {
                let is_other = known.is_some_and(|known| known != id) || !secrets.has_disk(id);
                if is_other || attached.contains(&id) {
                    return Err(Error::WrongDisk { path: path.to_string() });
                }
                attached.push(id);
            }
        }
    }
    let nvram = entries.nvram()?;
    if storage.metadata(&nvram)?.is_some() {
        let sealed = envelope::is_envelope(&read_start(storage, &nvram)?);
        if sealed != secrets.file_key(nvram.as_str()).is_some() {
            return Err(Error::SealedFile { path: nvram.to_string(), sealed });
        }
    }
    Ok(())
}

/// A decryption drops the bundle: every disk and file whose key is only there has to be part of it.
fn check_all_planned(plan: &Plan, old: &VmSecrets) -> Result<(), Error> {
    if plan.operation() != Operation::Decrypt || plan.request.forget_detached {
        return Ok(());
    }
    let planned = |wanted: &str| {
        plan.steps().iter().any(|step| match step {
            Step::ConvertDisk { path, .. } | Step::ConvertFile { path, .. } => path == wanted,
            Step::RewrapDisk { .. } | Step::ReplaceVmx { .. } => false,
        })
    };
    let names: Vec<String> = old.member_names().filter(|name| !planned(name)).map(str::to_owned).collect();
    if names.is_empty() { Ok(()) } else { Err(Error::NotAttached { names }) }
}

/// The secrets that the VM will have.
fn new_secrets<R: TryCryptoRng>(plan: &Plan, old: Option<&VmSecrets>, rng: &mut R) -> Result<Option<VmSecrets>, Error> {
    Ok(match (plan.operation(), old) {
        (Operation::Decrypt, _) => None,
        (_, None) => Some(VmSecrets::generate(rng)?),
        // The secrets stay, with the key of the record; only what wraps them changes.
        (Operation::ShallowRecrypt, Some(old)) => Some(old.duplicate()?),
        // Disks that are not attached now keep their entries: their wrapped DEKs lie beside them.
        (Operation::Encrypt | Operation::DeepRecrypt, Some(old)) => Some(old.successor(rng)?),
    })
}

/// A disk at the beginning of an operation.
struct NewDisk {
    id: DiskId,
    unit: UnitSize,
    holes: HolePolicy,
    old_keys: Option<String>,
}

/// Reads what a disk is now, and opens its DEK where it has one.
fn begin_disk<R: TryCryptoRng>(
    storage: &dyn Storage,
    plan: &Plan,
    path: &str,
    old_secrets: Option<&VmSecrets>,
    keys: &mut dyn KeySource,
    rng: &mut R,
) -> Result<(NewDisk, Option<Dek>), Error> {
    let storage_path = StoragePath::new(path)?;
    let (descriptor, _) = DiskLayout::read_descriptor(storage, &storage_path)?;
    let Some(encryption) = Encryption::from_descriptor(&descriptor)? else {
        let unit = plan.request.unit;
        let layout = DiskLayout::open(storage, &storage_path)?;
        layout.check_unit(unit)?;
        layout.check_files(storage)?;
        let id = DiskId::from_bytes(random_id(rng)?);
        return Ok((NewDisk { id, unit, holes: HolePolicy::Zero, old_keys: None }, None));
    };
    // A wrapped DEK that was brought here from elsewhere carries an ID that this VM's bundle does not know.
    if !old_secrets.is_some_and(|secrets| secrets.has_disk(encryption.id())) {
        return Err(Error::WrongDisk { path: path.to_owned() });
    }
    let dek = open_dek(&encryption, path, keys)?;
    if plan.operation() != Operation::ShallowRecrypt {
        // What lies outside of it, as the LUKS header of a disk that was imported does, was in the clear before.
        DiskLayout::open(storage, &storage_path)?.check_tables(storage)?;
    }
    let old_keys = Some(encryption.keys().to_string());
    let (id, unit, holes) = (encryption.id(), encryption.unit(), encryption.holes());
    Ok((NewDisk { id, unit, holes, old_keys }, Some(dek)))
}

impl NewDisk {
    /// The disk's entry in the record, and its old and new DEK.
    fn wrap<R: TryCryptoRng>(
        &self,
        operation: Operation,
        path: &str,
        old: Option<Dek>,
        wrapping: Option<&Wrapping>,
        rng: &mut R,
    ) -> Result<(DiskRecord, [Option<Dek>; 2]), Error> {
        let new = match operation {
            Operation::Decrypt => None,
            Operation::ShallowRecrypt => old.as_ref().map(|dek| Dek::from_bytes(dek.expose())).transpose()?,
            Operation::Encrypt | Operation::DeepRecrypt => Some(Dek::generate(rng)?),
        };
        let new_keys = match (wrapping, &new) {
            (Some(wrapping), Some(dek)) => {
                let text = Encryption::dek_text(self.id, self.unit, self.holes, dek);
                Some(wrapping.lock(&text, self.old_keys.as_deref(), path, rng)?.to_string())
            }
            _ => None,
        };
        let entry = DiskRecord {
            descriptor: path.to_owned(),
            id: self.id.to_string(),
            unit: self.unit.bytes(),
            old_filled: self.holes == HolePolicy::Fill,
            new_filled: self.holes == HolePolicy::Fill,
            old_keys: self.old_keys.clone(),
            new_keys,
        };
        Ok((entry, [old, new]))
    }
}

/// How new keys are wrapped: under the KEK, and under a recovery password where the VM has one.
struct Wrapping {
    kek_id: KeyId,
    kek: Kek,
    phrase: Option<Zeroizing<Vec<u8>>>,
    /// A shallow recrypt keeps the recovery password's pairs as they are: what they lock does not change.
    keeps_phrases: bool,
}

impl Wrapping {
    fn new(plan: &Plan, old_bundle: Option<&str>, keys: &mut dyn KeySource) -> Result<Option<Self>, Error> {
        let keeps_phrases = plan.operation() == Operation::ShallowRecrypt;
        let phrase = keys.phrase().filter(|_| !keeps_phrases).map(|phrase| Zeroizing::new(phrase.to_vec()));
        if !keeps_phrases && !plan.request.drop_recovery && !matches!(plan.kek(), KekChange::Drop { .. }) {
            check_phrase(plan, old_bundle, phrase.is_some(), keys)?;
        }
        let kek_id = match plan.kek() {
            // Made by its provider, then asked for by its ID: a key that cannot be had again is never used.
            KekChange::New { provider } => keys.create(provider)?,
            KekChange::Keep { key_id } => key_id.clone(),
            KekChange::Drop { .. } => return Ok(None),
        };
        let kek = keys.fetch(&kek_id)?;
        Ok(Some(Self { kek_id, kek, phrase, keeps_phrases }))
    }

    fn lock<R: TryCryptoRng>(
        &self,
        plaintext: &[u8],
        old: Option<&str>,
        path: &str,
        rng: &mut R,
    ) -> Result<KeyList, Error> {
        let format = |source| Error::Format { path: path.to_owned(), source };
        let mut list = KeyList::new();
        list.push(KeyList::lock_under(&self.kek_id, &self.kek, plaintext, rng).map_err(format)?);
        if let Some(phrase) = &self.phrase {
            list.push(KeyList::lock_with_phrase(phrase, plaintext, rng).map_err(format)?);
        }
        if let (true, Some(old)) = (self.keeps_phrases, old) {
            for pair in parse_list(old, path)?.phrase_pairs() {
                list.push(pair.clone());
            }
        }
        Ok(list)
    }
}

/// All of a VM is opened by one recovery password: another one would open parts of it.
fn check_phrase(plan: &Plan, old_bundle: Option<&str>, is_given: bool, keys: &mut dyn KeySource) -> Result<(), Error> {
    let mut phrases = old_bundle.map_or_else(|| Ok(KeyList::new()), |list| parse_list(list, plan.vmx()))?;
    phrases.retain(|pair| matches!(pair.locker, Locator::Phrase { .. }));
    match (phrases.has_phrase(), is_given) {
        (true, false) => Err(Error::RecoveryPhraseNeeded),
        (true, true) if phrases.open_with(keys).is_err() => Err(Error::RecoveryPhraseWrong),
        (false, true) if matches!(plan.kek(), KekChange::Keep { .. }) => Err(Error::RecoveryPhraseForPart),
        _ => Ok(()),
    }
}

/// Whether a recovery password that was given opens the VM's bundle, where the VM has one.
pub(crate) fn check_given_phrase(
    storage: &dyn Storage,
    vmx: &StoragePath,
    keys: &mut dyn KeySource,
) -> Result<(), Error> {
    let Some(mut list) = Entries::read_vmx(storage, vmx)?.key_list()? else { return Ok(()) };
    list.retain(|pair| matches!(pair.locker, Locator::Phrase { .. }));
    match keys.phrase().is_some() && (!list.has_phrase() || list.open_with(keys).is_err()) {
        true => Err(Error::RecoveryPhraseWrong),
        false => Ok(()),
    }
}

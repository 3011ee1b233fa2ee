//! The record of an operation: what makes it possible to complete or undo it after a crash.
//!
//! Two lines of text in `<VMX name>.vmseal` beside the VMX, described in `docs/formats/operation.md`: a JSON body, and the
//! hexadecimal HMAC-SHA-256 of that body under a key derived from the VM's record keys and the DEKs in question. Whoever has none
//! of those keys cannot make a record that recovery would follow (CVE-2021-4122 was such a case).
//!
//! The record is replaced atomically. Its `phase` decides: while it says `prepare`, the VM is as it was before and
//! everything can be undone; once it says `publish`, everything is completed.

use hkdf::HkdfExtract;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use vmseal_disk::{DiskId, Encryption, HolePolicy, UnitSize};
use vmseal_formats::KeyList;
use vmseal_keys::Dek;
use vmseal_storage::{Storage, StoragePath};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::journal::{Journal, JournalKey, Shape};
use crate::plan::Operation;
use crate::secrets::{VmSecrets, hex};

/// The version of the record that this library writes and reads.
const VERSION: u32 = 2;
/// No record is longer: 4096 disks with several wrapped keys each fit.
const LEN_MAX: u64 = 16 << 20;
/// What is appended to the name of the VMX.
const SUFFIX: &str = ".vmseal";
/// What is appended to the name of a file whose successor is being written.
const STAGED_SUFFIX: &str = ".vmseal-new";

/// Where an operation is, in the order in which it happens.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// New files are written beside the old ones; the VM is unchanged.
    Prepare,
    /// Data is converted where it lies.
    Convert,
    /// What was converted where it lies is put back.
    Revert,
    /// The new files are complete and take the place of the old ones.
    Publish,
}

/// The body of a record.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// Random, 32 hexadecimal digits: no two operations have the same.
    id: String,
    pub(crate) operation: Operation,
    pub(crate) phase: Phase,
    pub(crate) vmx: String,
    /// The locator list in `encryption.bundle` before, where there was one.
    pub(crate) old_bundle: Option<String>,
    /// The one after.
    pub(crate) new_bundle: Option<String>,
    pub(crate) disks: Vec<DiskRecord>,
    /// VM files to seal, to reseal or to open.
    pub(crate) files: Vec<FileRecord>,
    /// The files with a successor, in the order in which they are written and published.
    pub(crate) staged: Vec<Staged>,
    /// Descriptors that lie inside an extent and are overwritten there (shallow recrypt).
    pub(crate) patches: Vec<Patch>,
    /// The data that is converted where it lies; without this, extents have successors.
    pub(crate) in_place: Option<InPlace>,
}

/// A conversion in place.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InPlace {
    pub(crate) journal: Journal,
    pub(crate) zone_bytes: u64,
    /// The extents, in the order in which they are converted.
    pub(crate) extents: Vec<InPlaceExtent>,
    /// In phase `revert`: up to where data had been converted.
    pub(crate) limit: Option<Frontier>,
}

impl InPlace {
    /// The shape of its journal.
    pub(crate) fn shape(&self) -> Shape {
        Shape { mode: self.journal, zone_bytes: self.zone_bytes }
    }
}

/// An extent that is converted where it lies.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InPlaceExtent {
    pub(crate) target: String,
    /// The index of its disk.
    pub(crate) disk: usize,
}

/// A place in the data that is converted in place.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Frontier {
    /// The index of the extent.
    pub(crate) file: u32,
    /// The byte in it.
    pub(crate) offset: u64,
}

/// A disk in an operation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskRecord {
    pub(crate) descriptor: String,
    pub(crate) id: String,
    pub(crate) unit: u32,
    /// Whether its hole policy was `fill` with the old keys, and will be with the new ones.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) old_filled: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) new_filled: bool,
    pub(crate) old_keys: Option<String>,
    pub(crate) new_keys: Option<String>,
}

impl DiskRecord {
    /// The encryption of the disk with one of the two locator lists.
    pub(crate) fn encryption(&self, keys: &str) -> Result<Encryption, Error> {
        let damaged = |what: String| Error::RecordDamaged { path: self.descriptor.clone(), what };
        let id = DiskId::from_hex(&self.id)
            .ok_or_else(|| damaged("the disk's ID is not 32 hexadecimal digits".to_owned()))?;
        // No two lists are the same: each has its own random IVs.
        let filled = if self.new_keys.as_deref() == Some(keys) { self.new_filled } else { self.old_filled };
        let holes = if filled { HolePolicy::Fill } else { HolePolicy::Zero };
        let keys = KeyList::parse(keys).map_err(|source| damaged(source.to_string()))?;
        Ok(Encryption::new(id, self.unit()?, holes, keys))
    }

    /// The data unit.
    pub(crate) fn unit(&self) -> Result<UnitSize, Error> {
        UnitSize::from_bytes(self.unit).ok_or_else(|| Error::RecordDamaged {
            path: self.descriptor.clone(),
            what: format!("a data unit of {} bytes is not known", self.unit),
        })
    }
}

/// A VM file in an operation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRecord {
    pub(crate) path: String,
    pub(crate) from_sealed: bool,
    pub(crate) to_sealed: bool,
}

/// A file whose successor is written beside it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Staged {
    /// The file that will be replaced.
    pub(crate) target: String,
    pub(crate) role: Role,
    /// The state of the file when copying began; a file that has changed since is copied from its start.
    pub(crate) source_version: Option<u64>,
    /// Bytes of the successor that are durable, from the start of the file.
    pub(crate) done_bytes: u64,
    pub(crate) complete: bool,
    /// What the complete successor looks like, of an extent or a VM file.
    pub(crate) sample: Option<Sample>,
}

/// What a file is to the VM.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The descriptor file of the disk at this index.
    Descriptor {
        disk: usize,
    },
    /// An extent of the disk at this index.
    Extent {
        disk: usize,
    },
    /// The VM file at this index.
    File {
        file: usize,
    },
    Vmx,
}

/// Enough of a file to know it again: SHA-256 of 64 KiB at its start and 64 KiB at `probe`, the first of the guest's bytes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sample {
    pub(crate) len_bytes: u64,
    pub(crate) probe: u64,
    pub(crate) digest: String,
}

/// Bytes to overwrite in a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patch {
    pub(crate) target: String,
    pub(crate) offset: u64,
    /// Base64 of the new bytes: descriptor text, which holds no secret.
    pub(crate) bytes: String,
}

impl Record {
    /// A record of an operation that begins.
    pub(crate) fn begin(operation: Operation, vmx: &str, id: [u8; 16]) -> Self {
        Self {
            version: VERSION,
            id: hex(&id),
            operation,
            phase: Phase::Prepare,
            vmx: vmx.to_owned(),
            old_bundle: None,
            new_bundle: None,
            disks: Vec::new(),
            files: Vec::new(),
            staged: Vec::new(),
            patches: Vec::new(),
            in_place: None,
        }
    }

    /// The disk at an index that the record itself names.
    pub(crate) fn disk(&self, index: usize) -> Result<&DiskRecord, Error> {
        self.disks.get(index).ok_or_else(|| Error::RecordDamaged {
            path: format!("{}{SUFFIX}", self.vmx),
            what: "it names a disk that it does not have".to_owned(),
        })
    }

    /// The keys of the operation's journal.
    pub(crate) fn journal_key(&self, key: &RecordKey) -> Result<JournalKey, Error> {
        let id = u128::from_str_radix(&self.id, 16).map_err(|_| Error::RecordDamaged {
            path: format!("{}{SUFFIX}", self.vmx),
            what: "its ID is not 32 hexadecimal digits".to_owned(),
        })?;
        JournalKey::derive(&key.0, id.to_be_bytes())
    }

    /// Where the record of a VM lies.
    pub(crate) fn path(vmx: &StoragePath) -> StoragePath {
        vmx.with_suffix(SUFFIX)
    }

    /// Makes this state of the operation durable.
    pub(crate) fn write(&self, storage: &dyn Storage, key: &RecordKey) -> Result<(), Error> {
        let vmx = StoragePath::new(&self.vmx)?;
        let body = serde_json::to_string(self)
            .map_err(|source| Error::RecordDamaged { path: Self::path(&vmx).to_string(), what: source.to_string() })?;
        let text = format!("{body}\n{}\n", hex(&key.mac(body.as_bytes()).finalize().into_bytes()));
        storage.replace(&Self::path(&vmx), text.as_bytes())?;
        Ok(())
    }

    /// Reads the record of a VM, where there is one. What it says is not to be followed before [`Unverified::verify`].
    pub(crate) fn read(storage: &dyn Storage, vmx: &StoragePath) -> Result<Option<Unverified>, Error> {
        let path = Self::path(vmx);
        if storage.metadata(&path)?.is_none() {
            return Ok(None);
        }
        let bytes = storage.read(&path, LEN_MAX)?;
        parse(&bytes, vmx.as_str()).map(Some).map_err(|what| Error::RecordDamaged { path: path.to_string(), what })
    }

    /// Ends the operation: from here on nothing is pending.
    pub(crate) fn remove(storage: &dyn Storage, vmx: &StoragePath) -> Result<(), Error> {
        remove_durably(storage, &Self::path(vmx))
    }
}

/// A record as it was read.
#[derive(Debug)]
pub(crate) struct Unverified {
    record: Record,
    body: String,
    mac: Vec<u8>,
}

impl Unverified {
    /// What the record claims: enough to say what is pending and which keys it needs.
    pub(crate) fn claims(&self) -> &Record {
        &self.record
    }

    /// The record, once its authentication has been checked.
    pub(crate) fn verify(self, key: &RecordKey) -> Result<Record, Error> {
        key.mac(self.body.as_bytes()).verify_slice(&self.mac).map_err(|_| {
            let vmx = &self.record.vmx;
            Error::RecordForged { path: format!("{vmx}{SUFFIX}") }
        })?;
        Ok(self.record)
    }
}

/// One place where the bytes of a record become a value.
fn parse(bytes: &[u8], vmx: &str) -> Result<Unverified, String> {
    let text = core::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let (body, rest) = text.split_once('\n').ok_or("it has no second line")?;
    let mac_text = rest.strip_suffix('\n').ok_or("its last line is not complete")?;
    if mac_text.len() != 64 || !mac_text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("its second line is not 64 hexadecimal digits".to_owned());
    }
    let record: Record = serde_json::from_str(body).map_err(|source| source.to_string())?;
    if record.version != VERSION {
        return Err(format!("version {} is not known; use the vmseal that wrote it", record.version));
    }
    if record.vmx != vmx {
        return Err(format!("it belongs to {}", record.vmx));
    }
    let mac = mac_text
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| core::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    Ok(Unverified { record, body: body.to_owned(), mac })
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The key that authenticates the record of one operation.
pub(crate) struct RecordKey(Zeroizing<[u8; 32]>);

impl RecordKey {
    /// Derived from everything that the operation uses: the record keys of the old and new secrets, and each disk's
    /// old and new DEK.
    pub(crate) fn derive(secrets: [Option<&VmSecrets>; 2], deks: &[[Option<&Dek>; 2]]) -> Self {
        let mut extract = HkdfExtract::<Sha256>::new(Some(b"vmseal operation record 1"));
        let mut add = |key: Option<&[u8]>| match key {
            Some(key) => {
                extract.input_ikm(&[1]);
                extract.input_ikm(key);
            }
            None => extract.input_ikm(&[0]),
        };
        for secrets in secrets {
            add(secrets.map(|secrets| secrets.record_key.expose().as_slice()));
        }
        for pair in deks {
            for dek in pair {
                add(dek.map(|dek| dek.expose().as_slice()));
            }
        }
        let (_, hkdf) = extract.finalize();
        let mut key = Zeroizing::new([0; 32]);
        if hkdf.expand(b"record", key.as_mut_slice()).is_err() {
            unreachable!("HKDF-SHA-256 gives up to 8160 bytes (RFC 5869, 2.3)");
        }
        Self(key)
    }

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = hmac(&self.0);
        mac.update(body);
        mac
    }
}

/// HMAC-SHA-256 under `key`.
pub(crate) fn hmac(key: &[u8; 32]) -> Hmac<Sha256> {
    match <Hmac<Sha256> as KeyInit>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC accepts keys of every length (RFC 2104)"),
    }
}

/// Removes a file, durably also where an interrupted attempt removed it.
pub(crate) fn remove_durably(storage: &dyn Storage, path: &StoragePath) -> Result<(), Error> {
    if storage.metadata(path)?.is_some() {
        storage.remove(path)?;
    }
    storage.sync_folder(&path.folder())?;
    Ok(())
}

/// The name of a file's successor while it is written.
pub(crate) fn staged_path(target: &StoragePath) -> StoragePath {
    target.with_suffix(STAGED_SUFFIX)
}

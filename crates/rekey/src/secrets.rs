//! What a VM's encrypted bundle holds (`encryption.bundle` in the VMX): dictionary text that the KEK opens.
//!
//! The entries are described in `docs/formats/disk.md`.

use base64ct::{Base64, Encoding};
use rand_core::TryCryptoRng;
use vmseal_disk::DiskId;
use vmseal_formats::Dictionary;
use vmseal_keys::FileKey;
use zeroize::Zeroizing;

use crate::error::Error;

/// The version of the bundle's content that this library writes and reads.
const PROFILE: &str = "1";
/// More files or disks than any product allows for one VM.
const MEMBERS_MAX: usize = 4096;

/// The secrets of one VM.
#[derive(Debug)]
pub struct VmSecrets {
    /// Identifies the VM to its keys, independent of its name.
    pub(crate) vm_id: [u8; 16],
    /// Counts the operations that made new secrets, so that records of other generations are recognised.
    pub(crate) generation: u64,
    /// Authenticates the records of operations.
    pub(crate) record_key: FileKey,
    /// The encrypted disks: name when they were encrypted, and ID.
    pub(crate) disks: Vec<(String, DiskId)>,
    /// The sealed VM files and their keys.
    pub(crate) files: Vec<(String, FileKey)>,
}

impl VmSecrets {
    /// New secrets for a VM that has none.
    ///
    /// # Errors
    /// [`Error::Random`] and [`Error::Key`] where the generator fails.
    pub(crate) fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, Error> {
        Ok(Self {
            vm_id: random_id(rng)?,
            generation: 1,
            record_key: FileKey::generate(rng)?,
            disks: Vec::new(),
            files: Vec::new(),
        })
    }

    /// The same secrets once more.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub(crate) fn duplicate(&self) -> Result<Self, Error> {
        let copy = |(name, key): &(String, FileKey)| Ok::<_, Error>((name.clone(), FileKey::from_bytes(key.expose())?));
        Ok(Self {
            vm_id: self.vm_id,
            generation: self.generation,
            record_key: FileKey::from_bytes(self.record_key.expose())?,
            disks: self.disks.clone(),
            files: self.files.iter().map(copy).collect::<Result<_, _>>()?,
        })
    }

    /// The secrets of the next generation: the same VM, disks and files, and a new key for records.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub(crate) fn successor<R: TryCryptoRng>(&self, rng: &mut R) -> Result<Self, Error> {
        let record_key = FileKey::generate(rng)?;
        Ok(Self { generation: self.generation.saturating_add(1), record_key, ..self.duplicate()? })
    }

    /// Adds a disk, or gives it its new name.
    pub(crate) fn set_disk(&mut self, path: &str, id: DiskId) {
        match self.disks.iter_mut().find(|(name, known)| name == path || *known == id) {
            Some(entry) => *entry = (path.to_owned(), id),
            None => self.disks.push((path.to_owned(), id)),
        }
    }

    /// Adds a file, or gives it its new key.
    pub(crate) fn set_file(&mut self, path: &str, key: FileKey) {
        match self.files.iter_mut().find(|(name, _)| name == path) {
            Some(entry) => entry.1 = key,
            None => self.files.push((path.to_owned(), key)),
        }
    }

    /// The key of a sealed file.
    pub fn file_key(&self, name: &str) -> Option<&FileKey> {
        self.files.iter().find(|(known, _)| known == name).map(|(_, key)| key)
    }

    /// The names of all disks and files whose keys depend on these secrets.
    pub(crate) fn member_names(&self) -> impl Iterator<Item = &str> {
        self.disk_names().chain(self.files.iter().map(|(name, _)| name.as_str()))
    }

    /// The names of the encrypted disks.
    pub(crate) fn disk_names(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().map(|(name, _)| name.as_str())
    }

    /// The ID that the encrypted disk of this name had when it was encrypted.
    pub(crate) fn disk_id(&self, path: &str) -> Option<DiskId> {
        self.disks.iter().find(|(known, _)| known == path).map(|(_, id)| *id)
    }

    /// Whether a disk with this ID belongs to the VM.
    pub fn has_disk(&self, id: DiskId) -> bool {
        self.disks.iter().any(|(_, known)| *known == id)
    }

    /// The identity of the VM.
    pub fn vm_id(&self) -> [u8; 16] {
        self.vm_id
    }

    /// The text that goes into the bundle.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Dictionary::new();
        text.set("cryptoState", b"encrypted");
        text.set("vmseal.profile", PROFILE.as_bytes());
        text.set("vmseal.vm", hex(&self.vm_id).as_bytes());
        text.set("vmseal.generation", self.generation.to_string().as_bytes());
        text.set("vmseal.recordKey", encode_key(&self.record_key).as_bytes());
        for (index, (name, id)) in self.disks.iter().enumerate() {
            text.set(&format!("vmseal.disk{index}.fileName"), name.as_bytes());
            text.set(&format!("vmseal.disk{index}.id"), id.to_string().as_bytes());
        }
        for (index, (name, key)) in self.files.iter().enumerate() {
            text.set(&format!("vmseal.file{index}.fileName"), name.as_bytes());
            text.set(&format!("vmseal.file{index}.key"), encode_key(key).as_bytes());
        }
        text.to_bytes()
    }

    /// Reads what a bundle held.
    ///
    /// # Errors
    /// [`Error::BundleContent`] where an entry is missing or of another profile.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Error> {
        let dictionary = Dictionary::parse(text);
        let entry = |name: &str| {
            dictionary.value(name).ok_or_else(|| Error::BundleContent { what: format!("the entry {name} is missing") })
        };
        let profile = entry("vmseal.profile")?;
        if profile.as_slice() != PROFILE.as_bytes() {
            return Err(Error::BundleContent {
                what: format!("profile {} is not known to this version", String::from_utf8_lossy(&profile)),
            });
        }
        let generation = core::str::from_utf8(&entry("vmseal.generation")?)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::BundleContent { what: "vmseal.generation is not a number".into() })?;
        let mut secrets = Self {
            vm_id: parse_id(&entry("vmseal.vm")?, "vmseal.vm")?,
            generation,
            record_key: decode_key(&entry("vmseal.recordKey")?, "vmseal.recordKey")?,
            disks: Vec::new(),
            files: Vec::new(),
        };
        for index in 0..MEMBERS_MAX {
            let Some(name) = dictionary.value(&format!("vmseal.disk{index}.fileName")) else { break };
            let id_name = format!("vmseal.disk{index}.id");
            let id = parse_id(&entry(&id_name)?, &id_name)?;
            secrets.disks.push((utf8(&name, "fileName")?, DiskId::from_bytes(id)));
        }
        for index in 0..MEMBERS_MAX {
            let Some(name) = dictionary.value(&format!("vmseal.file{index}.fileName")) else { break };
            let key_name = format!("vmseal.file{index}.key");
            let key = decode_key(&entry(&key_name)?, &key_name)?;
            secrets.files.push((utf8(&name, "fileName")?, key));
        }
        Ok(secrets)
    }
}

/// 16 random bytes.
pub(crate) fn random_id<R: TryCryptoRng>(rng: &mut R) -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    rng.try_fill_bytes(&mut id).map_err(|_| Error::Random)?;
    Ok(id)
}

/// Lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn utf8(bytes: &[u8], what: &str) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::BundleContent { what: format!("a {what} is not UTF-8") })
}

fn parse_id(text: &[u8], name: &str) -> Result<[u8; 16], Error> {
    let id = core::str::from_utf8(text).ok().and_then(DiskId::from_hex);
    id.map(|id| *id.as_bytes())
        .ok_or_else(|| Error::BundleContent { what: format!("{name} is not 32 hexadecimal digits") })
}

fn encode_key(key: &FileKey) -> Zeroizing<String> {
    Zeroizing::new(Base64::encode_string(key.expose()))
}

fn decode_key(text: &[u8], name: &str) -> Result<FileKey, Error> {
    let wrong = || Error::BundleContent { what: format!("{name} is not a key of 32 bytes") };
    let mut bytes = Zeroizing::new([0u8; 32]);
    match Base64::decode(text, bytes.as_mut_slice()) {
        Ok(decoded) if decoded.len() == 32 => {}
        _ => return Err(wrong()),
    }
    FileKey::from_bytes(&bytes).map_err(Error::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_survive_the_bundle() {
        let mut rng = vmseal_keys::system_rng();
        let mut secrets = VmSecrets::generate(&mut rng).unwrap();
        secrets.disks.push(("web \"01\".vmdk".into(), DiskId::from_bytes([9; 16])));
        secrets.files.push(("größe|1.nvram".into(), FileKey::generate(&mut rng).unwrap()));
        let again = VmSecrets::parse(&secrets.to_bytes()).unwrap();
        assert_eq!(again.vm_id, secrets.vm_id);
        assert_eq!(again.generation, 1);
        assert_eq!(again.record_key.expose(), secrets.record_key.expose());
        assert_eq!(again.disks, secrets.disks);
        assert_eq!(again.files[0].0, secrets.files[0].0);
        assert_eq!(again.files[0].1.expose(), secrets.files[0].1.expose());
    }

    #[test]
    fn a_bundle_of_another_profile_or_without_its_entries_is_refused() {
        let mut rng = vmseal_keys::system_rng();
        let text = VmSecrets::generate(&mut rng).unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        for (from, to) in [
            ("vmseal.profile = \"1\"", "vmseal.profile = \"2\""),
            ("vmseal.vm ", "vmseal.vn "),
            ("recordKey = \"", "recordKey = \"A"),
        ] {
            let damaged = text.replace(from, to);
            assert_ne!(damaged, text);
            assert!(matches!(VmSecrets::parse(damaged.as_bytes()), Err(Error::BundleContent { .. })), "{to}");
        }
    }
}

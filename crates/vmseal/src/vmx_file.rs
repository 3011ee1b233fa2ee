//! A VMX as a file of its own: unlocked and locked with a password or a provider's key.

use vmseal_formats::{
    Dictionary, Error as FormatError, KeyDict, Locator, LockedVmx, OpenedBy, PhraseParameters, Style, UnlockedVmx,
};
use vmseal_keys::kdf::{self, PassKdf};
use vmseal_keys::key_safe_pair::PairCipher;
use vmseal_keys::{KeyId, KeySource, system_rng};
use vmseal_storage::{Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::given_keys::GivenKeys;
use crate::vmx_settings::{Content, VmxSettings};

/// A VMX is a few KiB; none is longer than this.
pub(crate) const LEN_MAX: u64 = 4 << 20;
/// The entry that says that a VM is vmseal's.
const PROFILE: &str = "vmseal.profile";
/// A VMX as it lies on disk, encrypted or not.
#[derive(Debug)]
pub struct VmxFile {
    path: String,
    vmx: Dictionary,
}

impl VmxFile {
    /// Reads a VMX.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and where it cannot be read.
    pub fn read(storage: &dyn Storage, path: &StoragePath) -> Result<Self, FileError> {
        let bytes = Zeroizing::new(storage.read(path, LEN_MAX)?);
        Self::parse(path.as_str(), &bytes)
    }

    /// The VMX with these bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`FileError::Unknown`] where it has no entry.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Self, FileError> {
        let vmx = Dictionary::parse(bytes);
        if bytes.len() as u64 > LEN_MAX || vmx.entries().next().is_none() {
            return Err(FileError::no_vmx(path));
        }
        Ok(Self { path: path.to_owned(), vmx })
    }

    /// Whether its settings cannot be read without a key or password. Those of an ESXi or vmseal VM lie in the clear, but for a few.
    ///
    /// # Errors
    /// Where its locks are damaged.
    pub fn needs_key(&self) -> Result<bool, FileError> {
        Ok(self.locked()?.is_some_and(|locked| locked.style() == Style::KeySafe))
    }

    /// The KEKs whose IDs its locks name; none for a VM of vmseal, whose locks other verbs open.
    ///
    /// # Errors
    /// Where its locks are damaged.
    pub fn key_ids(&self) -> Result<Vec<KeyId>, FileError> {
        let locked = if self.is_own() { None } else { self.locked()? };
        Ok(locked.map(|locked| locked.key_list().key_ids()).unwrap_or_default())
    }

    /// Whether a password opens it.
    ///
    /// # Errors
    /// Where its locks are damaged.
    pub fn has_password(&self) -> Result<bool, FileError> {
        Ok(self.locked()?.is_some_and(|locked| locked.key_list().has_phrase()))
    }

    /// The same VMX in the clear.
    ///
    /// # Errors
    /// [`FileError::Refused`] where it is not encrypted, or vmseal's; [`FileError::KeyNeeded`] where no key is at hand; [`FileError::Format`]
    /// for a wrong key or password and for damage.
    pub fn unlock(&self, keys: &mut dyn KeySource) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let unlocked = self.open(keys)?;
        for (name, _) in unlocked.hidden().entries() {
            let name = String::from_utf8_lossy(&name).into_owned();
            unlocked.hidden().text(&name).map_err(FileError::format(&self.path))?;
        }
        Ok(unlocked.to_plain().map_err(FileError::format(&self.path))?.to_bytes())
    }

    /// The same VMX locked with a password, as Workstation and Fusion do: all settings but the VM's name and encoding are hidden.
    ///
    /// # Errors
    /// [`FileError::Refused`] where it is encrypted already; [`FileError::Format`] where a text cannot be read in the file's encoding.
    pub fn lock(&self, password: &[u8], cipher: PairCipher) -> Result<Zeroizing<Vec<u8>>, FileError> {
        if self.locked()?.is_some() {
            return Err(self.refused("it is encrypted already; `--change-password` gives it another password"));
        }
        let locked = || {
            let mut vmx = UnlockedVmx::with_key_safe(&self.vmx, None, cipher, &mut system_rng())?;
            vmx.add_phrase(password, &parameters(cipher)?, &mut system_rng())?;
            vmx.lock(&mut GivenKeys::new(), &mut system_rng())
        };
        Ok(locked().map_err(FileError::format(&self.path))?.to_bytes())
    }

    /// The same VMX with another password: in the place of the password that opens it, or of all passwords where a provider's key opens it.
    /// The key safe alone changes: the settings stay encrypted as they are, under the same key.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock); [`FileError::Refused`] for an ESXi VM.
    pub fn change_password(&self, keys: &mut dyn KeySource, new: &[u8]) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let mut unlocked = self.open(keys)?;
        if unlocked.style() == Style::Bundle {
            return Err(
                self.refused("the VM is under a key of its provider, and ESXi knows no password; unlock it first")
            );
        }
        let is_by_phrase = unlocked.opened_by() == Some(&OpenedBy::Phrase);
        let mut changed = || {
            let parameters = parameters(unlocked.cipher())?;
            if is_by_phrase {
                unlocked.change_phrase(new, &parameters, &mut system_rng())?;
            } else {
                unlocked.retain_locks(|lock| !matches!(lock.locker, Locator::Phrase { .. }))?;
                unlocked.add_phrase(new, &parameters, &mut system_rng())?;
            }
            unlocked.lock(keys, &mut system_rng())
        };
        Ok(changed().map_err(FileError::format(&self.path))?.to_bytes())
    }

    /// Its settings, to be read and changed. What an ESXi VM hides can be read where a key is at hand; the others can without.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock), but for what is not encrypted.
    pub fn settings(&self, keys: &mut dyn KeySource) -> Result<VmxSettings, FileError> {
        let path = self.path.clone();
        let clear = |why| Ok(VmxSettings { path: path.clone(), content: Content::Clear(self.vmx.clone()), why });
        let style = if self.is_own() { None } else { self.locked()?.map(|locked| locked.style()) };
        match (style, style.map(|_| self.open(keys))) {
            (_, None) => clear(None),
            (_, Some(Ok(vmx))) => {
                Ok(VmxSettings { path: path.clone(), content: Content::Hidden(Box::new(vmx)), why: None })
            }
            // Most settings are in the clear: the reason is told to whoever asks for a hidden one.
            (Some(Style::Bundle), Some(Err(FileError::KeyNeeded { key_ids, why, .. }))) => clear(Some((key_ids, why))),
            // A bundle with a content that is not known hides no setting.
            (Some(Style::Bundle), Some(Err(FileError::Format { source: FormatError::Unsupported { .. }, .. }))) => {
                clear(None)
            }
            (_, Some(Err(error))) => Err(error),
        }
    }

    /// The key of the VM's encrypted NVRAM, snapshots and memory (`dataFileKey`).
    ///
    /// # Errors
    /// As [`settings`](Self::settings); [`FileError::Format`] where there is no such key.
    pub fn data_file_key(&self, keys: &mut dyn KeySource) -> Result<DataFileKey, FileError> {
        let format = FileError::format(&self.path);
        if self.is_own() {
            return Err(self.refused("the VM is encrypted by vmseal, which has no such key; use `vmseal decrypt`"));
        }
        let key = match self.locked()? {
            Some(_) => self.open(keys)?.data_file_key(),
            // A VMX that was unlocked before.
            None => self.vmx.value("dataFileKey").map(|text| KeyDict::parse(&text)).transpose(),
        };
        let missing = || FormatError::Missing { name: "dataFileKey", part: "VMX" };
        key.and_then(|key| key.ok_or_else(missing)).map(DataFileKey).map_err(format)
    }

    fn locked(&self) -> Result<Option<LockedVmx>, FileError> {
        LockedVmx::new(self.vmx.clone()).map_err(FileError::format(&self.path))
    }

    fn open(&self, keys: &mut dyn KeySource) -> Result<UnlockedVmx, FileError> {
        if self.is_own() {
            return Err(self.refused("the VM is encrypted by vmseal under a key provider; use `vmseal decrypt`"));
        }
        let Some(locked) = self.locked()? else {
            return Err(self.refused("it is not encrypted; there is nothing to unlock"));
        };
        let needed = |key_ids: Vec<KeyId>, why: String| FileError::KeyNeeded { path: self.path.clone(), key_ids, why };
        let key_ids = locked.key_list().key_ids();
        let unlocked = locked.unlock(keys).map_err(|error| match error {
            FormatError::NoKey { key_ids } if key_ids.is_empty() => {
                needed(key_ids, "give its password with `--password-file`, or a key with `--key-file`".to_owned())
            }
            FormatError::NoKey { key_ids } => {
                let why = "use the state folder (`--home`) of its provider, or give the key itself with `--key-file`";
                needed(key_ids, why.to_owned())
            }
            FormatError::KeySource(error) => needed(key_ids.clone(), error.to_string()),
            source => FileError::Format { path: self.path.clone(), source },
        })?;
        // What ESXi puts into its bundles is not public; what is no list of settings is not taken apart.
        let hidden = unlocked.hidden();
        let is_text = hidden.entries().next().is_some() && hidden.malformed().next().is_none();
        if unlocked.style() == Style::Bundle && !is_text {
            let why = "it opens, and is no list of settings; the VM's own host can read it";
            let source = FormatError::Unsupported { what: "the content of this bundle", why };
            return Err(FileError::Format { path: self.path.clone(), source });
        }
        Ok(unlocked)
    }

    /// Whether the VM is vmseal's.
    fn is_own(&self) -> bool {
        self.vmx.line(PROFILE).is_some()
    }

    fn refused(&self, what: &str) -> FileError {
        FileError::Refused { path: self.path.clone(), what: what.to_owned() }
    }
}

/// The key of a VM's encrypted NVRAM, snapshots and memory.
#[derive(Debug)]
pub struct DataFileKey(pub(crate) KeyDict);

/// What new locks are made with. Products are known to read SHA-1 here alone; its rounds are what they take from the file.
fn parameters(cipher: PairCipher) -> Result<PhraseParameters, vmseal_formats::Error> {
    PhraseParameters::generate(PassKdf::Pbkdf2HmacSha1, cipher, kdf::ROUNDS_WRITTEN, &mut system_rng())
}

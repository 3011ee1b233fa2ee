//! A VMX as a file of its own: unlocked and locked with a password, read and changed one setting at a time.

use vmseal_formats::{Dictionary, LockedVmx, PhraseParameters, Style, UnlockedVmx};
use vmseal_keys::kdf::{self, PassKdf};
use vmseal_keys::key_safe_pair::PairCipher;
use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, ProviderName, system_rng};
use vmseal_storage::{Access, Lock, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;

/// A VMX is a few KiB; none is longer than this.
const LEN_MAX: u64 = 4 << 20;
/// The entry that says that a VM is vmseal's.
const PROFILE: &str = "vmseal.profile";
/// Entries that hold the locks or what they lock, and what the bytes of all others mean.
const RESERVED: [&str; 3] = ["vmx.encryptionType", "dataFileKey", ".encoding"];
const RESERVED_PREFIXES: [&str; 2] = ["encryption.", "vmseal."];

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
            let what = "this is no VMX: it has no line of the form name = \"value\"; name the VM's .vmx file";
            return Err(FileError::Unknown { path: path.to_owned(), what });
        }
        Ok(Self { path: path.to_owned(), vmx })
    }

    /// Whether a password is needed to read its settings.
    ///
    /// # Errors
    /// Where its locks are damaged.
    pub fn needs_password(&self) -> Result<bool, FileError> {
        Ok(self.locked()?.is_some_and(|locked| locked.style() == Style::KeySafe))
    }

    /// The same VMX in the clear.
    ///
    /// # Errors
    /// [`FileError::Refused`] where it is not encrypted, or vmseal's; [`FileError::Format`] for a wrong password and for damage.
    pub fn unlock(&self, password: &[u8]) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let unlocked = self.open(password)?;
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
            vmx.lock(&mut Password(password), &mut system_rng())
        };
        Ok(locked().map_err(FileError::format(&self.path))?.to_bytes())
    }

    /// The same VMX with another password in the place of the one that opens it. The key safe alone changes: the settings stay encrypted as
    /// they are, under the same key.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub fn change_password(&self, old: &[u8], new: &[u8]) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let mut unlocked = self.open(old)?;
        let mut changed = || {
            unlocked.change_phrase(new, &parameters(unlocked.cipher())?, &mut system_rng())?;
            unlocked.lock(&mut Password(new), &mut system_rng())
        };
        Ok(changed().map_err(FileError::format(&self.path))?.to_bytes())
    }

    /// Its settings, to be read and changed. Only a VMX under a password takes one; of an ESXi or vmseal VM what is in the clear is there.
    ///
    /// # Errors
    /// [`FileError::PasswordNeeded`]; otherwise as [`unlock`](Self::unlock).
    pub fn settings(self, password: Option<&[u8]>) -> Result<VmxSettings, FileError> {
        let content = match (self.needs_password()?, password) {
            (true, Some(password)) => Content::Hidden(Box::new(self.open(password)?)),
            (true, None) => return Err(FileError::PasswordNeeded { path: self.path }),
            (false, _) => Content::Clear(self.vmx),
        };
        Ok(VmxSettings { path: self.path, content })
    }

    fn locked(&self) -> Result<Option<LockedVmx>, FileError> {
        LockedVmx::new(self.vmx.clone()).map_err(FileError::format(&self.path))
    }

    fn open(&self, password: &[u8]) -> Result<UnlockedVmx, FileError> {
        if self.vmx.line(PROFILE).is_some() {
            return Err(self.refused("the VM is encrypted by vmseal under a key provider; use `vmseal decrypt`"));
        }
        let Some(locked) = self.locked()? else {
            return Err(self.refused("it is not encrypted; there is nothing to unlock"));
        };
        locked.unlock(&mut Password(password)).map_err(FileError::format(&self.path))
    }

    fn refused(&self, what: &str) -> FileError {
        FileError::Refused { path: self.path.clone(), what: what.to_owned() }
    }
}

/// What new locks are made with. Products are known to read SHA-1 here alone; its rounds are what they take from the file.
fn parameters(cipher: PairCipher) -> Result<PhraseParameters, vmseal_formats::Error> {
    PhraseParameters::generate(PassKdf::Pbkdf2HmacSha1, cipher, kdf::ROUNDS_WRITTEN, &mut system_rng())
}

/// The settings of a VMX that is open.
#[derive(Debug)]
pub struct VmxSettings {
    path: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Clear(Dictionary),
    Hidden(Box<UnlockedVmx>),
}

impl VmxSettings {
    /// The value of a setting; none where there is no such.
    ///
    /// # Errors
    /// [`FileError::Format`] where it is not valid in the file's encoding.
    pub fn value(&self, name: &str) -> Result<Option<String>, FileError> {
        let text = match &self.content {
            Content::Clear(vmx) => vmx.text(name),
            Content::Hidden(vmx) => vmx.text(name),
        };
        text.map_err(FileError::format(&self.path))
    }

    /// Sets a setting where it is; a new one is added, among the hidden ones where most are hidden.
    ///
    /// # Errors
    /// [`FileError::Refused`] for the entries that the locks consist of; [`FileError::Format`] where the file's encoding has no such
    /// characters.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), FileError> {
        let refused = |what: String| Err(FileError::Refused { path: self.path.clone(), what });
        if is_reserved(name) {
            return refused(format!("{name} belongs to the encryption of the VM, and is changed by its verbs alone"));
        }
        if !Dictionary::is_name(name) {
            return refused(format!("{name:?} cannot be the name of a setting"));
        }
        // What has the value already stays as it is written.
        if self.value(name)?.as_deref() == Some(value) {
            return Ok(());
        }
        let set = match &mut self.content {
            Content::Clear(vmx) => vmx.set_text(name, value),
            Content::Hidden(vmx) => vmx.set_text(name, value),
        };
        set.map_err(FileError::format(&self.path))
    }

    /// What in the [`text`](Self::text) VMware reads otherwise than it looks: lines that are no setting, names given twice.
    pub fn doubtful_lines(&self) -> Vec<String> {
        let text = Dictionary::parse(&self.text());
        let malformed = text.malformed().map(|line| format!("{}: line {line} is no setting", self.path));
        let again = text.duplicates().into_iter().map(|again| {
            let (name, line, first) = (again.name, again.line, again.first_line);
            format!("{}: line {line} gives {name} again; the one in line {first} counts", self.path)
        });
        malformed.chain(again).collect()
    }

    /// The text that a person edits: the hidden settings where most are hidden, otherwise those in the clear.
    pub fn text(&self) -> Zeroizing<Vec<u8>> {
        match &self.content {
            Content::Hidden(vmx) if !self.is_partial() => vmx.hidden().to_bytes(),
            Content::Hidden(vmx) => vmx.outer().to_bytes(),
            Content::Clear(vmx) => vmx.to_bytes(),
        }
    }

    /// Puts an edited [`text`](Self::text) in the place of the old one.
    ///
    /// # Errors
    /// [`FileError::Refused`] where it has no entry left, or entries of the encryption were changed.
    pub fn set_text(&mut self, text: &[u8]) -> Result<(), FileError> {
        let edited = Dictionary::parse(text);
        let refused = |what: &str| Err(FileError::Refused { path: self.path.clone(), what: what.to_owned() });
        if edited.entries().next().is_none() {
            return refused("the edited text has no line of the form name = \"value\"; nothing was changed");
        }
        if reserved(&edited) != reserved(&Dictionary::parse(&self.text())) {
            return refused(
                "the edit changed entries that belong to the encryption of the VM; nothing was changed, edit the others alone",
            );
        }
        let is_partial = self.is_partial();
        match &mut self.content {
            Content::Hidden(vmx) if !is_partial => vmx.set_hidden(edited),
            // What is hidden, and its locks, are entries of the edited text.
            content => *content = Content::Clear(edited),
        }
        Ok(())
    }

    /// The file, locked again as it was. What was not changed is as it was, byte for byte.
    ///
    /// # Errors
    /// [`FileError::Format`] where the system gives no random bytes.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        match &self.content {
            Content::Clear(vmx) => Ok(vmx.to_bytes()),
            // Hidden settings are locked under a key that is open already: no password is asked for.
            Content::Hidden(vmx) => {
                let locked = vmx.lock(&mut Password(b""), &mut system_rng());
                Ok(locked.map_err(FileError::format(&self.path))?.to_bytes())
            }
        }
    }

    fn is_partial(&self) -> bool {
        let Content::Hidden(vmx) = &self.content else { return false };
        vmx.outer().value("vmx.encryptionType").is_some_and(|word| word.eq_ignore_ascii_case(b"partial"))
    }
}

fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The reserved entries of a text, in order.
fn reserved(vmx: &Dictionary) -> Vec<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    vmx.entries().filter(|(name, _)| is_reserved(&String::from_utf8_lossy(name))).collect()
}

/// A change of a VMX where it lies. No operation of vmseal on the VM begins before it is dropped.
pub struct VmxInPlace<'s> {
    storage: &'s dyn Storage,
    path: StoragePath,
    bytes: Zeroizing<Vec<u8>>,
    _lock: Box<dyn Lock>,
}

impl<'s> VmxInPlace<'s> {
    /// Begins a change.
    ///
    /// # Errors
    /// [`FileError::Refused`] where the VM runs or an operation of vmseal is pending; where another is at work on the VM.
    pub fn begin(storage: &'s dyn Storage, path: &StoragePath) -> Result<Self, FileError> {
        // What is not there gets no lock file beside it.
        storage.open(path, Access::Read)?;
        let lock = vmseal_rekey::lock(storage, path)?;
        let refused = |what: String| Err(FileError::Refused { path: path.to_string(), what });
        if let Some(pending) = vmseal_rekey::pending(storage, path)? {
            let undo = if pending.committed { "" } else { ", or undo it with `resume --rollback`" };
            let operation = pending.operation;
            return refused(format!("an interrupted {operation} has to end first; complete it with `resume`{undo}"));
        }
        if let Some(evidence) = vmseal_rekey::running(storage, path)? {
            return refused(format!("the VM is powered on or open in a VMware product ({evidence}); close it first"));
        }
        let bytes = Zeroizing::new(storage.read(path, LEN_MAX)?);
        Ok(Self { storage, path: path.clone(), bytes, _lock: lock })
    }

    /// The VMX as it is.
    ///
    /// # Errors
    /// As [`VmxFile::parse`].
    pub fn file(&self) -> Result<VmxFile, FileError> {
        VmxFile::parse(self.path.as_str(), &self.bytes)
    }

    /// Replaces the VMX atomically; gives whether that was needed.
    ///
    /// # Errors
    /// [`FileError::Changed`] where another program wrote to it meanwhile; where storage fails the VMX is as it was.
    pub fn replace(self, contents: &[u8]) -> Result<bool, FileError> {
        if contents == self.bytes.as_slice() {
            return Ok(false);
        }
        let now = Zeroizing::new(self.storage.read(&self.path, LEN_MAX)?);
        if *now != *self.bytes {
            return Err(FileError::Changed { path: self.path.to_string() });
        }
        self.storage.replace(&self.path, contents)?;
        Ok(true)
    }
}

/// Prints no content.
impl core::fmt::Debug for VmxInPlace<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmxInPlace").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A password, where a key could be asked for as well.
struct Password<'p>(&'p [u8]);

impl KeySource for Password<'_> {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        Err(KeySourceError::UnknownProvider(provider.clone()))
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        Err(KeySourceError::UnknownKey(id.clone()))
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        Some(self.0)
    }
}

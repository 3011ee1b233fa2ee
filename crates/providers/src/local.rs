//! The key providers of this machine: native ones, each in a file of the state folder.

use std::collections::BTreeMap;

use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, PrimaryKey, ProviderName, system_rng};
use vmseal_storage::{LockMode, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::native::Native;
use crate::primary_key_file::PrimaryKeyFile;

const FOLDER: &str = "providers";
const SUFFIX: &str = ".json";
/// A provider's file has some hundred bytes.
const FILE_LEN_MAX: u64 = 64 << 10;
const NATIVE_NAME_MAX: usize = 64;

/// What is known of a provider without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProviderInfo {
    /// Its name.
    pub name: ProviderName,
    /// Its kind: `native`.
    pub kind: &'static str,
    /// Identifies it whatever its name: 32 hexadecimal digits.
    pub id: String,
    /// Whether a password protects its primary key.
    pub protected: bool,
}

/// The providers in a state folder, as a source of KEKs. Primary keys are opened when they are first needed.
pub struct LocalProviders<'s> {
    home: &'s dyn Storage,
    passwords: BTreeMap<ProviderName, Zeroizing<Vec<u8>>>,
    open: BTreeMap<ProviderName, Native>,
    phrase: Option<Zeroizing<Vec<u8>>>,
}

impl<'s> LocalProviders<'s> {
    /// The providers in the state folder `home`.
    ///
    /// # Errors
    /// [`Error::Storage`] where the folder cannot be used.
    pub fn open(home: &'s dyn Storage) -> Result<Self, Error> {
        home.metadata(&StoragePath::root())?;
        Ok(Self { home, passwords: BTreeMap::new(), open: BTreeMap::new(), phrase: None })
    }

    /// Makes a native provider with a new primary key, protected by `password` where one is given.
    ///
    /// # Errors
    /// [`Error::NativeName`]; [`Error::Exists`]; [`Error::Storage`].
    pub fn create_native(&mut self, name: &ProviderName, password: Option<&[u8]>) -> Result<ProviderInfo, Error> {
        let path = file_path(name).ok_or_else(|| Error::NativeName(name.to_string()))?;
        let mut rng = system_rng();
        let key = PrimaryKey::generate(&mut rng)?;
        let mut id = [0; 16];
        getrandom(&mut id)?;
        let bytes = PrimaryKeyFile::write(name, &id, &key, password, &mut rng)?;
        self.home.create_folder(&path.folder())?;
        self.home.sync_folder(&StoragePath::root())?;
        // Two processes that make the same provider: one of them must not replace the other's key.
        let _lock = self.home.lock(&path.with_suffix(".lock"), LockMode::Exclusive)?;
        if self.home.metadata(&path)?.is_some() {
            return Err(Error::Exists(name.clone()));
        }
        self.home.replace(&path, &bytes)?;
        self.info(name)
    }

    /// Gives the password of a provider, which is tried when its key is first needed.
    pub fn set_password(&mut self, name: &ProviderName, password: Zeroizing<Vec<u8>>) {
        self.passwords.insert(name.clone(), password);
    }

    /// Gives a recovery password: it is tried where no KEK opens, and set where new keys are wrapped.
    pub fn set_phrase(&mut self, phrase: Zeroizing<Vec<u8>>) {
        self.phrase = Some(phrase);
    }

    /// What is known of a provider.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::FileDamaged`]; [`Error::Storage`].
    pub fn info(&self, name: &ProviderName) -> Result<ProviderInfo, Error> {
        let (path, bytes) = self.read(name)?;
        let file = PrimaryKeyFile::parse(&bytes, path.as_str(), name)?;
        let id = format!("{:032x}", u128::from_be_bytes(file.id().unwrap_or_default()));
        Ok(ProviderInfo { name: name.clone(), kind: "native", id, protected: file.is_protected() })
    }

    /// The names of all providers, in order; [`info`](Self::info) says more.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn names(&self) -> Result<Vec<ProviderName>, Error> {
        let folder = StoragePath::new(FOLDER)?;
        if self.home.metadata(&folder)?.is_none() {
            return Ok(Vec::new());
        }
        let names = self.home.list(&folder)?;
        let names = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
        Ok(names.filter_map(|name| ProviderName::new(name).ok()).collect())
    }

    fn read(&self, name: &ProviderName) -> Result<(StoragePath, Zeroizing<Vec<u8>>), Error> {
        let path = file_path(name).ok_or_else(|| Error::Unknown(name.clone()))?;
        if self.home.metadata(&path)?.is_none() {
            return Err(Error::Unknown(name.clone()));
        }
        let bytes = Zeroizing::new(self.home.read(&path, FILE_LEN_MAX)?);
        Ok((path, bytes))
    }

    fn native(&mut self, name: &ProviderName) -> Result<&Native, KeySourceError> {
        if !self.open.contains_key(name) {
            let opened = self.open_native(name).map_err(|error| key_source_error(error, name))?;
            self.open.insert(name.clone(), opened);
        }
        self.open.get(name).ok_or_else(|| KeySourceError::UnknownProvider(name.clone()))
    }

    fn open_native(&self, name: &ProviderName) -> Result<Native, Error> {
        let (path, bytes) = self.read(name)?;
        let file = PrimaryKeyFile::parse(&bytes, path.as_str(), name)?;
        let password = self.passwords.get(name).map(|password| password.as_slice());
        let key = file.open(path.as_str(), name, password)?;
        Ok(Native { name: name.clone(), id: file.id().unwrap_or_default(), key })
    }
}

impl KeySource for LocalProviders<'_> {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        self.native(provider)?.create(&mut system_rng())
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        self.native(id.provider())?.fetch(id)
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        self.phrase.as_ref().map(|phrase| phrase.as_slice())
    }
}

/// Prints the names of the providers in use, never a key or a password.
impl core::fmt::Debug for LocalProviders<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LocalProviders").field("open", &self.open.keys()).finish_non_exhaustive()
    }
}

/// Where a native provider's file lies; `None` for a name that no native provider can have.
fn file_path(name: &ProviderName) -> Option<StoragePath> {
    let text = name.as_str();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if text.len() > NATIVE_NAME_MAX || !starts_well || !text.bytes().all(allowed) {
        return None;
    }
    StoragePath::new(&format!("{FOLDER}/{text}{SUFFIX}")).ok()
}

fn getrandom(bytes: &mut [u8]) -> Result<(), Error> {
    use rand_core::TryRng;
    system_rng().try_fill_bytes(bytes).map_err(|_| Error::Key(vmseal_keys::Error::Random))
}

fn key_source_error(error: Error, name: &ProviderName) -> KeySourceError {
    match error {
        Error::Unknown(name) => KeySourceError::UnknownProvider(name),
        Error::PasswordNeeded(_) => KeySourceError::Locked {
            provider: name.clone(),
            what: "it is protected with a password; give it with `--provider-password-file`".to_owned(),
        },
        Error::WrongPassword(_) => KeySourceError::Locked {
            provider: name.clone(),
            what: "the password is wrong, or the provider's file is damaged".to_owned(),
        },
        source => KeySourceError::Unavailable { provider: name.clone(), source: source.into() },
    }
}

//! Keys and passwords that somebody has in hand.

use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, ProviderName};
use zeroize::Zeroizing;

/// A password, a key, or both, as a source of keys: for whoever has the key itself and no provider of it.
///
/// The key is given for every ID: what it does not open tells so by its authentication code.
#[derive(Default)]
pub struct GivenKeys {
    password: Option<Zeroizing<Vec<u8>>>,
    key: Option<Kek>,
}

impl GivenKeys {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a password.
    #[must_use]
    pub fn with_password(mut self, password: Zeroizing<Vec<u8>>) -> Self {
        self.password = Some(password);
        self
    }

    /// With a KEK.
    #[must_use]
    pub fn with_key(mut self, key: Kek) -> Self {
        self.key = Some(key);
        self
    }
}

impl KeySource for GivenKeys {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        Err(KeySourceError::UnknownProvider(provider.clone()))
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        self.unnamed().ok_or_else(|| KeySourceError::UnknownKey(id.clone()))
    }

    fn unnamed(&mut self) -> Option<Kek> {
        self.key.as_ref().and_then(|key| Kek::from_bytes(key.expose()).ok())
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        self.password.as_ref().map(|password| password.as_slice())
    }
}

/// Prints no key and no password.
impl core::fmt::Debug for GivenKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GivenKeys")
            .field("has_password", &self.password.is_some())
            .field("has_key", &self.key.is_some())
            .finish()
    }
}

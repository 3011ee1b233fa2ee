//! A key source for tests.

use std::collections::BTreeMap;

use crate::key::Kek;
use crate::key_id::{KeyId, ProviderName};
use crate::key_source::{KeySource, KeySourceError};

/// Keeps KEKs in a map; has the providers `test` and `other`.
#[derive(Debug, Default)]
pub struct TestKeys {
    keys: BTreeMap<KeyId, Kek>,
    made: u64,
    /// The recovery password that is offered.
    pub recovery: Option<Vec<u8>>,
}

impl TestKeys {
    /// Without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// A provider's name.
    ///
    /// # Panics
    /// Where it is no name.
    #[expect(clippy::unwrap_used, reason = "for tests")]
    pub fn provider(name: &str) -> ProviderName {
        ProviderName::new(name).unwrap()
    }

    /// Loses every key, as a host does that restarts.
    pub fn clear(&mut self) {
        self.keys.clear();
    }

    /// The KEKs that there are.
    pub fn keks(&self) -> impl Iterator<Item = (&KeyId, &Kek)> {
        self.keys.iter()
    }
}

impl KeySource for TestKeys {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        if !["test", "other"].contains(&provider.as_str()) {
            return Err(KeySourceError::UnknownProvider(provider.clone()));
        }
        self.made += 1;
        let unavailable =
            |source: crate::Error| KeySourceError::Unavailable { provider: provider.clone(), source: source.into() };
        let id = KeyId::new(provider.clone(), &format!("key-{}", self.made)).map_err(unavailable)?;
        self.keys.insert(id.clone(), Kek::generate(&mut crate::system_rng()).map_err(unavailable)?);
        Ok(id)
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        let kek = self.keys.get(id).ok_or_else(|| KeySourceError::UnknownKey(id.clone()))?;
        Kek::from_bytes(kek.expose())
            .map_err(|source| KeySourceError::Unavailable { provider: id.provider().clone(), source: source.into() })
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        self.recovery.as_deref()
    }
}

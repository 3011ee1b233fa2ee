//! The key side of a host: where operations get KEKs from.

use crate::key::Kek;
use crate::key_id::{KeyId, ProviderName};

/// Where KEKs come from: a local provider store, a host agent, a test's map. An embedder implements it.
pub trait KeySource {
    /// Has a new KEK made by `provider`, and returns its ID alone. The key itself comes from [`fetch`](Self::fetch): so no key is ever
    /// used that its provider has not shown to have.
    ///
    /// # Errors
    /// [`KeySourceError::UnknownProvider`], [`KeySourceError::Locked`], [`KeySourceError::Unavailable`] or
    /// [`KeySourceError::NotSupported`].
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError>;

    /// The KEK with this ID.
    ///
    /// # Errors
    /// [`KeySourceError::UnknownKey`] where the provider is there and does not have it; otherwise as [`create`](Self::create).
    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError>;

    /// A key that is at hand without its ID, to be tried on what names a key and no provider of it.
    fn unnamed(&mut self) -> Option<Kek> {
        None
    }

    /// A recovery password, to be tried where no KEK opens and to be set where new keys are wrapped.
    fn phrase(&mut self) -> Option<&[u8]> {
        None
    }
}

impl<T: KeySource + ?Sized> KeySource for &mut T {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        (**self).create(provider)
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        (**self).fetch(id)
    }

    fn unnamed(&mut self) -> Option<Kek> {
        (**self).unnamed()
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        (**self).phrase()
    }
}

/// A KEK that could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeySourceError {
    /// The provider's own key is protected, and the password is missing or wrong.
    #[error("provider {provider} is locked: {what}")]
    Locked {
        /// The provider.
        provider: ProviderName,
        /// What is missing.
        what: String,
    },
    /// This kind of provider cannot do that.
    #[error("provider {provider} does not support {what}")]
    NotSupported {
        /// The provider.
        provider: ProviderName,
        /// What was asked for.
        what: &'static str,
    },
    /// The provider does not answer, or its data is damaged.
    #[error("provider {provider} cannot be used: {source}")]
    Unavailable {
        /// The provider.
        provider: ProviderName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The provider never made, or no longer has, this key.
    #[error("provider {} has no key {}; it was made elsewhere, or by another provider of this name", .0.provider(), .0.key())]
    UnknownKey(KeyId),
    /// There is no such provider here.
    #[error(
        "there is no key provider {0} here; make it with `provider create`, or use the state folder (`--home`) that has it"
    )]
    UnknownProvider(ProviderName),
}

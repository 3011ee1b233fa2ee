//! What can go wrong with key providers.

use vmseal_keys::ProviderName;

/// A provider that could not be made, opened or listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is a provider of this name.
    #[error("there is a key provider {0} already; choose another name")]
    Exists(ProviderName),
    /// The file of a provider cannot be used.
    #[error("{path}: the provider's file {what}; restore it from a copy, and keep the damaged one")]
    FileDamaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A key could not be made or wrapped.
    #[error(transparent)]
    Key(#[from] vmseal_keys::Error),
    /// A name that a native provider cannot have.
    #[error(
        "{0:?} cannot be the name of a native provider; use 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit"
    )]
    NativeName(String),
    /// A password that protects nothing.
    #[error("the password is empty; give one, or none at all")]
    PasswordEmpty,
    /// The provider's file demands more work than is done for it.
    #[error(
        "{path}: the provider's file asks for more memory or passes of Argon2id than is allowed; it is damaged or was made to stop you"
    )]
    PasswordCost {
        /// The file.
        path: String,
    },
    /// The primary key is protected, and no password was given.
    #[error("key provider {0} is protected with a password; give it with `--provider-password-file`")]
    PasswordNeeded(ProviderName),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] vmseal_storage::Error),
    /// There is no such provider.
    #[error(
        "there is no key provider {0} here; make it with `provider create`, or use the state folder (`--home`) that has it"
    )]
    Unknown(ProviderName),
    /// The password does not open the primary key.
    #[error("the password does not open key provider {0}: it is wrong, or the provider's file is damaged")]
    WrongPassword(ProviderName),
}

//! The names of keys.

use core::fmt;

use crate::error::Error;

/// The name of a key provider.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProviderName(String);

impl ProviderName {
    /// The greatest length in characters.
    pub const MAX: usize = 128;

    /// A provider's name: 1 to 128 characters, no control characters.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(text: &str) -> Result<Self, Error> {
        check(text, "provider's name", Self::MAX).map(Self)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies a KEK: its provider, and the key there.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId {
    provider: ProviderName,
    key: String,
}

impl KeyId {
    /// The greatest length of the key's own ID in characters; a native key ID of vSphere has 140.
    pub const MAX: usize = 512;

    /// A key ID: the key's own ID has 1 to 512 characters, no control characters.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(provider: ProviderName, key: &str) -> Result<Self, Error> {
        Ok(Self { provider, key: check(key, "key ID", Self::MAX)? })
    }

    /// The provider that has the key.
    pub fn provider(&self) -> &ProviderName {
        &self.provider
    }

    /// The key's ID at its provider.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// Reads `provider/key`, as it is displayed.
impl core::str::FromStr for KeyId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (provider, key) = text.split_once('/').unwrap_or((text, ""));
        Self::new(ProviderName::new(provider)?, key)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.key)
    }
}

fn check(text: &str, what: &'static str, max: usize) -> Result<String, Error> {
    let count = text.chars().count();
    if count == 0 || count > max || text.chars().any(char::is_control) || text.trim().is_empty() {
        return Err(Error::Name { what, max });
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_limits() {
        assert!(ProviderName::new("Test KMS/1").is_ok());
        for text in ["", "  ", "a\nb", "a\u{7f}", &"x".repeat(129)] {
            assert!(ProviderName::new(text).is_err(), "{text:?}");
        }
        let provider = ProviderName::new("house").unwrap();
        assert_eq!(KeyId::new(provider.clone(), "k-1").unwrap().to_string(), "house/k-1");
        assert!(KeyId::new(provider, &"k".repeat(513)).is_err());
    }
}

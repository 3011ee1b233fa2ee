//! Key locators: what names the keys that open something.

use core::fmt::{self, Write};

use base64ct::{Base64, Encoding};
use vmseal_keys::{KeyId, ProviderName};
use zeroize::Zeroizing;

use crate::crypto_dict;
use crate::error::Error;
use crate::locator_text;

/// How deep lists and pairs may lie in each other.
pub(crate) const NESTING_MAX: usize = 8;
/// How many members a list may have.
pub(crate) const MEMBERS_MAX: usize = 64;
/// How long the text of a locator may be.
pub(crate) const TEXT_LEN_MAX: usize = 1 << 20;

/// The word for a value that is absent.
pub(crate) const NULL: &str = "<VMWARE-NULL>";
/// The word for a value of no bytes.
pub(crate) const EMPTY: &str = "<VMWARE-EMPTYSTRING>";

/// A key locator, with everything the grammar has.
///
/// Its `Display` is the canonical text. That of a [`RawKey`](Self::RawKey) is a key in the clear; `Debug` never prints
/// one.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Locator {
    /// A key of a key provider, by its ID.
    Fqid {
        /// Unique ID of the locator.
        unique_id: Option<String>,
        /// The key provider.
        server: Option<String>,
        /// The key's ID there.
        key: String,
    },
    /// A key in a directory server.
    Ldap {
        /// Unique ID of the locator.
        unique_id: Option<String>,
        /// The host.
        server: Option<String>,
        /// The domain.
        domain: Option<String>,
        /// The TCP port.
        port: u32,
        /// Whether TLS is used.
        use_ssl: bool,
        /// Where the key is.
        path: String,
    },
    /// Several ways, of which each suffices.
    List(Vec<Locator>),
    /// No key.
    Null,
    /// Something that is locked under a key.
    Pair(Box<Pair>),
    /// A key from a phrase.
    Phrase {
        /// Identifies the phrase.
        id: String,
        /// How the key is derived, as a crypto dict.
        parameters: String,
    },
    /// A key in the clear, as a crypto dict.
    RawKey(RawKey),
    /// A key that the product has for a role.
    Role {
        /// Unique ID of the locator.
        unique_id: Option<String>,
        /// The role.
        role: Role,
    },
    /// A key that a program prints.
    Script {
        /// Unique ID of the locator.
        unique_id: Option<String>,
        /// The program.
        path: String,
        /// Its signature.
        signature: Vec<u8>,
    },
    /// A type that is not known here: it opens nothing and is written back as it was. Only inside lists and pairs,
    /// where its end shows.
    Unknown(String),
}

/// Something that is locked under a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pair {
    /// Names the key.
    pub locker: Locator,
    /// Names the MAC, as `HMAC-SHA-256`.
    pub mac: String,
    /// The locked blob.
    pub data: Vec<u8>,
}

/// Whose key the product has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// `adminIdent`.
    AdminIdent,
    /// `adminRecovery`.
    AdminRecovery,
    /// `obfuscation`: a key that every copy of the product has.
    Obfuscation,
    /// `server`.
    Server,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::AdminIdent, Self::AdminRecovery, Self::Obfuscation, Self::Server];

    /// The name in a locator.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdminIdent => "adminIdent",
            Self::AdminRecovery => "adminRecovery",
            Self::Obfuscation => "obfuscation",
            Self::Server => "server",
        }
    }
}

/// The bytes of a key in the clear, which the caller must not keep or print.
#[derive(Clone, Eq, PartialEq)]
pub struct RawKey(pub(crate) Zeroizing<Vec<u8>>);

impl RawKey {
    /// A key's text, most often a crypto dict; the caller wipes its own copy.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawKey { .. }")
    }
}

impl Locator {
    /// Reads a locator with its prefix, `vmware:key/`.
    ///
    /// # Errors
    /// [`Error::Limit`] before any work where the text is longer than 1 MiB, nested deeper than 8, or has a list of
    /// more than 64 members; [`Error::Syntax`], [`Error::Escape`], [`Error::Base64`], [`Error::Encoding`],
    /// [`Error::Value`] or [`Error::Unknown`], with the byte offset.
    pub fn parse(text: &str) -> Result<Self, Error> {
        locator_text::parse(text)
    }

    /// The ID of the key that an `fqid` locator names; none for other locators, and where it names no provider.
    pub fn key_id(&self) -> Option<KeyId> {
        match self {
            Self::Fqid { server: Some(server), key, .. } => KeyId::new(ProviderName::new(server).ok()?, key).ok(),
            _ => None,
        }
    }

    /// The name of its type.
    pub fn kind(&self) -> &str {
        match self {
            Self::Fqid { .. } => "fqid",
            Self::Ldap { .. } => "ldap",
            Self::List(_) => "list",
            Self::Null => "null",
            Self::Pair(_) => "pair",
            Self::Phrase { .. } => "phrase",
            Self::RawKey(_) => "rawkey",
            Self::Role { .. } => "role",
            Self::Script { .. } => "script",
            Self::Unknown(text) => text.split('/').next().unwrap_or_default(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Unknown(text) = self {
            return f.write_str(text);
        }
        write!(f, "{}/", self.kind())?;
        match self {
            Self::Fqid { unique_id, server, key } => {
                write_optional(unique_id.as_deref(), f)?;
                write_optional(server.as_deref(), f)?;
                write_element(key.as_bytes(), f)
            }
            Self::Ldap { unique_id, server, domain, port, use_ssl, path } => {
                write_optional(unique_id.as_deref(), f)?;
                write_optional(server.as_deref(), f)?;
                write_optional(domain.as_deref(), f)?;
                write!(f, "{port}/{}/", if *use_ssl { "TRUE" } else { "FALSE" })?;
                write_element(path.as_bytes(), f)
            }
            Self::List(members) => {
                f.write_char('(')?;
                for (index, member) in members.iter().enumerate() {
                    if index > 0 {
                        f.write_char(',')?;
                    }
                    member.write(f)?;
                }
                f.write_char(')')
            }
            // The one place where the word itself is escaped.
            Self::Null => crypto_dict::escape_element(EMPTY.as_bytes(), f),
            Self::Pair(pair) => pair.write(f),
            Self::Phrase { id, parameters } => {
                write_element(id.as_bytes(), f)?;
                f.write_char('/')?;
                write_element(parameters.as_bytes(), f)
            }
            Self::RawKey(key) => write_element(key.expose(), f),
            Self::Role { unique_id, role } => {
                write_optional(unique_id.as_deref(), f)?;
                f.write_str(role.name())
            }
            Self::Script { unique_id, path, signature } => {
                write_optional(unique_id.as_deref(), f)?;
                write_element(path.as_bytes(), f)?;
                f.write_char('/')?;
                write_element(signature, f)
            }
            Self::Unknown(_) => Ok(()),
        }
    }
}

impl Pair {
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('(')?;
        self.locker.write(f)?;
        f.write_char(',')?;
        write_element(self.mac.as_bytes(), f)?;
        f.write_char(',')?;
        write_element(Base64::encode_string(&self.data).as_bytes(), f)?;
        f.write_char(')')
    }
}

/// The canonical text.
impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vmware:key/")?;
        self.write(f)
    }
}

fn write_optional(text: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match text {
        Some(text) => write_element(text.as_bytes(), f)?,
        None => f.write_str(NULL)?,
    }
    f.write_char('/')
}

fn write_element(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if bytes.is_empty() { f.write_str(EMPTY) } else { crypto_dict::escape_element(bytes, f) }
}

/// What parses is written canonically, and parses to the same.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    if let Ok(text) = core::str::from_utf8(data)
        && let Ok(locator) = Locator::parse(text)
    {
        let canonical = locator.to_string();
        let again = Locator::parse(&canonical);
        assert!(again.is_ok_and(|again| again == locator && again.to_string() == canonical));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = String> {
        "\\PC{0,12}".prop_filter("words of the grammar", |text| text != NULL && text != EMPTY)
    }

    pub(crate) fn locators() -> impl Strategy<Value = Locator> {
        let optional = || proptest::option::of(word());
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![
            Just(Locator::Null),
            bytes().prop_map(|bytes| Locator::RawKey(RawKey::new(&bytes))),
            (word(), word()).prop_map(|(id, parameters)| Locator::Phrase { id, parameters }),
            (optional(), optional(), optional(), any::<u32>(), any::<bool>(), word()).prop_map(
                |(unique_id, server, domain, port, use_ssl, path)| Locator::Ldap {
                    unique_id,
                    server,
                    domain,
                    port,
                    use_ssl,
                    path
                }
            ),
            (optional(), word(), bytes()).prop_map(|(unique_id, path, signature)| Locator::Script {
                unique_id,
                path,
                signature
            }),
            (optional(), proptest::sample::select(Role::ALL.to_vec()))
                .prop_map(|(unique_id, role)| Locator::Role { unique_id, role }),
            (optional(), optional(), word()).prop_map(|(unique_id, server, key)| Locator::Fqid {
                unique_id,
                server,
                key
            }),
        ];
        leaf.prop_recursive(6, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Locator::List),
                (inner, word(), proptest::collection::vec(any::<u8>(), 0..40))
                    .prop_map(|(locker, mac, data)| Locator::Pair(Box::new(Pair { locker, mac, data }))),
            ]
        })
    }

    proptest! {
        #[test]
        fn random_trees_survive(locator in locators()) {
            let text = locator.to_string();
            let again = Locator::parse(&text);
            prop_assert!(again.as_ref().is_ok_and(|again| again == &locator), "{} {:?}", text, again);
        }

        #[test]
        fn no_text_panics(text in "(vmware:key/)?[a-z/(),%<>A-Z0-9-]{0,60}") {
            let _ = Locator::parse(&text);
        }
    }

    #[test]
    fn debug_prints_no_key() {
        let locator = Locator::parse("vmware:key/rawkey/type%3dkey%3asecret").unwrap();
        assert_eq!(format!("{locator:?}"), "RawKey(RawKey { .. })");
    }
}

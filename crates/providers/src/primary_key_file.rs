//! The file of a native provider: its primary key, in the clear or under a password.
//!
//! A JSON document, described in `docs/formats/provider.md`. It is the one place on storage where a primary key lies.

use argon2::{Algorithm, Argon2, Params, Version};
use base64ct::{Base64, Encoding};
use rand_core::TryCryptoRng;
use serde::{Deserialize, Serialize};
use vmseal_keys::{Context, Kek, PrimaryKey, ProviderName, Purpose, WrapAlgorithm, unwrap, wrap};
use zeroize::Zeroizing;

use crate::error::Error;

/// The version of the file that this library writes and reads.
const VERSION: u32 = 1;
const KIND: &str = "native";
/// RFC 9106, 4: the second recommended option (64 MiB, 3 passes, 4 lanes).
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What is done for a file at most: 1 GiB and a few seconds.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 32;
const LANES_MAX: u32 = 64;
const SALT_LEN: usize = 16;

/// A native provider as it lies in its file. Text is borrowed from the file's bytes, so that those are the only copy to wipe.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrimaryKeyFile<'a> {
    version: u32,
    kind: &'a str,
    name: &'a str,
    /// Identifies the provider whatever its name: 32 hexadecimal digits.
    id: &'a str,
    protection: Protection<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "type")]
enum Protection<'a> {
    None { primary_key: &'a str },
    Argon2id { salt: &'a str, memory_kib: u32, passes: u32, lanes: u32, wrapped_primary_key: &'a str },
}

impl<'a> PrimaryKeyFile<'a> {
    /// The bytes of a new provider's file.
    pub(crate) fn write<R: TryCryptoRng>(
        name: &ProviderName,
        id: &[u8; 16],
        key: &PrimaryKey,
        password: Option<&[u8]>,
        rng: &mut R,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let encoded;
        let (salt_text, wrapped_text);
        let protection = match password {
            None => {
                encoded = Zeroizing::new(Base64::encode_string(key.expose()));
                Protection::None { primary_key: &encoded }
            }
            Some([]) => return Err(Error::PasswordEmpty),
            Some(password) => {
                let mut salt = [0; SALT_LEN];
                rng.try_fill_bytes(&mut salt).map_err(|_| vmseal_keys::Error::Random)?;
                let cost = Params::new(MEMORY_KIB, PASSES, LANES, Some(Kek::LEN));
                let under = cost.ok().and_then(|cost| stretch(password, &salt, cost));
                let under = under.ok_or(vmseal_keys::Error::WrongKey)?;
                let wrapped = wrap(WrapAlgorithm::Aes256Gcm, &under, key.expose(), &context(id), rng)?;
                salt_text = Base64::encode_string(&salt);
                wrapped_text = Base64::encode_string(&wrapped);
                Protection::Argon2id {
                    salt: &salt_text,
                    memory_kib: MEMORY_KIB,
                    passes: PASSES,
                    lanes: LANES,
                    wrapped_primary_key: &wrapped_text,
                }
            }
        };
        let id = format!("{:032x}", u128::from_be_bytes(*id));
        let file = PrimaryKeyFile { version: VERSION, kind: KIND, name: name.as_str(), id: &id, protection };
        // Large enough that growing leaves no copy of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        match serde_json::to_writer_pretty(&mut *bytes, &file) {
            Ok(()) => bytes.push(b'\n'),
            Err(_) => unreachable!("text and numbers always serialise into memory"),
        }
        Ok(bytes)
    }

    /// One place where the bytes of a provider's file become a value.
    pub(crate) fn parse(bytes: &'a [u8], path: &str, name: &ProviderName) -> Result<Self, Error> {
        let damaged = |what: String| Error::FileDamaged { path: path.to_owned(), what };
        // The message of the JSON parser could quote the text.
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|error| damaged(format!("is damaged at line {}, column {}", error.line(), error.column())))?;
        if file.version != VERSION || file.kind != KIND {
            return Err(damaged(format!("is of another kind or version ({} {})", file.kind, file.version)));
        }
        if file.name != name.as_str() {
            return Err(damaged(format!("belongs to provider {:?}", file.name)));
        }
        file.id().ok_or_else(|| damaged("has no ID of 32 hexadecimal digits".to_owned()))?;
        Ok(file)
    }

    /// The identity of the provider.
    pub(crate) fn id(&self) -> Option<[u8; 16]> {
        if self.id.len() != 32 || !self.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        Some(u128::from_str_radix(self.id, 16).ok()?.to_be_bytes())
    }

    /// Whether a password protects the primary key.
    pub(crate) fn is_protected(&self) -> bool {
        matches!(self.protection, Protection::Argon2id { .. })
    }

    /// The primary key.
    pub(crate) fn open(&self, path: &str, name: &ProviderName, password: Option<&[u8]>) -> Result<PrimaryKey, Error> {
        let damaged = |what: &str| Error::FileDamaged { path: path.to_owned(), what: what.to_owned() };
        match &self.protection {
            Protection::None { primary_key } => {
                let mut bytes = Zeroizing::new([0; PrimaryKey::LEN]);
                match Base64::decode(primary_key, bytes.as_mut_slice()) {
                    Ok(key) if key.len() == PrimaryKey::LEN => Ok(PrimaryKey::from_bytes(&bytes)?),
                    _ => Err(damaged("has no primary key of 32 bytes")),
                }
            }
            Protection::Argon2id { salt, memory_kib, passes, lanes, wrapped_primary_key } => {
                let password = password.ok_or_else(|| Error::PasswordNeeded(name.clone()))?;
                if *memory_kib > MEMORY_KIB_MAX || *passes > PASSES_MAX || *lanes > LANES_MAX {
                    return Err(Error::PasswordCost { path: path.to_owned() });
                }
                let cost = Params::new(*memory_kib, *passes, *lanes, Some(Kek::LEN));
                let cost = cost.map_err(|_| damaged("has parameters of Argon2id that do not exist"))?;
                let salt = Base64::decode_vec(salt).map_err(|_| damaged("has a salt that is not base64"))?;
                let wrapped = Base64::decode_vec(wrapped_primary_key)
                    .map_err(|_| damaged("has a wrapped key that is not base64"))?;
                let under = stretch(password, &salt, cost).ok_or_else(|| damaged("has a salt of a wrong length"))?;
                let id = self.id().ok_or_else(|| damaged("has no ID"))?;
                let key = unwrap(WrapAlgorithm::Aes256Gcm, &under, &wrapped, &context(&id))
                    .map_err(|_| Error::WrongPassword(name.clone()))?;
                Ok(PrimaryKey::from_slice(&key)?)
            }
        }
    }
}

fn context(id: &[u8; 16]) -> Context {
    Context::new(Purpose::PrimaryKey, id)
}

/// Argon2id (RFC 9106), version 0x13.
fn stretch(password: &[u8], salt: &[u8], cost: Params) -> Option<Kek> {
    let mut key = Zeroizing::new([0; Kek::LEN]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, cost)
        .hash_password_into(password, salt, key.as_mut_slice())
        .ok()?;
    Kek::from_bytes(&key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmseal_keys::system_rng;

    fn name() -> ProviderName {
        ProviderName::new("house").unwrap()
    }

    #[test]
    fn a_primary_key_survives_its_file() {
        let key = PrimaryKey::generate(&mut system_rng()).unwrap();
        for password in [None, Some(b"correct horse".as_slice())] {
            let bytes = PrimaryKeyFile::write(&name(), &[7; 16], &key, password, &mut system_rng()).unwrap();
            let file = PrimaryKeyFile::parse(&bytes, "f", &name()).unwrap();
            assert_eq!(file.id(), Some([7; 16]));
            assert_eq!(file.is_protected(), password.is_some());
            assert!(file.open("f", &name(), password).unwrap() == key);
            let clear = Base64::encode_string(key.expose());
            assert_eq!(String::from_utf8_lossy(&bytes).contains(&clear), password.is_none());
        }
    }

    #[test]
    fn a_wrong_password_and_no_password_are_told_apart() {
        let key = PrimaryKey::generate(&mut system_rng()).unwrap();
        let bytes = PrimaryKeyFile::write(&name(), &[7; 16], &key, Some(b"right"), &mut system_rng()).unwrap();
        let file = PrimaryKeyFile::parse(&bytes, "f", &name()).unwrap();
        assert!(matches!(file.open("f", &name(), None), Err(Error::PasswordNeeded(_))));
        assert!(matches!(file.open("f", &name(), Some(b"wrong")), Err(Error::WrongPassword(_))));
        // The wrapped key belongs to one provider.
        let moved = String::from_utf8(bytes.to_vec()).unwrap().replace(&"07".repeat(16), &"08".repeat(16));
        let file = PrimaryKeyFile::parse(moved.as_bytes(), "f", &name()).unwrap();
        assert!(matches!(file.open("f", &name(), Some(b"right")), Err(Error::WrongPassword(_))));
        assert!(matches!(
            PrimaryKeyFile::write(&name(), &[7; 16], &key, Some(b""), &mut system_rng()),
            Err(Error::PasswordEmpty)
        ));
    }

    #[test]
    fn costs_and_damage_are_found_before_any_work() {
        let key = PrimaryKey::generate(&mut system_rng()).unwrap();
        let bytes = PrimaryKeyFile::write(&name(), &[7; 16], &key, Some(b"right"), &mut system_rng()).unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let costly = text.replace("\"memory_kib\": 65536", "\"memory_kib\": 4000000000");
        assert_ne!(costly, text);
        let file = PrimaryKeyFile::parse(costly.as_bytes(), "f", &name()).unwrap();
        assert!(matches!(file.open("f", &name(), Some(b"right")), Err(Error::PasswordCost { .. })));
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"house\"", "\"mouse\""),
            ("{", "["),
            ("\"id\": \"0", "\"id\": \"x"),
        ] {
            let damaged = text.replacen(from, to, 1);
            assert_ne!(damaged, text);
            assert!(
                matches!(PrimaryKeyFile::parse(damaged.as_bytes(), "f", &name()), Err(Error::FileDamaged { .. })),
                "{to}"
            );
        }
    }
}

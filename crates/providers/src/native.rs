//! A native provider: one primary key, from which each KEK is derived by its ID.
//!
//! Whoever has the primary key has every KEK, those made before and after, so that a copy of it is a complete backup and a host that was
//! given it needs to ask nobody. A key ID is `1-<32 hexadecimal digits>-<16 hexadecimal digits>`: the version of this rule, 16 random
//! bytes, and 8 bytes that only the primary key makes for them, so that a provider knows its own IDs from all others.

use hkdf::Hkdf;
use rand_core::TryCryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use vmseal_keys::{Kek, KeyId, KeySourceError, PrimaryKey, ProviderName};
use zeroize::Zeroizing;

const SALT_LEN: usize = 16;
const CHECK_LEN: usize = 8;

/// An open native provider.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) name: ProviderName,
    pub(crate) id: [u8; 16],
    pub(crate) key: PrimaryKey,
}

impl Native {
    /// The ID of a new KEK.
    pub(crate) fn create<R: TryCryptoRng>(&self, rng: &mut R) -> Result<KeyId, KeySourceError> {
        let failed = |source: vmseal_keys::Error| KeySourceError::Unavailable {
            provider: self.name.clone(),
            source: source.into(),
        };
        let mut salt = [0; SALT_LEN];
        rng.try_fill_bytes(&mut salt).map_err(|_| failed(vmseal_keys::Error::Random))?;
        let check = u64::from_be_bytes(self.check(&salt));
        let text = format!("1-{:032x}-{check:016x}", u128::from_be_bytes(salt));
        KeyId::new(self.name.clone(), &text).map_err(failed)
    }

    /// The KEK with this ID, where this provider made that.
    pub(crate) fn fetch(&self, id: &KeyId) -> Result<Kek, KeySourceError> {
        let unknown = || KeySourceError::UnknownKey(id.clone());
        let (salt, check) = parse(id.key()).ok_or_else(unknown)?;
        if !bool::from(self.check(&salt).ct_eq(&check)) {
            return Err(unknown());
        }
        let mut key = Zeroizing::new([0; Kek::LEN]);
        self.derive(b"vmseal native kek 1", &salt, key.as_mut_slice());
        Kek::from_bytes(&key)
            .map_err(|source| KeySourceError::Unavailable { provider: self.name.clone(), source: source.into() })
    }

    fn check(&self, salt: &[u8; SALT_LEN]) -> [u8; CHECK_LEN] {
        let mut check = [0; CHECK_LEN];
        self.derive(b"vmseal native key id 1", salt, &mut check);
        check
    }

    /// HKDF-SHA-256 (RFC 5869): salt is the provider's ID, info the purpose and what belongs to the one key.
    fn derive(&self, purpose: &[u8], salt: &[u8; SALT_LEN], output: &mut [u8]) {
        let hkdf = Hkdf::<Sha256>::new(Some(&self.id), self.key.expose());
        if hkdf.expand_multi_info(&[purpose, b" ", salt], output).is_err() {
            unreachable!("HKDF-SHA-256 gives up to 8160 bytes (RFC 5869, 2.3)");
        }
    }
}

fn parse(key: &str) -> Option<([u8; SALT_LEN], [u8; CHECK_LEN])> {
    let (salt, check) = key.strip_prefix("1-")?.split_once('-')?;
    let is_hex = |text: &str, len: usize| {
        text.len() == len * 2 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !is_hex(salt, SALT_LEN) || !is_hex(check, CHECK_LEN) {
        return None;
    }
    Some((u128::from_str_radix(salt, 16).ok()?.to_be_bytes(), u64::from_str_radix(check, 16).ok()?.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmseal_keys::system_rng;

    fn native(byte: u8) -> Native {
        let name = ProviderName::new("house").unwrap();
        Native { name, id: [byte; 16], key: PrimaryKey::from_bytes(&[byte; 32]).unwrap() }
    }

    #[test]
    fn every_key_is_another_and_can_be_had_again() {
        let provider = native(1);
        let (first, second) =
            (provider.create(&mut system_rng()).unwrap(), provider.create(&mut system_rng()).unwrap());
        assert_ne!(first, second);
        assert!(provider.fetch(&first).unwrap() != provider.fetch(&second).unwrap());
        assert!(provider.fetch(&first).unwrap() == native(1).fetch(&first).unwrap());
    }

    #[test]
    fn a_key_that_this_provider_did_not_make_is_unknown() {
        let id = native(1).create(&mut system_rng()).unwrap();
        let altered = |text: String| KeyId::new(id.provider().clone(), &text).unwrap();
        assert!(matches!(native(2).fetch(&id), Err(KeySourceError::UnknownKey(_))));
        for text in [
            id.key().replacen("1-", "2-", 1),
            id.key().to_uppercase(),
            format!("{}0", id.key()),
            id.key()[..id.key().len() - 1].to_owned(),
            format!("1-{}-{}", "0".repeat(32), "0".repeat(16)),
            "cert".to_owned(),
        ] {
            if altered(text.clone()) != id {
                assert!(
                    matches!(native(1).fetch(&altered(text.clone())), Err(KeySourceError::UnknownKey(_))),
                    "{text}"
                );
            }
        }
    }

    /// What one release derived, every later one has to derive: a changed rule would lock every VM out.
    #[test]
    fn the_derivation_stays_what_it_was() {
        let id = KeyId::new(ProviderName::new("house").unwrap(), KNOWN_ID).unwrap();
        assert_eq!(native(1).fetch(&id).unwrap().expose(), &KNOWN_KEK);
    }

    const KNOWN_ID: &str = "1-00000000000000000000000000000000-dd7caeeaf9bacd18";
    // Computed with Python's hmac and hashlib from RFC 5869.
    const KNOWN_KEK: [u8; 32] = [
        0x9c, 0xe3, 0x99, 0xa0, 0xb6, 0xcf, 0xd3, 0x80, 0xef, 0xd4, 0x54, 0x5e, 0x46, 0x00, 0x1a, 0x69, 0xba, 0x61,
        0xca, 0x16, 0x19, 0xc0, 0xbf, 0x55, 0xa4, 0x21, 0x7b, 0x79, 0x9a, 0x78, 0x07, 0xfb,
    ];
}

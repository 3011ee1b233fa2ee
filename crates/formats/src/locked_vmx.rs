//! An encrypted VMX as it lies on disk.

use vmseal_keys::key_safe_pair::{self, PairMac};
use vmseal_keys::{KeySource, kdf};
use zeroize::Zeroizing;

use crate::crypto_dict;
use crate::dictionary::Dictionary;
use crate::error::{Error, Place};
use crate::key_dict::KeyDict;
use crate::key_list::{self, KeyList};
use crate::unlocked_vmx::{Secret, UnlockedVmx};

pub(crate) const KEY_SAFE: &str = "encryption.keySafe";
pub(crate) const DATA: &str = "encryption.data";
pub(crate) const BUNDLE: &str = "encryption.bundle";
pub(crate) const TYPE: &str = "vmx.encryptionType";

/// How a VMX hides its secrets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Style {
    /// ESXi: every pair of `encryption.bundle` holds the secrets themselves.
    Bundle,
    /// Workstation and Fusion: every pair of `encryption.keySafe` holds the key of `encryption.data`.
    KeySafe,
}

/// An encrypted VMX: what is in the clear, and the locks.
#[derive(Clone, Debug)]
pub struct LockedVmx {
    outer: Dictionary,
    list: KeyList,
    style: Style,
}

impl LockedVmx {
    /// Finds the locks of a VMX; none where it is not encrypted.
    ///
    /// # Errors
    /// [`Error::Missing`] where one of `encryption.keySafe` and `encryption.data` is there without the other; those of
    /// [`KeyList::parse`], with line and column.
    pub fn new(vmx: Dictionary) -> Result<Option<Self>, Error> {
        let part = "encrypted VMX";
        let (name, style) = match (vmx.line(KEY_SAFE), vmx.line(DATA), vmx.line(BUNDLE)) {
            (Some(_), Some(_), _) => (KEY_SAFE, Style::KeySafe),
            (Some(_), None, _) => return Err(Error::Missing { name: DATA, part }),
            (None, Some(_), _) => return Err(Error::Missing { name: KEY_SAFE, part }),
            (None, None, Some(_)) => (BUNDLE, Style::Bundle),
            (None, None, None) => return Ok(None),
        };
        let text = vmx.text(name)?.unwrap_or_default();
        let list = KeyList::parse(&text).map_err(|error| at(&vmx, name, error))?;
        Ok(Some(Self { outer: vmx, list, style }))
    }

    /// What is in the clear.
    pub fn outer(&self) -> &Dictionary {
        &self.outer
    }

    /// The locks.
    pub fn key_list(&self) -> &KeyList {
        &self.list
    }

    /// How it hides its secrets.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Whether most entries are in the clear, as for guests that have a virtual TPM alone.
    pub fn is_partial(&self) -> bool {
        let word = self.outer.value(TYPE);
        self.style == Style::Bundle || word.is_some_and(|word| word.eq_ignore_ascii_case(b"partial"))
    }

    /// Opens it with the first lock for which there is a phrase or key.
    ///
    /// # Errors
    /// As [`KeyList::open_with`]; [`Error::NotAuthentic`], [`Error::Base64`] and [`Error::Length`] for
    /// `encryption.data`; those of [`KeyDict::parse`] for a key that was locked in a way that no product locks it.
    pub fn unlock(self, keys: &mut dyn KeySource) -> Result<UnlockedVmx, Error> {
        self.unlock_up_to(keys, kdf::ROUNDS_MAX)
    }

    /// Opens it as [`unlock`](Self::unlock) does, with another limit for the rounds of key derivation.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub fn unlock_up_to(self, keys: &mut dyn KeySource, rounds_max: u32) -> Result<UnlockedVmx, Error> {
        match self.style {
            Style::Bundle => {
                let (text, by, index) = self.list.open_where(keys, rounds_max, |_, plaintext| Ok(plaintext))?;
                Ok(UnlockedVmx::opened(self.outer, self.list, Secret::Bundle, text, by, index))
            }
            Style::KeySafe => {
                let open =
                    self.list.open_where(keys, rounds_max, |pair, text| Ok((KeyDict::parse(&text)?, pair.mac()?)));
                let ((key, pair_mac), by, index) = open?;
                let (text, data_mac) = open_data(&self.outer, &key, pair_mac)?;
                let secret = Secret::KeySafe { key, data_mac };
                Ok(UnlockedVmx::opened(self.outer, self.list, secret, text, by, index))
            }
        }
    }
}

/// Decrypts `encryption.data`. Its MAC is named nowhere: it is the one that the pair names, or HMAC-SHA-1 as in every
/// real file; the others come last, since a lock that was added may name another MAC than the data has.
fn open_data(vmx: &Dictionary, key: &KeyDict, pair_mac: PairMac) -> Result<(Zeroizing<Vec<u8>>, PairMac), Error> {
    let place = vmx.place(DATA).unwrap_or(Place::Byte(0));
    let text = vmx.value(DATA).unwrap_or_default();
    let text = core::str::from_utf8(&text).map_err(|_| Error::Base64 { what: DATA, place })?;
    let blob = crypto_dict::decode_base64(text, DATA, place)?;
    let mut found = Err(Error::NotAuthentic { what: DATA });
    for (index, mac) in [pair_mac, PairMac::HmacSha1].into_iter().chain(PairMac::ALL).enumerate() {
        let opened = key_list::check_blob_length(&blob, mac, DATA).and_then(|()| {
            let opened = key_safe_pair::unlock(key.cipher(), mac, key.expose(), &blob);
            opened.map_err(|_| Error::NotAuthentic { what: DATA })
        });
        match opened {
            Ok(plaintext) => return Ok((plaintext, mac)),
            Err(error) if index == 0 => found = Err(error),
            Err(_) => {}
        }
    }
    found
}

/// An error inside the value of an entry, with the line of the entry.
fn at(vmx: &Dictionary, name: &str, error: Error) -> Error {
    match vmx.place(name) {
        Some(Place::Line { line, column }) => error.within(line, column),
        _ => error,
    }
}

/// Under one phrase: whatever is unlocked is written back as it was, or locks to something that opens.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    use vmseal_keys::{Kek, KeyId, KeySourceError, ProviderName};
    struct Keys;
    impl KeySource for Keys {
        fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
            Err(KeySourceError::UnknownProvider(provider.clone()))
        }
        fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
            Kek::from_bytes(&[7; 32]).map_err(|_| KeySourceError::UnknownKey(id.clone()))
        }
        fn phrase(&mut self) -> Option<&[u8]> {
            Some(b"base")
        }
    }
    let vmx = Dictionary::parse(data);
    let Ok(Some(locked)) = LockedVmx::new(vmx.clone()) else { return };
    let Ok(mut unlocked) = locked.unlock_up_to(&mut Keys, 2000) else { return };
    let same = unlocked.lock(&mut Keys, &mut vmseal_keys::system_rng());
    assert!(same.is_ok_and(|same| same == vmx));
    if unlocked.set("vmseal.fuzz", b"1").is_ok()
        && let Ok(changed) = unlocked.lock(&mut Keys, &mut vmseal_keys::system_rng())
        && let Ok(Some(again)) = LockedVmx::new(changed)
    {
        let again = again.unlock_up_to(&mut Keys, 2000);
        assert!(again.is_ok_and(|again| again.value("vmseal.fuzz").is_some_and(|value| value.as_slice() == b"1")));
    }
}

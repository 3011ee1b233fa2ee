//! An encrypted VMX that was opened: read, changed and locked again where it lies.

use base64ct::{Base64, Encoding};
use rand_core::TryCryptoRng;
use vmseal_keys::key_safe_pair::{self, PairCipher, PairMac};
use vmseal_keys::{Kek, KeyId, KeySource};
use zeroize::Zeroizing;

use crate::dictionary::Dictionary;
use crate::error::Error;
use crate::key_dict::KeyDict;
use crate::key_list::{KeyList, OpenedBy};
use crate::locator::Pair;
use crate::locked_vmx::{BUNDLE, DATA, KEY_SAFE, Style, TYPE};
use crate::phrase::PhraseParameters;
use crate::vmx_split;

/// The entry with the key of NVRAM, snapshots and memory.
const DATA_FILE_KEY: &str = "dataFileKey";

/// What the pairs lock.
#[derive(Clone, Debug)]
pub(crate) enum Secret {
    /// The hidden entries themselves.
    Bundle,
    /// The key of the hidden entries, which have a MAC of their own.
    KeySafe { key: KeyDict, data_mac: PairMac },
}

/// An encrypted VMX that was opened.
///
/// It is one dictionary in two parts: the entries in the clear and the hidden ones, which win where a name is in both.
/// Parts that were not changed are written back byte for byte.
#[derive(Clone, Debug)]
pub struct UnlockedVmx {
    outer: Dictionary,
    hidden: Dictionary,
    list: KeyList,
    secret: Secret,
    /// The hidden entries as they are on disk; none where they are not there yet.
    locked: Option<Dictionary>,
    list_is_changed: bool,
    by: Option<OpenedBy>,
    opened_index: usize,
}

impl UnlockedVmx {
    /// Prepares a VMX that is not encrypted, in the style of Workstation, with a new key. It gets its locks by
    /// [`add_phrase`](Self::add_phrase) or [`add_key`](Self::add_key).
    ///
    /// All entries are hidden but the few that every encrypted VMX shows; or, with `names`, these alone.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Encoding`] and [`Error::Unknown`] where a text cannot be read in the file's
    /// encoding; [`Error::Unsupported`] where the VMX is encrypted.
    pub fn with_key_safe<R: TryCryptoRng>(
        vmx: &Dictionary,
        names: Option<&[&str]>,
        cipher: PairCipher,
        rng: &mut R,
    ) -> Result<Self, Error> {
        let mut key = Zeroizing::new(vec![0; cipher.key_len()]);
        rng.try_fill_bytes(&mut key).map_err(|_| Error::Random)?;
        let secret = Secret::KeySafe { key: KeyDict::new(cipher, &key)?, data_mac: PairMac::HmacSha1 };
        Self::with_secret(vmx, names, secret)
    }

    /// Prepares a VMX that is not encrypted, in the style of ESXi: the named entries are hidden.
    ///
    /// # Errors
    /// As [`with_key_safe`](Self::with_key_safe).
    pub fn with_bundle(vmx: &Dictionary, names: &[&str]) -> Result<Self, Error> {
        Self::with_secret(vmx, Some(names), Secret::Bundle)
    }

    pub(crate) fn opened(
        outer: Dictionary,
        list: KeyList,
        secret: Secret,
        text: Zeroizing<Vec<u8>>,
        by: OpenedBy,
        opened_index: usize,
    ) -> Self {
        let hidden = Dictionary::from_text(text);
        let locked = Some(hidden.clone());
        Self { outer, hidden, list, secret, locked, list_is_changed: false, by: Some(by), opened_index }
    }

    fn with_secret(vmx: &Dictionary, names: Option<&[&str]>, secret: Secret) -> Result<Self, Error> {
        if [KEY_SAFE, DATA, BUNDLE].iter().any(|name| vmx.line(name).is_some()) {
            return Err(Error::Unsupported { what: "a VMX that is encrypted", why: "unlock it, and change its locks" });
        }
        let (mut outer, hidden) = vmx_split::split(vmx, names)?;
        if names.is_some() && matches!(secret, Secret::KeySafe { .. }) {
            outer.set(TYPE, b"partial");
        }
        let list = KeyList::new();
        Ok(Self {
            outer,
            hidden,
            list,
            secret,
            locked: None,
            list_is_changed: true,
            by: None,
            opened_index: usize::MAX,
        })
    }

    /// Sets an entry, where it is; a new one is hidden, unless most entries are in the clear.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the entries that hold the locks.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.part_of(name)?.set(name, value);
        Ok(())
    }

    /// Sets an entry to a text, as [`set`](Self::set) does.
    ///
    /// # Errors
    /// As [`set`](Self::set); [`Error::Encoding`] where the part's encoding has no such characters.
    pub fn set_text(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.part_of(name)?.set_text(name, value)
    }

    /// Removes an entry from both parts.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.part_of(name)?;
        self.outer.remove(name);
        self.hidden.remove(name);
        Ok(())
    }

    /// Puts a text that a person edited in the place of the hidden entries.
    pub fn set_hidden(&mut self, text: Dictionary) {
        self.hidden = text;
    }

    /// Adds a lock with a phrase.
    ///
    /// # Errors
    /// [`Error::Random`], [`Error::Limit`].
    pub fn add_phrase<R: TryCryptoRng>(
        &mut self,
        phrase: &[u8],
        parameters: &PhraseParameters,
        rng: &mut R,
    ) -> Result<(), Error> {
        let pair = self.phrase_pair(phrase, parameters, rng)?;
        self.list.push(pair);
        self.list_is_changed = true;
        Ok(())
    }

    /// Adds a lock with a key of a provider.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn add_key<R: TryCryptoRng>(&mut self, id: &KeyId, kek: &Kek, rng: &mut R) -> Result<(), Error> {
        self.list.push(KeyList::lock_under(id, kek, &self.locked_text(), rng)?);
        self.list_is_changed = true;
        Ok(())
    }

    /// Puts a new phrase in the place of the lock that was opened. Other locks, and `encryption.data`, stay as they
    /// are.
    ///
    /// # Errors
    /// [`Error::Random`], [`Error::Limit`].
    pub fn change_phrase<R: TryCryptoRng>(
        &mut self,
        phrase: &[u8],
        parameters: &PhraseParameters,
        rng: &mut R,
    ) -> Result<(), Error> {
        let pair = self.phrase_pair(phrase, parameters, rng)?;
        self.list.replace(self.opened_index, pair);
        self.list_is_changed = true;
        Ok(())
    }

    /// Removes the locks for which `keep` is false.
    ///
    /// # Errors
    /// [`Error::NoUsableLocator`] where none would be left; then all stay.
    pub fn retain_locks(&mut self, keep: impl FnMut(&Pair) -> bool) -> Result<(), Error> {
        let mut list = self.list.clone();
        list.retain(keep);
        if list.pairs().next().is_none() {
            return Err(Error::NoUsableLocator { what: "nothing would open it any more" });
        }
        self.list_is_changed |= list != self.list;
        self.list = list;
        Ok(())
    }

    /// Locks it again. Hidden entries that were changed are encrypted with a new IV; in a bundle, under every lock
    /// again.
    ///
    /// # Errors
    /// [`Error::NoUsableLocator`] without any lock; [`Error::Random`]; for a changed bundle [`Error::NoKey`] and
    /// [`Error::KeySource`] where the key of a lock is not at hand.
    pub fn lock<R: TryCryptoRng>(&self, keys: &mut dyn KeySource, rng: &mut R) -> Result<Dictionary, Error> {
        if self.list.pairs().next().is_none() {
            return Err(Error::NoUsableLocator { what: "add a phrase or a key first" });
        }
        let is_changed = self.locked.as_ref() != Some(&self.hidden);
        let mut vmx = self.outer.clone();
        match &self.secret {
            Secret::Bundle => {
                let list = if is_changed { self.relocked(keys, rng)? } else { self.list.clone() };
                if is_changed || self.list_is_changed {
                    vmx.set(BUNDLE, list.to_string().as_bytes());
                }
            }
            Secret::KeySafe { key, data_mac } => {
                if self.list_is_changed {
                    vmx.set(KEY_SAFE, self.list.to_string().as_bytes());
                }
                if is_changed {
                    let text = self.hidden.to_bytes();
                    let blob = key_safe_pair::lock(key.cipher(), *data_mac, key.expose(), &text, rng)
                        .map_err(|error| Error::from_keys(error, "the key of encryption.data"))?;
                    vmx.set(DATA, Base64::encode_string(&blob).as_bytes());
                }
            }
        }
        Ok(vmx)
    }

    /// The VMX without encryption: every entry in the clear, the hidden ones behind those that were.
    ///
    /// # Errors
    /// [`Error::Encoding`] where a hidden text cannot be written in the file's encoding.
    pub fn to_plain(&self) -> Result<Dictionary, Error> {
        let mut vmx = self.outer.clone();
        for name in [KEY_SAFE, DATA, BUNDLE, TYPE] {
            vmx.remove(name);
        }
        vmx_split::join(vmx, &self.hidden)
    }

    /// The value of an entry; the hidden one where there are two.
    pub fn value(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.hidden.value(name).or_else(|| self.outer.value(name))
    }

    /// The value of an entry as text.
    ///
    /// # Errors
    /// As [`Dictionary::text`].
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        match self.hidden.text(name)? {
            Some(text) => Ok(Some(text)),
            None => self.outer.text(name),
        }
    }

    /// The entries in the clear.
    pub fn outer(&self) -> &Dictionary {
        &self.outer
    }

    /// The hidden entries.
    pub fn hidden(&self) -> &Dictionary {
        &self.hidden
    }

    /// The locks.
    pub fn key_list(&self) -> &KeyList {
        &self.list
    }

    /// What opened it; none where it is not locked yet.
    pub fn opened_by(&self) -> Option<&OpenedBy> {
        self.by.as_ref()
    }

    /// The cipher of `encryption.data`; AES-256 for a bundle.
    pub fn cipher(&self) -> PairCipher {
        match &self.secret {
            Secret::Bundle => PairCipher::Aes256,
            Secret::KeySafe { key, .. } => key.cipher(),
        }
    }

    /// How it hides its entries.
    pub fn style(&self) -> Style {
        match self.secret {
            Secret::Bundle => Style::Bundle,
            Secret::KeySafe { .. } => Style::KeySafe,
        }
    }

    /// The key of NVRAM, snapshots and memory.
    ///
    /// # Errors
    /// Those of [`KeyDict::parse`].
    pub fn data_file_key(&self) -> Result<Option<KeyDict>, Error> {
        self.value(DATA_FILE_KEY).map(|text| KeyDict::parse(&text)).transpose()
    }

    fn part_of(&mut self, name: &str) -> Result<&mut Dictionary, Error> {
        if [KEY_SAFE, DATA, BUNDLE, TYPE].iter().any(|own| own.eq_ignore_ascii_case(name)) {
            let why = "its locks are changed with phrases and keys";
            return Err(Error::Unsupported { what: "an entry that encrypts the VMX", why });
        }
        let is_outer = self.hidden.line(name).is_none()
            && (self.outer.line(name).is_some()
                || self.is_mostly_clear()
                || vmx_split::is_always_clear(name.as_bytes()));
        Ok(if is_outer { &mut self.outer } else { &mut self.hidden })
    }

    fn is_mostly_clear(&self) -> bool {
        let word = self.outer.value(TYPE);
        matches!(self.secret, Secret::Bundle) || word.is_some_and(|word| word.eq_ignore_ascii_case(b"partial"))
    }

    /// What a pair locks.
    fn locked_text(&self) -> Zeroizing<Vec<u8>> {
        match &self.secret {
            Secret::Bundle => self.hidden.to_bytes(),
            Secret::KeySafe { key, .. } => Zeroizing::new(key.to_text().as_bytes().to_vec()),
        }
    }

    fn phrase_pair<R: TryCryptoRng>(
        &self,
        phrase: &[u8],
        parameters: &PhraseParameters,
        rng: &mut R,
    ) -> Result<Pair, Error> {
        let mac = match self.secret {
            Secret::Bundle => PairMac::HmacSha256,
            Secret::KeySafe { data_mac, .. } => data_mac,
        };
        parameters.lock(phrase, mac, &self.locked_text(), rng)
    }

    /// Every pair with the hidden entries as they are now.
    fn relocked<R: TryCryptoRng>(&self, keys: &mut dyn KeySource, rng: &mut R) -> Result<KeyList, Error> {
        let text = self.locked_text();
        let mut list = KeyList::new();
        for pair in self.list.pairs() {
            list.push(pair.relock(keys, &text, rng)?);
        }
        Ok(list)
    }
}

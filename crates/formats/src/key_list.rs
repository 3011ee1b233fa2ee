//! Lists of locked copies of one secret, of which every key or phrase opens its own.

use core::fmt;

use rand_core::TryCryptoRng;
use vmseal_keys::kdf::{self, PassKdf};
use vmseal_keys::key_safe_pair::{self, PairCipher, PairMac};
use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Place};
use crate::key_dict::KeyDict;
use crate::locator::{Locator, Pair};
use crate::phrase::PhraseParameters;

/// The value of an `encryption.bundle` or an `encryptionKeys`: pairs, each of which holds the same secret.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyList {
    pairs: Vec<Pair>,
}

/// A secret, and what opened it.
#[derive(Debug)]
pub struct Opened {
    /// The secret.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// What opened it.
    pub by: OpenedBy,
}

/// What opened a [`KeyList`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum OpenedBy {
    /// The KEK with this ID.
    Key(KeyId),
    /// A phrase.
    Phrase,
    /// A key that lies beside it in the clear.
    RawKey,
    /// A key that was at hand without its ID, on a lock that names no provider.
    UnnamedKey,
}

impl KeyList {
    /// A list without pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a list.
    ///
    /// # Errors
    /// Those of [`Locator::parse`]; [`Error::NoUsableLocator`] where it is another locator than a flat list of pairs.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let Locator::List(members) = Locator::parse(text)? else {
            return Err(Error::NoUsableLocator { what: "it is not a list of pairs" });
        };
        let pairs = members.into_iter().map(|member| match member {
            Locator::Pair(pair) => Ok(*pair),
            _ => Err(Error::NoUsableLocator { what: "a member of the list is not a pair" }),
        });
        Ok(Self { pairs: pairs.collect::<Result<_, _>>()? })
    }

    /// Locks a secret under a KEK: AES-256-CBC and HMAC-SHA-256, as ESXi's bundles are.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn lock_under<R: TryCryptoRng>(id: &KeyId, kek: &Kek, plaintext: &[u8], rng: &mut R) -> Result<Pair, Error> {
        let mac = PairMac::HmacSha256;
        let data = key_safe_pair::lock(PairCipher::Aes256, mac, kek.expose(), plaintext, rng)
            .map_err(|error| Error::from_keys(error, "the KEK"))?;
        let (server, key) = (Some(id.provider().as_str().to_owned()), id.key().to_owned());
        Ok(Pair { locker: Locator::Fqid { unique_id: None, server, key }, mac: mac.name().to_owned(), data })
    }

    /// Locks a secret under a phrase: PBKDF2-HMAC-SHA-256, AES-256-CBC and HMAC-SHA-256.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn lock_with_phrase<R: TryCryptoRng>(phrase: &[u8], plaintext: &[u8], rng: &mut R) -> Result<Pair, Error> {
        PhraseParameters::generate(PassKdf::Pbkdf2HmacSha256, PairCipher::Aes256, kdf::ROUNDS_WRITTEN, rng)?.lock(
            phrase,
            PairMac::HmacSha256,
            plaintext,
            rng,
        )
    }

    /// Adds a pair at the end.
    pub fn push(&mut self, pair: Pair) {
        self.pairs.push(pair);
    }

    /// Puts a pair in the place of another, by its index, or at the end.
    pub(crate) fn replace(&mut self, index: usize, pair: Pair) {
        match self.pairs.get_mut(index) {
            Some(old) => *old = pair,
            None => self.pairs.push(pair),
        }
    }

    /// Keeps the pairs for which `keep` is true.
    pub fn retain(&mut self, keep: impl FnMut(&Pair) -> bool) {
        self.pairs.retain(keep);
    }

    /// The pairs in order.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter()
    }

    /// The pairs that a phrase opens.
    pub fn phrase_pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(|pair| matches!(pair.locker, Locator::Phrase { .. }))
    }

    /// The IDs of the keys that open it, in order.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.pairs.iter().filter_map(|pair| pair.locker.key_id()).collect()
    }

    /// Whether a phrase opens it.
    pub fn has_phrase(&self) -> bool {
        self.phrase_pairs().next().is_some()
    }

    /// Opens it with the first pair for which there is a key.
    ///
    /// # Errors
    /// [`Error::WrongKey`] where keys or phrases were tried and none opens it; otherwise what is wrong with the first
    /// pair that cannot be opened here, or [`Error::NoKey`]. [`Error::KeySource`] where a provider failed and nothing
    /// else opens it.
    pub fn open_with(&self, keys: &mut dyn KeySource) -> Result<Opened, Error> {
        self.open_up_to(keys, kdf::ROUNDS_MAX)
    }

    /// Opens it as [`open_with`](Self::open_with) does, with another limit for the rounds of key derivation, of all its
    /// phrases together: a file with many of them must not cost a multiple.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn open_up_to(&self, keys: &mut dyn KeySource, rounds_max: u32) -> Result<Opened, Error> {
        self.open_where(keys, rounds_max, |_, plaintext| Ok(plaintext))
            .map(|(plaintext, by, _)| Opened { plaintext, by })
    }

    /// Opens the first pair whose plaintext `read` accepts. Gives what it made of it, what opened it, and which pair it
    /// was.
    pub(crate) fn open_where<T>(
        &self,
        keys: &mut dyn KeySource,
        rounds_max: u32,
        mut read: impl FnMut(&Pair, Zeroizing<Vec<u8>>) -> Result<T, Error>,
    ) -> Result<(T, OpenedBy, usize), Error> {
        let mut source_error = None;
        let mut pair_error = None;
        let mut was_tried = false;
        let mut rounds_left = rounds_max;
        for (index, pair) in self.pairs.iter().enumerate() {
            match try_pair(pair, keys, &mut rounds_left) {
                Ok(Attempt::Opened(plaintext, by)) => match read(pair, plaintext) {
                    Ok(value) => return Ok((value, by, index)),
                    Err(error) => pair_error = pair_error.or(Some(error)),
                },
                Ok(Attempt::NoKey) => {}
                Err(Error::KeySource(error)) => source_error = source_error.or(Some(error)),
                Err(Error::WrongKey { .. }) => was_tried = true,
                Err(error) => pair_error = pair_error.or(Some(error)),
            }
        }
        Err(match (source_error, was_tried, pair_error) {
            (Some(error), ..) => Error::KeySource(error),
            // What was not tried may be what opens it.
            (None, true, Some(error @ Error::Limit { .. })) => error,
            (None, true, _) => Error::WrongKey { key_ids: self.key_ids() },
            (None, false, Some(error)) => error,
            (None, false, None) if self.pairs.is_empty() => Error::NoUsableLocator { what: "it is empty" },
            (None, false, None) => Error::NoKey { key_ids: self.key_ids() },
        })
    }
}

/// What became of a pair that is not wrong.
enum Attempt {
    NoKey,
    Opened(Zeroizing<Vec<u8>>, OpenedBy),
}

fn try_pair(pair: &Pair, keys: &mut dyn KeySource, rounds_left: &mut u32) -> Result<Attempt, Error> {
    let (plaintext, by) = match &pair.locker {
        Locator::Fqid { .. } => {
            let mac = pair.mac()?;
            pair.check_length(mac)?;
            let id = pair.locker.key_id();
            match pair.fetch(keys)? {
                Some(kek) => {
                    let by = id.map_or(OpenedBy::UnnamedKey, OpenedBy::Key);
                    (pair.unlock(PairCipher::Aes256, mac, kek.expose())?, by)
                }
                None => return Ok(Attempt::NoKey),
            }
        }
        Locator::Phrase { parameters, .. } => {
            let Some(phrase) = keys.phrase() else { return Ok(Attempt::NoKey) };
            let parameters = PhraseParameters::parse(parameters)?;
            let mac = pair.mac()?;
            pair.check_length(mac)?;
            let key = parameters.derive(phrase, *rounds_left)?;
            *rounds_left -= parameters.rounds();
            (pair.unlock(parameters.cipher(), mac, &key)?, OpenedBy::Phrase)
        }
        Locator::RawKey(text) => {
            let key = KeyDict::parse(text.expose())?;
            (pair.unlock(key.cipher(), pair.mac()?, key.expose())?, OpenedBy::RawKey)
        }
        Locator::Unknown(_) => {
            let name = pair.locker.kind().to_owned();
            return Err(Error::Unknown { kind: Kind::Locator, name, place: Place::Byte(0) });
        }
        // Directory servers, scripts and the products' own keys open nothing here.
        _ => return Ok(Attempt::NoKey),
    };
    Ok(Attempt::Opened(plaintext, by))
}

impl Pair {
    pub(crate) fn mac(&self) -> Result<PairMac, Error> {
        PairMac::from_name(&self.mac).ok_or_else(|| Error::Unknown {
            kind: Kind::Mac,
            name: self.mac.clone(),
            place: Place::Byte(0),
        })
    }

    /// The KEK of a lock that names one; none where it is not at hand.
    fn fetch(&self, keys: &mut dyn KeySource) -> Result<Option<Kek>, Error> {
        let Some(id) = self.locker.key_id() else { return Ok(keys.unnamed()) };
        match keys.fetch(&id) {
            Ok(kek) => Ok(Some(kek)),
            Err(KeySourceError::UnknownKey(_) | KeySourceError::UnknownProvider(_)) => Ok(None),
            Err(error) => Err(Error::KeySource(error)),
        }
    }

    /// The same lock with another plaintext in it. Only what opens the lock now is used: another key, or another phrase, would lock out
    /// whoever has the right one.
    ///
    /// # Errors
    /// [`Error::NoKey`] where nothing at hand opens it; [`Error::KeySource`]; [`Error::Random`].
    pub(crate) fn relock<R: TryCryptoRng>(
        &self,
        keys: &mut dyn KeySource,
        plaintext: &[u8],
        rng: &mut R,
    ) -> Result<Self, Error> {
        let no_key = || Error::NoKey { key_ids: self.locker.key_id().into_iter().collect() };
        let mac = self.mac()?;
        match &self.locker {
            Locator::Fqid { .. } => {
                let kek = self.fetch(keys)?.ok_or_else(no_key)?;
                self.unlock(PairCipher::Aes256, mac, kek.expose()).map_err(|_| no_key())?;
                let data = key_safe_pair::lock(PairCipher::Aes256, mac, kek.expose(), plaintext, rng)
                    .map_err(|error| Error::from_keys(error, "the KEK"))?;
                Ok(Self { locker: self.locker.clone(), mac: self.mac.clone(), data })
            }
            Locator::Phrase { parameters, .. } => {
                let parameters = PhraseParameters::parse(parameters)?;
                let phrase = keys.phrase().ok_or_else(no_key)?;
                let key = parameters.derive(phrase, kdf::ROUNDS_MAX)?;
                self.unlock(parameters.cipher(), mac, &key).map_err(|_| no_key())?;
                parameters.lock(phrase, mac, plaintext, rng)
            }
            _ => Err(no_key()),
        }
    }

    /// Whether the locked data has room for IV, whole blocks and MAC: no key is asked for where it cannot open.
    fn check_length(&self, mac: PairMac) -> Result<(), Error> {
        check_blob_length(&self.data, mac, "the locked data of a pair")
    }

    fn unlock(&self, cipher: PairCipher, mac: PairMac, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        key_safe_pair::unlock(cipher, mac, key, &self.data)
            .map_err(|error| Error::from_keys(error, "the key of a pair"))
    }
}

pub(crate) fn check_blob_length(blob: &[u8], mac: PairMac, what: &'static str) -> Result<(), Error> {
    const BLOCK_LEN: usize = 16;
    match blob.len().checked_sub(2 * BLOCK_LEN + mac.tag_len()) {
        Some(len) if len % BLOCK_LEN == 0 => Ok(()),
        _ => {
            let wanted = "needs room for an IV, at least one whole block of 16 bytes, and a MAC";
            Err(Error::Length { what, found: blob.len() as u64, wanted })
        }
    }
}

/// The canonical text.
impl fmt::Display for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vmware:key/list/(")?;
        for (index, pair) in self.pairs.iter().enumerate() {
            f.write_str(if index > 0 { ",pair/" } else { "pair/" })?;
            pair.write(f)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmseal_keys::{ProviderName, TestKeys, system_rng};

    fn keys() -> (TestKeys, KeyId, Kek) {
        let mut keys = TestKeys::new();
        let id = keys.create(&TestKeys::provider("test")).unwrap();
        let kek = keys.fetch(&id).unwrap();
        (keys, id, kek)
    }

    fn quick_phrase_pair(phrase: &[u8], plaintext: &[u8]) -> Pair {
        let mut rng = system_rng();
        let parameters =
            PhraseParameters::generate(PassKdf::Pbkdf2HmacSha256, PairCipher::Aes256, 10, &mut rng).unwrap();
        parameters.lock(phrase, PairMac::HmacSha256, plaintext, &mut rng).unwrap()
    }

    #[test]
    fn each_key_and_each_phrase_opens_it() {
        let (mut keys, id, kek) = keys();
        let other = KeyId::new(ProviderName::new("elsewhere").unwrap(), "k/1").unwrap();
        let mut list = KeyList::new();
        list.push(KeyList::lock_under(&other, &kek, b"secret", &mut system_rng()).unwrap());
        list.push(quick_phrase_pair(b"phrase", b"secret"));
        list.push(KeyList::lock_under(&id, &kek, b"secret", &mut system_rng()).unwrap());
        let list = KeyList::parse(&list.to_string()).unwrap();
        assert_eq!(list.key_ids(), [other, id.clone()]);
        assert!(list.has_phrase());

        let opened = list.open_with(&mut keys).unwrap();
        assert_eq!((opened.plaintext.as_slice(), opened.by), (&b"secret"[..], OpenedBy::Key(id)));
        keys.recovery = Some(b"phrase".to_vec());
        assert_eq!(list.open_with(&mut keys).unwrap().by, OpenedBy::Phrase);
        keys.clear();
        assert_eq!(list.open_with(&mut keys).unwrap().plaintext.as_slice(), b"secret");
    }

    #[test]
    fn no_key_and_a_wrong_key_are_told_apart() {
        let (mut keys, id, kek) = keys();
        let mut list = KeyList::new();
        assert!(matches!(list.open_with(&mut keys), Err(Error::NoUsableLocator { .. })));
        list.push(KeyList::lock_under(&id, &kek, b"secret", &mut system_rng()).unwrap());
        list.push(quick_phrase_pair(b"phrase", b"secret"));
        keys.clear();
        let error = list.open_with(&mut keys).unwrap_err();
        assert_eq!(error.to_string(), "no key for it is here: key key-1 of provider test opens it");
        keys.recovery = Some(b"other".to_vec());
        assert!(matches!(list.open_with(&mut keys), Err(Error::WrongKey { key_ids }) if key_ids == [id]));
    }

    #[test]
    fn a_provider_that_fails_is_told_when_nothing_else_opens() {
        #[derive(Default)]
        struct Locked(Option<Vec<u8>>);
        impl KeySource for Locked {
            fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
                Err(KeySourceError::UnknownProvider(provider.clone()))
            }
            fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
                Err(KeySourceError::Locked { provider: id.provider().clone(), what: "no password".to_owned() })
            }
            fn phrase(&mut self) -> Option<&[u8]> {
                self.0.as_deref()
            }
        }
        let (_, id, kek) = keys();
        let mut list = KeyList::new();
        list.push(KeyList::lock_under(&id, &kek, b"secret", &mut system_rng()).unwrap());
        list.push(quick_phrase_pair(b"phrase", b"secret"));
        assert!(matches!(list.open_with(&mut Locked::default()), Err(Error::KeySource(KeySourceError::Locked { .. }))));
        assert!(list.open_with(&mut Locked(Some(b"phrase".to_vec()))).is_ok());
    }

    #[test]
    fn rounds_are_limited_over_all_pairs_together() {
        let (mut keys, ..) = keys();
        keys.recovery = Some(b"phrase".to_vec());
        let mut list = KeyList::new();
        list.push(quick_phrase_pair(b"other", b"secret"));
        list.push(quick_phrase_pair(b"phrase", b"secret"));
        assert!(list.open_up_to(&mut keys, 20).is_ok());
        for rounds_max in [19, 9, 0] {
            assert!(matches!(list.open_up_to(&mut keys, rounds_max), Err(Error::Limit { .. })));
        }
    }

    #[test]
    fn a_pair_that_cannot_be_opened_here_does_not_stop_the_others() {
        let (mut keys, id, kek) = keys();
        let text = "vmware:key/list/(pair/(ldap/a/b/c/1/TRUE/d,HMAC%2dSHA%2d1,AAEC),pair/(future/x,NEW,AAEC))";
        let mut list = KeyList::parse(text).unwrap();
        assert!(matches!(list.open_with(&mut keys), Err(Error::Unknown { kind: Kind::Locator, .. })));
        list.push(KeyList::lock_under(&id, &kek, b"secret", &mut system_rng()).unwrap());
        assert!(list.open_with(&mut keys).is_ok());
    }
}

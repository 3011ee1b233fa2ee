//! The encrypted VMX files of `tests/vectors/vmx`.

use std::collections::VecDeque;
use std::convert::Infallible;

use serde_json::Value;
use vmseal_formats::{Dictionary, Error, KeyDict, LockedVmx, OpenedBy, PhraseParameters, Style, UnlockedVmx};
use vmseal_keys::kdf::PassKdf;
use vmseal_keys::key_safe_pair::PairCipher;
use vmseal_keys::{Kek, KeyId, KeySource, KeySourceError, ProviderName, TestKeys, system_rng};

use crate::cases::{Vectors, check_error, hex, sha256, text};

/// One phrase and at most one KEK.
#[derive(Default)]
struct Keys {
    phrase: Option<Vec<u8>>,
    kek: Option<(KeyId, Vec<u8>)>,
}

impl KeySource for Keys {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        Err(KeySourceError::UnknownProvider(provider.clone()))
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        match &self.kek {
            Some((own, key)) if own == id => Ok(Kek::from_slice(key).unwrap()),
            _ => Err(KeySourceError::UnknownKey(id.clone())),
        }
    }

    fn phrase(&mut self) -> Option<&[u8]> {
        self.phrase.as_deref()
    }
}

fn with_phrase(phrase: &str) -> Keys {
    Keys { phrase: Some(phrase.as_bytes().to_vec()), kek: None }
}

fn keys_of(locator: &Value) -> Keys {
    match locator["phrase"].as_str() {
        Some(phrase) => with_phrase(phrase),
        None => {
            let provider = ProviderName::new(text(&locator["server"])).unwrap();
            let id = KeyId::new(provider, text(&locator["key_id"])).unwrap();
            Keys { phrase: None, kek: Some((id, hex(&locator["kek_hex"]))) }
        }
    }
}

/// Gives the bytes that a file was made with.
struct Replay(VecDeque<u8>);

impl Replay {
    fn of(parts: &[Vec<u8>]) -> Self {
        Self(parts.concat().into())
    }
}

impl rand_core::TryRng for Replay {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("only bytes are drawn")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("only bytes are drawn")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.iter_mut().for_each(|byte| *byte = self.0.pop_front().unwrap());
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Replay {}

fn locked(vmx: &[u8]) -> Result<LockedVmx, Error> {
    LockedVmx::new(Dictionary::parse(vmx))?.ok_or(Error::NoUsableLocator { what: "not encrypted" })
}

#[test]
fn every_lock_of_every_file_opens_it() {
    let vectors = Vectors::of("vmx");
    for case in vectors.cases("valid") {
        let file = vectors.file(case);
        for locator in case["locators"].as_array().unwrap() {
            let mut keys = keys_of(locator);
            let vmx = locked(&file).unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(vmx.key_list().to_string(), text(&case["key_safe"]));
            let vmx = vmx.unlock(&mut keys).unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(vmx.hidden().to_bytes().as_slice(), text(&case["plaintext"]).as_bytes());
            assert_eq!(sha256(&vmx.hidden().to_bytes()), text(&case["plaintext_sha256"]));
            assert_eq!(vmx.data_file_key().unwrap().unwrap().expose(), hex(&case["data_file_key_hex"]));
            assert_eq!(vmx.style() == Style::Bundle, case["bundle"] == true);
            if let Some(cipher) = case["data_cipher"].as_str() {
                assert_eq!(vmx.cipher().name(), cipher);
                assert_eq!(vmx.opened_by(), Some(&OpenedBy::Phrase));
            }
            let printed = format!("{vmx:?}");
            let key = text(&case["plaintext"]).split_once(":key=").unwrap().1;
            assert!(!printed.contains(&key[..16]), "a key is printed");
            let same = vmx.lock(&mut keys, &mut system_rng()).unwrap();
            assert_eq!(same.to_bytes().as_slice(), file, "{case}");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let vectors = Vectors::of("vmx");
    let mut count = 0;
    for case in vectors.cases("valid").iter().filter(|case| case["bundle"] != true) {
        // Of the pairs in a file each phrase pair is made again; pairs of other types stay as they are.
        let mut list = locked(&vectors.file(case)).unwrap().key_list().clone();
        let pairs = list.pairs().cloned().collect::<Vec<_>>();
        list.retain(|_| false);
        let mut locators = case["locators"].as_array().unwrap().iter();
        for pair in pairs {
            if pair.locker.kind() != "phrase" {
                list.push(pair);
                continue;
            }
            let locator = locators.next().unwrap();
            let parameters = PhraseParameters::new(
                PassKdf::from_name(text(&locator["pass2key"])).unwrap(),
                PairCipher::from_name(text(&locator["cipher"])).unwrap(),
                locator["rounds"].as_u64().unwrap() as u32,
                &hex(&locator["salt_hex"]),
            );
            let phrase = text(&locator["phrase"]).as_bytes();
            let derived = parameters.derive(phrase, u32::MAX).unwrap();
            assert_eq!(derived.as_slice(), hex(&locator["derived_key_hex"]));
            let key_text = text(&locator["pair_plaintext"]).as_bytes();
            assert_eq!(KeyDict::parse(key_text).unwrap().to_text().as_bytes(), key_text);
            let mut rng = Replay::of(&[hex(&locator["phrase_id_hex"]), hex(&locator["iv_hex"])]);
            let mac = vmseal_keys::key_safe_pair::PairMac::from_name(text(&locator["mac"])).unwrap();
            let pair = parameters.lock(phrase, mac, key_text, &mut rng).unwrap();
            assert_eq!(pair.data, hex(&locator["blob_hex"]));
            list.push(pair);
            count += 1;
        }
        assert_eq!(list.to_string(), text(&case["key_safe"]), "{case}");

        // A change that is taken back with the IV of the file gives its `encryption.data`.
        let mut keys = keys_of(&case["locators"][0]);
        let file = vectors.file(case);
        let mut vmx = locked(&file).unwrap().unlock(&mut keys).unwrap();
        let hidden = vmx.hidden().clone();
        vmx.set_hidden(Dictionary::new());
        let changed = vmx.lock(&mut keys, &mut system_rng()).unwrap();
        let mut vmx = LockedVmx::new(changed).unwrap().unwrap().unlock(&mut keys).unwrap();
        vmx.set_hidden(hidden);
        let again = vmx.lock(&mut keys, &mut Replay::of(&[hex(&case["data_iv_hex"])])).unwrap();
        assert_eq!(again.to_bytes().as_slice(), file, "{case}");
    }
    assert!(count > 10);
}

#[test]
fn every_damaged_file_is_refused() {
    let vectors = Vectors::of("vmx");
    for case in vectors.cases("invalid") {
        let result = locked(&vectors.file(case)).and_then(|vmx| vmx.unlock(&mut with_phrase(text(&case["phrase"]))));
        if text(&case["error"]) == "encoding" {
            // Bytes are kept, and an entry that is not UTF-8 is told when it is read as text.
            let vmx = result.unwrap();
            let names: Vec<_> = vmx.hidden().entries().map(|(name, _)| String::from_utf8(name)).collect();
            let wrong = names.into_iter().find_map(|name| vmx.text(&name.ok()?).err());
            check_error::<()>(case, Err(wrong.unwrap()));
        } else {
            check_error(case, result);
        }
    }
}

fn quick(cipher: PairCipher) -> PhraseParameters {
    PhraseParameters::generate(PassKdf::Pbkdf2HmacSha1, cipher, 10, &mut system_rng()).unwrap()
}

#[test]
fn changing_the_phrase_leaves_the_data_alone() {
    let vectors = Vectors::of("vmx");
    for case in vectors.cases("valid").iter().filter(|case| case["bundle"] != true) {
        let mut keys = keys_of(&case["locators"][0]);
        let before = Dictionary::parse(&vectors.file(case));
        let mut vmx = LockedVmx::new(before.clone()).unwrap().unwrap().unlock(&mut keys).unwrap();
        vmx.change_phrase(b"new", &quick(vmx.cipher()), &mut system_rng()).unwrap();
        let after = vmx.lock(&mut keys, &mut system_rng()).unwrap();
        assert_eq!(after.value("encryption.data"), before.value("encryption.data"));
        let mut lines = after.clone();
        lines.set("encryption.keySafe", &before.value("encryption.keySafe").unwrap());
        assert_eq!(lines, before);
        let locked = LockedVmx::new(after).unwrap().unwrap();
        assert!(locked.clone().unlock(&mut with_phrase("new")).is_ok());
        assert!(matches!(locked.unlock(&mut keys_of(&case["locators"][0])), Err(Error::WrongKey { .. })));
    }
}

#[test]
fn a_setting_is_changed_where_it_lies() {
    let vectors = Vectors::of("vmx");
    for case in vectors.cases("valid") {
        let mut keys = keys_of(&case["locators"][0]);
        let mut vmx = locked(&vectors.file(case)).unwrap().unlock(&mut keys).unwrap();
        vmx.set("memSize", b"1024").unwrap();
        vmx.set("displayName", b"other").unwrap();
        assert!(vmx.set("Encryption.Data", b"x").is_err());
        if case["locators"].as_array().unwrap().len() > 1 || text(&case["key_safe"]).matches("pair").count() == 1 {
            let locked = vmx.lock(&mut keys, &mut system_rng()).unwrap();
            assert!(locked.text("displayName").unwrap().is_some_and(|name| name == "other"));
            let vmx = LockedVmx::new(locked).unwrap().unwrap().unlock(&mut keys).unwrap();
            assert_eq!(vmx.text("memsize").unwrap().as_deref(), Some("1024"));
            let plain = vmx.to_plain().unwrap();
            assert_eq!(plain.text("memsize").unwrap().as_deref(), Some("1024"));
            assert_eq!(plain.duplicates().len(), vmx.outer().duplicates().len());
            assert!(LockedVmx::new(plain).unwrap().is_none());
        }
    }
}

#[test]
fn a_plain_vmx_is_locked_in_both_styles() {
    let plain = b".encoding = \"windows-1252\"\ndisplayName = \"caf\xe9\"\nmemsize = \"4096\"\n# a comment\nannotation = \"\xe9|e9\"\n\
        dataFileKey = \"k\"\n";
    let plain = Dictionary::parse(plain);
    let mut keys = TestKeys::new();
    let id = keys.create(&TestKeys::provider("test")).unwrap();
    let kek = keys.fetch(&id).unwrap();
    for cipher in PairCipher::ALL {
        let mut vmx = UnlockedVmx::with_key_safe(&plain, None, cipher, &mut system_rng()).unwrap();
        assert!(matches!(vmx.lock(&mut keys, &mut system_rng()), Err(Error::NoUsableLocator { .. })));
        vmx.add_phrase(b"phrase", &quick(cipher), &mut system_rng()).unwrap();
        vmx.add_key(&id, &kek, &mut system_rng()).unwrap();
        let file = vmx.lock(&mut keys, &mut system_rng()).unwrap();
        let names: Vec<_> = file.entries().map(|(name, _)| String::from_utf8(name).unwrap()).collect();
        assert_eq!(names, [".encoding", "displayName", "encryption.keySafe", "encryption.data"]);
        let locked = LockedVmx::new(file).unwrap().unwrap();
        let by_key = locked.clone().unlock(&mut keys).unwrap();
        assert_eq!(by_key.opened_by(), Some(&OpenedBy::Key(id.clone())));
        assert_eq!(by_key.text("annotation").unwrap().as_deref(), Some("\u{e9}\u{e9}"));
        let mut by_phrase = locked.unlock(&mut with_phrase("phrase")).unwrap();
        let again = by_phrase.to_plain().unwrap();
        for (name, _) in plain.entries() {
            let name = String::from_utf8(name).unwrap();
            assert_eq!(again.text(&name).unwrap(), plain.text(&name).unwrap());
        }
        by_phrase.retain_locks(|pair| pair.locker.key_id().is_none()).unwrap();
        assert!(by_phrase.retain_locks(|_| false).is_err());
        let file = by_phrase.lock(&mut keys, &mut system_rng()).unwrap();
        assert!(matches!(LockedVmx::new(file).unwrap().unwrap().unlock(&mut keys), Err(Error::NoKey { .. })));
    }

    let mut vmx = UnlockedVmx::with_bundle(&plain, &["dataFileKey"]).unwrap();
    vmx.add_key(&id, &kek, &mut system_rng()).unwrap();
    vmx.set("cryptoState", b"encrypted").unwrap();
    vmx.set("datafilekey", b"other").unwrap();
    let file = vmx.lock(&mut keys, &mut system_rng()).unwrap();
    assert!(file.value("dataFileKey").is_none() && file.value("memsize").is_some());
    let vmx = LockedVmx::new(file).unwrap().unwrap().unlock(&mut keys).unwrap();
    assert_eq!(vmx.value("dataFileKey").unwrap().as_slice(), b"other");
}

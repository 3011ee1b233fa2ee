//! VMX files under a provider's key: by its ID from the state folder, or with the key itself.

use base64ct::{Base64, Encoding};
use serde_json::Value;
use vmseal::{Kek, KeyId, KeySource, KeySourceError, LocalDir, LocalProviders, PairCipher, ProviderName};
use vmseal_formats::{Dictionary, PhraseParameters, UnlockedVmx};
use vmseal_keys::kdf::PassKdf;
use vmseal_keys::system_rng;

use crate::envelope::unhex;
use crate::vmx_lock::{Folder, cases, entry, vectors};

const PLAIN: &str = ".encoding = \"UTF-8\"\ndisplayName = \"web01\"\nmemsize = \"4096\"\ncryptoState = \"encrypted\"\n";
const OTHER_KEY: [u8; 32] = [5; 32];

fn bundle_cases(list: &Value) -> impl Iterator<Item = &Value> {
    cases(list, "valid").iter().filter(|case| case["file"].as_str().unwrap().starts_with("esxi-bundle"))
}

/// A key of the provider `house` in the state folder `state`.
fn provided(folder: &Folder, password: Option<&str>) -> (KeyId, Kek) {
    let mut create = vec!["--home", "state", "provider", "create", "native", "house"];
    if let Some(file) = password {
        create.extend(["--password-file", file]);
    }
    folder.ok(&create);
    let home = LocalDir::open(folder.path("state")).unwrap();
    let mut keys = LocalProviders::open(&home).unwrap();
    let house = ProviderName::new("house").unwrap();
    if let Some(file) = password {
        keys.set_password(&house, folder.read(file).into());
    }
    let id = keys.create(&house).unwrap();
    let kek = keys.fetch(&id).unwrap();
    (id, kek)
}

fn bundle(keys: &[(&KeyId, &Kek)]) -> Vec<u8> {
    let mut vmx = UnlockedVmx::with_bundle(&Dictionary::parse(PLAIN.as_bytes()), &["cryptoState"]).unwrap();
    for (id, kek) in keys {
        vmx.add_key(id, kek, &mut system_rng()).unwrap();
    }
    vmx.lock(&mut Known(keys), &mut system_rng()).unwrap().to_bytes().to_vec()
}

/// Each key under its own ID.
struct Known<'k>(&'k [(&'k KeyId, &'k Kek)]);

impl KeySource for Known<'_> {
    fn create(&mut self, provider: &ProviderName) -> Result<KeyId, KeySourceError> {
        Err(KeySourceError::UnknownProvider(provider.clone()))
    }

    fn fetch(&mut self, id: &KeyId) -> Result<Kek, KeySourceError> {
        let (_, kek) = self.0.iter().find(|(known, _)| *known == id).unwrap();
        Ok(Kek::from_bytes(kek.expose()).unwrap())
    }
}

fn key_safe(id: &KeyId, kek: &Kek, phrases: &[&str]) -> Vec<u8> {
    let plain = Dictionary::parse(PLAIN.as_bytes());
    let mut rng = system_rng();
    let mut vmx = UnlockedVmx::with_key_safe(&plain, None, PairCipher::XtsAes256, &mut rng).unwrap();
    for phrase in phrases {
        let parameters = PhraseParameters::generate(PassKdf::Pbkdf2HmacSha1, PairCipher::XtsAes256, 1000, &mut rng);
        vmx.add_phrase(phrase.as_bytes(), &parameters.unwrap(), &mut rng).unwrap();
    }
    vmx.add_key(id, kek, &mut rng).unwrap();
    vmx.lock(&mut vmseal::GivenKeys::new(), &mut rng).unwrap().to_bytes().to_vec()
}

#[test]
fn a_bundle_opens_with_the_key_itself_in_each_form() {
    let (from, list) = vectors("vmx");
    let mut opened = 0;
    for case in bundle_cases(&list) {
        let folder = Folder::new();
        folder.write("web01.vmx", std::fs::read(from.join(case["file"].as_str().unwrap())).unwrap());
        let locator = &case["locators"][0];
        let hex = locator["kek_hex"].as_str().unwrap();
        let key = unhex(hex);
        folder.write("raw", &key);
        folder.write("hex", format!("{hex}\n"));
        folder.write("base64", Base64::encode_string(&key));
        folder.write("short", &key[1..]);
        folder.write("wrong", OTHER_KEY);
        for form in ["raw", "hex", "base64"] {
            let plain = folder.ok(&["unlock", "web01.vmx", "--key-file", form, "-o", "-"]).stdout;
            for line in case["plaintext"].as_str().unwrap().lines() {
                assert!(plain.lines().any(|found| found == line), "{line}");
            }
            opened += 1;
        }
        let id = folder.ok(&["inspect", ".", "--json"]).stdout;
        let id: Value = serde_json::from_str(&id).unwrap();
        let vmx = id["files"].as_array().unwrap().iter().find(|file| file["kind"] == "vmx").unwrap();
        let id = vmx["opened_by"][0]["key"].as_str().unwrap().to_owned();
        for key in [None, Some("wrong"), Some("short")] {
            let mut args = vec!["unlock", "web01.vmx"];
            args.extend(key.iter().flat_map(|key| ["--key-file", key]));
            folder.fails(&args, &[4], if key == Some("short") { "a key is 32 bytes" } else { &id });
        }
        folder.ok(&["unlock", "web01.vmx", "--key-file", "raw"]);
        let plain = folder.read("web01.vmx");
        assert!(entry(&plain, "dataFileKey").is_some() && entry(&plain, "encryption.bundle").is_none());
    }
    assert_eq!(opened, 6);
}

#[test]
fn a_lock_that_names_no_provider_opens_with_the_key_itself() {
    let (from, _) = vectors("vmx");
    let folder = Folder::new();
    let text = std::fs::read_to_string(from.join("esxi-bundle.vmx")).unwrap();
    folder.write("web01.vmx", text.replace("Test%20KMS%2f1", "<VMWARE-NULL>"));
    folder.write("key", "3588d97d8695b23d2708a05c2bc0cfce211e5c24b6f3c8bc939a95e339ff1db5");
    folder.fails(&["unlock", "web01.vmx"], &[4], "--key-file");
    assert_eq!(folder.ok(&["vmx", "get", "web01.vmx", "cryptoState", "--key-file", "key"]).stdout, "encrypted\n");
    folder.ok(&["vmx", "set", "web01.vmx", "cryptoState=other", "--key-file", "key"]);
    assert!(
        entry(&folder.read("web01.vmx"), "encryption.bundle").unwrap().contains("fqid/<VMWARE-NULL>/<VMWARE-NULL>/")
    );
    assert_eq!(folder.ok(&["vmx", "get", "web01.vmx", "cryptoState", "--key-file", "key"]).stdout, "other\n");
}

#[test]
fn a_local_provider_gives_the_key_by_its_id() {
    let folder = Folder::new();
    let (id, kek) = provided(&folder, None);
    folder.write("web01.vmx", bundle(&[(&id, &kek)]));
    let before = folder.read("web01.vmx");
    let home = |args: &[&'static str]| [&["--home", "state"], args].concat();
    // What is in the clear needs no key, and leaves the bundle as it is.
    folder.ok(&["vmx", "set", "web01.vmx", "memsize=512"]);
    assert_eq!(entry(&folder.read("web01.vmx"), "encryption.bundle"), entry(&before, "encryption.bundle"));
    assert_eq!(folder.ok(&["vmx", "get", "web01.vmx", "memsize"]).stdout, "512\n");
    folder.fails(&["vmx", "get", "web01.vmx", "cryptoState"], &[4], &id.to_string());
    assert_eq!(folder.ok(&home(&["vmx", "get", "web01.vmx", "cryptoState"])).stdout, "encrypted\n");
    folder.ok(&home(&["vmx", "set", "web01.vmx", "cryptoState=other"]));
    assert_ne!(entry(&folder.read("web01.vmx"), "encryption.bundle"), entry(&before, "encryption.bundle"));
    assert_eq!(folder.ok(&home(&["vmx", "get", "web01.vmx", "cryptoState"])).stdout, "other\n");
    assert!(entry(&folder.read("web01.vmx"), "cryptoState").is_none(), "a hidden setting is in the clear");
    folder.fails(&home(&["vmx", "get", "web01.vmx", "nothing"]), &[1], "no setting nothing");
    folder.fails(&["unlock", "web01.vmx", "-o", "out.vmx"], &[4], &id.to_string());
    folder.write("new", "new");
    let change = ["lock", "--change-password", "web01.vmx", "--new-password-file", "new"];
    folder.fails(&home(&change), &[3], "ESXi knows no password");
    folder.ok(&home(&["unlock", "web01.vmx", "-o", "out.vmx"]));
    assert_eq!(entry(&folder.read("out.vmx"), "cryptoState").unwrap(), "other");
}

#[test]
fn a_provider_with_a_password_is_opened_with_it() {
    let folder = Folder::new();
    folder.write("house", "its password");
    let (id, kek) = provided(&folder, Some("house"));
    folder.write("web01.vmx", bundle(&[(&id, &kek)]));
    let unlock = ["--home", "state", "unlock", "web01.vmx", "-o", "-"];
    folder.fails(&unlock, &[4], "--provider-password-file");
    folder.fails(&["--home", "state", "vmx", "get", "web01.vmx", "cryptoState"], &[4], "--provider-password-file");
    folder.ok(&["--home", "state", "vmx", "get", "web01.vmx", "memsize"]);
    folder.ok(&[&unlock[..], &["--provider-password-file", "house"]].concat());
    let get = ["--home", "state", "vmx", "get", "web01.vmx", "cryptoState", "--provider-password-file", "house"];
    assert_eq!(folder.ok(&get).stdout, "encrypted\n");
}

#[test]
fn what_several_keys_open_is_not_locked_anew_under_one() {
    let folder = Folder::new();
    let (id, kek) = provided(&folder, None);
    let other = KeyId::new(ProviderName::new("elsewhere").unwrap(), "k-2").unwrap();
    folder.write("web01.vmx", bundle(&[(&id, &kek), (&other, &Kek::from_bytes(&OTHER_KEY).unwrap())]));
    folder.write("key", OTHER_KEY);
    for keys in [["--home", "state"], ["--key-file", "key"]] {
        let with = |args: &[&'static str]| [args, &keys[..]].concat();
        assert_eq!(folder.ok(&with(&["vmx", "get", "web01.vmx", "cryptoState"])).stdout, "encrypted\n");
        folder.fails(&with(&["vmx", "set", "web01.vmx", "cryptoState=other"]), &[4], "no key");
        folder.ok(&with(&["vmx", "set", "web01.vmx", "memsize=512"]));
    }
}

#[test]
fn a_key_safe_opens_with_a_key_and_gets_a_new_password() {
    let folder = Folder::new();
    let (id, kek) = provided(&folder, None);
    folder.write("key", kek.expose());
    folder.write("lost", "lost");
    folder.write("older", "older");
    folder.write("new", "new");
    folder.write("web01.vmx", key_safe(&id, &kek, &["lost", "older"]));
    let before = folder.read("web01.vmx");
    for keys in [["--home", "state"], ["--key-file", "key"], ["--password-file", "older"]] {
        let with = |args: &[&'static str]| [args, &keys[..]].concat();
        assert_eq!(folder.ok(&with(&["vmx", "get", "web01.vmx", "memsize"])).stdout, "4096\n");
        folder.ok(&with(&["vmx", "set", "web01.vmx", "numvcpus=2"]));
        assert_eq!(entry(&folder.read("web01.vmx"), "encryption.keySafe"), entry(&before, "encryption.keySafe"));
        folder.ok(&with(&["unlock", "web01.vmx", "-o", "-"]));
    }
    folder.fails(&["lock", "--change-password", "web01.vmx", "--new-password-file", "new"], &[4], "--password-file");
    folder.ok(&["lock", "--change-password", "web01.vmx", "--new-password-file", "new", "--key-file", "key"]);
    for password in ["lost", "older"] {
        folder.fails(&["unlock", "web01.vmx", "-o", "out", "--password-file", password], &[4], "wrong");
    }
    folder.ok(&["unlock", "web01.vmx", "-o", "-", "--password-file", "new"]);
    folder.ok(&["--home", "state", "unlock", "web01.vmx", "-o", "-"]);
    folder.write("plain.vmx", PLAIN);
    let lock = ["lock", "plain.vmx", "--password-file", "new", "--key-file", "key"];
    folder.fails(&lock, &[2], "--change-password");
    folder.fails(&["unlock", "web01.vmx", "--key-file", "-", "--password-file", "-"], &[2], "one thing only");
}

#[test]
fn the_clear_part_of_a_bundle_is_what_is_edited() {
    let folder = Folder::new();
    let (id, kek) = provided(&folder, None);
    folder.write("web01.vmx", bundle(&[(&id, &kek)]));
    for home in [&[][..], &["--home", "state"]] {
        let before = folder.read("web01.vmx");
        let mut command = folder.command(&[home, &["vmx", "edit", "web01.vmx"]].concat());
        assert!(command.env("EDITOR", "sed -i s/4096/1024/").output().unwrap().status.success());
        let after = folder.read("web01.vmx");
        assert_eq!(
            String::from_utf8(after.clone()).unwrap(),
            String::from_utf8(before).unwrap().replace("4096", "1024")
        );
        folder.write("web01.vmx", String::from_utf8(after).unwrap().replace("1024", "4096"));
    }
}

//! The providers of a state folder, on real files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

use vmseal_keys::{KeyId, KeySource, KeySourceError, ProviderName};
use vmseal_providers::{Error, LocalProviders};
use vmseal_storage::{LocalDir, Memory, Storage, StoragePath};
use zeroize::Zeroizing;

fn name(text: &str) -> ProviderName {
    ProviderName::new(text).unwrap()
}

#[test]
fn a_key_can_be_had_again_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let home = LocalDir::create_private(folder.path().join("home")).unwrap();
    let mut providers = LocalProviders::open(&home).unwrap();
    providers.create_native(&name("house"), None).unwrap();
    let id = providers.create(&name("house")).unwrap();
    let kek = providers.fetch(&id).unwrap();
    let home = LocalDir::open(folder.path().join("home")).unwrap();
    assert!(LocalProviders::open(&home).unwrap().fetch(&id).unwrap() == kek);
}

#[test]
fn only_its_owner_can_read_a_primary_key() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let home = LocalDir::create_private(folder.path().join("home")).unwrap();
    LocalProviders::open(&home).unwrap().create_native(&name("house"), None).unwrap();
    for (path, mode) in [("home", 0o700), ("home/providers", 0o700), ("home/providers/house.json", 0o600)] {
        let metadata = std::fs::metadata(folder.path().join(path)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
    }
}

#[test]
fn a_provider_is_never_replaced() {
    let home = Memory::new();
    let mut providers = LocalProviders::open(&home).unwrap();
    let first = providers.create_native(&name("house"), None).unwrap();
    assert!(matches!(providers.create_native(&name("house"), None), Err(Error::Exists(_))));
    assert_eq!(providers.names().unwrap(), std::slice::from_ref(&first.name));
    assert_eq!(providers.info(&first.name).unwrap(), first);
}

#[test]
fn a_protected_provider_asks_for_its_password() {
    let home = Memory::new();
    let mut providers = LocalProviders::open(&home).unwrap();
    assert!(providers.create_native(&name("house"), Some(b"correct horse")).unwrap().protected);
    assert!(matches!(providers.create(&name("house")), Err(KeySourceError::Locked { .. })));
    providers.set_password(&name("house"), Zeroizing::new(b"wrong".to_vec()));
    assert!(matches!(providers.create(&name("house")), Err(KeySourceError::Locked { .. })));
    providers.set_password(&name("house"), Zeroizing::new(b"correct horse".to_vec()));
    let id = providers.create(&name("house")).unwrap();
    providers.fetch(&id).unwrap();
}

#[test]
fn names_and_keys_that_do_not_exist_are_told_apart() {
    let home = Memory::new();
    let mut providers = LocalProviders::open(&home).unwrap();
    for text in ["../house", "a b", ".house", "größe", &"x".repeat(65), "Test KMS/1"] {
        assert!(matches!(providers.create_native(&name(text), None), Err(Error::NativeName(_))), "{text}");
        let id = KeyId::new(name(text), "1").unwrap();
        assert!(matches!(providers.fetch(&id), Err(KeySourceError::UnknownProvider(_))), "{text}");
    }
    providers.create_native(&name("house"), None).unwrap();
    let id = KeyId::new(name("house"), "made-elsewhere").unwrap();
    assert!(matches!(providers.fetch(&id), Err(KeySourceError::UnknownKey(_))));
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let home = Memory::new();
    let mut providers = LocalProviders::open(&home).unwrap();
    providers.create_native(&name("house"), None).unwrap();
    let path = StoragePath::new("providers/house.json").unwrap();
    let whole = home.read(&path, 1 << 20).unwrap();
    for len in [0, 1, whole.len() / 2, whole.len() - 3] {
        home.replace(&path, &whole[..len]).unwrap();
        let error = LocalProviders::open(&home).unwrap().create(&name("house")).unwrap_err();
        assert!(matches!(error, KeySourceError::Unavailable { .. }), "{error}");
        assert_eq!(home.read(&path, 1 << 20).unwrap(), &whole[..len]);
    }
}

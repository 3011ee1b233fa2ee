//! The locators, escapes and bundles of `tests/vectors/vmx`.

use crate::cases::{OneKey, Vectors, check_error, hex, text};
use serde_json::Value;
use vmseal_formats::{Dictionary, KeyList, Locator};
use vmseal_keys::key_safe_pair::{PairCipher, PairMac, lock_with_iv};
use vmseal_keys::{KeyId, ProviderName};

fn optional(value: &Option<String>) -> Value {
    value.clone().map_or(Value::Null, Value::from)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tree as the vectors write it.
fn tree(locator: &Locator) -> Value {
    match locator {
        Locator::Fqid { unique_id, server, key } => {
            serde_json::json!({"type": "fqid", "id": optional(unique_id), "server": optional(server), "key": key})
        }
        Locator::Ldap { unique_id, server, domain, port, use_ssl, path } => serde_json::json!({
            "type": "ldap", "id": optional(unique_id), "server": optional(server), "domain": optional(domain), "port": port,
            "use_ssl": use_ssl, "path": path
        }),
        Locator::List(members) => {
            serde_json::json!({"type": "list", "members": members.iter().map(tree).collect::<Vec<_>>()})
        }
        Locator::Null => serde_json::json!({"type": "null"}),
        Locator::Pair(pair) => serde_json::json!({
            "type": "pair", "locker": tree(&pair.locker), "mac": pair.mac, "data_hex": to_hex(&pair.data)
        }),
        Locator::Phrase { id, parameters } => serde_json::json!({"type": "phrase", "id": id, "data": parameters}),
        Locator::RawKey(key) => serde_json::json!({"type": "rawkey", "key_hex": to_hex(key.expose())}),
        Locator::Role { unique_id, role } => {
            serde_json::json!({"type": "role", "id": optional(unique_id), "role": role.name()})
        }
        Locator::Script { unique_id, path, signature } => serde_json::json!({
            "type": "script", "id": optional(unique_id), "path": path, "signature_hex": to_hex(signature)
        }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_locator_has_its_tree_and_its_canonical_text() {
    for case in Vectors::of("vmx").cases("locators") {
        let locator = Locator::parse(text(&case["text"])).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(tree(&locator), case["tree"]);
        assert_eq!(locator.to_string(), text(&case["canonical"]));
    }
}

#[test]
fn every_invalid_locator_is_refused() {
    for case in Vectors::of("vmx").cases("invalid_locators") {
        check_error(case, Locator::parse(text(&case["text"])));
    }
}

#[test]
fn elements_are_escaped_as_the_products_do() {
    for case in Vectors::of("vmx").cases("escape") {
        let locator = Locator::Fqid { unique_id: None, server: None, key: text(&case["raw"]).to_owned() };
        let canonical = format!("vmware:key/fqid/<VMWARE-NULL>/<VMWARE-NULL>/{}", text(&case["escaped"]));
        assert_eq!(locator.to_string(), canonical);
        assert_eq!(Locator::parse(&canonical).unwrap(), locator);
    }
}

#[test]
fn dictionary_values_are_escaped_as_the_products_do() {
    for case in Vectors::of("vmx").cases("dictionary_escape") {
        let mut dictionary = Dictionary::new();
        dictionary.set("a", text(&case["raw"]).as_bytes());
        assert_eq!(dictionary.to_bytes().as_slice(), format!("a = \"{}\"\n", text(&case["escaped"])).as_bytes());
        assert_eq!(dictionary.value("a").unwrap().as_slice(), text(&case["raw"]).as_bytes());
    }
}

#[test]
fn bundles_of_esxi_open_and_are_written_again() {
    let vectors = Vectors::of("vmx");
    let mut count = 0;
    for case in vectors.cases("valid").iter().filter(|case| case["bundle"] == true) {
        let vmx = Dictionary::parse(&vectors.file(case));
        let bundle = vmx.text("encryption.bundle").unwrap().unwrap();
        assert_eq!(bundle, text(&case["key_safe"]));
        let list = KeyList::parse(&bundle).unwrap();
        let locator = &case["locators"][0];
        let id = KeyId::new(ProviderName::new(text(&locator["server"])).unwrap(), text(&locator["key_id"])).unwrap();
        assert_eq!(list.key_ids().as_slice(), std::slice::from_ref(&id));
        let kek = hex(&locator["kek_hex"]);
        let opened = list.open_with(&mut OneKey(id, kek.clone())).unwrap();
        assert_eq!(opened.plaintext.as_slice(), text(&case["plaintext"]).as_bytes());

        let iv: [u8; 16] = hex(&locator["iv_hex"]).try_into().unwrap();
        let blob = lock_with_iv(PairCipher::Aes256, PairMac::HmacSha256, &kek, &opened.plaintext, &iv).unwrap();
        let mut again = KeyList::new();
        let mut pair = list.pairs().next().unwrap().clone();
        pair.data = blob;
        again.push(pair);
        assert_eq!(again.to_string(), bundle);
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn every_vmx_is_written_back_as_it_was() {
    let vectors = Vectors::of("vmx");
    for case in vectors.cases("valid").iter().chain(vectors.cases("invalid")) {
        let bytes = vectors.file(case);
        assert_eq!(Dictionary::parse(&bytes).to_bytes().as_slice(), bytes, "{case}");
    }
}

//! A host's memory of KEKs.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::Kek;
use crate::key_id::KeyId;

/// KEKs by ID, each with the VMs that use it; the last user that goes takes the key with it.
#[derive(Debug, Default)]
pub struct KeyCache {
    entries: BTreeMap<KeyId, (Kek, BTreeSet<[u8; 16]>)>,
}

impl KeyCache {
    /// An empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a KEK for a VM. A key that is there already stays, with one more user.
    pub fn insert(&mut self, id: KeyId, kek: Kek, vm: [u8; 16]) {
        self.entries.entry(id).or_insert_with(|| (kek, BTreeSet::new())).1.insert(vm);
    }

    /// The KEK with this ID.
    pub fn key(&self, id: &KeyId) -> Option<&Kek> {
        self.entries.get(id).map(|(kek, _)| kek)
    }

    /// The VMs that use a KEK.
    pub fn users(&self, id: &KeyId) -> impl Iterator<Item = [u8; 16]> {
        self.entries.get(id).into_iter().flat_map(|(_, users)| users.iter().copied())
    }

    /// The IDs of all KEKs, in order.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.entries.keys()
    }

    /// Forgets a VM: every KEK that no other VM uses is dropped and wiped. Returns their IDs.
    pub fn forget(&mut self, vm: [u8; 16]) -> Vec<KeyId> {
        let mut dropped = Vec::new();
        self.entries.retain(|id, (_, users)| {
            let keep = !users.remove(&vm) || !users.is_empty();
            if !keep {
                dropped.push(id.clone());
            }
            keep
        });
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProviderName;

    #[test]
    fn a_key_goes_with_its_last_user() {
        let id = |key| KeyId::new(ProviderName::new("house").unwrap(), key).unwrap();
        let kek = || Kek::from_bytes(&[1; 32]).unwrap();
        let mut cache = KeyCache::new();
        cache.insert(id("shared"), kek(), [1; 16]);
        cache.insert(id("shared"), kek(), [2; 16]);
        cache.insert(id("own"), kek(), [1; 16]);
        assert_eq!(cache.forget([3; 16]), []);
        assert_eq!(cache.forget([1; 16]), [id("own")]);
        assert!(cache.key(&id("own")).is_none());
        assert_eq!(cache.users(&id("shared")).collect::<Vec<_>>(), [[2; 16]]);
        assert_eq!(cache.forget([2; 16]), [id("shared")]);
        assert_eq!(cache.ids().count(), 0);
    }
}

//! Opens the links of a snapshot chain.

use std::collections::BTreeSet;

use vmseal_formats::{Descriptor, parent};
use vmseal_storage::{Access, Storage, StoragePath};

use crate::cipher::DiskCipher;
use crate::encryption::Encryption;
use crate::error::Error;
use crate::layout::DiskLayout;
use crate::link::Link;

/// ESXi allows 32 links in a chain; hosted products more, but not this many.
pub(crate) const LINKS_MAX: usize = 255;

/// The first of the places where the parent that a child names in `hint` may be that lies on the storage and is there. It is never the child,
/// which may have the same name in another folder.
///
/// # Errors
/// [`Error::Storage`].
pub fn find_parent(storage: &dyn Storage, child: &StoragePath, hint: &str) -> Result<Option<StoragePath>, Error> {
    for name in parent::candidates(hint) {
        if let Ok(path) = child.sibling(&name)
            && path != *child
            && storage.metadata(&path)?.is_some()
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Gives the cipher of a link, by its descriptor's path and what that says of its encryption: none for a link in the clear.
pub type LinkCiphers<'k, E> = dyn FnMut(&StoragePath, Option<&Encryption>) -> Result<Option<DiskCipher>, E> + 'k;

/// Opens a disk and its parents, nearest first: the disk for `access`, the others for reading. With `damage`, what is missing is left out and the
/// reasons told.
pub(crate) fn open_links<E: From<Error>>(
    storage: &dyn Storage,
    path: &StoragePath,
    access: Access,
    keys: &mut LinkCiphers<'_, E>,
    mut damage: Option<&mut Vec<Error>>,
) -> Result<(Vec<Link>, DiskLayout), E> {
    let top = DiskLayout::read(storage, path, damage.as_deref_mut())?;
    let is_encrypted = Encryption::from_descriptor(top.descriptor())?.is_some();
    let mut links = vec![open_link(storage, &top, access, keys, damage.as_deref_mut())?];
    let written = Files::of(storage, &top)?;
    let mut child = top.descriptor().clone();
    while let Some(cid) = child.parent_cid() {
        let child_path = links[links.len() - 1].path.clone();
        let hint = child.parent_hint().unwrap_or_default();
        let found = next_layout(storage, &links, &child_path, &hint, damage.as_deref_mut());
        let layout = match (found, damage.as_deref_mut()) {
            (Ok(layout), _) => layout,
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(damage)) => {
                damage.push(error);
                links.push(Link::missing(&child_path, links[links.len() - 1].size_bytes));
                break;
            }
        };
        let overlooked = check_parent(&child_path, cid, is_encrypted, &layout)?.or(if access == Access::ReadWrite {
            written.shared(storage, &child_path, &layout)?
        } else {
            None
        });
        match (overlooked, damage.as_deref_mut()) {
            (None, _) => {}
            (Some(error), None) => return Err(error.into()),
            (Some(error), Some(damage)) => damage.push(error),
        }
        links.push(open_link(storage, &layout, Access::Read, keys, damage.as_deref_mut())?);
        child = layout.descriptor().clone();
    }
    Ok((links, top))
}

/// Opens a link with the cipher that goes with its descriptor.
fn open_link<E: From<Error>>(
    storage: &dyn Storage,
    layout: &DiskLayout,
    access: Access,
    keys: &mut LinkCiphers<'_, E>,
    damage: Option<&mut Vec<Error>>,
) -> Result<Link, E> {
    let encryption = Encryption::from_descriptor(layout.descriptor())?;
    let cipher = keys(layout.path(), encryption.as_ref())?;
    check_cipher(layout.path(), encryption.as_ref(), cipher.as_ref())?;
    Ok(Link::open(storage, layout, cipher, access, damage)?)
}

/// Refuses a cipher that does not go with the disk, and none where there has to be one.
pub(crate) fn check_cipher(
    path: &StoragePath,
    encryption: Option<&Encryption>,
    cipher: Option<&DiskCipher>,
) -> Result<(), Error> {
    match (encryption, cipher) {
        (None, Some(_)) => Err(Error::NotEncrypted { path: path.to_string() }),
        (Some(_), None) => Err(Error::Encrypted { path: path.to_string() }),
        (Some(encryption), Some(cipher)) if encryption.unit() != cipher.unit() => {
            let what = "its descriptor names another data unit".to_owned();
            Err(Error::UnitDoesNotFit { path: path.to_string(), unit: cipher.unit(), what })
        }
        _ => Ok(()),
    }
}

/// Finds and reads the parent of the last link.
fn next_layout(
    storage: &dyn Storage,
    links: &[Link],
    child: &StoragePath,
    hint: &str,
    damage: Option<&mut Vec<Error>>,
) -> Result<DiskLayout, Error> {
    let (path, parent) = (child.to_string(), hint.to_owned());
    let Some(found) = find_parent(storage, child, hint)? else {
        let is_itself = child.sibling(hint).is_ok_and(|named| named == *child);
        return Err(if is_itself { Error::EndlessChain { path, parent } } else { Error::NoParent { path, parent } });
    };
    if links.len() > LINKS_MAX || links.iter().any(|link| link.path == found) {
        return Err(Error::EndlessChain { path, parent });
    }
    DiskLayout::read(storage, &found, damage)
}

/// What is wrong with a parent that is there.
fn check_parent(
    child: &StoragePath,
    cid: u32,
    is_encrypted: bool,
    layout: &DiskLayout,
) -> Result<Option<Error>, Error> {
    let descriptor: &Descriptor = layout.descriptor();
    let (path, parent) = (child.to_string(), layout.path().to_string());
    if descriptor.cid() != cid {
        return Ok(Some(Error::ParentChanged { path, parent, cid: descriptor.cid(), wanted: cid }));
    }
    if Encryption::from_descriptor(descriptor)?.is_some() != is_encrypted {
        return Ok(Some(Error::MixedChain { path, parent, is_encrypted }));
    }
    Ok(None)
}

/// The files of a disk that is written: no parent may lie in one of them.
struct Files {
    paths: BTreeSet<StoragePath>,
    identities: BTreeSet<u128>,
}

impl Files {
    fn of(storage: &dyn Storage, layout: &DiskLayout) -> Result<Self, Error> {
        let paths: BTreeSet<StoragePath> = layout.files().into_iter().collect();
        let mut identities = BTreeSet::new();
        for path in &paths {
            identities.extend(storage.metadata(path)?.and_then(|metadata| metadata.identity));
        }
        Ok(Self { paths, identities })
    }

    fn shared(&self, storage: &dyn Storage, child: &StoragePath, parent: &DiskLayout) -> Result<Option<Error>, Error> {
        for path in parent.files() {
            let identity = storage.metadata(&path)?.and_then(|metadata| metadata.identity);
            if self.paths.contains(&path) || identity.is_some_and(|identity| self.identities.contains(&identity)) {
                let what = format!("{path} is an extent of its parent too; restore the descriptors from a copy");
                return Ok(Some(Error::Unsupported { path: child.to_string(), what }));
            }
        }
        Ok(None)
    }
}

//! A storage in memory.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::path::StoragePath;
use crate::storage::{Access, File, Kind, Lock, LockMode, Metadata, Storage};

/// Holes are kept in blocks of this size, as file systems do.
pub(crate) const BLOCK_LEN: u64 = 4096;

/// A storage in memory. A clone is another handle of the same storage.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<StoragePath, Arc<Mutex<Content>>>,
    folders: BTreeSet<StoragePath>,
    locks: BTreeMap<StoragePath, (LockMode, usize)>,
}

#[derive(Debug, Default)]
struct Content {
    len: u64,
    version: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Memory {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every file, in order.
    pub fn paths(&self) -> Vec<StoragePath> {
        lock(&self.tree).files.keys().cloned().collect()
    }

    fn content(&self, path: &StoragePath) -> Result<Arc<Mutex<Content>>, Error> {
        let tree = lock(&self.tree);
        if tree.is_folder(path) {
            return Err(Error::WrongKind { path: path.to_string(), wanted: "file" });
        }
        tree.files.get(path).cloned().ok_or_else(|| Error::NotFound { path: path.to_string() })
    }
}

impl Tree {
    fn is_folder(&self, path: &StoragePath) -> bool {
        path.is_root() || self.folders.contains(path)
    }
}

/// A thread that panicked has not left a half-done change: each is made under one lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Storage for Memory {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error> {
        Ok(Box::new(MemoryFile { path: path.clone(), content: self.content(path)?, access }))
    }

    fn create(&self, path: &StoragePath, _like: Option<&StoragePath>) -> Result<Box<dyn File>, Error> {
        let mut tree = lock(&self.tree);
        if !tree.is_folder(&path.folder()) {
            return Err(Error::NotFound { path: path.folder().to_string() });
        }
        if tree.files.contains_key(path) || tree.is_folder(path) {
            return Err(Error::AlreadyExists { path: path.to_string() });
        }
        let content = Arc::new(Mutex::new(Content::default()));
        tree.files.insert(path.clone(), content.clone());
        Ok(Box::new(MemoryFile { path: path.clone(), content, access: Access::ReadWrite }))
    }

    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error> {
        let tree = lock(&self.tree);
        if tree.is_folder(path) {
            return Ok(Some(Metadata { len: 0, kind: Kind::Folder, version: None, identity: None }));
        }
        Ok(tree.files.get(path).map(|content| {
            let address = Arc::as_ptr(content) as usize as u64;
            let content = lock(content);
            Metadata {
                len: content.len,
                kind: Kind::File,
                version: Some(address ^ content.version.rotate_left(32)),
                identity: Some(u128::from(address)),
            }
        }))
    }

    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error> {
        let tree = lock(&self.tree);
        if !tree.is_folder(folder) {
            return Err(Error::NotFound { path: folder.to_string() });
        }
        let inside = |path: &&StoragePath| !path.is_root() && path.folder() == *folder;
        let names: BTreeSet<String> = tree
            .files
            .keys()
            .filter(inside)
            .chain(tree.folders.iter().filter(inside))
            .map(|path| path.file_name().to_owned())
            .collect();
        Ok(names.into_iter().collect())
    }

    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        let mut tree = lock(&self.tree);
        if tree.files.contains_key(folder) {
            return Err(Error::AlreadyExists { path: folder.to_string() });
        }
        if !tree.is_folder(&folder.folder()) {
            return Err(Error::NotFound { path: folder.folder().to_string() });
        }
        tree.folders.insert(folder.clone());
        Ok(())
    }

    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error> {
        let mut tree = lock(&self.tree);
        if tree.is_folder(to) {
            return Err(Error::WrongKind { path: to.to_string(), wanted: "file" });
        }
        let content = tree.files.remove(from).ok_or_else(|| Error::NotFound { path: from.to_string() })?;
        tree.files.insert(to.clone(), content);
        Ok(())
    }

    fn remove(&self, path: &StoragePath) -> Result<(), Error> {
        lock(&self.tree).files.remove(path).map(drop).ok_or_else(|| Error::NotFound { path: path.to_string() })
    }

    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        if lock(&self.tree).is_folder(folder) { Ok(()) } else { Err(Error::NotFound { path: folder.to_string() }) }
    }

    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
        let mut tree = lock(&self.tree);
        let holders = match tree.locks.get(path) {
            None => 1,
            Some((LockMode::Shared, count)) if mode == LockMode::Shared => count + 1,
            Some(_) => return Err(Error::Locked { path: path.to_string(), holder: Some(std::process::id()) }),
        };
        tree.locks.insert(path.clone(), (mode, holders));
        Ok(Box::new(MemoryLock { tree: self.tree.clone(), path: path.clone() }))
    }

    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
    path: StoragePath,
}

impl Lock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut tree = lock(&self.tree);
        if let Some((_, count)) = tree.locks.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                tree.locks.remove(&self.path);
            }
        }
    }
}

#[derive(Debug)]
struct MemoryFile {
    path: StoragePath,
    content: Arc<Mutex<Content>>,
    access: Access,
}

impl MemoryFile {
    fn change(&self) -> Result<MutexGuard<'_, Content>, Error> {
        if self.access == Access::Read {
            return Err(Error::PermissionDenied { path: self.path.to_string(), operation: "writing" });
        }
        let mut content = lock(&self.content);
        content.version += 1;
        Ok(content)
    }
}

/// The parts of a range, block by block: block number, range inside the block.
pub(crate) fn blocks(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let start = at % BLOCK_LEN;
        let end = BLOCK_LEN.min(start + (range.end - at));
        let block = at / BLOCK_LEN;
        at += end - start;
        Some((block, start as usize..end as usize))
    })
}

impl File for MemoryFile {
    fn len(&self) -> Result<u64, Error> {
        Ok(lock(&self.content).len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let content = lock(&self.content);
        let end = offset.saturating_add(buffer.len() as u64);
        if end > content.len {
            return Err(Error::UnexpectedEnd {
                path: self.path.to_string(),
                len_bytes: content.len,
                wanted_bytes: end,
            });
        }
        let mut rest = buffer;
        for (block, range) in blocks(offset..end) {
            let (part, tail) = rest.split_at_mut(range.len());
            match content.blocks.get(&block) {
                Some(bytes) => part.copy_from_slice(&bytes[range]),
                None => part.fill(0),
            }
            rest = tail;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        let mut content = self.change()?;
        let end =
            offset.checked_add(data.len() as u64).ok_or_else(|| Error::StorageFull { path: self.path.to_string() })?;
        let mut rest = data;
        for (block, range) in blocks(offset..end) {
            let (part, tail) = rest.split_at(range.len());
            let bytes = content.blocks.entry(block).or_insert_with(|| vec![0; BLOCK_LEN as usize].into_boxed_slice());
            bytes[range].copy_from_slice(part);
            rest = tail;
        }
        content.len = content.len.max(end);
        Ok(())
    }

    fn set_len(&self, len_bytes: u64) -> Result<(), Error> {
        let mut content = self.change()?;
        if len_bytes < content.len {
            content.blocks.retain(|block, _| *block * BLOCK_LEN < len_bytes);
            let cut = (len_bytes % BLOCK_LEN) as usize;
            if cut != 0
                && let Some(bytes) = content.blocks.get_mut(&(len_bytes / BLOCK_LEN))
            {
                bytes[cut..].fill(0);
            }
        }
        content.len = len_bytes;
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let mut content = self.change()?;
        let end = offset.saturating_add(len_bytes).min(content.len);
        for (block, range) in blocks(offset.min(end)..end) {
            if range.len() as u64 == BLOCK_LEN {
                content.blocks.remove(&block);
            } else if let Some(bytes) = content.blocks.get_mut(&block) {
                bytes[range].fill(0);
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, Error> {
        let content = lock(&self.content);
        let mut found: Option<Range<u64>> = None;
        for block in content.blocks.range(offset / BLOCK_LEN..).map(|(block, _)| *block) {
            let range = block * BLOCK_LEN..(block + 1) * BLOCK_LEN;
            match &mut found {
                None => found = Some(range),
                Some(found) if found.end == range.start => found.end = range.end,
                Some(_) => break,
            }
        }
        Ok(found
            .map(|range| range.start.max(offset)..range.end.min(content.len))
            .filter(|range| range.start < range.end))
    }
}

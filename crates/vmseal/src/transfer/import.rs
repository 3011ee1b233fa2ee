//! A raw image as a new disk of a VM, or as changes of one that is there.

use core::ops::{ControlFlow, Range};
use std::sync::mpsc;

use sha2::{Digest, Sha256};
use vmseal_disk::{Disk, NewDisk, NewDiskType, UnitSize};
use vmseal_keys::{KeyId, KeySource};
use vmseal_rekey::{Error, Progress, Watch, complete_disk, make_disk, open_new_disk};
use vmseal_storage::{File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::transfer::digest_list::{DIGEST_LEN, DigestList, ZEROS};
use crate::transfer::export::{CHUNK_LEN, chunks, file_digest};
use crate::transfer::range_map::{RangeMap, RangeState};
use crate::vm::Vm;

/// What is appended to the name of a disk that is not complete.
const STATE_SUFFIX: &str = ".vmseal-import";
const STATE_MAGIC: &[u8; 8] = b"VMSEALI1";
/// The bytes between two points to which an interrupted import can return.
const CHECKPOINT_LEN: u64 = 512 << 20;
/// Chunks that are read ahead of the one that is written.
const READ_AHEAD: usize = 4;

/// An import of a raw image, a file of the embedder's storage.
pub struct Import<'a> {
    source: &'a dyn File,
    digests: Option<&'a DigestList>,
    disk_type: NewDiskType,
    unit: UnitSize,
    key_id: Option<&'a KeyId>,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The size of the disk.
    pub size_bytes: u64,
    /// The bytes that were written to it; the rest was zeros, or not in the map.
    pub written_bytes: u64,
    /// The bytes in which an earlier attempt was taken up.
    pub resumed_bytes: u64,
}

impl<'a> Import<'a> {
    /// Of `source`, as a sparse disk with data units of 512 bytes under the VM's own KEK.
    pub fn new(source: &'a dyn File) -> Self {
        Self { source, digests: None, disk_type: NewDiskType::MonolithicSparse, unit: UnitSize::B512, key_id: None }
    }

    /// Checks the image against the digests of its export while it is read: nothing of a block that differs is written.
    #[must_use]
    pub fn digests(mut self, digests: &'a DigestList) -> Self {
        self.digests = Some(digests);
        self
    }

    /// The kind of disk to make.
    #[must_use]
    pub fn disk_type(mut self, disk_type: NewDiskType) -> Self {
        self.disk_type = disk_type;
        self
    }

    /// The data unit of the disk's encryption.
    #[must_use]
    pub fn unit_size(mut self, unit: UnitSize) -> Self {
        self.unit = unit;
        self
    }

    /// The KEK to wrap the disk's DEK under: the one that the disk had when it is restored.
    #[must_use]
    pub fn key_id(mut self, key_id: &'a KeyId) -> Self {
        self.key_id = Some(key_id);
        self
    }

    /// Makes a new disk of `vm` at `path`, relative to the storage root. The VM knows it when it is complete; an interrupted import of the same image
    /// goes on when it is called again.
    ///
    /// # Errors
    /// Where the image is no whole number of sectors, differs from its digests or cannot be read; where the name is taken; as
    /// [`make_disk`]. [`Error::Stopped`] where `watch` asks for it.
    pub fn run(
        &self,
        vm: &Vm<'_>,
        path: &str,
        keys: &mut dyn KeySource,
        watch: &mut dyn Watch,
    ) -> Result<Imported, FileError> {
        let (storage, vmx, path) = (vm.storage(), vm.vmx_path(), StoragePath::new(path).map_err(Error::Storage)?);
        let size_bytes = self.source.len()?;
        self.check_digests(&path, size_bytes)?;
        let new = NewDisk::new(self.disk_type, size_bytes);
        let state_path = path.with_suffix(STATE_SUFFIX);
        let mut state = State { fingerprint: self.fingerprint(size_bytes), done_bytes: 0 };
        match State::read(storage, &state_path)? {
            Some(found) if found.fingerprint != state.fingerprint => {
                let what = format!(
                    "an import of another image was interrupted here; complete that one, or remove the disk and {state_path}"
                );
                return Err(FileError::Refused { path: path.to_string(), what });
            }
            Some(found) => state = found,
            None => {
                if storage.metadata(&path)?.is_some() {
                    return Err(FileError::Exists { path: path.to_string() });
                }
                state.write(storage, &state_path)?;
            }
        }
        if state.done_bytes == 0 {
            // What an attempt left that did not get as far as data.
            for file in new.files(&path).map_err(Error::Disk)? {
                if storage.metadata(&file)?.is_some() {
                    storage.remove(&file)?;
                }
            }
            if let Err(error) = make_disk(storage, vmx, &path, &new, self.unit, self.key_id, keys) {
                storage.remove(&state_path)?;
                return Err(error.into());
            }
        }
        let resumed_bytes = state.done_bytes;
        let mut disk = open_new_disk(storage, vmx, &path, keys)?;
        let mut written_bytes = 0;
        let mut noted = resumed_bytes;
        self.copy(size_bytes, resumed_bytes, &mut |chunk, data| {
            if chunk.start >= noted + CHECKPOINT_LEN {
                state.checkpoint(&mut disk, chunk.start, storage, &state_path)?;
                noted = chunk.start;
            }
            if watch.progress(&Progress::new(path.as_str(), chunk.start, size_bytes)) == ControlFlow::Break(()) {
                state.checkpoint(&mut disk, chunk.start, storage, &state_path)?;
                return Err(Error::Stopped.into());
            }
            if let Some(data) = data {
                disk.write_at(data, chunk.start).map_err(Error::Disk)?;
                written_bytes += data.len() as u64;
            }
            Ok(())
        })?;
        disk.flush().map_err(Error::Disk)?;
        drop(disk);
        complete_disk(storage, vmx, &path, keys)?;
        storage.remove(&state_path)?;
        storage.sync_folder(&path.folder())?;
        Ok(Imported { size_bytes, written_bytes, resumed_bytes })
    }

    /// Writes those parts of the image to `disk` that the map says are there, such as the changes since an earlier export. Done again after an
    /// interruption it ends the same.
    ///
    /// # Errors
    /// [`FileError::Refused`] where image, map and disk do not have one size; as [`run`](Self::run).
    pub fn apply(
        &self,
        disk: &mut Disk<'_>,
        name: &str,
        map: &RangeMap,
        watch: &mut dyn Watch,
    ) -> Result<Imported, FileError> {
        let size_bytes = self.source.len()?;
        let map_end = map.ranges().last().map_or(0, |(range, _)| range.end);
        if size_bytes != disk.size_bytes() || map_end != size_bytes {
            let what = format!(
                "the disk has {} bytes, the image {size_bytes} and its map {map_end}: they do not belong together",
                disk.size_bytes()
            );
            return Err(FileError::Refused { path: name.to_owned(), what });
        }
        let mut written_bytes = 0;
        let mut buffer = Zeroizing::new(Vec::new());
        for (range, _) in map.ranges().filter(|(_, state)| *state == RangeState::There) {
            for chunk in chunks(&range) {
                if watch.progress(&Progress::new(name, chunk.start, size_bytes)) == ControlFlow::Break(()) {
                    disk.flush().map_err(Error::Disk)?;
                    return Err(Error::Stopped.into());
                }
                buffer.resize((chunk.end - chunk.start) as usize, 0);
                self.source.read_at(&mut buffer, chunk.start)?;
                if buffer.iter().all(|byte| *byte == 0) {
                    disk.discard(chunk.start, buffer.len() as u64).map_err(Error::Disk)?;
                } else {
                    disk.write_at(&buffer, chunk.start).map_err(Error::Disk)?;
                }
                written_bytes += buffer.len() as u64;
            }
        }
        disk.flush().map_err(Error::Disk)?;
        Ok(Imported { size_bytes, written_bytes, resumed_bytes: 0 })
    }

    fn check_digests(&self, path: &StoragePath, size_bytes: u64) -> Result<(), FileError> {
        match self.digests {
            Some(digests) if digests.size_bytes() != size_bytes => {
                let what = format!(
                    "the image has {size_bytes} bytes, and its digest list is of {}; they do not belong together",
                    digests.size_bytes()
                );
                Err(FileError::Refused { path: path.to_string(), what })
            }
            _ => Ok(()),
        }
    }

    /// What makes two imports the same one.
    fn fingerprint(&self, size_bytes: u64) -> [u8; DIGEST_LEN] {
        let mut hash = Sha256::new();
        hash.update(size_bytes.to_le_bytes());
        hash.update(self.digests.map_or(ZEROS, DigestList::digest));
        hash.update(format!("{:?} {:?} {:?}", self.disk_type, self.unit, self.key_id.map(KeyId::to_string)));
        hash.finalize().into()
    }

    /// Reads the chunks of the image ahead on a thread of its own, checked, and gives them to `write` in order: none for zeros.
    fn copy(&self, size_bytes: u64, from: u64, write: &mut WriteChunk<'_>) -> Result<(), FileError> {
        let (sender, receiver) = mpsc::sync_channel(READ_AHEAD);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for chunk in chunks(&(0..size_bytes)).filter(|chunk| chunk.start >= from) {
                    let read = self.read(&chunk);
                    let failed = read.is_err();
                    // The writer has gone where it failed: there is nobody to read for.
                    if sender.send((chunk, read)).is_err() || failed {
                        return;
                    }
                }
            });
            for (chunk, read) in receiver {
                write(&chunk, read?.as_deref().map(Vec::as_slice))?;
            }
            Ok(())
        })
    }

    fn read(&self, chunk: &Range<u64>) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        if let Some(digests) = self.digests
            && chunk.start.is_multiple_of(digests.block_bytes())
        {
            let block = chunk.start / digests.block_bytes();
            let found = file_digest(self.source, digests.block_range(block), &mut Zeroizing::new(Vec::new()))?;
            if digests.get(block) != Some(&found) {
                let what = format!(
                    "the image differs from its digest list at byte {}: it is damaged, or the list is another image's",
                    chunk.start
                );
                return Err(FileError::Refused { path: "the image".to_owned(), what });
            }
        }
        if self.source.next_data(chunk.start)?.is_none_or(|data| data.start >= chunk.end) {
            return Ok(None);
        }
        let mut data = Zeroizing::new(vec![0; CHUNK_LEN.min((chunk.end - chunk.start) as usize)]);
        self.source.read_at(&mut data, chunk.start)?;
        Ok(Some(data).filter(|data| data.iter().any(|byte| *byte != 0)))
    }
}

/// Takes the chunks of an image in order: none for zeros.
type WriteChunk<'w> = dyn FnMut(&Range<u64>, Option<&[u8]>) -> Result<(), FileError> + 'w;

/// How far an import is.
#[derive(Clone, Copy)]
struct State {
    fingerprint: [u8; DIGEST_LEN],
    done_bytes: u64,
}

impl State {
    /// Makes what was written durable, then notes how far that is.
    fn checkpoint(
        self,
        disk: &mut Disk<'_>,
        done_bytes: u64,
        storage: &dyn Storage,
        path: &StoragePath,
    ) -> Result<(), FileError> {
        disk.flush().map_err(Error::Disk)?;
        Self { done_bytes, ..self }.write(storage, path)
    }

    fn write(&self, storage: &dyn Storage, path: &StoragePath) -> Result<(), FileError> {
        let mut bytes = STATE_MAGIC.to_vec();
        bytes.extend_from_slice(&self.fingerprint);
        bytes.extend_from_slice(&self.done_bytes.to_le_bytes());
        Ok(storage.replace(path, &bytes)?)
    }

    fn read(storage: &dyn Storage, path: &StoragePath) -> Result<Option<Self>, FileError> {
        if storage.metadata(path)?.is_none() {
            return Ok(None);
        }
        let bytes = storage.read(path, 4096)?;
        let parsed = bytes.strip_prefix(STATE_MAGIC).and_then(|rest| {
            let (fingerprint, done) = rest.split_first_chunk()?;
            Some(Self { fingerprint: *fingerprint, done_bytes: u64::from_le_bytes(done.try_into().ok()?) })
        });
        let what = "this is no state of an import; remove it, and the disk that was being made";
        parsed.map(Some).ok_or_else(|| FileError::Unknown { path: path.to_string(), what })
    }
}

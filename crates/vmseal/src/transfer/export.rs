//! The decrypted disk as a raw image.

use core::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use rand_core::TryRng;
use vmseal_disk::Disk;
use vmseal_keys::system_rng;
use vmseal_rekey::{Error, Progress, Watch};
use vmseal_storage::{File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::output_file::refuse_existing;
use crate::transfer::digest_list::{DIGEST_LEN, DigestList, ZEROS};
use crate::transfer::part::Part;
use crate::transfer::range_map::{RangeMap, RangeState};

/// The bytes between two points to which an interrupted export can return.
const CHECKPOINT_LEN: u64 = 512 << 20;
/// What a worker reads at once.
const CHUNK_LEN: usize = 1 << 20;

/// An export of a disk's content. Holes stay holes.
pub struct Export<'a> {
    disk: &'a Disk<'a>,
    since: Option<&'a DigestList>,
    salvage: bool,
}

/// What an export did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exported {
    /// The bytes in which an earlier attempt was taken up.
    pub resumed_bytes: u64,
    /// The digests of the disk's content.
    pub digests: DigestList,
    /// What is in the image, and what is not.
    pub map: RangeMap,
}

impl<'a> Export<'a> {
    /// Of the whole content of `disk`.
    pub fn new(disk: &'a Disk<'a>) -> Self {
        Self { disk, since: None, salvage: false }
    }

    /// Leaves out the blocks that are as `digests` says.
    #[must_use]
    pub fn changed_since(mut self, digests: &'a DigestList) -> Self {
        self.since = Some(digests);
        self
    }

    /// Goes on over what cannot be read: it is zeros in the image, and named in the map.
    #[must_use]
    pub fn salvage(mut self) -> Self {
        self.salvage = true;
        self
    }

    /// Writes the image. Until it is complete it lies beside its place, with the digests of what is in it: an interrupted export of the same
    /// content goes on there, after what is there was checked. `replace` allows to replace what is there under the name.
    ///
    /// # Errors
    /// [`FileError::Exists`]; [`FileError::Refused`] where the digest list is of another disk; where reading fails, unless it is a salvage;
    /// where storage fails. [`Error::Stopped`] where `watch` asks for it; the next call goes on.
    pub fn run(
        &self,
        storage: &dyn Storage,
        path: &StoragePath,
        replace: bool,
        watch: &mut dyn Watch,
    ) -> Result<Exported, FileError> {
        refuse_existing(storage, path, replace)?;
        let mut digests = DigestList::new(self.disk.size_bytes());
        if let Some(since) = self.since
            && (since.size_bytes(), since.block_bytes()) != (digests.size_bytes(), digests.block_bytes())
        {
            let what = format!(
                "the digest list is of a disk of {} bytes, and this one has {}; make a full export",
                since.size_bytes(),
                digests.size_bytes()
            );
            return Err(FileError::Refused { path: path.to_string(), what });
        }
        let mut part = Part::open(storage, path, &self.fingerprint()?, &mut digests)?;
        let mut map = RangeMap::default();
        digests = self.check(part.file.as_ref(), &digests, &mut map)?;
        part.cut(&digests)?;
        let resumed_bytes = digests.block_range(digests.len()).start.min(digests.size_bytes());
        let mut unsynced = 0;
        while digests.len() < digests.block_count() {
            let done = digests.block_range(digests.len()).start;
            let progress = Progress::new(path.as_str(), done, digests.size_bytes());
            if watch.progress(&progress) == ControlFlow::Break(()) {
                part.checkpoint(&digests)?;
                return Err(Error::Stopped.into());
            }
            let batch = self.batch(&digests);
            let blocks = self.copy(&digests, batch, part.file.as_ref())?;
            for copied in blocks {
                unsynced += digests.block_bytes();
                copied.note(digests.block_range(digests.len()), &mut map);
                digests.extend([copied.digest]);
            }
            if unsynced >= CHECKPOINT_LEN {
                part.checkpoint(&digests)?;
                unsynced = 0;
            }
        }
        part.complete(replace)?;
        Ok(Exported { resumed_bytes, digests, map })
    }

    /// What makes two exports the same one. A salvage is never taken up: what cannot be read may change.
    fn fingerprint(&self) -> Result<[u8; DIGEST_LEN], FileError> {
        let mut hash = Sha256::new();
        hash.update(self.disk.descriptor().to_bytes());
        hash.update(self.since.map_or(ZEROS, DigestList::digest));
        if self.salvage {
            let mut salt = [0; DIGEST_LEN];
            system_rng().try_fill_bytes(&mut salt).map_err(|_| Error::Random)?;
            hash.update(salt);
        }
        Ok(hash.finalize().into())
    }

    /// The digests of those blocks from the start that an earlier run left as it noted them.
    fn check(&self, part: &dyn File, noted: &DigestList, map: &mut RangeMap) -> Result<DigestList, FileError> {
        let mut digests = DigestList::new(noted.size_bytes());
        let mut buffer = Zeroizing::new(Vec::new());
        for block in 0..noted.len() {
            let Some(expected) = noted.get(block) else { break };
            let is_unchanged = self.since.and_then(|since| since.get(block)) == Some(expected);
            let found = if is_unchanged { *expected } else { file_digest(part, noted.block_range(block), &mut buffer)? };
            if found != *expected {
                break;
            }
            Copied { digest: found, is_unchanged, unreadable: Vec::new() }.note(noted.block_range(block), map);
            digests.extend([found]);
        }
        Ok(digests)
    }

    /// The blocks that are worked on between two reports.
    fn batch(&self, digests: &DigestList) -> Range<u64> {
        let first = digests.len();
        first..digests.block_count().min(first + (64_u64 << 20).div_ceil(digests.block_bytes()).max(1))
    }

    /// Copies blocks, on every core.
    fn copy(&self, digests: &DigestList, blocks: Range<u64>, target: &dyn File) -> Result<Vec<Copied>, FileError> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicU64::new(blocks.start);
        let failed = Mutex::new(None);
        let copied = Mutex::new(vec![Copied::default(); (blocks.end - blocks.start) as usize]);
        std::thread::scope(|scope| {
            let work = || {
                let mut buffer = Zeroizing::new(Vec::new());
                loop {
                    let block = next.fetch_add(1, Ordering::Relaxed);
                    let is_failed = failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                    if block >= blocks.end || is_failed {
                        return;
                    }
                    match self.copy_block(digests, block, target, &mut buffer) {
                        Ok(result) => {
                            let mut copied = copied.lock().unwrap_or_else(PoisonError::into_inner);
                            copied[(block - blocks.start) as usize] = result;
                        }
                        Err(error) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            return;
                        }
                    }
                }
            };
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(copied.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn copy_block(
        &self,
        digests: &DigestList,
        block: u64,
        target: &dyn File,
        buffer: &mut Vec<u8>,
    ) -> Result<Copied, FileError> {
        let range = digests.block_range(block);
        let mut hash = Sha256::new();
        let mut is_zeros = true;
        let mut unreadable = Vec::new();
        for chunk in chunks(&range) {
            let has_data = self.read(buffer, &chunk, &mut unreadable)?;
            hash.update(&*buffer);
            is_zeros &= !has_data;
            if has_data && self.since.is_none() {
                target.write_at(buffer, chunk.start)?;
            }
        }
        let digest = if is_zeros { ZEROS } else { hash.finalize().into() };
        let is_unchanged = unreadable.is_empty() && self.since.and_then(|since| since.get(block)) == Some(&digest);
        if self.since.is_some() && !is_unchanged && !is_zeros {
            for chunk in chunks(&range) {
                // A block of one chunk is in the buffer already.
                let has_data = range == chunk || self.read(buffer, &chunk, &mut Vec::new())?;
                if has_data {
                    target.write_at(buffer, chunk.start)?;
                }
            }
        }
        Ok(Copied { digest, is_unchanged, unreadable })
    }

    /// Fills `buffer` with a chunk of the disk, and says whether there is anything but zeros.
    fn read(&self, buffer: &mut Vec<u8>, chunk: &Range<u64>, unreadable: &mut Vec<Range<u64>>) -> Result<bool, FileError> {
        buffer.resize((chunk.end - chunk.start) as usize, 0);
        if self.salvage {
            unreadable.extend(self.disk.salvage_read(buffer, chunk.start).map_err(Error::Disk)?);
        } else if self.disk.next_data(chunk.start).map_err(Error::Disk)?.is_none_or(|data| data.start >= chunk.end) {
            buffer.fill(0);
            return Ok(false);
        } else {
            self.disk.read_at(buffer, chunk.start).map_err(Error::Disk)?;
        }
        Ok(buffer.iter().any(|byte| *byte != 0))
    }
}

/// The digest of a block of a file.
pub(crate) fn file_digest(file: &dyn File, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<[u8; DIGEST_LEN], FileError> {
    let mut hash = Sha256::new();
    let mut is_zeros = true;
    for chunk in chunks(&range) {
        buffer.resize((chunk.end - chunk.start) as usize, 0);
        if file.next_data(chunk.start)?.is_none_or(|data| data.start >= chunk.end) {
            buffer.fill(0);
        } else {
            file.read_at(buffer, chunk.start)?;
        }
        is_zeros &= buffer.iter().all(|byte| *byte == 0);
        hash.update(&*buffer);
    }
    Ok(if is_zeros { ZEROS } else { hash.finalize().into() })
}

fn chunks(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(CHUNK_LEN).map(move |start| start..end.min(start + CHUNK_LEN as u64))
}

/// What became of a block.
#[derive(Clone, Default)]
struct Copied {
    digest: [u8; DIGEST_LEN],
    is_unchanged: bool,
    unreadable: Vec<Range<u64>>,
}

impl Copied {
    fn note(&self, block: Range<u64>, map: &mut RangeMap) {
        if self.is_unchanged {
            map.push(block, RangeState::Unchanged);
            return;
        }
        let mut at = block.start;
        for range in &self.unreadable {
            map.push(at..range.start, RangeState::There);
            map.push(range.clone(), RangeState::Unreadable);
            at = range.end;
        }
        map.push(at..block.end, RangeState::There);
    }
}

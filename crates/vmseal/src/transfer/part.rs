//! An image that is not complete yet, and what is known of it.

use vmseal_storage::{Access, File, Lock, Storage, StoragePath};

use crate::file_error::FileError;
use crate::output_file::refuse_existing;
use crate::transfer::digest_list::{DIGEST_LEN, DigestList};

/// What is appended to the name of an image that is not complete.
const PART_SUFFIX: &str = ".vmseal-part";
/// The digests of what is in it, in order: the next run goes on behind them.
const STATE_SUFFIX: &str = ".vmseal-part-digests";
const MAGIC: &[u8; 8] = b"VMSEALE1";
const HEADER_LEN: u64 = 64;

pub(crate) struct Part<'s> {
    storage: &'s dyn Storage,
    path: StoragePath,
    pub(crate) file: Box<dyn File>,
    state: Box<dyn File>,
    /// How many digests the state file has.
    noted: u64,
    /// Nobody else works on the same image.
    _lock: Box<dyn Lock>,
}

impl<'s> Part<'s> {
    /// Opens what an earlier run left, where it was of the same content, and adds the digests that it noted to `digests`; begins anew otherwise.
    pub(crate) fn open(
        storage: &'s dyn Storage,
        path: &StoragePath,
        fingerprint: &[u8; DIGEST_LEN],
        digests: &mut DigestList,
    ) -> Result<Self, FileError> {
        let lock = vmseal_rekey::lock(storage, path)?;
        let (part, state) = (path.with_suffix(PART_SUFFIX), path.with_suffix(STATE_SUFFIX));
        let header = header(digests, fingerprint);
        if let Some(noted) = read_state(storage, &part, &state, &header)? {
            let noted_count = noted.len() as u64;
            digests.extend(noted.into_iter().take(usize::try_from(digests.block_count()).unwrap_or(usize::MAX)));
            let file = storage.open(&part, Access::ReadWrite)?;
            let state = storage.open(&state, Access::ReadWrite)?;
            return Ok(Self { storage, path: path.clone(), file, state, noted: noted_count, _lock: lock });
        }
        for old in [&part, &state] {
            if storage.metadata(old)?.is_some() {
                storage.remove(old)?;
            }
        }
        let file = storage.create(&part, None)?;
        file.set_len(digests.size_bytes())?;
        let state = storage.create(&state, None)?;
        state.write_at(&header, 0)?;
        state.sync()?;
        storage.sync_folder(&path.folder())?;
        Ok(Self { storage, path: path.clone(), file, state, noted: 0, _lock: lock })
    }

    /// Forgets what was noted beyond the digests that are there: it proved wrong.
    pub(crate) fn cut(&mut self, digests: &DigestList) -> Result<(), FileError> {
        if self.noted > digests.len() {
            self.noted = digests.len();
            self.state.set_len(HEADER_LEN + self.noted * DIGEST_LEN as u64)?;
        }
        Ok(())
    }

    /// Makes what was copied durable, then notes it.
    pub(crate) fn checkpoint(&mut self, digests: &DigestList) -> Result<(), FileError> {
        self.file.sync()?;
        let new: Vec<u8> = (self.noted..digests.len()).filter_map(|block| digests.get(block)).flatten().copied().collect();
        self.state.write_at(&new, HEADER_LEN + self.noted * DIGEST_LEN as u64)?;
        self.state.sync()?;
        self.noted = digests.len();
        Ok(())
    }

    /// Puts the complete image in its place.
    pub(crate) fn complete(self, replace: bool) -> Result<(), FileError> {
        self.file.sync()?;
        refuse_existing(self.storage, &self.path, replace)?;
        self.storage.rename(&self.path.with_suffix(PART_SUFFIX), &self.path)?;
        self.storage.remove(&self.path.with_suffix(STATE_SUFFIX))?;
        Ok(self.storage.sync_folder(&self.path.folder())?)
    }
}

fn header(digests: &DigestList, fingerprint: &[u8; DIGEST_LEN]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&digests.size_bytes().to_le_bytes());
    header.extend_from_slice(&digests.block_bytes().to_le_bytes());
    header.resize(HEADER_LEN as usize - DIGEST_LEN, 0);
    header.extend_from_slice(fingerprint);
    header
}

/// The digests that an earlier run noted, where it exported the same content.
fn read_state(
    storage: &dyn Storage,
    part: &StoragePath,
    state: &StoragePath,
    header: &[u8],
) -> Result<Option<Vec<[u8; DIGEST_LEN]>>, FileError> {
    if storage.metadata(part)?.is_none() || storage.metadata(state)?.is_none() {
        return Ok(None);
    }
    let bytes = storage.read(state, 64 << 20)?;
    Ok(bytes.strip_prefix(header).map(|digests| digests.as_chunks().0.to_vec()))
}

//! ESXi's envelopes as files of any length: described, extracted and made in constant memory.

use std::io::Read;

use vmseal_formats::envelope::{self, Header, Opener, Sealer};
use vmseal_formats::{Dictionary, Keystore};
use vmseal_keys::{FileKey, system_rng};
use vmseal_storage::{Access, File, Storage, StoragePath};
use zeroize::{Zeroize, Zeroizing};

use crate::file_error::FileError;
use crate::output_file::NewFile;

/// So much is read, worked through and written at a time: what is read and what comes of it stay in the second cache.
pub(crate) const PIECE_LEN: usize = 256 << 10;
/// A keystore is some hundred bytes.
const KEYSTORE_LEN_MAX: u64 = 1 << 20;
/// What the length of a header is read from.
const HEADER_START_LEN: usize = 512;

/// An envelope whose header was read. Nothing of what it says is authenticated before it was extracted.
pub struct EnvelopeFile<R> {
    path: String,
    source: R,
    offset_bytes: u64,
    header: Header,
    /// What was read behind the header.
    start: Vec<u8>,
}

impl<R: Read> EnvelopeFile<R> {
    /// Reads the header: at the start of the file, or behind that of a kernel's core dump, at byte 4096. `path` is for messages.
    ///
    /// # Errors
    /// [`FileError::Format`] where there is no whole header; [`FileError::Stream`].
    pub fn begin(path: &str, mut source: R) -> Result<Self, FileError> {
        let mut start = Vec::new();
        fill(path, &mut source, &mut start, envelope::ZDUMP_OFFSET + HEADER_START_LEN)?;
        let offset = envelope::find(&start).unwrap_or(0);
        start.drain(..offset);
        let format = FileError::format(path);
        let len = Header::len_of(&start).map_err(&format)?;
        fill(path, &mut source, &mut start, len)?;
        let header = envelope::describe(&start).map_err(&format)?;
        start.drain(..len);
        drop(format);
        Ok(Self { path: path.to_owned(), source, offset_bytes: offset as u64, header, start })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the envelope begins in the file.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Writes what it holds to a file, which gets its name when the tag has verified; gives its length.
    ///
    /// # Errors
    /// [`FileError::Format`] for a wrong key, for damage and for other associated data; [`FileError::Exists`]; where storage fails.
    /// Nothing is left then.
    pub fn extract(
        self,
        key: &FileKey,
        aad: &[u8],
        storage: &dyn Storage,
        out: &StoragePath,
        replace: bool,
    ) -> Result<u64, FileError> {
        let mut file = NewFile::begin(storage, out, replace)?;
        let len = self.decrypt(key, aad, |data| file.write(data))?;
        file.complete(len)?;
        Ok(len)
    }

    /// Writes what it holds to a file without a name in `folder`, which is given back when the tag has verified, with its length: for
    /// output that cannot be taken back.
    ///
    /// # Errors
    /// As [`extract`](Self::extract).
    pub fn extract_unnamed(
        self,
        key: &FileKey,
        aad: &[u8],
        storage: &dyn Storage,
        name: &StoragePath,
    ) -> Result<impl Read + use<R>, FileError> {
        let file = storage.create(name, None)?;
        storage.remove(name)?;
        let mut at = 0;
        let len = self.decrypt(key, aad, |data| {
            file.write_at(data, at)?;
            at += data.len() as u64;
            Ok(())
        })?;
        file.set_len(len)?;
        Ok(FileReader { file, at: 0 })
    }

    /// Gives every decrypted piece to `sink`, and at last how much of it is data. Before that none of it is to be believed.
    fn decrypt(
        mut self,
        key: &FileKey,
        aad: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<u64, FileError> {
        let format = FileError::format(&self.path);
        let mut opener = Opener::new(key, aad, &self.header).map_err(&format)?;
        let mut piece = core::mem::take(&mut self.start);
        let mut data = Zeroizing::new(vec![0; PIECE_LEN.max(piece.len())]);
        loop {
            let len = opener.update(&piece, &mut data).map_err(&format)?;
            sink(&data[..len])?;
            piece.clear();
            if fill(&self.path, &mut self.source, &mut piece, PIECE_LEN)? == 0 {
                return opener.finish().map_err(&format);
            }
        }
    }
}

/// Prints no content.
impl<R> core::fmt::Debug for EnvelopeFile<R> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EnvelopeFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a new envelope is made with.
#[derive(Clone, Copy, Debug)]
pub struct EnvelopeSeal<'a> {
    /// The key, which must not be ESXi's own.
    pub key: &'a FileKey,
    /// What names the key in the header.
    pub key_id: &'a str,
    /// The associated data, which extracting needs again.
    pub aad: &'a [u8],
}

impl EnvelopeSeal<'_> {
    /// Seals `source` into a file, which gets its name when it is whole.
    ///
    /// # Errors
    /// [`FileError::Exists`]; [`FileError::Format`] for a key ID that does not fit the header; where reading or storage fails.
    pub fn create(
        &self,
        path: &str,
        source: impl Read,
        storage: &dyn Storage,
        out: &StoragePath,
        replace: bool,
    ) -> Result<(), FileError> {
        let mut file = NewFile::begin(storage, out, replace)?;
        let len = self.encrypt(path, source, |data| file.write(data))?;
        file.complete(len)
    }

    /// Seals `source`, and gives each piece of the envelope to `sink`; gives the envelope's length.
    ///
    /// # Errors
    /// As [`create`](Self::create), and those of `sink`.
    pub fn encrypt(
        &self,
        path: &str,
        mut source: impl Read,
        mut sink: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<u64, FileError> {
        let format = FileError::format(path);
        let (mut sealer, header) = Sealer::new(self.key, self.key_id, self.aad, &mut system_rng()).map_err(&format)?;
        sink(&header)?;
        let mut len = header.len() as u64;
        let mut piece = Zeroizing::new(Vec::with_capacity(PIECE_LEN));
        while fill(path, &mut source, &mut piece, PIECE_LEN)? > 0 {
            sealer.update(&mut piece).map_err(&format)?;
            sink(&piece)?;
            len += piece.len() as u64;
            piece.zeroize();
        }
        let end = sealer.finish(&mut system_rng()).map_err(&format)?;
        sink(&end)?;
        Ok(len + end.len() as u64)
    }
}

/// Reads a keystore of a host, `encryption.info`.
///
/// # Errors
/// [`FileError::Format`], also for a keystore whose key a TPM has sealed; where it cannot be read.
pub fn read_keystore(storage: &dyn Storage, path: &StoragePath) -> Result<Keystore, FileError> {
    let bytes = Zeroizing::new(storage.read(path, KEYSTORE_LEN_MAX)?);
    Keystore::parse(&Dictionary::parse(&bytes)).map_err(FileError::format(path.as_str()))
}

/// Reads a file of a storage from its start to its end.
///
/// # Errors
/// Where it cannot be opened.
pub fn reader(storage: &dyn Storage, path: &StoragePath) -> Result<impl Read + use<>, FileError> {
    Ok(FileReader { file: storage.open(path, Access::Read)?, at: 0 })
}

struct FileReader {
    file: Box<dyn File>,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.file.len().map_err(std::io::Error::other)?.saturating_sub(self.at);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_at(&mut buffer[..len], self.at).map_err(std::io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Reads until `piece` has `len` bytes or there are no more; gives how many came.
pub(crate) fn fill(path: &str, source: &mut impl Read, piece: &mut Vec<u8>, len: usize) -> Result<usize, FileError> {
    let wanted = len.saturating_sub(piece.len());
    // Room beforehand: a piece with plaintext is not moved while it grows.
    piece.reserve(wanted);
    let failed = |source| FileError::Stream { path: path.to_owned(), source };
    source.by_ref().take(wanted as u64).read_to_end(piece).map_err(failed)
}

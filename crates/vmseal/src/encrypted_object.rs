//! Encrypted NVRAM, snapshots and memory of Workstation and Fusion VMs, of any length in constant memory. Read only.
//!
//! **Nobody can authenticate them**: what their authentication codes cover is not public. Whoever shows what was read says so.

use std::io::Read;

use vmseal_formats::encobj::{self, EncObjHeader, PageDecryptor};
use vmseal_formats::vmem::{self, BlockHeader};
use vmseal_formats::{Error as FormatError, FileKind, identify};
use vmseal_storage::{Storage, StoragePath};
use zeroize::Zeroizing;

use crate::envelope_file::{PIECE_LEN, fill};
use crate::file_error::FileError;
use crate::output_file::NewFile;
use crate::vmx_file::DataFileKey;

/// More than any block of memory is compressed to, with its header.
const BLOCK_LEN_MAX: usize = vmem::EXPANDED_LEN_MAX + vmem::EXPANDED_LEN_MAX / 8;

/// What becomes of a decrypted file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// It is written as it is. Memory is a sequence of compressed blocks then.
    AsItIs,
    /// Memory is expanded, block behind block.
    FlatMemory,
}

/// An encrypted object whose header was read.
pub struct EncryptedObject<R> {
    path: String,
    source: R,
    header: EncObjHeader,
}

/// What was decrypted. Nothing of it is authenticated.
#[derive(Clone, Copy, Debug)]
pub struct Decrypted {
    /// The bytes that were written.
    pub len_bytes: u64,
    /// Whether they begin as snapshots and suspended states do, which a wrong key makes unlikely.
    pub begins_as_snapshot: bool,
}

impl<R: Read> EncryptedObject<R> {
    /// Reads the header. `path` is for messages; `len_bytes` is the length of the file, where that is known: damage shows at once then.
    ///
    /// # Errors
    /// [`FileError::Format`] where it is no encrypted object, or has another length than it says; [`FileError::Refused`] where it is one of
    /// another kind that is not encrypted so; [`FileError::Stream`].
    pub fn begin(path: &str, mut source: R, len_bytes: Option<u64>) -> Result<Self, FileError> {
        let mut start = Vec::new();
        fill(path, &mut source, &mut start, encobj::HEADER_LEN)?;
        let refused = |what: &str| Err(FileError::Refused { path: path.to_owned(), what: what.to_owned() });
        match identify(&start) {
            FileKind::Snapshot | FileKind::Nvram => return refused("it is not encrypted; there is nothing to decrypt"),
            FileKind::Envelope { .. } => return refused("it is an envelope; use `vmseal envelope extract`"),
            _ => {}
        }
        let format = FileError::format(path);
        let header = EncObjHeader::parse(&start).map_err(&format)?;
        len_bytes.map_or(Ok(()), |len| header.check_file_len(len)).map_err(&format)?;
        drop(format);
        Ok(Self { path: path.to_owned(), source, header })
    }

    /// Whether it is memory, of which [`Form::FlatMemory`] can be made.
    pub fn is_memory(&self) -> bool {
        self.header.version == 2
    }

    /// Decrypts it into a file, which gets its name when it is whole.
    ///
    /// # Errors
    /// As [`decrypt`](Self::decrypt); [`FileError::Exists`]; where storage fails. Nothing is left then.
    pub fn write(
        self,
        key: &DataFileKey,
        form: Form,
        storage: &dyn Storage,
        out: &StoragePath,
        replace: bool,
    ) -> Result<Decrypted, FileError> {
        let mut file = NewFile::begin(storage, out, replace)?;
        let decrypted = self.decrypt(key, form, |data| file.write(data))?;
        file.complete(decrypted.len_bytes)?;
        Ok(decrypted)
    }

    /// Decrypts it, and gives each piece to `sink`.
    ///
    /// # Errors
    /// [`FileError::Format`] for damage, and for memory that is none; [`FileError::WrongVm`] where memory is to be expanded and does not begin
    /// as memory does; those of `sink`. Other wrong keys and changed pages go unnoticed.
    pub fn decrypt(
        mut self,
        key: &DataFileKey,
        form: Form,
        mut sink: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<Decrypted, FileError> {
        if form == Form::FlatMemory && !self.is_memory() {
            let what = "it is no memory, and is not expanded; leave `--flat` out".to_owned();
            return Err(FileError::Refused { path: self.path, what });
        }
        let format = FileError::format(&self.path);
        let decryptor = PageDecryptor::new(key.0.expose()).map_err(&format)?;
        let mut expander = Expander { path: &self.path, buffer: Zeroizing::new(Vec::new()), at: 0 };
        let mut decrypted = Decrypted { len_bytes: 0, begins_as_snapshot: false };
        let mut count = |data: &[u8]| {
            if decrypted.len_bytes == 0 {
                decrypted.begins_as_snapshot = encobj::is_snapshot(data);
            }
            decrypted.len_bytes += data.len() as u64;
            sink(data)
        };
        let mut rest = self.header.logical_len;
        let mut read = encobj::HEADER_LEN as u64;
        let mut pages = Vec::new();
        let mut data = Zeroizing::new(Vec::with_capacity(PIECE_LEN));
        while fill(&self.path, &mut self.source, &mut pages, PIECE_LEN)? > 0 {
            read += pages.len() as u64;
            let (whole, cut) = pages.as_chunks::<{ encobj::PAGE_LEN }>();
            if !cut.is_empty() || whole.len() as u64 > rest.div_ceil(encobj::DATA_LEN as u64) {
                break;
            }
            data.clear();
            for page in whole {
                let page = decryptor.decrypt(page).map_err(&format)?;
                let len = usize::try_from(rest).unwrap_or(usize::MAX).min(page.len());
                data.extend_from_slice(&page[..len]);
                rest -= len as u64;
            }
            match form {
                Form::AsItIs => count(&data)?,
                Form::FlatMemory => expander.take(&data, &mut count)?,
            }
            pages.clear();
        }
        self.header.check_file_len(read).map_err(&format)?;
        expander.finish()?;
        Ok(decrypted)
    }
}

/// Prints no content.
impl<R> core::fmt::Debug for EncryptedObject<R> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EncryptedObject")
            .field("path", &self.path)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// Expands the blocks of memory as they come.
struct Expander<'p> {
    path: &'p str,
    /// What belongs to blocks that are not whole yet.
    buffer: Zeroizing<Vec<u8>>,
    /// Where it begins in the decrypted file.
    at: u64,
}

impl Expander<'_> {
    fn take(&mut self, data: &[u8], sink: &mut impl FnMut(&[u8]) -> Result<(), FileError>) -> Result<(), FileError> {
        // Room beforehand: a buffer with plaintext is not moved while it grows.
        let room = (BLOCK_LEN_MAX + PIECE_LEN).saturating_sub(self.buffer.len());
        self.buffer.reserve_exact(room);
        self.buffer.extend_from_slice(data);
        let mut used = 0;
        while let Some(rest) = self.buffer.get(used..).filter(|rest| rest.len() >= vmem::BLOCK_HEADER_LEN) {
            let at = self.at + used as u64;
            let wrong = |source| match at {
                // What does not even begin as memory was decrypted with another VM's key.
                0 => FileError::WrongVm { path: self.path.to_owned() },
                _ => FileError::Format { path: self.path.to_owned(), source },
            };
            let header = BlockHeader::parse(rest, at).map_err(wrong)?;
            let end = vmem::BLOCK_HEADER_LEN + header.compressed_len;
            let Some(stream) = rest.get(vmem::BLOCK_HEADER_LEN..end) else { break };
            sink(&header.expand(stream, at + vmem::BLOCK_HEADER_LEN as u64).map_err(wrong)?)?;
            used += end;
        }
        self.buffer.drain(..used);
        self.at += used as u64;
        Ok(())
    }

    fn finish(self) -> Result<(), FileError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let len_bytes = self.at + self.buffer.len() as u64;
        let wanted_bytes = match BlockHeader::parse(&self.buffer, self.at) {
            Ok(header) => self.at + (vmem::BLOCK_HEADER_LEN + header.compressed_len) as u64,
            Err(_) => self.at + vmem::BLOCK_HEADER_LEN as u64,
        };
        let source = FormatError::Truncated { format: "VMEM", len_bytes, wanted_bytes };
        Err(FileError::Format { path: self.path.to_owned(), source })
    }
}

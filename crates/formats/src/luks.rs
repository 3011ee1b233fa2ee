//! LUKS headers: LUKS1 and LUKS2, of disks whose data is enciphered as vmseal's is (`docs/formats/luks.md`).
//!
//! Data under `aes-xts-plain64` with a key of 512 bits and sectors of 512 bytes is what an encrypted disk of vmseal with data units of 512
//! bytes is. Headers of such data are read and written; what is known and different is refused with its reason.
//!
//! ```
//! use vmseal_formats::{LuksHeader, luks};
//! use vmseal_keys::{Dek, system_rng};
//!
//! let dek = Dek::generate(&mut system_rng())?;
//! let file = luks::write_luks1(&dek, b"correct horse", 1000, &mut system_rng())?;
//!
//! let header = LuksHeader::parse(&file)?;
//! let slot = &header.slots()[0];
//! let area = slot.area_bytes();
//! assert!(slot.open(&file[area.start as usize..area.end as usize], b"correct horse")? == dek);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it does not protect against: whoever can write to a header can put back an older one, with passphrases that were removed since.

use rand_core::TryCryptoRng;
use vmseal_keys::Dek;
use zeroize::Zeroizing;

use crate::error::{Error, Place};
use crate::luks_kdf::LuksKdf;
use crate::luks_slot::LuksSlot;
use crate::{luks1, luks2};

/// The first bytes of a header.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// The one cipher whose data is vmseal's.
pub(crate) const CIPHER: &str = "aes-xts-plain64";
/// What the header's places are counted in.
pub(crate) const SECTOR_LEN: u64 = 512;

/// A header that was read. What it says is not authenticated before a slot has opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LuksHeader {
    pub(crate) version: u16,
    pub(crate) uuid: String,
    pub(crate) payload_offset_bytes: u64,
    pub(crate) payload_len_bytes: Option<u64>,
    pub(crate) header_end_bytes: u64,
    pub(crate) slots: Vec<LuksSlot>,
}

impl LuksHeader {
    /// Bytes that [`parse`](Self::parse) needs, from the first [`START_LEN`](Self::START_LEN) bytes of the file.
    ///
    /// # Errors
    /// [`Error::BadMagic`], [`Error::Truncated`], [`Error::UnsupportedVersion`], [`Error::Value`].
    pub fn len_of(start: &[u8]) -> Result<usize, Error> {
        match version(start)? {
            1 => Ok(luks1::HEADER_LEN),
            _ => luks2::len_of(start),
        }
    }

    /// What [`len_of`](Self::len_of) looks at.
    pub const START_LEN: usize = 512;

    /// Reads a header; `start` is [`len_of`](Self::len_of) bytes from the start of its file, or more.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::Unsupported`] for data that is not enciphered as vmseal's; otherwise what is damaged, and where.
    pub fn parse(start: &[u8]) -> Result<Self, Error> {
        match version(start)? {
            1 => luks1::parse(start),
            _ => luks2::parse(start),
        }
    }

    /// 1 or 2.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The UUID, as it stands there.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Where the data begins in its file: 0 for most detached headers.
    pub fn payload_offset_bytes(&self) -> u64 {
        self.payload_offset_bytes
    }

    /// The length of the data; none where it goes to the end of its file.
    pub fn payload_len_bytes(&self) -> Option<u64> {
        self.payload_len_bytes
    }

    /// Where the header with all its key material ends. Data in the same file begins there at the earliest.
    pub fn header_end_bytes(&self) -> u64 {
        self.header_end_bytes
    }

    /// The key slots that hold the master key.
    pub fn slots(&self) -> &[LuksSlot] {
        &self.slots
    }
}

/// A detached LUKS1 header with the master key `dek`, for data from byte 0 of its file on: `aes-xts-plain64`, SHA-256, one key slot of
/// so many `iterations`. QEMU and dm-crypt read it.
///
/// # Errors
/// [`Error::Limit`] where nothing here would read it again; [`Error::Random`].
pub fn write_luks1<R: TryCryptoRng>(
    dek: &Dek,
    passphrase: &[u8],
    iterations: u32,
    rng: &mut R,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    luks1::write(dek, passphrase, iterations, rng)
}

/// The same as LUKS2, with sectors of 512 bytes. QEMU does not read it.
///
/// # Errors
/// As [`write_luks1`].
pub fn write_luks2<R: TryCryptoRng>(
    dek: &Dek,
    passphrase: &[u8],
    kdf: LuksKdf,
    rng: &mut R,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    luks2::write(dek, passphrase, kdf, rng)
}

fn version(start: &[u8]) -> Result<u16, Error> {
    const FORMAT: &str = "LUKS header";
    if start.len() < MAGIC.len() + 2 {
        return Err(Error::Truncated { format: FORMAT, len_bytes: start.len() as u64, wanted_bytes: 8 });
    }
    if !start.starts_with(&MAGIC) {
        return Err(Error::BadMagic { format: FORMAT, place: Place::Byte(0) });
    }
    match u16::from_be_bytes([start[6], start[7]]) {
        version @ 1..=2 => Ok(version),
        version => Err(Error::UnsupportedVersion { format: FORMAT, version: version.to_string() }),
    }
}

/// Data that is enciphered otherwise than vmseal's disks.
pub(crate) fn not_ours(what: &'static str) -> Error {
    Error::Unsupported {
        what,
        why: "vmseal's disks are aes-xts-plain64 with 512-bit keys and 512-byte sectors from number 0; copy the data instead",
    }
}

/// The body of the fuzz target: what parses has slots within limits, and a slot that opens gives a key that a new header holds again.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let _ = LuksHeader::len_of(data);
    let _ = luks2::fuzz_json(data);
    let Ok(header) = LuksHeader::parse(data) else { return };
    assert_eq!(LuksHeader::parse(data).ok().as_ref(), Some(&header));
    assert!(LuksHeader::len_of(data).is_ok_and(|len| len <= data.len()));
    for slot in header.slots() {
        assert!(slot.area_bytes().end <= header.header_end_bytes());
    }
}

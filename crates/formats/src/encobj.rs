//! Encrypted objects of Workstation and Fusion: `.nvram`, `.vmsn`, `.vmss` and `.vmem` (`docs/formats/encobj.md`). Read
//! only.
//!
//! **Nothing here is authenticated.** Each page has a MAC whose key and coverage are not public: pages can be changed
//! or put in each other's place, and a wrong key gives garbage, without anyone noticing. Whoever shows what was read
//! says so.

use aes::Aes256;
use bytes::Buf;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use zeroize::Zeroizing;

use crate::error::{Error, Place};

/// The first bytes, little-endian.
pub const MAGIC: u32 = 0x8943_dd9e;
/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a page.
pub const PAGE_LEN: usize = 4096;
/// Bytes of data in a page.
pub const DATA_LEN: usize = 4064;
const IV_LEN: usize = 16;
const MAC_LEN: usize = 16;

// Layout of a page.
const IV_OFFSET: usize = DATA_LEN;
const MAC_OFFSET: usize = IV_OFFSET + IV_LEN;
const _: () = assert!(MAC_OFFSET + MAC_LEN == PAGE_LEN);

/// What decrypted snapshots and suspended states begin with.
const SNAPSHOT_MAGICS: [u32; 4] = [0xbed2_bed2, 0xbed2_bed0, 0xbad1_bad1, 0xbed3_bed3];

/// The header of an encrypted object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EncObjHeader {
    /// 1, or 2 for memory.
    pub version: u32,
    /// How long the plaintext is.
    pub logical_len: u64,
}

impl EncObjHeader {
    /// Reads a header; `bytes` may go on behind it.
    ///
    /// # Errors
    /// [`Error::BadMagic`], [`Error::Truncated`], [`Error::UnsupportedVersion`], [`Error::Value`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const FORMAT: &str = "encrypted object";
        let known = bytes.len().min(4);
        if bytes[..known] != MAGIC.to_le_bytes()[..known] {
            return Err(Error::BadMagic { format: FORMAT, place: Place::Byte(0) });
        }
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            let (len_bytes, wanted_bytes) = (bytes.len() as u64, HEADER_LEN as u64);
            return Err(Error::Truncated { format: FORMAT, len_bytes, wanted_bytes });
        };
        let mut fields = &header[4..];
        let version = fields.get_u32_le();
        if !(1..=2).contains(&version) {
            return Err(Error::UnsupportedVersion { format: "the encrypted object", version: version.to_string() });
        }
        for (what, wanted, offset) in [
            ("the bytes of data in a page, 4064,", DATA_LEN, 8),
            ("the bytes of a page's IV, 16,", IV_LEN, 12),
            ("the bytes of a page's MAC, 16,", MAC_LEN, 16),
        ] {
            let found = fields.get_u32_le();
            if found as usize != wanted {
                return Err(Error::Value { what, found: found.to_string(), place: Place::Byte(offset) });
            }
        }
        fields.advance(4);
        Ok(Self { version, logical_len: fields.get_u64_le() })
    }

    /// The number of pages.
    pub fn page_count(&self) -> u64 {
        self.logical_len.div_ceil(DATA_LEN as u64)
    }

    /// Checks that the file has its pages and nothing behind them.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Length`].
    pub fn check_file_len(&self, len_bytes: u64) -> Result<(), Error> {
        let wanted_bytes = self.page_count().saturating_mul(PAGE_LEN as u64).saturating_add(HEADER_LEN as u64);
        if len_bytes < wanted_bytes {
            return Err(Error::Truncated { format: "encrypted object", len_bytes, wanted_bytes });
        }
        if len_bytes > wanted_bytes {
            let wanted = "is longer than its header says";
            return Err(Error::Length { what: "an encrypted object", found: len_bytes, wanted });
        }
        Ok(())
    }
}

/// Decrypts pages, one at a time.
pub struct PageDecryptor {
    key: Zeroizing<[u8; 32]>,
}

impl PageDecryptor {
    /// With the bytes of the VMX's `dataFileKey`: 32, or 64 of which the first 32 are used.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn new(key: &[u8]) -> Result<Self, Error> {
        match key.first_chunk() {
            Some(first) if matches!(key.len(), 32 | 64) => Ok(Self { key: Zeroizing::new(*first) }),
            _ => Err(Error::KeyLength { what: "the key of an encrypted object", found: key.len(), wanted: 32 }),
        }
    }

    /// The data of a page. Not authenticated.
    ///
    /// # Errors
    /// None that the length of a page leaves possible.
    pub fn decrypt(&self, page: &[u8; PAGE_LEN]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (ciphertext, rest) = page.split_at(DATA_LEN);
        let mut data = Zeroizing::new(ciphertext.to_vec());
        let wrong = || Error::Length { what: "a page", found: PAGE_LEN as u64, wanted: "cannot be decrypted" };
        let cipher =
            cbc::Decryptor::<Aes256>::new_from_slices(self.key.as_slice(), &rest[..IV_LEN]).map_err(|_| wrong())?;
        cipher.decrypt_padded::<NoPadding>(&mut data).map_err(|_| wrong())?;
        Ok(data)
    }
}

/// Prints no key.
impl core::fmt::Debug for PageDecryptor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PageDecryptor { .. }")
    }
}

/// Decrypts an object whole. **Not authenticated**: see the head of this module.
///
/// # Errors
/// Those of [`EncObjHeader::parse`], [`EncObjHeader::check_file_len`] and [`PageDecryptor::new`].
pub fn decrypt_unauthenticated(key: &[u8], file: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let header = EncObjHeader::parse(file)?;
    header.check_file_len(file.len() as u64)?;
    let decryptor = PageDecryptor::new(key)?;
    let mut data = Zeroizing::new(Vec::with_capacity(file.len()));
    for page in file[HEADER_LEN..].as_chunks().0 {
        data.extend_from_slice(&decryptor.decrypt(page)?);
    }
    // The length of the file was checked against it, so that it fits.
    data.truncate(header.logical_len as usize);
    Ok(data)
}

/// Whether data begins as snapshots and suspended states do: a sign, and no proof, that the key is right.
pub fn is_snapshot(data: &[u8]) -> bool {
    data.first_chunk().is_some_and(|magic| SNAPSHOT_MAGICS.contains(&u32::from_le_bytes(*magic)))
}

/// Whatever the bytes: the length that the header promises comes out.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    if let Ok(plaintext) = decrypt_unauthenticated(&[7; 64], data) {
        assert!(EncObjHeader::parse(data).is_ok_and(|header| header.logical_len == plaintext.len() as u64));
    }
}

//! ESXi's envelopes: files under AES-256-GCM, as the host's configuration and encrypted core dumps are.
//!
//! ```
//! use vmseal_formats::envelope;
//! use vmseal_keys::{FileKey, system_rng};
//!
//! let key = FileKey::generate(&mut system_rng())?;
//! let sealed = envelope::seal(&key, "key-7", b"web01.nvram", b"secret", &mut system_rng())?;
//! assert_eq!(envelope::describe(&sealed)?.key_info(), "key-7"); // needs no key
//! assert_eq!(envelope::open(&key, b"web01.nvram", &sealed)?.as_slice(), b"secret");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files that are larger than memory go through [`Sealer`] and [`Opener`] in pieces.

use rand_core::TryCryptoRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use vmseal_keys::FileKey;
use zeroize::Zeroizing;

use crate::envelope_header::{
    ATTRIBUTES_OFFSET, BLOCK_LEN, CIPHER, CIPHER_NAME, IV, KEY_HASH, KEY_INFO, MAGIC, MAGIC_LEN, VERSION,
};
use crate::error::{Error, Place};
use crate::gcm::{Gcm, TAG_LEN};

pub use crate::envelope_header::{Attribute, AttributeValue, Header};

/// The associated data of the host's configuration, `local.tgz.ve`.
pub const CONFIGURATION_AAD: &[u8] = b"ESXConfiguration";
/// Where the envelope begins in the core dump of a kernel, behind a header in the clear.
pub const ZDUMP_OFFSET: usize = 4096;

const FOOTER_MAGIC: &[u8] = b"DataTransformAeadFooter";
const FOOTER_VERSION: u32 = 1;
const CRYPTO_MAGIC: &[u8] = b"DataTransformCryptoFooter";
const CRYPTO_VERSION: u32 = 2;

// Layout of the footer, the last block of the file.
const FOOTER_MAGIC_LEN: usize = 32;
const TAG_OFFSET: usize = FOOTER_MAGIC_LEN;
const TAG_LEN_OFFSET: usize = BLOCK_LEN - 8;
const FOOTER_VERSION_OFFSET: usize = TAG_LEN_OFFSET + 4;

// Layout of the crypto footer, the last block of the plaintext.
const CRYPTO_RANDOM_LEN: usize = 3584;
const CRYPTO_MAGIC_OFFSET: usize = CRYPTO_RANDOM_LEN;
const CRYPTO_PADDING_OFFSET: usize = CRYPTO_MAGIC_OFFSET + 504;
const CRYPTO_VERSION_OFFSET: usize = CRYPTO_PADDING_OFFSET + 4;

/// What stays back until the end: the crypto footer and the footer.
const TAIL_LEN: usize = 2 * BLOCK_LEN;

/// Whether a file that starts so is an envelope.
pub fn is_envelope(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Where the envelope begins in a file: at its start, or behind the header of a kernel's core dump. At least 4096 bytes
/// and the magic behind them have to be given for the latter.
pub fn find(start: &[u8]) -> Option<usize> {
    [0, ZDUMP_OFFSET].into_iter().find(|&offset| start.get(offset..).is_some_and(is_envelope))
}

/// What an envelope says without a key.
///
/// # Errors
/// As [`Header::parse`].
pub fn describe(start: &[u8]) -> Result<Header, Error> {
    Header::parse(start)
}

/// Seals data into an envelope, with a random IV and bound to `aad`. The key must not be ESXi's own.
///
/// # Errors
/// [`Error::Random`]; [`Error::Value`] for a key ID that does not fit the header or has a NUL.
pub fn seal<R: TryCryptoRng>(
    key: &FileKey,
    key_info: &str,
    aad: &[u8],
    data: &[u8],
    rng: &mut R,
) -> Result<Vec<u8>, Error> {
    let (mut sealer, mut file) = Sealer::new(key, key_info, aad, rng)?;
    let mut body = Zeroizing::new(data.to_vec());
    sealer.update(&mut body)?;
    file.extend_from_slice(&body);
    file.extend_from_slice(&sealer.finish(rng)?);
    Ok(file)
}

/// Opens an envelope whole.
///
/// # Errors
/// Those of [`Header::parse`]; [`Error::WrongKey`] before anything is decrypted; [`Error::NotAuthentic`] for damage and
/// for other associated data; [`Error::Truncated`], [`Error::BadMagic`], [`Error::UnsupportedVersion`],
/// [`Error::Length`], [`Error::Corrupt`].
pub fn open(key: &FileKey, aad: &[u8], envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let header = Header::parse(envelope)?;
    let mut opener = Opener::new(key, aad, &header)?;
    let body = &envelope[header.raw().len()..];
    let mut data = Zeroizing::new(vec![0; body.len()]);
    opener.update(body, &mut data)?;
    let len = opener.finish()?;
    data.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    Ok(data)
}

/// Writes an envelope in pieces.
pub struct Sealer {
    gcm: Gcm,
    len: u64,
}

impl Sealer {
    /// Begins an envelope; gives its header, which is written first.
    ///
    /// # Errors
    /// As [`seal`].
    pub fn new<R: TryCryptoRng>(
        key: &FileKey,
        key_info: &str,
        aad: &[u8],
        rng: &mut R,
    ) -> Result<(Self, Vec<u8>), Error> {
        let mut iv = [0; 12];
        rng.try_fill_bytes(&mut iv).map_err(|_| Error::Random)?;
        let mut header = Vec::with_capacity(BLOCK_LEN);
        header.extend_from_slice(MAGIC);
        header.resize(MAGIC_LEN, 0);
        header.extend_from_slice(&((BLOCK_LEN - ATTRIBUTES_OFFSET) as u32).to_le_bytes());
        header.extend_from_slice(&VERSION.to_le_bytes());
        put_bytes(&mut header, IV, &iv);
        put_text(&mut header, KEY_INFO, key_info);
        put_text(&mut header, CIPHER_NAME, CIPHER);
        put_bytes(&mut header, KEY_HASH, &key_hash(key));
        if header.len() >= BLOCK_LEN || key_info.contains('\0') {
            let found = key_info.chars().take(40).collect();
            return Err(Error::Value { what: "the key ID of an envelope", found, place: Place::Byte(0) });
        }
        header.resize(BLOCK_LEN, 0);
        let gcm = Gcm::new(key.expose(), &iv, &[&header, aad]);
        Ok((Self { gcm, len: 0 }, header))
    }

    /// Encrypts the next piece in place; it is written as it comes.
    ///
    /// # Errors
    /// [`Error::Limit`] at 64 GiB.
    pub fn update(&mut self, piece: &mut [u8]) -> Result<(), Error> {
        self.len += piece.len() as u64;
        self.gcm.encrypt(piece)
    }

    /// Ends the envelope; gives what is written last.
    ///
    /// # Errors
    /// [`Error::Random`]; [`Error::Limit`] at 64 GiB.
    pub fn finish<R: TryCryptoRng>(mut self, rng: &mut R) -> Result<Vec<u8>, Error> {
        let padding = (self.len.next_multiple_of(BLOCK_LEN as u64) - self.len) as usize;
        let mut end = vec![0; padding + CRYPTO_RANDOM_LEN];
        rng.try_fill_bytes(&mut end).map_err(|_| Error::Random)?;
        end.extend_from_slice(CRYPTO_MAGIC);
        end.resize(padding + CRYPTO_PADDING_OFFSET, 0);
        end.extend_from_slice(&(padding as u32).to_le_bytes());
        end.extend_from_slice(&CRYPTO_VERSION.to_le_bytes());
        self.gcm.encrypt(&mut end)?;
        let footer_offset = end.len();
        end.extend_from_slice(FOOTER_MAGIC);
        end.resize(footer_offset + TAG_OFFSET, 0);
        end.extend_from_slice(&self.gcm.tag());
        end.resize(footer_offset + TAG_LEN_OFFSET, 0);
        end.extend_from_slice(&(TAG_LEN as u32).to_le_bytes());
        end.extend_from_slice(&FOOTER_VERSION.to_le_bytes());
        Ok(end)
    }
}

/// Opens an envelope in pieces, in constant memory.
///
/// What comes out of [`update`](Self::update) is not authenticated: it goes where nobody reads it, a temporary file,
/// until [`finish`](Self::finish) has verified the tag and told how much of it is data.
pub struct Opener {
    gcm: Gcm,
    /// The end of what came so far.
    held: Vec<u8>,
    len: u64,
    header_len: u64,
    slack: Option<usize>,
}

impl Opener {
    /// Begins with the header; what follows it goes to [`update`](Self::update).
    ///
    /// # Errors
    /// [`Error::WrongKey`].
    pub fn new(key: &FileKey, aad: &[u8], header: &Header) -> Result<Self, Error> {
        if !bool::from(key_hash(key).ct_eq(header.key_hash())) {
            return Err(Error::WrongKey { key_ids: Vec::new() });
        }
        let gcm = Gcm::new(key.expose(), header.iv(), &[header.raw(), aad]);
        let header_len = header.raw().len() as u64;
        Ok(Self { gcm, held: Vec::with_capacity(TAIL_LEN), len: 0, header_len, slack: header.slack() })
    }

    /// Decrypts the next piece, of any length, to the start of `to`, which is at least as long; gives how many bytes came out. The end of
    /// what came so far is held back: the first pieces give less than they have.
    ///
    /// # Errors
    /// [`Error::Limit`] at 64 GiB.
    ///
    /// # Panics
    /// When `to` is shorter than `piece`.
    pub fn update(&mut self, piece: &[u8], to: &mut [u8]) -> Result<usize, Error> {
        self.len += piece.len() as u64;
        let released = (self.held.len() + piece.len()).saturating_sub(TAIL_LEN);
        let from_held = released.min(self.held.len());
        let (from_piece, rest) = piece.split_at(released - from_held);
        self.gcm.decrypt(&self.held[..from_held], to)?;
        self.gcm.decrypt(from_piece, &mut to[from_held..])?;
        self.held.drain(..from_held);
        self.held.extend_from_slice(rest);
        Ok(released)
    }

    /// Verifies. Gives the length of the data: the sink is cut to it, and only then read by anyone.
    ///
    /// # Errors
    /// As [`open`].
    pub fn finish(mut self) -> Result<u64, Error> {
        let end = self.header_len + self.len;
        if self.held.len() < TAIL_LEN || !self.len.is_multiple_of(BLOCK_LEN as u64) {
            let least = self.header_len + TAIL_LEN as u64;
            let wanted_bytes = end.next_multiple_of(BLOCK_LEN as u64).max(least);
            return Err(Error::Truncated { format: "envelope", len_bytes: end, wanted_bytes });
        }
        let footer = self.held.split_off(BLOCK_LEN);
        let expected = read_footer(&footer, end - BLOCK_LEN as u64)?;
        let mut crypto = Zeroizing::new([0; BLOCK_LEN]);
        self.gcm.decrypt(&self.held, crypto.as_mut_slice())?;
        if !bool::from(self.gcm.tag().ct_eq(&expected)) {
            return Err(Error::NotAuthentic { what: "the envelope" });
        }
        if let Some(offset) = self.slack {
            let what = "bytes behind the attributes of the header are not zero";
            return Err(Error::Corrupt { what, place: Place::Byte(offset as u64) });
        }
        let padding = read_crypto_footer(crypto.as_slice(), end - TAIL_LEN as u64)?;
        (self.len - TAIL_LEN as u64).checked_sub(padding.into()).ok_or(Error::Length {
            what: "the padding of an envelope",
            found: padding.into(),
            wanted: "is more than the data",
        })
    }
}

/// Prints no key.
impl core::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sealer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Prints no key.
impl core::fmt::Debug for Opener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Opener").field("len", &self.len).finish_non_exhaustive()
    }
}

fn key_hash(key: &FileKey) -> [u8; 32] {
    Sha256::new().chain_update(CIPHER).chain_update(key.expose()).finalize().into()
}

fn put_text(header: &mut Vec<u8>, name: &str, text: &str) {
    for part in [&[11, 0, 0, 0], name.as_bytes(), &[0], text.as_bytes(), &[0]] {
        header.extend_from_slice(part);
    }
}

fn put_bytes(header: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    for part in [&[12, 0, 0, 0], name.as_bytes(), &[0], &(bytes.len() as u64).to_le_bytes(), bytes] {
        header.extend_from_slice(part);
    }
}

fn u32_at(block: &[u8], offset: usize) -> u32 {
    block[offset..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Whether `block` has the magic, and zeros up to `len`.
fn has_magic(block: &[u8], magic: &[u8], len: usize) -> bool {
    block.starts_with(magic) && block[magic.len()..len].iter().all(|&byte| byte == 0)
}

fn read_footer(footer: &[u8], offset: u64) -> Result<[u8; TAG_LEN], Error> {
    if !has_magic(footer, FOOTER_MAGIC, FOOTER_MAGIC_LEN) {
        return Err(Error::BadMagic { format: "footer of an envelope", place: Place::Byte(offset) });
    }
    let version = u32_at(footer, FOOTER_VERSION_OFFSET);
    if version != FOOTER_VERSION {
        return Err(Error::UnsupportedVersion { format: "the envelope's footer", version: version.to_string() });
    }
    let tag_len = u32_at(footer, TAG_LEN_OFFSET);
    if tag_len != TAG_LEN as u32 {
        return Err(Error::Length { what: "the tag of an envelope", found: tag_len.into(), wanted: "needs 16" });
    }
    if footer[TAG_OFFSET + TAG_LEN..TAG_LEN_OFFSET].iter().any(|&byte| byte != 0) {
        let what = "bytes behind the tag are not zero";
        return Err(Error::Corrupt { what, place: Place::Byte(offset + (TAG_OFFSET + TAG_LEN) as u64) });
    }
    let tag = footer[TAG_OFFSET..].first_chunk();
    tag.copied().ok_or(Error::Length { what: "the footer of an envelope", found: 0, wanted: "needs 4096" })
}

fn read_crypto_footer(block: &[u8], offset: u64) -> Result<u32, Error> {
    let magic = &block[CRYPTO_MAGIC_OFFSET..];
    if !has_magic(magic, CRYPTO_MAGIC, CRYPTO_PADDING_OFFSET - CRYPTO_MAGIC_OFFSET) {
        let place = Place::Byte(offset + CRYPTO_MAGIC_OFFSET as u64);
        return Err(Error::BadMagic { format: "crypto footer of an envelope", place });
    }
    let version = u32_at(block, CRYPTO_VERSION_OFFSET);
    if version != CRYPTO_VERSION {
        return Err(Error::UnsupportedVersion { format: "the envelope's crypto footer", version: version.to_string() });
    }
    Ok(u32_at(block, CRYPTO_PADDING_OFFSET))
}

/// Under the key of the vectors: pieces give what the whole gives, and what is sealed opens.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    const KEY: [u8; 32] = [
        0x8a, 0x1d, 0xf2, 0xb6, 0x1e, 0x72, 0xd3, 0x76, 0x01, 0xce, 0x1a, 0xac, 0xcc, 0xb2, 0xf3, 0x0d, 0xce, 0x4e,
        0xac, 0xd9, 0x8f, 0xa3, 0xc8, 0xf3, 0x0a, 0x4c, 0xa3, 0x2a, 0x0c, 0x9b, 0xed, 0x73,
    ];
    let Ok(key) = FileKey::from_bytes(&KEY) else { return };
    let sealed = seal(&key, "fuzz", b"", data, &mut vmseal_keys::system_rng());
    assert!(sealed.and_then(|sealed| open(&key, b"", &sealed)).is_ok_and(|again| again.as_slice() == data));
    if let Some(block) = data.first_chunk::<BLOCK_LEN>() {
        let _ = (read_footer(block, 0), read_crypto_footer(block, 0));
    }
    let whole = open(&key, b"", data);
    let Ok(header) = describe(data) else {
        assert!(whole.is_err());
        return;
    };
    let Ok(mut opener) = Opener::new(&key, b"", &header) else { return };
    let mut sink = Vec::new();
    let mut opened = [0; 1000];
    for piece in data[header.raw().len()..].chunks(opened.len()) {
        let Ok(len) = opener.update(piece, &mut opened) else { panic!("a piece is not decrypted") };
        sink.extend_from_slice(&opened[..len]);
    }
    match (opener.finish(), whole) {
        (Ok(len), Ok(whole)) => assert_eq!(&sink[..len as usize], whole.as_slice()),
        (Err(_), Err(_)) => {}
        _ => panic!("pieces and the whole differ"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmseal_keys::system_rng;

    #[test]
    fn every_length_around_a_block_opens_again() {
        let key = FileKey::from_bytes(&[9; 32]).unwrap();
        for len in [0, 1, 15, 16, 4095, 4096, 4097, 8191, 8192, 20_000] {
            let data: Vec<u8> = (0..len).map(|index| index as u8).collect();
            let sealed = seal(&key, "k", b"aad", &data, &mut system_rng()).unwrap();
            assert_eq!(sealed.len() % BLOCK_LEN, 0);
            assert_eq!(open(&key, b"aad", &sealed).unwrap().as_slice(), data);
            assert!(matches!(open(&key, b"", &sealed), Err(Error::NotAuthentic { .. })));
        }
    }

    #[test]
    fn a_key_id_that_does_not_fit_is_refused() {
        let key = FileKey::from_bytes(&[9; 32]).unwrap();
        for key_info in ["a\0b".to_owned(), "x".repeat(4000)] {
            assert!(matches!(seal(&key, &key_info, b"", b"", &mut system_rng()), Err(Error::Value { .. })));
        }
        assert!(seal(&key, &"x".repeat(512), b"", b"", &mut system_rng()).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn pieces_of_any_size_are_one_envelope(
            data in proptest::collection::vec(any::<u8>(), 0..20_000),
            piece in 1..9000_usize,
        ) {
            let key = FileKey::from_bytes(&[9; 32]).unwrap();
            let (mut sealer, mut file) = Sealer::new(&key, "k", b"", &mut system_rng()).unwrap();
            let mut body = data.clone();
            for piece in body.chunks_mut(piece) {
                sealer.update(piece).unwrap();
            }
            file.extend(body);
            file.extend(sealer.finish(&mut system_rng()).unwrap());
            let header = describe(&file).unwrap();
            let mut opener = Opener::new(&key, b"", &header).unwrap();
            let mut sink = Vec::new();
            let mut opened = vec![0; piece];
            for piece in file[header.raw().len()..].chunks(piece) {
                let len = opener.update(piece, &mut opened).unwrap();
                sink.extend_from_slice(&opened[..len]);
            }
            sink.truncate(opener.finish().unwrap() as usize);
            prop_assert_eq!(sink, data);
        }

        #[test]
        fn every_flipped_bit_is_noticed(bit in any::<prop::sample::Index>()) {
            let key = FileKey::from_bytes(&[9; 32]).unwrap();
            let mut sealed = seal(&key, "k", b"", b"some data", &mut system_rng()).unwrap();
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&key, b"", &sealed).is_err(), "bit {}", bit);
        }
    }
}

//! The LUKS2 header (LUKS2 On-Disk Format Specification 1.1.x): two copies of a binary header and JSON, numbers big-endian.

use core::ops::Range;

use bytes::{Buf, BufMut};
use rand_core::TryCryptoRng;
use sha2::{Digest, Sha256, Sha512};
use vmseal_keys::Dek;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Place};
use crate::luks::{LuksHeader, MAGIC};
use crate::luks_kdf::{LuksHash, LuksKdf};
use crate::luks_slot::{AREA_LEN, LuksSlot, MasterDigest, SALT_LEN, random, random_uuid};
use crate::luks1::text;
use crate::luks2_json;

const FORMAT: &str = "LUKS2 header";
/// The magic of the second copy.
const MAGIC_SECOND: [u8; 6] = *b"SKUL\xba\xbe";
/// The binary header; JSON follows.
const BINARY_LEN: usize = 4096;

// Layout of the binary header: magic, version, size, sequence number, label, checksum, salt, UUID, subsystem, offset, padding, checksum.
const SIZE_OFFSET: usize = 8;
const SEQUENCE_OFFSET: usize = SIZE_OFFSET + 8;
const LABEL_OFFSET: usize = SEQUENCE_OFFSET + 8;
const LABEL_LEN: usize = 48;
const CHECKSUM_NAME_OFFSET: usize = LABEL_OFFSET + LABEL_LEN;
const CHECKSUM_NAME_LEN: usize = 32;
const SALT_OFFSET: usize = CHECKSUM_NAME_OFFSET + CHECKSUM_NAME_LEN;
const BINARY_SALT_LEN: usize = 64;
const UUID_OFFSET: usize = SALT_OFFSET + BINARY_SALT_LEN;
const UUID_LEN: usize = 40;
const SUBSYSTEM_OFFSET: usize = UUID_OFFSET + UUID_LEN;
const OFFSET_OFFSET: usize = SUBSYSTEM_OFFSET + LABEL_LEN;
const CHECKSUM_OFFSET: usize = OFFSET_OFFSET + 8 + 184;
const CHECKSUM_LEN: usize = 64;
const _: () = assert!(OFFSET_OFFSET == 256 && CHECKSUM_OFFSET == 448 && CHECKSUM_OFFSET + CHECKSUM_LEN == 512);

/// The sizes that a copy of the header may have: 16 KiB to 4 MiB, in powers of two.
const SIZES: Range<u32> = 14..23;

/// Bytes of both copies.
pub(crate) fn len_of(start: &[u8]) -> Result<usize, Error> {
    Ok(2 * size(start)?)
}

/// Reads a header: of its two copies the newer one that is whole.
pub(crate) fn parse(start: &[u8]) -> Result<LuksHeader, Error> {
    let size = size(start)?;
    if start.len() < 2 * size {
        let (len_bytes, wanted_bytes) = (start.len() as u64, 2 * size as u64);
        return Err(Error::Truncated { format: FORMAT, len_bytes, wanted_bytes });
    }
    let first = Copy::read(start, 0..size, &MAGIC);
    let second = Copy::read(start, size..2 * size, &MAGIC_SECOND);
    let copy = match (first, second) {
        (Ok(first), Ok(second)) if second.sequence > first.sequence => second,
        (Ok(first), _) => first,
        (Err(_), Ok(second)) => second,
        (Err(error), Err(_)) => return Err(error),
    };
    let mut header = luks2_json::parse(copy.json, copy.json_offset, size)?;
    header.uuid = copy.uuid;
    Ok(header)
}

/// One of the two copies.
struct Copy<'a> {
    sequence: u64,
    uuid: String,
    json: &'a [u8],
    json_offset: usize,
}

impl<'a> Copy<'a> {
    fn read(start: &'a [u8], range: Range<usize>, magic: &[u8; 6]) -> Result<Self, Error> {
        let offset = range.start;
        let place = |field: usize| Place::Byte((offset + field) as u64);
        let bytes = &start[range];
        if !bytes.starts_with(magic) {
            return Err(Error::BadMagic { format: FORMAT, place: place(0) });
        }
        for (field, wanted, what) in [
            (SIZE_OFFSET, bytes.len() as u64, "the size of the header, the same in both copies,"),
            (OFFSET_OFFSET, offset as u64, "the header's place"),
        ] {
            let found = (&bytes[field..]).get_u64();
            if found != wanted {
                return Err(Error::Value { what, found: found.to_string(), place: place(field) });
            }
        }
        let name = text(&bytes[CHECKSUM_NAME_OFFSET..][..CHECKSUM_NAME_LEN], "no text", offset + CHECKSUM_NAME_OFFSET)?;
        let checksum = checksum(&name, bytes).ok_or_else(|| Error::Unknown {
            kind: Kind::Hash,
            name: name.clone(),
            place: place(CHECKSUM_NAME_OFFSET),
        })?;
        if !bytes[CHECKSUM_OFFSET..].starts_with(&checksum) {
            let what = "the checksum of the header does not fit what it says";
            return Err(Error::Corrupt { what, place: place(CHECKSUM_OFFSET) });
        }
        let json = &bytes[BINARY_LEN..];
        let json_len = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
        Ok(Self {
            sequence: (&bytes[SEQUENCE_OFFSET..]).get_u64(),
            uuid: text(&bytes[UUID_OFFSET..][..UUID_LEN], "the UUID is no text", offset + UUID_OFFSET)?,
            json: &json[..json_len],
            json_offset: offset + BINARY_LEN,
        })
    }
}

/// The size of one copy.
fn size(start: &[u8]) -> Result<usize, Error> {
    let Some(mut field) = start.get(SIZE_OFFSET..SIZE_OFFSET + 8) else {
        return Err(Error::Truncated { format: FORMAT, len_bytes: start.len() as u64, wanted_bytes: 16 });
    };
    let found = field.get_u64();
    SIZES.map(|shift| 1 << shift).find(|size| *size as u64 == found).ok_or_else(|| Error::Value {
        what: "the size of the header, a power of two from 16 KiB to 4 MiB,",
        found: found.to_string(),
        place: Place::Byte(SIZE_OFFSET as u64),
    })
}

/// The hash of a copy, its own field taken as zeros.
fn checksum(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let parts = [&bytes[..CHECKSUM_OFFSET], &[0; CHECKSUM_LEN], &bytes[CHECKSUM_OFFSET + CHECKSUM_LEN..]];
    match name {
        "sha256" => Some(parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().to_vec()),
        "sha512" => Some(parts.iter().fold(Sha512::new(), |hash, part| hash.chain_update(part)).finalize().to_vec()),
        _ => None,
    }
}

/// A detached header for data that begins at byte 0 of its file: `aes-xts-plain64`, sectors of 512 bytes, one key slot, and room for
/// seven more.
pub(crate) fn write<R: TryCryptoRng>(
    master: &Dek,
    passphrase: &[u8],
    kdf: LuksKdf,
    rng: &mut R,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    /// As `cryptsetup` writes it.
    const SIZE: usize = 16 << 10;
    const AREAS_LEN: usize = 8 * AREA_LEN;
    const HASH: LuksHash = LuksHash::Sha256;
    /// The digest of a master key of 64 random bytes needs no stretching; no tool takes less.
    const DIGEST_KDF: LuksKdf = LuksKdf::Pbkdf2 { hash: HASH, iterations: 1000 };
    let digest = MasterDigest::new(master, DIGEST_KDF, random::<SALT_LEN, R>(rng)?.to_vec(), HASH.len())?;
    let slot = LuksSlot {
        number: 0,
        kdf,
        salt: random::<SALT_LEN, R>(rng)?.to_vec(),
        af_hash: HASH,
        area_offset_bytes: 2 * SIZE as u64,
        digest,
    };
    let uuid = random_uuid(rng)?;
    let material = slot.seal(master, passphrase, rng)?;
    let json = luks2_json::write(&slot, SIZE - BINARY_LEN, AREAS_LEN);
    let mut file = Zeroizing::new(Vec::with_capacity(2 * SIZE + AREAS_LEN));
    for (offset, magic) in [(0, MAGIC), (SIZE, MAGIC_SECOND)] {
        let mut copy = Vec::with_capacity(SIZE);
        copy.put_slice(&magic);
        copy.put_u16(2);
        copy.put_u64(SIZE as u64);
        copy.put_u64(1);
        copy.resize(CHECKSUM_NAME_OFFSET, 0);
        copy.put_slice(HASH.name().as_bytes());
        copy.resize(SALT_OFFSET, 0);
        copy.put_slice(&random::<BINARY_SALT_LEN, R>(rng)?);
        copy.put_slice(uuid.as_bytes());
        copy.resize(OFFSET_OFFSET, 0);
        copy.put_u64(offset as u64);
        copy.resize(BINARY_LEN, 0);
        copy.put_slice(json.as_bytes());
        copy.resize(SIZE, 0);
        let checksum = checksum(HASH.name(), &copy).unwrap_or_default();
        copy[CHECKSUM_OFFSET..][..checksum.len()].copy_from_slice(&checksum);
        file.put_slice(&copy);
    }
    file.put_slice(&material);
    file.resize(2 * SIZE + AREAS_LEN, 0);
    Ok(file)
}

/// A fuzzer does not find checksums: the JSON alone.
#[cfg(fuzzing)]
pub(crate) fn fuzz_json(data: &[u8]) -> Result<LuksHeader, Error> {
    luks2_json::parse(data, BINARY_LEN, 16 << 10)
}

//! The LUKS1 header (LUKS1 On-Disk Format Specification 1.2.3): 592 bytes, numbers big-endian.

use bytes::{Buf, BufMut};
use rand_core::TryCryptoRng;
use vmseal_keys::Dek;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Place};
use crate::luks::{CIPHER, LuksHeader, SECTOR_LEN, not_ours};
use crate::luks_af::STRIPES;
use crate::luks_kdf::{LuksHash, LuksKdf};
use crate::luks_slot::{AREA_LEN, LuksSlot, MATERIAL_LEN, MasterDigest, SALT_LEN, random, random_uuid};

/// The bytes of the header.
pub(crate) const HEADER_LEN: usize = SLOTS_OFFSET + SLOT_COUNT * SLOT_LEN;
const FORMAT: &str = "LUKS1 header";

// Layout: magic, version, cipher name, cipher mode, hash, payload offset, key bytes, digest, its salt and iterations, UUID, slots.
const NAME_LEN: usize = 32;
const CIPHER_NAME_OFFSET: usize = 8;
const CIPHER_MODE_OFFSET: usize = CIPHER_NAME_OFFSET + NAME_LEN;
const HASH_OFFSET: usize = CIPHER_MODE_OFFSET + NAME_LEN;
const PAYLOAD_OFFSET: usize = HASH_OFFSET + NAME_LEN;
const KEY_LEN_OFFSET: usize = PAYLOAD_OFFSET + 4;
const DIGEST_OFFSET: usize = KEY_LEN_OFFSET + 4;
const DIGEST_LEN: usize = 20;
const UUID_OFFSET: usize = DIGEST_OFFSET + DIGEST_LEN + SALT_LEN + 4;
const UUID_LEN: usize = 40;
const SLOTS_OFFSET: usize = UUID_OFFSET + UUID_LEN;
const SLOT_COUNT: usize = 8;
const SLOT_LEN: usize = 4 + 4 + SALT_LEN + 4 + 4;
const _: () = assert!(HEADER_LEN == 592);

const SLOT_ACTIVE: u32 = 0x00AC_71F3;
const SLOT_INACTIVE: u32 = 0x0000_DEAD;

/// The digest of a master key of 64 random bytes needs no stretching; no tool takes less.
const DIGEST_ITERATIONS: u32 = 1000;

/// Reads a header; `start` may go on behind it.
pub(crate) fn parse(start: &[u8]) -> Result<LuksHeader, Error> {
    let Some((header, _)) = start.split_first_chunk::<HEADER_LEN>() else {
        let (len_bytes, wanted_bytes) = (start.len() as u64, HEADER_LEN as u64);
        return Err(Error::Truncated { format: FORMAT, len_bytes, wanted_bytes });
    };
    let cipher = format!("{}-{}", name(header, CIPHER_NAME_OFFSET)?, name(header, CIPHER_MODE_OFFSET)?);
    if cipher != CIPHER {
        let place = Place::Byte(CIPHER_NAME_OFFSET as u64);
        return Err(Error::Unknown { kind: Kind::Cipher, name: cipher, place });
    }
    let hash_name = name(header, HASH_OFFSET)?;
    let hash = LuksHash::from_name(&hash_name).ok_or_else(|| Error::Unknown {
        kind: Kind::Hash,
        name: hash_name,
        place: Place::Byte(HASH_OFFSET as u64),
    })?;
    let mut fields = &header[PAYLOAD_OFFSET..];
    let payload_offset_bytes = u64::from(fields.get_u32()) * SECTOR_LEN;
    let key_len = fields.get_u32();
    if key_len as usize != Dek::LEN {
        return Err(not_ours("a LUKS disk under a key of another length than 512 bits"));
    }
    let mut digest = [0; DIGEST_LEN];
    fields.copy_to_slice(&mut digest);
    let mut salt = [0; SALT_LEN];
    fields.copy_to_slice(&mut salt);
    let kdf = LuksKdf::Pbkdf2 { hash, iterations: fields.get_u32() };
    let digest = MasterDigest { kdf, salt: salt.to_vec(), digest: digest.to_vec() };
    let mut slots = Vec::new();
    let mut header_end_bytes = HEADER_LEN as u64;
    for (number, mut fields) in header[SLOTS_OFFSET..].chunks(SLOT_LEN).enumerate() {
        let offset = SLOTS_OFFSET + number * SLOT_LEN;
        let (state, iterations) = (fields.get_u32(), fields.get_u32());
        let mut salt = [0; SALT_LEN];
        fields.copy_to_slice(&mut salt);
        let (area_offset_bytes, stripes) = (u64::from(fields.get_u32()) * SECTOR_LEN, fields.get_u32());
        match state {
            SLOT_ACTIVE => {}
            SLOT_INACTIVE => continue,
            state => {
                let what = "the state of a key slot, active or not,";
                return Err(value(what, format!("{state:#010x}"), offset));
            }
        }
        if stripes as usize != STRIPES {
            return Err(value("the stripes of a key slot, 4000,", stripes.to_string(), offset + SLOT_LEN - 4));
        }
        let end = area_offset_bytes + MATERIAL_LEN as u64;
        if area_offset_bytes < HEADER_LEN as u64 || (payload_offset_bytes != 0 && end > payload_offset_bytes) {
            let what = "the place of a key slot, between the header and the data,";
            return Err(value(what, format!("byte {area_offset_bytes}"), offset + SLOT_LEN - 8));
        }
        header_end_bytes = header_end_bytes.max(end);
        let kdf = LuksKdf::Pbkdf2 { hash, iterations };
        let (number, salt, digest) = (number as u32, salt.to_vec(), digest.clone());
        slots.push(LuksSlot { number, kdf, salt, af_hash: hash, area_offset_bytes, digest });
    }
    let uuid = text(&header[UUID_OFFSET..][..UUID_LEN], "the UUID is no text", UUID_OFFSET)?;
    Ok(LuksHeader { version: 1, uuid, payload_offset_bytes, payload_len_bytes: None, header_end_bytes, slots })
}

/// A detached header for data that begins at byte 0 of its file: `aes-xts-plain64`, SHA-256, one key slot.
pub(crate) fn write<R: TryCryptoRng>(
    master: &Dek,
    passphrase: &[u8],
    iterations: u32,
    rng: &mut R,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    /// The first block behind the header.
    const AREAS_OFFSET: usize = 4096;
    const HASH: LuksHash = LuksHash::Sha256;
    let digest_kdf = LuksKdf::Pbkdf2 { hash: HASH, iterations: DIGEST_ITERATIONS };
    let digest = MasterDigest::new(master, digest_kdf, random::<SALT_LEN, R>(rng)?.to_vec(), DIGEST_LEN)?;
    let slot = LuksSlot {
        number: 0,
        kdf: LuksKdf::Pbkdf2 { hash: HASH, iterations },
        salt: random::<SALT_LEN, R>(rng)?.to_vec(),
        af_hash: HASH,
        area_offset_bytes: AREAS_OFFSET as u64,
        digest,
    };
    let uuid = random_uuid(rng)?;
    let material = slot.seal(master, passphrase, rng)?;

    let mut file = Zeroizing::new(Vec::with_capacity(AREAS_OFFSET + SLOT_COUNT * AREA_LEN));
    file.put_slice(&crate::luks::MAGIC);
    file.put_u16(1);
    for name in ["aes", "xts-plain64", HASH.name()] {
        put_text(&mut file, name, NAME_LEN);
    }
    file.put_u32(0);
    file.put_u32(Dek::LEN as u32);
    file.put_slice(&slot.digest.digest);
    file.put_slice(&slot.digest.salt);
    file.put_u32(DIGEST_ITERATIONS);
    put_text(&mut file, &uuid, UUID_LEN);
    for number in 0..SLOT_COUNT {
        let (state, iterations, salt) = match number {
            0 => (SLOT_ACTIVE, iterations, slot.salt.as_slice()),
            _ => (SLOT_INACTIVE, 0, &[0; SALT_LEN][..]),
        };
        file.put_u32(state);
        file.put_u32(iterations);
        file.put_slice(salt);
        file.put_u32(((AREAS_OFFSET + number * AREA_LEN) / SECTOR_LEN as usize) as u32);
        file.put_u32(STRIPES as u32);
    }
    file.resize(AREAS_OFFSET, 0);
    file.put_slice(&material);
    file.resize(AREAS_OFFSET + SLOT_COUNT * AREA_LEN, 0);
    Ok(file)
}

fn put_text(file: &mut Vec<u8>, text: &str, len: usize) {
    let end = file.len() + len;
    file.put_slice(text.as_bytes());
    file.resize(end, 0);
}

fn name(header: &[u8], offset: usize) -> Result<String, Error> {
    text(&header[offset..][..NAME_LEN], "a name in the header is no text", offset)
}

/// Text up to a NUL.
pub(crate) fn text(field: &[u8], what: &'static str, offset: usize) -> Result<String, Error> {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    match core::str::from_utf8(&field[..len]) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(Error::Syntax { what, place: Place::Byte(offset as u64) }),
    }
}

fn value(what: &'static str, found: String, offset: usize) -> Error {
    Error::Value { what, found, place: Place::Byte(offset as u64) }
}

//! A key slot of a LUKS header: the master key, split and enciphered under a passphrase.

use core::ops::Range;

use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use vmseal_keys::Dek;
use vmseal_xts::XtsAes256;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::luks_af::{STRIPES, merge, split};
use crate::luks_kdf::{LuksHash, LuksKdf};

/// What key material is enciphered in, numbered from 0 at its start.
const SECTOR_LEN: usize = 512;
/// The bytes of key material in a slot.
pub(crate) const MATERIAL_LEN: usize = Dek::LEN * STRIPES;
const _: () = assert!(MATERIAL_LEN.is_multiple_of(SECTOR_LEN));
/// The room that it takes: whole blocks of 4096 bytes.
pub(crate) const AREA_LEN: usize = MATERIAL_LEN.next_multiple_of(4096);
/// The bytes of a salt that is written here, as `cryptsetup` makes them.
pub(crate) const SALT_LEN: usize = 32;

/// A key slot that a passphrase opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LuksSlot {
    pub(crate) number: u32,
    pub(crate) kdf: LuksKdf,
    pub(crate) salt: Vec<u8>,
    pub(crate) af_hash: LuksHash,
    pub(crate) area_offset_bytes: u64,
    pub(crate) digest: MasterDigest,
}

/// What tells the right master key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MasterDigest {
    pub(crate) kdf: LuksKdf,
    pub(crate) salt: Vec<u8>,
    pub(crate) digest: Vec<u8>,
}

impl LuksSlot {
    /// Its number in the header.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How its key comes from a passphrase.
    pub fn kdf(&self) -> LuksKdf {
        self.kdf
    }

    /// Where its key material lies in the header's file.
    pub fn area_bytes(&self) -> Range<u64> {
        self.area_offset_bytes..self.area_offset_bytes + MATERIAL_LEN as u64
    }

    /// The master key, from the bytes at [`area_bytes`](Self::area_bytes).
    ///
    /// # Errors
    /// [`Error::WrongKey`]; [`Error::Limit`] before any work; [`Error::Length`] for material of another length; [`Error::KeyLength`] and
    /// [`Error::Unsupported`] for a master key that XTS-AES-256 cannot have.
    pub fn open(&self, material: &[u8], passphrase: &[u8]) -> Result<Dek, Error> {
        if material.len() != MATERIAL_LEN {
            let wanted = "needs 256000, 4000 stripes of a key of 64 bytes";
            return Err(Error::Length { what: "the key material", found: material.len() as u64, wanted });
        }
        self.digest.kdf.check()?;
        let cipher = self.cipher(passphrase)?;
        let mut stripes = Zeroizing::new(material.to_vec());
        cipher.decrypt_units(&mut stripes, SECTOR_LEN, 0).map_err(|_| WRONG_KEY)?;
        let master = merge(&stripes, Dek::LEN, self.af_hash);
        let digest = self.digest.kdf.derive(&master, &self.digest.salt, self.digest.digest.len())?;
        if !bool::from(digest.ct_eq(&self.digest.digest)) {
            return Err(WRONG_KEY);
        }
        Dek::from_slice(&master).map_err(|_| Error::Unsupported {
            what: "a LUKS master key with equal halves",
            why: "XTS must not have such a key (FIPS 140-2, A.9); encrypt the disk anew",
        })
    }

    /// The material of a slot that holds `master`.
    pub(crate) fn seal<R: TryCryptoRng>(
        &self,
        master: &Dek,
        passphrase: &[u8],
        rng: &mut R,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let cipher = self.cipher(passphrase)?;
        let mut stripes = split(master.expose(), self.af_hash, rng)?;
        cipher.encrypt_units(&mut stripes, SECTOR_LEN, 0).map_err(|_| WRONG_KEY)?;
        Ok(stripes)
    }

    fn cipher(&self, passphrase: &[u8]) -> Result<XtsAes256, Error> {
        let key = self.kdf.derive(passphrase, &self.salt, Dek::LEN)?;
        XtsAes256::new_from_slice(&key).map_err(|_| WRONG_KEY)
    }
}

impl MasterDigest {
    /// The digest of `master`, of `len` bytes.
    pub(crate) fn new(master: &Dek, kdf: LuksKdf, salt: Vec<u8>, len: usize) -> Result<Self, Error> {
        let digest = kdf.derive(master.expose(), &salt, len)?.to_vec();
        Ok(Self { kdf, salt, digest })
    }
}

const WRONG_KEY: Error = Error::WrongKey { key_ids: Vec::new() };

/// Random bytes.
pub(crate) fn random<const N: usize, R: TryCryptoRng>(rng: &mut R) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    rng.try_fill_bytes(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// A random UUID (RFC 9562, 5.4) as text.
pub(crate) fn random_uuid<R: TryCryptoRng>(rng: &mut R) -> Result<String, Error> {
    let bits = u128::from_be_bytes(random(rng)?);
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

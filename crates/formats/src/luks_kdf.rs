//! Keys from passphrases, and the hashes under them, as LUKS headers name them.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::error::Error;

/// Rounds of PBKDF2 that are done for a header at most: some seconds of work.
const ITERATIONS_MAX: u32 = vmseal_keys::kdf::ROUNDS_MAX;
/// Memory of Argon2 at most: 1 GiB, which `cryptsetup` does not go beyond unless told to.
const MEMORY_KIB_MAX: u32 = 1 << 20;
/// Memory times passes at most: 64 GiB, about a minute of work.
const WORK_KIB_MAX: u64 = 64 << 20;
const LANES_MAX: u32 = 64;

/// A hash function that a header names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LuksHash {
    /// `sha1`.
    Sha1,
    /// `sha256`.
    Sha256,
    /// `sha512`.
    Sha512,
}

impl LuksHash {
    const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];
    /// The most bytes that one of them gives.
    pub(crate) const LEN_MAX: usize = 64;

    /// The name in a header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The hash with this name, in whatever case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name().eq_ignore_ascii_case(name))
    }

    /// The bytes that it gives.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The hash of `parts` one after the other; its first [`len`](Self::len) bytes count.
    pub(crate) fn digest(self, parts: &[&[u8]]) -> Zeroizing<[u8; Self::LEN_MAX]> {
        fn of<D: Digest>(parts: &[&[u8]], out: &mut [u8]) {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            let mut digest = hash.finalize();
            out[..digest.len()].copy_from_slice(&digest);
            digest.as_mut_slice().zeroize();
        }
        let mut out = Zeroizing::new([0; Self::LEN_MAX]);
        match self {
            Self::Sha1 => of::<Sha1>(parts, out.as_mut_slice()),
            Self::Sha256 => of::<Sha256>(parts, out.as_mut_slice()),
            Self::Sha512 => of::<Sha512>(parts, out.as_mut_slice()),
        }
        out
    }
}

/// How a key comes from a passphrase.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum LuksKdf {
    /// Argon2 (RFC 9106), version 0x13.
    Argon2 {
        /// Argon2id; Argon2i otherwise.
        is_id: bool,
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// PBKDF2 (RFC 8018, 5.2) over HMAC.
    Pbkdf2 {
        /// The hash of the HMAC.
        hash: LuksHash,
        /// Rounds.
        iterations: u32,
    },
}

impl LuksKdf {
    /// Derives `len` bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] where more work or memory is asked for than is done for a file, before any of it.
    pub fn derive(&self, passphrase: &[u8], salt: &[u8], len: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.check()?;
        let mut key = Zeroizing::new(vec![0; len]);
        match *self {
            Self::Pbkdf2 { hash, iterations } => match hash {
                LuksHash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, iterations, &mut key),
                LuksHash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, &mut key),
                LuksHash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, iterations, &mut key),
            },
            Self::Argon2 { is_id, memory_kib, passes, lanes } => {
                let refused = |_| Error::Limit {
                    what: "cost of Argon2",
                    found: format!("{memory_kib} KiB, {passes} passes, {lanes} lanes, a salt of {} bytes", salt.len()),
                    max: MEMORY_KIB_MAX.into(),
                };
                let parameters = Params::new(memory_kib, passes, lanes, Some(len)).map_err(refused)?;
                // A machine without the memory gives an error, not the end of the process.
                let mut memory = Vec::new();
                let count = parameters.block_count();
                memory.try_reserve_exact(count).map_err(|_| Error::Limit {
                    what: "memory of Argon2 in KiB, which this machine does not have",
                    found: memory_kib.to_string(),
                    max: MEMORY_KIB_MAX.into(),
                })?;
                memory.resize(count, Block::default());
                let algorithm = if is_id { Algorithm::Argon2id } else { Algorithm::Argon2i };
                let argon2 = Argon2::new(algorithm, Version::V0x13, parameters);
                let derived = argon2.hash_password_into_with_memory(passphrase, salt, &mut key, &mut memory);
                memory.iter_mut().for_each(Zeroize::zeroize);
                derived.map_err(refused)?;
            }
        }
        Ok(key)
    }

    /// Whether it may be done for a file.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limit = |what, found: u64, max: u64| match (1..=max).contains(&found) {
            true => Ok(()),
            false => Err(Error::Limit { what, found: found.to_string(), max }),
        };
        match *self {
            Self::Pbkdf2 { iterations, .. } => {
                limit("rounds of key derivation", iterations.into(), ITERATIONS_MAX.into())
            }
            Self::Argon2 { memory_kib, passes, lanes, .. } => {
                limit("memory of Argon2 in KiB", memory_kib.into(), MEMORY_KIB_MAX.into())?;
                limit("lanes of Argon2", lanes.into(), LANES_MAX.into())?;
                let work = u64::from(memory_kib) * u64::from(passes);
                limit("memory times passes of Argon2 in KiB", work, WORK_KIB_MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_work_is_refused_before_any() {
        let argon2 = |memory_kib, passes, lanes| LuksKdf::Argon2 { is_id: true, memory_kib, passes, lanes };
        for kdf in [
            LuksKdf::Pbkdf2 { hash: LuksHash::Sha1, iterations: 0 },
            LuksKdf::Pbkdf2 { hash: LuksHash::Sha512, iterations: u32::MAX },
            argon2(u32::MAX, 1, 1),
            argon2(1 << 20, 65, 4),
            argon2(64, u32::MAX, 1),
            argon2(64, 0, 1),
            argon2(64, 4, 65),
            argon2(0, 4, 1),
        ] {
            let refused = kdf.derive(b"p", b"salt salt", 64).unwrap_err();
            assert!(matches!(refused, Error::Limit { .. }), "{kdf:?}: {refused}");
        }
    }
}

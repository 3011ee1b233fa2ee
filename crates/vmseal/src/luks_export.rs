//! An encrypted disk for QEMU and dm-crypt: a detached LUKS header with its DEK as master key.

use core::time::Duration;
use std::time::Instant;

use vmseal_disk::{DiskLayout, HolePolicy, UnitSize};
use vmseal_formats::{ExtentKind, LuksHash, LuksKdf, luks};
use vmseal_keys::{KeySource, kdf, system_rng};
use vmseal_rekey::{Error, Watch};
use vmseal_storage::StoragePath;
use zeroize::Zeroizing;

use crate::file_error::FileError;
use crate::vm::Vm;

/// How long a passphrase takes to open a new header on this machine, about.
const OPENING_TIME: Duration = Duration::from_secs(1);
/// Argon2id for LUKS2: memory and lanes are fixed, the passes measured, from 4 on as `cryptsetup` wants.
const ARGON2_MEMORY_KIB: u32 = 256 << 10;
const ARGON2_LANES: u32 = 4;
const ARGON2_PASSES_MIN: u32 = 4;
const ARGON2_PASSES_MAX: u32 = 64;

/// The version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LuksVersion {
    /// LUKS1: QEMU and dm-crypt.
    Luks1,
    /// LUKS2: dm-crypt alone.
    Luks2,
}

/// What is to be known of a disk's data units that were never written: zeros here, noise for who knows no holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwrittenUnits {
    /// How many there are.
    pub count: u64,
    /// Whether the disk promises that there are none (hole policy `fill`).
    pub is_filled: bool,
}

impl Vm<'_> {
    /// A detached LUKS header for an encrypted disk of the VM, by its descriptor's path relative to the storage root. Whoever has it and the
    /// passphrase has the disk's DEK.
    ///
    /// # Errors
    /// [`FileError::Refused`] for disks with data units of 4096 bytes, which dm-crypt numbers otherwise; [`FileError::Vm`] where the disk is no
    /// encrypted, whole disk of the VM, or no key opens it.
    pub fn luks_header(
        &self,
        disk: &str,
        version: LuksVersion,
        passphrase: &[u8],
        keys: &mut dyn KeySource,
    ) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let path = StoragePath::new(disk)?;
        let unlocked = vmseal_rekey::unlock(self.storage, &self.vmx, keys)?;
        let (encryption, dek) = unlocked.disk_key(self.storage, &path, keys)?;
        if encryption.unit() != UnitSize::B512 {
            let what = "its data units have 4096 bytes and are numbered one by one; LUKS1 has sectors of 512 bytes, and LUKS2 numbers larger ones in steps of 512. dm-crypt reads it as type `plain` with --sector-size 4096 --iv-large-sectors; or decrypt the VM and encrypt it with --data-unit 512";
            return Err(FileError::Refused { path: disk.to_owned(), what: what.to_owned() });
        }
        let header = match version {
            LuksVersion::Luks1 => luks::write_luks1(&dek, passphrase, measured_iterations()?, &mut system_rng()),
            LuksVersion::Luks2 => luks::write_luks2(&dek, passphrase, measured_argon2()?, &mut system_rng()),
        };
        header.map_err(FileError::format(disk))
    }

    /// Counts the data units of an encrypted disk that were never written: all of its bytes are gone through, unless it is filled.
    ///
    /// # Errors
    /// As [`luks_header`](Self::luks_header); [`Error::FillStopped`].
    pub fn unwritten_units(
        &self,
        disk: &str,
        keys: &mut dyn KeySource,
        mut watch: impl Watch,
    ) -> Result<UnwrittenUnits, Error> {
        let path = StoragePath::new(disk)?;
        let unlocked = vmseal_rekey::unlock(self.storage, &self.vmx, keys)?;
        let (encryption, _) = unlocked.disk_key(self.storage, &path, keys)?;
        let count = vmseal_rekey::count_unwritten(self.storage, unlocked.secrets(), &path, keys, &mut watch)?;
        Ok(UnwrittenUnits { count, is_filled: encryption.holes() == HolePolicy::Fill })
    }

    /// Writes enciphered zeros to every data unit that was never written, and gives the disk the hole policy `fill`. Nothing changes of what the
    /// guest reads. Gives how many were written.
    ///
    /// # Errors
    /// See [`vmseal_rekey::fill`].
    pub fn fill_disk(&self, disk: &str, keys: &mut dyn KeySource, mut watch: impl Watch) -> Result<u64, Error> {
        vmseal_rekey::fill(self.storage, &self.vmx, &StoragePath::new(disk)?, keys, &mut watch)
    }

    /// The one flat file that holds a disk's bytes from its first byte on, where it is such a disk: what QEMU and dm-crypt open without knowing
    /// of VMDK. Relative to the storage root.
    ///
    /// # Errors
    /// Where the disk is missing or damaged.
    pub fn flat_file(&self, disk: &str) -> Result<Option<String>, Error> {
        let layout = DiskLayout::open(self.storage, &StoragePath::new(disk)?)?;
        let file = match (layout.descriptor().extents(), layout.files().as_slice()) {
            ([extent], [file])
                if matches!(extent.kind, ExtentKind::Flat | ExtentKind::Vmfs) && extent.offset_sectors == 0 =>
            {
                file.clone()
            }
            _ => return Ok(None),
        };
        let len = self.storage.metadata(&file)?.map(|metadata| metadata.len);
        Ok((len == Some(layout.capacity_bytes())).then(|| file.to_string()))
    }
}

/// Rounds of PBKDF2-HMAC-SHA-256 that take [`OPENING_TIME`] here, and never fewer than are written elsewhere.
fn measured_iterations() -> Result<u32, FileError> {
    const SAMPLE: u32 = 100_000;
    let time = measure(LuksKdf::Pbkdf2 { hash: LuksHash::Sha256, iterations: SAMPLE })?;
    let iterations = u128::from(SAMPLE) * OPENING_TIME.as_nanos() / time.as_nanos().max(1);
    Ok(u32::try_from(iterations).unwrap_or(u32::MAX).clamp(kdf::ROUNDS_WRITTEN, kdf::ROUNDS_MAX))
}

fn measured_argon2() -> Result<LuksKdf, FileError> {
    let with = |passes| LuksKdf::Argon2 { is_id: true, memory_kib: ARGON2_MEMORY_KIB, passes, lanes: ARGON2_LANES };
    let time = measure(with(1))?;
    let passes = OPENING_TIME.as_nanos() / time.as_nanos().max(1);
    Ok(with(u32::try_from(passes).unwrap_or(u32::MAX).clamp(ARGON2_PASSES_MIN, ARGON2_PASSES_MAX)))
}

fn measure(kdf: LuksKdf) -> Result<Duration, FileError> {
    let begin = Instant::now();
    // As much as a slot derives.
    kdf.derive(b"a passphrase", &[0; 32], 64).map_err(FileError::format("the new header"))?;
    Ok(begin.elapsed())
}

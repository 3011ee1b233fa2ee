//! The cipher of an encrypted disk: guest bytes to stored bytes and back.

use core::fmt;
use core::ops::Range;

use vmseal_keys::Dek;
use vmseal_xts::XtsAes256;

use crate::error::Error;
use crate::unit::UnitSize;

/// XTS-AES-256 over the data units of a virtual disk; the tweak of a data unit is its number on the disk.
///
/// A data unit whose stored bytes are all zero was never written, or was trimmed: it reads as zeros. No ciphertext is all zero but
/// with probability 2^-4096, so that this is no guess.
pub struct DiskCipher {
    xts: XtsAes256,
    unit: UnitSize,
}

impl DiskCipher {
    /// The cipher under `dek`.
    ///
    /// # Errors
    /// [`Error::Xts`], which the checks made on a [`Dek`] exclude.
    pub fn new(dek: &Dek, unit: UnitSize) -> Result<Self, Error> {
        Ok(Self { xts: XtsAes256::new(dek.expose())?, unit })
    }

    /// The data unit.
    pub fn unit(&self) -> UnitSize {
        self.unit
    }

    /// Encrypts guest bytes in place; zeros become ciphertext like everything else. `data` begins at byte `virtual_byte` of the disk, on a
    /// data unit, and ends on one or at the end of the disk.
    ///
    /// # Errors
    /// [`Error::Xts`] where the range is not made of data units.
    pub fn encrypt(&self, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        Ok(self.xts.encrypt_units(data, self.unit_len(), self.number(virtual_byte)?)?)
    }

    /// Decrypts stored bytes in place, data units that are all zero left as they are; as [`encrypt`](Self::encrypt).
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt).
    pub fn decrypt(&self, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        let first = self.number(virtual_byte)?;
        let mut from = 0;
        while let Some(written) = self.next_written(data, from) {
            from = written.end;
            let number = first + (written.start / self.unit_len()) as u128;
            self.xts.decrypt_units(&mut data[written], self.unit_len(), number)?;
        }
        Ok(())
    }

    /// From this cipher to `to` in one pass, data units that are all zero left as they are; as [`encrypt`](Self::encrypt).
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt); [`Error::Xts`] where the two ciphers have different data units.
    pub fn transcrypt(&self, to: &Self, data: &mut [u8], virtual_byte: u64) -> Result<(), Error> {
        if self.unit != to.unit {
            return Err(Error::Xts(vmseal_xts::Error::UnitSize));
        }
        let first = self.number(virtual_byte)?;
        let mut from = 0;
        while let Some(written) = self.next_written(data, from) {
            from = written.end;
            let number = first + (written.start / self.unit_len()) as u128;
            self.xts.transcrypt_units(&to.xts, &mut data[written], self.unit_len(), number)?;
        }
        Ok(())
    }

    fn unit_len(&self) -> usize {
        self.unit.bytes() as usize
    }

    fn number(&self, virtual_byte: u64) -> Result<u128, Error> {
        let unit_bytes = u64::from(self.unit.bytes());
        if !virtual_byte.is_multiple_of(unit_bytes) {
            return Err(Error::Xts(vmseal_xts::Error::UnitSize));
        }
        Ok(u128::from(virtual_byte / unit_bytes))
    }

    /// The next run of data units that are not all zero, at or after byte `from`.
    fn next_written(&self, data: &[u8], from: usize) -> Option<Range<usize>> {
        let unit_len = self.unit_len();
        let is_written = |unit: &[u8]| unit.iter().any(|byte| *byte != 0);
        let units = || data[from..].chunks(unit_len);
        let skipped = units().position(is_written)?;
        let start = from + skipped * unit_len;
        let count = data[start..].chunks(unit_len).take_while(|unit| is_written(unit)).count();
        Some(start..data.len().min(start + count * unit_len))
    }
}

/// Prints the data unit, never the key.
impl fmt::Debug for DiskCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCipher").field("unit", &self.unit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmseal_keys::system_rng;

    fn cipher(unit: UnitSize) -> DiskCipher {
        DiskCipher::new(&Dek::generate(&mut system_rng()).unwrap(), unit).unwrap()
    }

    #[test]
    fn data_units_that_were_never_written_read_as_zeros() {
        for unit in [UnitSize::B512, UnitSize::B4096] {
            let (old, new) = (cipher(unit), cipher(unit));
            let len = unit.bytes() as usize;
            // The last data unit of a disk may be shorter.
            let plain: Vec<u8> = (0..len * 6 + 512).map(|index| (index / len) as u8 + 1).collect();
            let mut stored = plain.clone();
            old.encrypt(&mut stored, 3 * len as u64).unwrap();
            let holes = [0..len, 3 * len..5 * len];
            let mut expected = plain;
            for hole in holes {
                stored[hole.clone()].fill(0);
                expected[hole].fill(0);
            }
            let mut moved = stored.clone();
            old.transcrypt(&new, &mut moved, 3 * len as u64).unwrap();
            assert_ne!(moved, stored);
            old.decrypt(&mut stored, 3 * len as u64).unwrap();
            new.decrypt(&mut moved, 3 * len as u64).unwrap();
            assert!(stored == expected && moved == expected);
        }
    }

    #[test]
    fn a_range_that_is_not_made_of_data_units_is_refused() {
        let cipher = cipher(UnitSize::B4096);
        assert!(cipher.encrypt(&mut [1; 4096], 512).is_err());
        assert!(cipher.decrypt(&mut [1; 8], 0).is_err());
        assert!(cipher.transcrypt(&self::cipher(UnitSize::B512), &mut [1; 4096], 0).is_err());
    }
}

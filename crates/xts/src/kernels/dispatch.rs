//! Which kernel runs: decided once, when a key is set up.

use cipher::consts::U16;
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{aesni, detect, schedule::Schedules, vaes256, vaes512};
use crate::error::Error;
use crate::walk::Data;

/// An implementation of XTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// The `aes` crate in batches: what it has for the CPU (ARMv8, x86), in constant time without instructions for AES.
    Portable,
    /// x86-64 with AES-NI and PCLMULQDQ.
    AesNi,
    /// x86-64 with VAES, VPCLMULQDQ and AVX2.
    Vaes256,
    /// x86-64 with VAES, VPCLMULQDQ and AVX-512 (F and BW).
    Vaes512,
}

impl Kernel {
    /// All of them, the fastest last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::AesNi, Self::Vaes256, Self::Vaes512];

    /// The fastest one that this CPU and its operating system run.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|kernel| kernel.is_available()).unwrap_or(Self::Portable)
    }

    /// Its name in messages and in `VMSEAL_EXPECT_KERNEL`, which tests read.
    #[cfg(feature = "force-kernel")]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AesNi => "aes-ni",
            Self::Vaes256 => "vaes-256",
            Self::Vaes512 => "vaes-512",
        }
    }

    /// Whether this CPU and its operating system run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Portable => true,
            Self::AesNi => detect::kernels() & detect::AES_NI != 0,
            Self::Vaes256 => detect::kernels() & detect::VAES_256 != 0,
            Self::Vaes512 => detect::kernels() & detect::VAES_512 != 0,
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

/// The keys of XTS for one kernel; `N` round keys of the block cipher `A`.
pub(crate) struct Cipher<A, const N: usize>(Keys<A, N>);

/// A value with a kernel of x86 exists only where that kernel is available: `Cipher::new` sees to it.
#[allow(clippy::large_enum_variant, reason = "there is no allocator to put the larger one elsewhere")]
enum Keys<A, const N: usize> {
    Portable(portable::Keys<A>),
    #[cfg(target_arch = "x86_64")]
    AesNi(Schedules<N>),
    #[cfg(target_arch = "x86_64")]
    Vaes256(Schedules<N>),
    #[cfg(target_arch = "x86_64")]
    Vaes512(Schedules<N>),
}

impl<A, const N: usize> Cipher<A, N>
where
    A: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + KeyInit,
{
    /// The cipher for `kernel`, or none where the CPU does not run it.
    pub(crate) fn new(kernel: Kernel, data: &[u8], tweak: &[u8]) -> Option<Result<Self, Error>> {
        if !kernel.is_available() {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        if kernel != Kernel::Portable {
            // SAFETY: the kernel is available, and every one of x86 asks for `aes` and `sse4.1`.
            let schedules = unsafe { Schedules::new(data, tweak) };
            return Some(Ok(Self(match kernel {
                Kernel::Portable | Kernel::AesNi => Keys::AesNi(schedules),
                Kernel::Vaes256 => Keys::Vaes256(schedules),
                Kernel::Vaes512 => Keys::Vaes512(schedules),
            })));
        }
        Some(portable::Keys::new(data, tweak).map(|keys| Self(Keys::Portable(keys))))
    }

    #[cfg(feature = "force-kernel")]
    pub(crate) fn kernel(&self) -> Kernel {
        match &self.0 {
            Keys::Portable(_) => Kernel::Portable,
            #[cfg(target_arch = "x86_64")]
            Keys::AesNi(_) => Kernel::AesNi,
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes256(_) => Kernel::Vaes256,
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes512(_) => Kernel::Vaes512,
        }
    }

    /// Encrypts the numbers from `first_unit` to the first tweaks of as many units.
    #[inline]
    pub(crate) fn encrypt_tweaks(&self, first_unit: u128, tweaks: &mut [u128]) {
        match &self.0 {
            Keys::Portable(keys) => portable::encrypt_tweaks(keys, first_unit, tweaks),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a value exists only where the kernel is available.
            Keys::AesNi(keys) => unsafe { aesni::encrypt_tweaks(&keys.tweak, first_unit, tweaks) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a value exists only where the kernel is available.
            Keys::Vaes256(keys) => unsafe { vaes256::encrypt_tweaks(&keys.tweak, first_unit, tweaks) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such a value exists only where the kernel is available.
            Keys::Vaes512(keys) => unsafe { vaes512::encrypt_tweaks(&keys.tweak, first_unit, tweaks) },
        }
    }

    /// Encrypts or decrypts `data`, whole blocks of units of `unit_size` bytes whose first tweaks are given, and prefetches `ahead` bytes
    /// before it gets there, unless that is 0. Returns the tweak that follows the last block.
    #[inline]
    pub(crate) fn process(
        &self,
        direction: Direction,
        data: Data<'_, '_>,
        unit_size: usize,
        tweaks: &[u128],
        ahead: usize,
    ) -> u128 {
        use Direction::{Decrypt, Encrypt};
        // SAFETY, of each call: such a value exists only where the kernel is available.
        match (&self.0, direction) {
            (Keys::Portable(keys), _) => portable::process(keys, direction, data, unit_size, tweaks),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::AesNi(keys), Encrypt) => unsafe {
                aesni::process::<N, true>(&keys.encrypt, data, unit_size, tweaks, ahead)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::AesNi(keys), Decrypt) => unsafe {
                aesni::process::<N, false>(&keys.decrypt, data, unit_size, tweaks, ahead)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::Vaes256(keys), Encrypt) => unsafe {
                vaes256::process::<N, true>(&keys.encrypt, data, unit_size, tweaks, ahead)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::Vaes256(keys), Decrypt) => unsafe {
                vaes256::process::<N, false>(&keys.decrypt, data, unit_size, tweaks, ahead)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::Vaes512(keys), Encrypt) => unsafe {
                vaes512::process::<N, true>(&keys.encrypt, data, unit_size, tweaks, ahead)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Keys::Vaes512(keys), Decrypt) => unsafe {
                vaes512::process::<N, false>(&keys.decrypt, data, unit_size, tweaks, ahead)
            },
        }
    }
}

//! What the CPU and its operating system run. The standard library knows too, but this crate does without it.

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU8, Ordering};

const KNOWN: u8 = 1;
pub(super) const AES_NI: u8 = 1 << 1;
pub(super) const VAES_256: u8 = 1 << 2;
pub(super) const VAES_512: u8 = 1 << 3;

/// The kernels that run here. CPUID leaves a virtual machine every time, so that the answer is kept.
pub(super) fn kernels() -> u8 {
    static KERNELS: AtomicU8 = AtomicU8::new(0);
    match KERNELS.load(Ordering::Relaxed) {
        0 => {
            let kernels = KNOWN | ask();
            KERNELS.store(kernels, Ordering::Relaxed);
            kernels
        }
        kernels => kernels,
    }
}

/// Leaves 1 and 7 of CPUID, and the registers that the operating system saves (Intel SDM, volume 1, 13.3 and 15.2; AMD APM, volume 3, E).
#[allow(unused_unsafe, reason = "CPUID is a safe function in newer versions of Rust")]
fn ask() -> u8 {
    let all = |register: u32, bits: &[u32]| bits.iter().all(|bit| register >> bit & 1 == 1);
    // SAFETY: every x86-64 has CPUID, and leaf 0 names the last leaf that may be asked.
    let (last, one, seven) = unsafe { (__cpuid(0).eax, __cpuid(1), __cpuid_count(7, 0)) };
    let aes_ni = all(one.ecx, &[1, 19, 25]); // PCLMULQDQ, SSE4.1, AES
    let saved = if all(one.ecx, &[27]) {
        // SAFETY: OSXSAVE is set, so that XGETBV exists.
        unsafe { xcr0() }
    } else {
        0
    };
    let vaes = aes_ni && last >= 7 && all(seven.ecx, &[9, 10]); // VAES, VPCLMULQDQ
    let vaes_256 = vaes && all(one.ecx, &[28]) && all(seven.ebx, &[5]) && saved & 0x06 == 0x06; // AVX, AVX2
    let vaes_512 = vaes_256 && all(seven.ebx, &[16, 30]) && saved & 0xe6 == 0xe6; // AVX-512 F and BW
    [(aes_ni, AES_NI), (vaes_256, VAES_256), (vaes_512, VAES_512)]
        .into_iter()
        .fold(0, |kernels, (runs, bit)| if runs { kernels | bit } else { kernels })
}

/// The state that the operating system saves (XCR0).
#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever XGETBV does.
    unsafe { _xgetbv(0) }
}

//! Under valgrind.

use std::hint::black_box;

use vmseal_xts::{Kernel, XtsAes128, XtsAes256};

// Client requests of valgrind.h and memcheck.h.
const RUNNING_ON_VALGRIND: usize = 0x1001;
const MAKE_MEM_UNDEFINED: usize = 0x4d43_0001;
const MAKE_MEM_DEFINED: usize = 0x4d43_0002;

/// A sequence that does nothing on a CPU, and that valgrind takes for a question (valgrind's manual, "The client request mechanism").
fn request(code: usize, address: usize, len: usize) -> usize {
    let arguments: [usize; 6] = [code, address, len, 0, 0, 0];
    let mut answer = 0;
    // SAFETY: four rotations of rdi by 128 bits in all and an exchange of rbx with itself; under valgrind rdx is written, and
    // `arguments` read.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") arguments.as_ptr(), inout("rdx") answer, out("rdi") _,
        );
    }
    answer
}

fn make_secret(bytes: &mut [u8]) {
    request(MAKE_MEM_UNDEFINED, bytes.as_mut_ptr() as usize, bytes.len());
}

fn make_public(bytes: &mut [u8]) {
    request(MAKE_MEM_DEFINED, bytes.as_mut_ptr() as usize, bytes.len());
}

fn must_run_under_valgrind() {
    assert!(request(RUNNING_ON_VALGRIND, 0, 0) > 0, "valgrind does not listen: not run under it, or the requests are wrong");
}

/// A key that is secret but for the first byte of each half: that the halves differ, which alone the comparison of them tells, is known
/// from those.
fn secret_key<const LEN: usize>(by: u8) -> [u8; LEN] {
    let mut key = std::array::from_fn(|index| index as u8 ^ by);
    make_secret(&mut key[1..LEN / 2]);
    make_secret(&mut key[LEN / 2 + 1..]);
    key
}

pub fn run(kernel: Kernel) {
    must_run_under_valgrind();
    let keys = [secret_key::<64>(0), secret_key(0x5a)];
    let [xts, other] = keys.each_ref().map(|key| XtsAes256::with_kernel(kernel, key).unwrap().unwrap());
    let short = XtsAes128::with_kernel(kernel, &secret_key::<32>(3)).unwrap().unwrap();
    // Sectors, a large unit, small ones, and stealing; more than a group of units in each way of a kernel.
    for (len, unit_size) in [(512, 512), (150 * 512, 512), (3 * 4096, 4096), (9000, 4096), (31 * 48, 48), (17, 16), (1039, 1024)] {
        let len = if len % unit_size != 0 && len % unit_size < 16 { len - len % unit_size } else { len };
        let (mut data, mut output) = (vec![1u8; len], vec![0u8; len]);
        make_secret(&mut data);
        xts.encrypt_units(&mut data, unit_size, 1).unwrap();
        xts.decrypt_units_to(&data, &mut output, unit_size, 1).unwrap();
        xts.transcrypt_units(&other, &mut data, unit_size, 1).unwrap();
        short.encrypt_units(&mut output, unit_size, 1).unwrap();
        short.decrypt_units(&mut output, unit_size, 1).unwrap();
        make_public(&mut data);
        make_public(&mut output);
        black_box((&data, &output));
    }
}

/// What the test must find.
pub fn branch_on_a_secret() {
    must_run_under_valgrind();
    let mut key: [u8; 64] = secret_key(0);
    if black_box(&key)[7] == 7 {
        black_box(&mut key)[8] = 1;
    }
}

//! The body of the fuzz target `xts_differential`.

use std::vec::Vec;

use crate::XtsAes256;
use crate::kernels::Kernel;

/// Runs every kernel of this CPU on the same units and compares it with the portable one. The input is a key, the size of a unit in
/// blocks (2 bytes), the number of the first unit (16 bytes), a byte for the offset of the data, and the data.
pub fn differential(input: &[u8]) {
    let Some((key, input)) = input.split_first_chunk::<64>() else { return };
    let Some((unit_blocks, input)) = input.split_first_chunk::<2>() else { return };
    let Some((first_unit, input)) = input.split_first_chunk::<16>() else { return };
    let Some((offset, data)) = input.split_first() else { return };
    let unit_size = usize::from(u16::from_le_bytes(*unit_blocks)) * 16;
    let first_unit = u128::from_le_bytes(*first_unit);
    let mut other_key = *key;
    other_key[0] ^= 1;
    let on = |kernel, key| XtsAes256::with_kernel(kernel, key).and_then(Result::ok);
    let (Some(portable), Some(other)) = (on(Kernel::Portable, key), on(Kernel::Portable, &other_key)) else { return };
    let mut sealed = data.to_vec();
    let result = portable.encrypt_units(&mut sealed, unit_size, first_unit);
    let mut moved = sealed.clone();
    assert_eq!(portable.transcrypt_units(&other, &mut moved, unit_size, first_unit), result);
    for kernel in Kernel::ALL {
        let (Some(xts), Some(other)) = (on(kernel, key), on(kernel, &other_key)) else { continue };
        let mut buffer = Vec::from([0].repeat(usize::from(*offset)));
        buffer.extend_from_slice(data);
        let own = &mut buffer[usize::from(*offset)..];
        assert_eq!(xts.encrypt_units(own, unit_size, first_unit), result);
        assert!(own == sealed, "{kernel:?} encrypts");
        let mut copied = data.to_vec();
        assert_eq!(xts.decrypt_units_to(own, &mut copied, unit_size, first_unit), result);
        assert!(copied == data, "{kernel:?} decrypts");
        assert_eq!(xts.transcrypt_units(&other, own, unit_size, first_unit), result);
        assert!(own == moved, "{kernel:?} transcrypts");
    }
}

//! Wiping.

/// Overwrites what must not be left in memory; the compiler may not leave it out.
#[inline]
pub(crate) fn wipe<T: Copy + Default>(values: &mut [T]) {
    values.fill(T::default());
    zeroize::optimization_barrier(values);
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_left() {
        let mut values = [7u128; 33];
        super::wipe(&mut values[1..]);
        assert_eq!(values[0], 7);
        assert_eq!(values[1..], [0; 32]);
    }
}

//! Tweaks: elements of GF(2^128) modulo x^128 + x^7 + x^2 + x + 1 (IEEE 1619, 5.2), as little-endian integers.

/// Multiplies by x^`POWER`, with neither branch nor index. `POWER` is from 1 to 64.
#[inline(always)]
pub(crate) fn advance<const POWER: u32>(tweak: u128) -> u128 {
    const { assert!(POWER >= 1 && POWER <= 64) }
    let carry = tweak >> (128 - POWER);
    (tweak << POWER) ^ carry ^ (carry << 1) ^ (carry << 2) ^ (carry << 7)
}

/// Multiplies by x, as [`advance`] does. Halves and their carry: one shift over both registers is slow on AMD.
#[inline(always)]
fn double([low, high]: [u64; 2]) -> [u64; 2] {
    let folded = ((high as i64) >> 63) as u64 & 0x87;
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::_addcarry_u64;
        let (mut low_twice, mut high_twice) = (0, 0);
        let carry = _addcarry_u64(0, low, low, &mut low_twice);
        _addcarry_u64(carry, high, high, &mut high_twice);
        [low_twice ^ folded, high_twice]
    }
    #[cfg(not(target_arch = "x86_64"))]
    [low << 1 ^ folded, high << 1 | low >> 63]
}

/// Numbers from `first` on; those past the last one are not used.
pub(crate) fn number(first: u128, values: &mut [u128]) {
    for (index, value) in values.iter_mut().enumerate() {
        *value = first.wrapping_add(index as u128);
    }
}

/// Tweaks that one chain makes.
pub(crate) const CHAIN_LEN: usize = 16;

/// The tweaks of 32 consecutive blocks in two chains, so that neither takes as long as what is done beside it.
pub(crate) struct Chains {
    first: [u64; 2],
    second: [u64; 2],
}

impl Chains {
    /// Chains of the blocks from that with `tweak` on.
    #[inline(always)]
    pub(crate) fn new(tweak: u128) -> Self {
        let halves = |tweak: u128| [tweak as u64, (tweak >> 64) as u64];
        Self { first: halves(tweak), second: halves(advance::<{ CHAIN_LEN as u32 }>(tweak)) }
    }

    /// The next tweak of each.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> [u128; 2] {
        let values = [self.first, self.second].map(|[low, high]| u128::from(low) | u128::from(high) << 64);
        self.first = double(self.first);
        self.second = double(self.second);
        values
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn halves(&mut self) -> [&mut u64; 4] {
        let ([a, b], [c, d]) = (&mut self.first, &mut self.second);
        [a, b, c, d]
    }
}

/// The tweak of each block of consecutive units, without an end: after the last unit all are those that follow its blocks.
pub(crate) struct Tweaks<'a> {
    units: core::slice::Iter<'a, u128>,
    next: u128,
    /// Blocks of the unit that are still to come.
    left: usize,
    unit_blocks: usize,
}

impl<'a> Tweaks<'a> {
    /// Tweaks of units of `unit_blocks` blocks, whose first tweaks are given.
    #[inline(always)]
    pub(crate) fn new(units: &'a [u128], unit_blocks: usize) -> Self {
        Self { units: units.iter(), next: 0, left: 0, unit_blocks }
    }

    /// Tweaks of blocks within a unit, the next of which is given.
    #[inline(always)]
    pub(crate) fn within(next: u128) -> Self {
        Self { units: [].iter(), next, left: usize::MAX, unit_blocks: usize::MAX }
    }

    /// The tweak of the next block.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> u128 {
        if self.left == 0 {
            self.left = self.unit_blocks;
            if let Some(&unit) = self.units.next() {
                self.next = unit;
            }
        }
        self.left -= 1;
        let tweak = self.next;
        self.next = advance::<1>(tweak);
        tweak
    }

    /// The tweak that follows the last one within its unit.
    #[inline(always)]
    pub(crate) fn following(&self) -> u128 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_x_is_as_many_doublings() {
        let mut tweak = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3211;
        for _ in 0..300 {
            let doubled = |count| (0..count).fold(tweak, |tweak, _| (tweak << 1) ^ ((tweak >> 127) * 0x87));
            assert_eq!(advance::<1>(tweak), doubled(1));
            assert_eq!(advance::<8>(tweak), doubled(8));
            assert_eq!(advance::<32>(tweak), doubled(32));
            assert_eq!(advance::<64>(tweak), doubled(64));
            tweak = advance::<1>(tweak);
        }
    }

    #[test]
    fn two_chains_are_one() {
        let tweak = 0xfedc_ba98_7654_3210_0123_4567_89ab_cdef;
        let mut chains = Chains::new(tweak);
        let mut all = [0; 2 * CHAIN_LEN];
        for index in 0..CHAIN_LEN {
            [all[index], all[CHAIN_LEN + index]] = chains.next();
        }
        assert!(all.iter().scan(tweak, |next, _| Some(core::mem::replace(next, advance::<1>(*next)))).eq(all));
    }

    #[test]
    fn tweaks_start_anew_with_each_unit() {
        let mut tweaks = Tweaks::new(&[5, 7], 2);
        assert_eq!([(); 6].map(|()| tweaks.next()), [5, 10, 7, 14, 28, 56]);
        assert_eq!(tweaks.following(), 112);
    }
}

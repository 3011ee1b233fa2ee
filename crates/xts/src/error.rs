//! Misuse of XTS.

use core::fmt;

/// Why a run of data units was not processed; but for [`Workers`](Self::Workers), no byte of it has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The data key and the tweak key are the same (FIPS 140-3 IG C.I).
    EqualHalves,
    /// The key has another length.
    KeyLength,
    /// Input and output have different lengths.
    OutputLength,
    /// The last data unit is shorter than one block of 16 bytes.
    ShortUnit,
    /// The unit size is not a multiple of 16 bytes from 16 on.
    UnitSize,
    /// The run goes past data unit 2^128 - 1.
    UnitNumber,
    /// The workers did not run every job that they were given: which parts of the run have changed is unknown.
    Workers,
}

impl core::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EqualHalves => "the two halves of the XTS key are equal; make another key",
            Self::KeyLength => "the XTS key has the wrong length; it is two AES keys",
            Self::OutputLength => "input and output of XTS differ in length",
            Self::ShortUnit => "the last data unit is shorter than 16 bytes",
            Self::UnitSize => "a data unit is a multiple of 16 bytes",
            Self::UnitNumber => "the run of data units goes past number 2^128 - 1",
            Self::Workers => "parts of the run were not worked on; see that the pool runs every job",
        })
    }
}

//! What can go wrong with keys.

/// A failed operation on keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key whose two halves are the same.
    #[error("the two halves of the XTS key are equal, which FIPS 140-3 IG C.I forbids; make another key")]
    EqualHalves,
    /// A key of the wrong length.
    #[error("the key has {found} bytes and needs {wanted}")]
    KeyLength {
        /// Its length.
        found: usize,
        /// The length it has to have.
        wanted: usize,
    },
    /// A text that cannot be a key ID or a provider's name.
    #[error("a {what} has 1 to {max} characters, none of them a control character")]
    Name {
        /// What it was to be.
        what: &'static str,
        /// The greatest length in characters.
        max: usize,
    },
    /// The system gave no random bytes.
    #[error("the operating system gave no random bytes; no key was made")]
    Random,
    /// More rounds than allowed, or none.
    #[error("{rounds} rounds of key derivation are not between 1 and {max}; raise the limit if you trust the file")]
    Rounds {
        /// What was found.
        rounds: u32,
        /// The limit.
        max: u32,
    },
    /// A wrapped key does not open: another key, another context, or damage.
    #[error("the key is wrong, or the wrapped key is damaged or belongs to something else")]
    WrongKey,
}

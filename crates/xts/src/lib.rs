//! XTS-AES (IEEE 1619, NIST SP 800-38E) over runs of data units.
//!
//! A disk is encrypted one data unit at a time; this crate takes whole runs of them, so that the tweaks of many units are encrypted
//! together and AES works on many blocks at once. In place or from one buffer to another, with ciphertext stealing for a last unit
//! that is not a multiple of 16 bytes, and [`XtsAes256::transcrypt_units`] from one key to another in one pass. No `alloc`, no `std`.
//!
//! ```
//! use vmseal_xts::XtsAes256;
//!
//! # let mut key = [0u8; 64];
//! # key[0] = 1;
//! let xts = XtsAes256::new(&key)?;
//! let mut sectors = [0u8; 4 * 512];
//! xts.encrypt_units(&mut sectors, 512, 2048)?; // data units 2048 to 2051
//! xts.decrypt_units(&mut sectors[512..1024], 512, 2049)?;
//! assert_eq!(sectors[512..1024], [0; 512]);
//! # Ok::<(), vmseal_xts::Error>(())
//! ```
//!
//! The tweak of a data unit is its number as a little-endian 128-bit integer: on units of 512 bytes numbered from 0, what
//! Linux calls `aes-xts-plain64`.
//!
//! # What it does not protect against
//!
//! XTS hides content and does not authenticate it: changed ciphertext decrypts to something, units can be put back as they were before,
//! and equal units under the same number show. Key schedules and tweaks are wiped when they are dropped; what the compiler
//! left in registers or spilled to the stack is not. Nothing here branches on or indexes by keys, tweaks or data.
//!
//! # Kernels
//!
//! On x86-64 the fastest of VAES with AVX-512, VAES with AVX2 and AES-NI that the CPU runs is chosen when a key is set up. Elsewhere, and
//! where there is none, AES is the `aes` crate's, in batches: ARMv8 instructions where there are some, fixsliced and in constant time otherwise.
//! The feature `force-kernel` lets tests and benches choose; `parallel` has large runs worked on by several threads.

#![no_std]
#![deny(unsafe_code)] // kernels.rs alone allows it

#[cfg(any(feature = "parallel", fuzzing))]
extern crate std;

mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod kernels;
#[cfg(feature = "parallel")]
pub mod parallel;
mod run;
mod tweak;
mod walk;
mod wipe;
mod xts;

pub use error::Error;
#[cfg(feature = "force-kernel")]
pub use kernels::Kernel;
pub use xts::{XtsAes128, XtsAes256};

use wipe::wipe;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! The only unsafe code of the crate: a file per instruction set, and the dispatcher that alone calls them.
//!
//! Each file has `encrypt_tweaks` and `process` and, below them, the same functions in the same order. They are safe functions that
//! ask for target features; what is unsafe in them are loads and stores, and in the dispatcher the calls.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod aesni;
#[cfg(target_arch = "x86_64")]
mod detect;
#[cfg_attr(not(feature = "force-kernel"), allow(unreachable_pub, reason = "public with that feature"))]
mod dispatch;
mod portable;
#[cfg(target_arch = "x86_64")]
mod schedule;
#[cfg(target_arch = "x86_64")]
mod vaes256;
#[cfg(target_arch = "x86_64")]
mod vaes512;

#[cfg(feature = "force-kernel")]
pub use dispatch::Kernel;
#[cfg(not(feature = "force-kernel"))]
pub(crate) use dispatch::Kernel;
pub(crate) use dispatch::{Cipher, Direction};

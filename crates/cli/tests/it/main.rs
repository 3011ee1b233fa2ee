//! The command on virtual machines that `qemu-img` made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test")]

mod faults;
mod kill;
mod life;
mod peers;
mod refusals;
mod secrets;
mod testing;

//! Snapshot chains: against a model, against QEMU, the rules, and what is left of damaged ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test")]
#![allow(clippy::single_range_in_vec_init, reason = "a list of lost ranges may have one")]

mod links;
mod model;
mod qemu;
mod rules;
mod salvage;
mod threads;
mod vectors;

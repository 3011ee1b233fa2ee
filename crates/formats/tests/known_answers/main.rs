//! The vectors in `tests/vectors`: every valid file gives the expected values, every invalid one an error of its class.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod cases;
mod descriptor;
mod encobj;
mod envelope;
#[path = "../testing/extents.rs"]
mod extents;
mod identify;
mod key_safe;
mod locator;
mod sparse;
mod vmsd;

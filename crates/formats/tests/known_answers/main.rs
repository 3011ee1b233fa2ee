//! The vectors in `tests/vectors`: every valid file gives the expected values, every invalid one an error of its class.

mod cases;
mod descriptor;
mod envelope;
mod locator;

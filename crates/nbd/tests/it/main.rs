//! The server against raw bytes and against clients that others wrote.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails")]

mod ending;
mod memory;
mod peers;
mod protocol;

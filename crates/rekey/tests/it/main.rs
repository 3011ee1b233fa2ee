//! The planner and the engine on a storage in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

mod chains;
mod engine;
mod filling;
mod planner;
mod records;
mod testing;

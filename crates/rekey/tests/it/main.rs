//! The planner and the engine on a storage in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

mod chains;
mod crashes;
mod engine;
mod in_place;
mod open_chains;
mod filling;
mod planner;
mod records;
mod testing;

//! The planner and the engine on a storage in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test")]

mod attacks;
mod chains;
mod crashes;
mod engine;
mod filling;
mod half_recrypted;
mod in_place;
mod open_chains;
mod planner;
mod planner_oracle;
mod planner_vms;
mod records;
mod sequences;
mod testing;

//! The vmseal command.
fn main() {}

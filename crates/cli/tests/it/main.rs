//! The command on virtual machines that `qemu-img` made.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails, or tells its figures")]

mod committed;
mod datastore;
mod envelope;
mod faults;
mod guest;
mod half_recrypted;
mod inspect;
mod kill;
mod life;
mod luks;
mod peers;
mod refusals;
mod secrets;
mod serve;
mod serve_kill;
mod serve_tls;
mod served;
mod testing;
mod transfer;
mod vmfile;
mod vmx_keys;
mod vmx_lock;
mod vmx_settings;

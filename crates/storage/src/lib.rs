//! The storage that virtual machines lie on: traits, a local directory, and memory

//! The planner and the crash-safe engine that encrypt, decrypt and recrypt virtual machines

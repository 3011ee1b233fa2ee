//! Encrypts virtual machines at rest, for any hypervisor on any storage

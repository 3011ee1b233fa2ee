//! Key types of virtual machine encryption: DEK, KEK, key IDs, key wrapping and key derivation

//! VMX, VMSD, VMDK, key safe and envelope: bytes in, typed values out, and back

//! Virtual disks: extents, grains and encrypted random access

//! Virtual disks: the guest's bytes, whatever the extents they lie in and the cipher they are under.
//!
//! [`DiskLayout`] reads a descriptor and its extents (flat, and hosted sparse) and tells where every byte lies; [`Disk`] reads and writes the
//! guest's bytes; [`Encryption`] is what an encrypted disk's descriptor says; [`DiskCipher`] turns guest bytes into stored bytes.
//! [`NewDisk`] makes empty disks. `docs/formats/disk.md` describes the encrypted disk byte by byte.
//!
//! ```
//! use vmseal_disk::{Disk, NewDisk, NewDiskType};
//! use vmseal_storage::{Access, Memory, StoragePath};
//!
//! let storage = Memory::new();
//! let path = StoragePath::new("web01.vmdk")?;
//! let mut disk = NewDisk::new(NewDiskType::MonolithicSparse, 64 << 20).create_and_open(&storage, &path)?;
//! disk.write_at(b"boot", 510)?;
//! disk.flush()?;
//!
//! let disk = Disk::open(&storage, &path, None, Access::Read)?;
//! let mut buffer = [0xff; 6];
//! disk.read_at(&mut buffer, 509)?;
//! assert_eq!(&buffer, b"\0boot\0");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it does not protect against: XTS does not authenticate data, so that whoever can write to the storage can exchange data units for
//! older ones of the same place, or make them noise; and the allocation of a thin disk shows which parts were ever written.

#![forbid(unsafe_code)]

mod cipher;
mod damage;
mod disk;
mod encryption;
mod error;
mod fill;
mod grains;
mod layout;
mod link;
mod link_write;
mod new_disk;
mod parent;
mod pieces;
mod sparse;
mod stream;
mod unit;

pub use cipher::DiskCipher;
pub use disk::Disk;
pub use encryption::{DiskId, Encryption, HolePolicy};
pub use error::Error;
pub use layout::{DescriptorPlace, DiskLayout};
pub use new_disk::{NewDisk, NewDiskType};
pub use parent::{LinkCiphers, find_parent};
pub use pieces::{Piece, PieceKind};
pub use unit::UnitSize;

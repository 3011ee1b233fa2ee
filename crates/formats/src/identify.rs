//! What a file is, from its first bytes.

use core::fmt;

use crate::dictionary::Dictionary;
use crate::foreign_image::ForeignImage;
use crate::{cowd, descriptor_fields, encobj, envelope, se_sparse, sparse_header};

/// How many bytes from the start of a file tell what it is.
pub const START_LEN: usize = 8192;

/// The magic of change tracking files.
const CHANGE_TRACKING_MAGIC: [u8; 4] = [0xa2, 0x72, 0x19, 0xf6];
/// The magic of NVRAM in the clear (Kessler, *File Signatures Table*: VMware BIOS state file).
const NVRAM_MAGIC: [u8; 4] = *b"MRVN";

/// What a file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum FileKind {
    /// Which blocks of a disk changed: `-ctk.vmdk`.
    ChangeTracking,
    /// A snapshot's extent on VMFS 3 and 5.
    CowdExtent,
    /// No bytes.
    Empty,
    /// NVRAM, snapshot or memory of an encrypted Workstation or Fusion VM.
    EncryptedObject,
    /// ESXi's envelope.
    Envelope {
        /// Where it begins: behind a dump header, or at 0.
        offset_bytes: usize,
    },
    /// A disk image of another maker.
    Foreign(ForeignImage),
    /// ESXi's `encryption.info`.
    Keystore,
    /// NVRAM in the clear.
    Nvram,
    /// A snapshot's extent on VMFS 6.
    SeSparseExtent,
    /// The state of a snapshot or of a suspended VM, in the clear.
    Snapshot,
    /// A hosted sparse extent, which may have a descriptor inside.
    SparseExtent,
    /// Nothing that is known: a flat extent, or a file of something else.
    Unknown,
    /// The text of a virtual disk.
    VmdkDescriptor,
    /// A list of snapshots.
    Vmsd,
    /// The configuration of a VM.
    Vmx,
    /// The companion of a VMX.
    Vmxf,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChangeTracking => "change tracking file",
            Self::CowdExtent => "COWD extent",
            Self::Empty => "empty file",
            Self::EncryptedObject => "encrypted object",
            Self::Envelope { offset_bytes: 0 } => "envelope",
            Self::Envelope { .. } => "envelope behind a dump header",
            Self::Foreign(image) => image.name(),
            Self::Keystore => "keystore",
            Self::Nvram => "NVRAM",
            Self::SeSparseExtent => "SESparse extent",
            Self::Snapshot => "snapshot state",
            Self::SparseExtent => "sparse extent",
            Self::Unknown => "unknown file",
            Self::VmdkDescriptor => "VMDK descriptor",
            Self::Vmsd => "VMSD",
            Self::Vmx => "VMX",
            Self::Vmxf => "VMXF",
        })
    }
}

/// What a file is, from its first [`START_LEN`] bytes, or all of a shorter one.
pub fn identify(start: &[u8]) -> FileKind {
    let has_magic = |magic: &[u8]| start.starts_with(magic);
    if start.is_empty() {
        FileKind::Empty
    } else if has_magic(&sparse_header::MAGIC) {
        FileKind::SparseExtent
    } else if has_magic(&cowd::MAGIC) {
        FileKind::CowdExtent
    } else if has_magic(&se_sparse::MAGIC.to_le_bytes()) {
        FileKind::SeSparseExtent
    } else if has_magic(&encobj::MAGIC.to_le_bytes()) {
        FileKind::EncryptedObject
    } else if has_magic(&CHANGE_TRACKING_MAGIC) {
        FileKind::ChangeTracking
    } else if has_magic(&NVRAM_MAGIC) {
        FileKind::Nvram
    } else if let Some(offset_bytes) = envelope::find(start) {
        FileKind::Envelope { offset_bytes }
    } else if let Some(image) = ForeignImage::find(start) {
        FileKind::Foreign(image)
    } else if encobj::is_snapshot(start) {
        FileKind::Snapshot
    } else if descriptor_fields::has_signature(start) {
        FileKind::VmdkDescriptor
    } else {
        text_kind(start)
    }
}

/// Dictionary files have no magic: their entries tell them apart.
fn text_kind(start: &[u8]) -> FileKind {
    if start.contains(&0) {
        return FileKind::Unknown;
    }
    // The last line may be cut.
    let whole_len = start.iter().rposition(|&byte| byte == b'\n').map_or(start.len(), |index| index + 1);
    let dictionary = Dictionary::parse(if start.len() < START_LEN { start } else { &start[..whole_len] });
    let mut kind = None;
    let mut entry_count = 0;
    for (_, name) in dictionary.lines() {
        let Some(name) = name else { continue };
        entry_count += 1;
        let name = name.to_ascii_lowercase();
        let begins = |prefix: &str| name.starts_with(prefix.as_bytes());
        kind = kind.or(match name.as_slice() {
            b"configencdata" | b"includekeycache" => Some(FileKind::Keystore),
            b"displayname" | b"guestos" | b"memsize" | b"config.version" | b"vmx.encryptiontype" => Some(FileKind::Vmx),
            _ if begins("snapshot") => Some(FileKind::Vmsd),
            _ if begins("encryption.") || begins("virtualhw.") => Some(FileKind::Vmx),
            _ => None,
        });
    }
    match kind {
        // Most lines of such a file are entries; a text that mentions one is something else.
        Some(kind) if dictionary.malformed().count() <= entry_count => kind,
        _ if start.windows(8).any(|bytes| bytes.eq_ignore_ascii_case(b"<foundry")) => FileKind::Vmxf,
        _ => FileKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        for (start, kind) in [
            (&b""[..], FileKind::Empty),
            (b"KDMV", FileKind::SparseExtent),
            (b"COWD\x01", FileKind::CowdExtent),
            (b"\xbe\xba\xfe\xca\0\0\0\0", FileKind::SeSparseExtent),
            (b"\x9e\xdd\x43\x89", FileKind::EncryptedObject),
            (b"\xa2\x72\x19\xf6", FileKind::ChangeTracking),
            (b"DataTransformEnvelope\0", FileKind::Envelope { offset_bytes: 0 }),
            (b"\xd2\xbe\xd2\xbe", FileKind::Snapshot),
            (b"MRVN\x01\0\0\0", FileKind::Nvram),
            (b"LUKS\xba\xbe\0\x02", FileKind::Foreign(ForeignImage::Luks { version: 2 })),
            (
                b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\x02",
                FileKind::Foreign(ForeignImage::Qcow { version: 3, encryption: 2 }),
            ),
            (b"conectix", FileKind::Foreign(ForeignImage::Vhd)),
            (b"\r\n # disk DescriptorFile\nversion=1", FileKind::VmdkDescriptor),
            (b".encoding = \"UTF-8\"\nencryption.keySafe = \"x\"\n", FileKind::Vmx),
            (b".encoding = \"UTF-8\"\nsnapshot.lastUID = \"2\"\n", FileKind::Vmsd),
            (b"<?xml version=\"1.0\"?>\n<Foundry>\n", FileKind::Vmxf),
            (b"hello\nworld\nmemsize = 1\n", FileKind::Unknown),
            (b"\0\0\0\0", FileKind::Unknown),
            (b"x = 1\n", FileKind::Unknown),
        ] {
            assert_eq!(identify(start), kind, "{start:?}");
        }
    }
}

//! Disk images of other makers, as far as their first bytes tell: so that they can be named, and are never taken for plain data.

/// LUKS, both versions ("LUKS1 On-Disk Format Specification" 1.2.3; "LUKS2 On-Disk Format Specification" 1.1.1).
const LUKS_MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// QEMU's qcow and qcow2 (QEMU, `docs/interop/qcow2.rst`).
const QCOW_MAGIC: [u8; 4] = *b"QFI\xfb";
/// QEMU's QED (QEMU, `docs/interop/qed_spec.rst`).
const QED_MAGIC: [u8; 4] = *b"QED\0";
/// VirtualBox's VDI, little-endian, behind a text of 64 bytes (QEMU, `block/vdi.c`).
const VDI_MAGIC: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
const VDI_MAGIC_OFFSET: usize = 64;
/// A dynamic VHD begins with a copy of its footer ("Virtual Hard Disk Image Format Specification" 1.0).
const VHD_MAGIC: [u8; 8] = *b"conectix";
/// VHDX ([MS-VHDX], 2.2.1).
const VHDX_MAGIC: [u8; 8] = *b"vhdxfile";

/// Where qcow2 says how its data is encrypted; the first qcow had it elsewhere.
const QCOW2_CRYPT_OFFSET: usize = 32;
const QCOW1_CRYPT_OFFSET: usize = 36;

/// A disk image of another maker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum ForeignImage {
    /// A LUKS volume or header.
    Luks {
        /// 1 or 2.
        version: u16,
    },
    /// qcow or qcow2.
    Qcow {
        /// 1 for qcow, 2 and 3 for qcow2.
        version: u32,
        /// 0 for none, 1 for AES-CBC, 2 for LUKS inside; other values are not known.
        encryption: u32,
    },
    /// QED.
    Qed,
    /// VDI.
    Vdi,
    /// A VHD that grows.
    Vhd,
    /// VHDX.
    Vhdx,
}

impl ForeignImage {
    /// The image that begins so.
    pub(crate) fn find(start: &[u8]) -> Option<Self> {
        let number = |offset: usize| start.get(offset..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        if let Some(rest) = start.strip_prefix(&LUKS_MAGIC) {
            return Some(Self::Luks { version: rest.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes)) });
        }
        if start.starts_with(&QCOW_MAGIC) {
            let version = number(QCOW_MAGIC.len()).unwrap_or(0);
            let offset = if version == 1 { QCOW1_CRYPT_OFFSET } else { QCOW2_CRYPT_OFFSET };
            return Some(Self::Qcow { version, encryption: number(offset).unwrap_or(0) });
        }
        if start.get(VDI_MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(&VDI_MAGIC)) {
            return Some(Self::Vdi);
        }
        [(&QED_MAGIC[..], Self::Qed), (&VHD_MAGIC, Self::Vhd), (&VHDX_MAGIC, Self::Vhdx)]
            .into_iter()
            .find_map(|(magic, image)| start.starts_with(magic).then_some(image))
    }

    /// Its name, as its makers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Luks { version: 1 } => "LUKS1",
            Self::Luks { .. } => "LUKS2",
            Self::Qcow { version: 1, .. } => "qcow",
            Self::Qcow { .. } => "qcow2",
            Self::Qed => "QED",
            Self::Vdi => "VDI",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
        }
    }
}

//! What a wrapped key is for.

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The secrets of a VM.
    Bundle,
    /// A disk.
    Disk,
    /// A KEK under a primary key.
    Kek,
    /// A primary key under a password.
    PrimaryKey,
    /// A file of a VM.
    VmFile,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Disk => "disk",
            Self::Kek => "kek",
            Self::PrimaryKey => "primary-key",
            Self::VmFile => "vm-file",
        }
    }
}

/// What a wrapped key is for, and of which disk, VM or provider: a wrapped key opens in its own context only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    purpose: Purpose,
    id: [u8; 16],
}

impl Context {
    /// The context of the object with this ID.
    pub fn new(purpose: Purpose, id: &[u8; 16]) -> Self {
        Self { purpose, id: *id }
    }

    /// The one text of this context: `vmseal/1/<purpose>/<32 hexadecimal digits>`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("vmseal/1/{}/", self.purpose.name());
        for byte in self.id {
            text.push_str(&format!("{byte:02x}"));
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_has_one_text() {
        let context = Context::new(Purpose::Disk, &[0xab; 16]);
        assert_eq!(context.to_bytes(), format!("vmseal/1/disk/{}", "ab".repeat(16)).into_bytes());
    }
}

//! What an encrypted disk's descriptor says, and the DEK that it holds in wrapped form. See `docs/formats/disk.md`.

use core::fmt;

use base64ct::{Base64, Encoding};
use vmseal_formats::{Descriptor, Dictionary, KeyList, Opened};
use vmseal_keys::{Dek, KeySource};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::unit::UnitSize;

/// The version of the disk profile that this library writes and reads.
const PROFILE: &str = "1";
const CIPHER: &str = "XTS-AES-256";
const KEYS: &str = "encryptionKeys";
const DDB_PROFILE: &str = "vmseal.profile";
const DDB_ID: &str = "vmseal.id";
const DDB_CIPHER: &str = "vmseal.cipher";
const DDB_UNIT: &str = "vmseal.unit";
const DDB_HOLES: &str = "vmseal.holes";

/// Identifies a disk to its keys, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskId([u8; 16]);

impl DiskId {
    /// The ID with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The ID with these 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self(u128::from_str_radix(text, 16).ok()?.to_be_bytes()))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// 32 lower-case hexadecimal digits.
impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// What a data unit that was never written looks like on storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HolePolicy {
    /// All zero: a thin disk stays thin, and its allocation shows.
    #[default]
    Zero,
    /// There is none: every data unit was written, those of zeros too. QEMU and dm-crypt, which know no holes, read every byte as it is read
    /// here.
    Fill,
}

impl HolePolicy {
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Fill => "fill",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Zero, Self::Fill].into_iter().find(|policy| policy.name() == name)
    }
}

/// The encryption of a disk, as its descriptor describes it in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    id: DiskId,
    unit: UnitSize,
    holes: HolePolicy,
    keys: KeyList,
}

impl Encryption {
    /// The encryption of disk `id` with the DEK that `keys` holds.
    pub fn new(id: DiskId, unit: UnitSize, holes: HolePolicy, keys: KeyList) -> Self {
        Self { id, unit, holes, keys }
    }

    /// Reads what a descriptor says; `None` where the disk is in the clear.
    ///
    /// # Errors
    /// [`Error::ForeignEncryption`] where something else encrypted the disk; [`Error::EncryptionEntries`] where an entry is missing
    /// or not known.
    pub fn from_descriptor(descriptor: &Descriptor) -> Result<Option<Self>, Error> {
        let Some(profile) = descriptor.ddb(DDB_PROFILE) else {
            return if [DDB_ID, DDB_CIPHER, DDB_UNIT, DDB_HOLES].iter().any(|name| descriptor.ddb(name).is_some()) {
                Err(Error::EncryptionEntries { what: format!("ddb.{DDB_PROFILE} is missing") })
            } else if is_foreign(descriptor) {
                let what =
                    "the disk is encrypted by VMware vSphere, in a layout that is not public; decrypt it there first";
                Err(Error::ForeignEncryption { what: what.to_owned() })
            } else {
                Ok(None)
            };
        };
        let entries = |what: String| Error::EncryptionEntries { what };
        if profile != PROFILE {
            return Err(entries(format!("ddb.{DDB_PROFILE} is {profile:?}, and this version knows {PROFILE:?}")));
        }
        let entry = |name: &str| descriptor.ddb(name).ok_or_else(|| entries(format!("ddb.{name} is missing")));
        let unknown =
            |name: &str, value: &str| entries(format!("ddb.{name} is {value:?}, which this version does not know"));
        let cipher = entry(DDB_CIPHER)?;
        if cipher != CIPHER {
            return Err(unknown(DDB_CIPHER, &cipher));
        }
        let unit = entry(DDB_UNIT)?;
        let holes = entry(DDB_HOLES)?;
        let id = entry(DDB_ID)?;
        let keys = descriptor.header(KEYS).ok_or_else(|| entries(format!("{KEYS} is missing")))?;
        Ok(Some(Self {
            id: DiskId::from_hex(&id).ok_or_else(|| unknown(DDB_ID, &id))?,
            unit: unit.parse().ok().and_then(UnitSize::from_bytes).ok_or_else(|| unknown(DDB_UNIT, &unit))?,
            holes: HolePolicy::from_name(&holes).ok_or_else(|| unknown(DDB_HOLES, &holes))?,
            keys: KeyList::parse(&keys).map_err(|source| entries(format!("{KEYS}: {source}")))?,
        }))
    }

    /// Puts the entries into a descriptor; everything else stays byte for byte.
    pub fn write_to(&self, descriptor: &mut Descriptor) {
        descriptor.set_header(KEYS, &self.keys.to_string());
        descriptor.set_ddb(DDB_PROFILE, PROFILE);
        descriptor.set_ddb(DDB_ID, &self.id.to_string());
        descriptor.set_ddb(DDB_CIPHER, CIPHER);
        descriptor.set_ddb(DDB_UNIT, &self.unit.to_string());
        descriptor.set_ddb(DDB_HOLES, self.holes.name());
    }

    /// Takes the entries out of a descriptor, which then is what it was before [`write_to`](Self::write_to).
    pub fn remove_from(descriptor: &mut Descriptor) {
        descriptor.remove_header(KEYS);
        for name in [DDB_PROFILE, DDB_ID, DDB_CIPHER, DDB_UNIT, DDB_HOLES] {
            descriptor.remove_ddb(name);
        }
    }

    /// The disk's identity.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// The data unit.
    pub fn unit(&self) -> UnitSize {
        self.unit
    }

    /// The hole policy.
    pub fn holes(&self) -> HolePolicy {
        self.holes
    }

    /// The locator list with the wrapped DEK.
    pub fn keys(&self) -> &KeyList {
        &self.keys
    }

    /// The same disk with its DEK in another locator list.
    #[must_use]
    pub fn with_keys(mut self, keys: KeyList) -> Self {
        self.keys = keys;
        self
    }

    /// The text that is wrapped for `dek`: the key with all that the descriptor says of the disk in the clear, so that neither a wrapped
    /// key moved to another disk nor an altered entry goes unnoticed.
    pub fn dek_text(id: DiskId, unit: UnitSize, holes: HolePolicy, dek: &Dek) -> Zeroizing<Vec<u8>> {
        let mut text = Dictionary::new();
        text.set("vmseal.profile", PROFILE.as_bytes());
        text.set("vmseal.disk", id.to_string().as_bytes());
        text.set("vmseal.cipher", CIPHER.as_bytes());
        text.set("vmseal.unit", unit.to_string().as_bytes());
        text.set("vmseal.holes", holes.name().as_bytes());
        let mut key = Zeroizing::new([0; Dek::LEN.div_ceil(3) * 4]);
        // The buffer has the exact length of the text.
        let key = Base64::encode(dek.expose(), key.as_mut_slice()).unwrap_or_default();
        text.set("vmseal.key", key.as_bytes());
        text.to_bytes()
    }

    /// Unwraps the DEK with whatever of `keys` opens it, and tells what that was.
    ///
    /// # Errors
    /// [`Error::WrongDisk`] where the wrapped DEK is another disk's; [`Error::DekContent`]; [`Error::Format`] where no key opens it.
    pub fn open_dek(&self, path: &str, keys: &mut dyn KeySource) -> Result<(Dek, Opened), Error> {
        let opened = self.keys.open_with(keys).map_err(|source| Error::Format { path: path.to_owned(), source })?;
        let text = Dictionary::parse(&opened.plaintext);
        let entry = |name: &str| {
            text.value(name).ok_or_else(|| Error::DekContent { what: format!("{name} is missing in the wrapped key") })
        };
        let expect = |name: &str, wanted: &str| -> Result<(), Error> {
            if entry(name)?.as_slice() == wanted.as_bytes() {
                return Ok(());
            }
            Err(Error::DekContent { what: format!("{name} in the wrapped key is not {wanted:?}") })
        };
        expect("vmseal.profile", PROFILE)?;
        if entry("vmseal.disk")?.as_slice() != self.id.to_string().as_bytes() {
            return Err(Error::WrongDisk);
        }
        expect("vmseal.cipher", CIPHER)?;
        expect("vmseal.unit", &self.unit.to_string())?;
        expect("vmseal.holes", self.holes.name())?;
        let mut bytes = Zeroizing::new([0; Dek::LEN]);
        let key = entry("vmseal.key")?;
        match Base64::decode(&*key, bytes.as_mut_slice()) {
            Ok(key) if key.len() == Dek::LEN => {}
            _ => return Err(Error::DekContent { what: format!("vmseal.key is not {} bytes of base64", Dek::LEN) }),
        }
        Ok((Dek::from_bytes(&bytes)?, opened))
    }
}

/// Whether VMware's encryption shows in a descriptor.
fn is_foreign(descriptor: &Descriptor) -> bool {
    let filters = descriptor.ddb("iofilters").unwrap_or_default().to_ascii_lowercase();
    descriptor.header(KEYS).is_some() || descriptor.header("keyID").is_some() || filters.contains("vmwarevmcrypt")
}

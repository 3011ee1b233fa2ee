//! The settings of a VMX, read and changed one at a time or as a text.

use vmseal_formats::{Dictionary, Style, UnlockedVmx};
use vmseal_keys::{KeyId, KeySource, system_rng};
use zeroize::Zeroizing;

use crate::file_error::FileError;

/// Entries that hold the locks or what they lock, and what the bytes of all others mean.
const RESERVED: [&str; 3] = ["vmx.encryptionType", "dataFileKey", ".encoding"];
const RESERVED_PREFIXES: [&str; 2] = ["encryption.", "vmseal."];

/// The settings of a VMX that is open.
#[derive(Debug)]
pub struct VmxSettings {
    pub(crate) path: String,
    pub(crate) content: Content,
    /// Why the hidden ones cannot be had, where that is so: the keys that open them, and what to do.
    pub(crate) why: Option<(Vec<KeyId>, String)>,
}

#[derive(Debug)]
pub(crate) enum Content {
    Clear(Dictionary),
    Hidden(Box<UnlockedVmx>),
}

impl VmxSettings {
    /// The value of a setting; none where there is no such.
    ///
    /// # Errors
    /// [`FileError::Format`] where it is not valid in the file's encoding; [`FileError::KeyNeeded`] where it may be one of those that an ESXi
    /// VM hides, and no key is at hand.
    pub fn value(&self, name: &str) -> Result<Option<String>, FileError> {
        match (self.known_value(name)?, &self.why) {
            (None, Some((key_ids, why))) => {
                let path = format!("{}: there is no setting {name} in the clear", self.path);
                Err(FileError::KeyNeeded { path, key_ids: key_ids.clone(), why: why.clone() })
            }
            (value, _) => Ok(value),
        }
    }

    fn known_value(&self, name: &str) -> Result<Option<String>, FileError> {
        let text = match &self.content {
            Content::Clear(vmx) => vmx.text(name),
            Content::Hidden(vmx) => vmx.text(name),
        };
        text.map_err(FileError::format(&self.path))
    }

    /// Sets a setting where it is; a new one is added, among the hidden ones where most are hidden.
    ///
    /// # Errors
    /// [`FileError::Refused`] for the entries that the locks consist of; [`FileError::Format`] where the file's encoding has no such
    /// characters.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), FileError> {
        let refused = |what: String| Err(FileError::Refused { path: self.path.clone(), what });
        if is_reserved(name) {
            return refused(format!("{name} belongs to the encryption of the VM, and is changed by its verbs alone"));
        }
        if !Dictionary::is_name(name) {
            return refused(format!("{name:?} cannot be the name of a setting"));
        }
        // What has the value already stays as it is written.
        if self.known_value(name)?.as_deref() == Some(value) {
            return Ok(());
        }
        let set = match &mut self.content {
            Content::Clear(vmx) => vmx.set_text(name, value),
            Content::Hidden(vmx) => vmx.set_text(name, value),
        };
        set.map_err(FileError::format(&self.path))
    }

    /// What in the [`text`](Self::text) VMware reads otherwise than it looks: lines that are no setting, names given twice.
    pub fn doubtful_lines(&self) -> Vec<String> {
        let text = Dictionary::parse(&self.text());
        let malformed = text.malformed().map(|line| format!("{}: line {line} is no setting", self.path));
        let again = text.duplicates().into_iter().map(|again| {
            let (name, line, first) = (again.name, again.line, again.first_line);
            format!("{}: line {line} gives {name} again; the one in line {first} counts", self.path)
        });
        malformed.chain(again).collect()
    }

    /// The text that a person edits: the hidden settings where most are hidden, otherwise those in the clear.
    pub fn text(&self) -> Zeroizing<Vec<u8>> {
        match &self.content {
            Content::Hidden(vmx) if !self.is_partial() => vmx.hidden().to_bytes(),
            Content::Hidden(vmx) => vmx.outer().to_bytes(),
            Content::Clear(vmx) => vmx.to_bytes(),
        }
    }

    /// Puts an edited [`text`](Self::text) in the place of the old one.
    ///
    /// # Errors
    /// [`FileError::Refused`] where it has no entry left, or entries of the encryption were changed.
    pub fn set_text(&mut self, text: &[u8]) -> Result<(), FileError> {
        let edited = Dictionary::parse(text);
        let refused = |what: &str| Err(FileError::Refused { path: self.path.clone(), what: what.to_owned() });
        if edited.entries().next().is_none() {
            return refused("the edited text has no line of the form name = \"value\"; nothing was changed");
        }
        if reserved(&edited) != reserved(&Dictionary::parse(&self.text())) {
            return refused(
                "the edit changed entries that belong to the encryption of the VM; nothing was changed, edit the others alone",
            );
        }
        let is_partial = self.is_partial();
        match &mut self.content {
            Content::Hidden(vmx) if !is_partial => vmx.set_hidden(edited),
            // What is hidden, and its locks, are entries of the edited text.
            content => *content = Content::Clear(edited),
        }
        Ok(())
    }

    /// The file, locked again as it was. What was not changed is as it was, byte for byte.
    ///
    /// # Errors
    /// [`FileError::Format`] where the system gives no random bytes, and where a key of an ESXi VM's bundle is not among `keys`: what it hides
    /// is locked anew under each. A key safe needs none.
    pub fn to_bytes(&self, keys: &mut dyn KeySource) -> Result<Zeroizing<Vec<u8>>, FileError> {
        match &self.content {
            Content::Clear(vmx) => Ok(vmx.to_bytes()),
            Content::Hidden(vmx) => {
                let locked = vmx.lock(keys, &mut system_rng());
                Ok(locked.map_err(FileError::format(&self.path))?.to_bytes())
            }
        }
    }

    fn is_partial(&self) -> bool {
        let Content::Hidden(vmx) = &self.content else { return false };
        vmx.style() == Style::Bundle
            || vmx.outer().value("vmx.encryptionType").is_some_and(|word| word.eq_ignore_ascii_case(b"partial"))
    }
}

fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The reserved entries of a text, in order.
fn reserved(vmx: &Dictionary) -> Vec<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    vmx.entries().filter(|(name, _)| is_reserved(&String::from_utf8_lossy(name))).collect()
}

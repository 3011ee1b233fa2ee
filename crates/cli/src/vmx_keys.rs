//! What opens a VMX: its password, the key of a provider of this machine, or a key in a file.

use std::path::Path;

use vmseal::{GivenKeys, KeySource, Memory, Storage, VmxFile};

use crate::args::{Cli, KeyArgs};
use crate::file_args::VmxKeyArgs;
use crate::home;
use crate::key_file;
use crate::keys;
use crate::output::Output;
use crate::password;
use crate::status::Failure;

/// When a password is asked for that no option gives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ask {
    /// Where the VMX is locked.
    Always,
    /// Where its settings cannot be read otherwise: most of an ESXi VM's are in the clear.
    WhereNeeded,
}

impl VmxKeyArgs {
    /// The files that may be standard input.
    pub(crate) fn files(&self) -> [Option<&Path>; 3] {
        [self.password_file.as_deref(), self.key_file.as_deref(), self.provider_password_file.as_deref()]
    }
}

/// Does `work` with the keys at hand.
pub(crate) fn with<T>(
    cli: &Cli,
    vmx: &VmxFile,
    args: &VmxKeyArgs,
    ask: Ask,
    output: &Output,
    work: impl FnOnce(&mut dyn KeySource) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some(file) = &args.key_file {
        let mut keys = GivenKeys::new().with_key(key_file::read(file)?);
        if let Some(file) = &args.password_file {
            keys = keys.with_password(password::from_file(file)?);
        }
        return work(&mut keys);
    }
    let key_ids = vmx.key_ids()?;
    // No provider is needed, and no state folder, for what a password alone opens.
    let home: Box<dyn Storage> =
        if key_ids.is_empty() { Box::new(Memory::new()) } else { home::open_existing(cli, output)? };
    let asks = ask == Ask::Always || vmx.needs_key()?;
    let files = KeyArgs {
        provider_password_file: args.provider_password_file.clone(),
        recovery_password_file: args.password_file.clone(),
    };
    let mut providers = keys::open(home.as_ref(), &files, if asks { &key_ids } else { &[] }, None)?;
    if !asks {
        for id in &key_ids {
            if let Some(file) = args.provider_password_file.as_deref() {
                providers.set_password(id.provider(), password::from_file(file)?);
            }
        }
    }
    let is_provided = key_ids.iter().any(|id| providers.fetch(id).is_ok());
    if asks && args.password_file.is_none() && !is_provided && vmx.has_password()? {
        providers.set_phrase(password::ask("Password of the VM", "--password-file")?);
    }
    work(&mut providers)
}

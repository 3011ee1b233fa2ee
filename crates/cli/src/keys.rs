//! The keys that an operation needs: the providers of the state folder, with the passwords that they and the VM ask for.

use vmseal::{Inventory, LocalProviders, ProviderError, ProviderName, Storage};

use crate::args::KeyArgs;
use crate::password;
use crate::status::Failure;

/// Opens the providers that the VM's keys belong to, and `provider` besides.
pub(crate) fn open<'h>(
    home: &'h dyn Storage,
    args: &KeyArgs,
    inventory: &Inventory,
    provider: Option<&ProviderName>,
) -> Result<LocalProviders<'h>, Failure> {
    let mut keys = LocalProviders::open(home)?;
    let mut names: Vec<ProviderName> = provider.into_iter().cloned().collect();
    let disks = inventory.disks.iter().flat_map(|disk| disk.encryption.key_ids());
    let pending = inventory.pending.iter().flat_map(|pending| &pending.key_ids);
    names.extend(inventory.encryption.key_ids().iter().chain(disks).chain(pending).map(|id| id.provider().clone()));
    names.sort();
    names.dedup();
    let from_file = args.provider_password_file.as_deref().map(password::from_file).transpose()?;
    for name in names {
        let protected = match keys.info(&name) {
            Ok(info) => info.protected,
            // The operation itself says what it misses.
            Err(ProviderError::Unknown(_)) => false,
            Err(error) => return Err(error.into()),
        };
        if protected {
            let password = match &from_file {
                Some(password) => password.clone(),
                None => password::ask(&format!("Password of key provider {name}"), "--provider-password-file")?,
            };
            keys.set_password(&name, password);
        }
    }
    if let Some(file) = &args.recovery_password_file {
        keys.set_phrase(password::from_file(file)?);
    }
    Ok(keys)
}

//! The keys that an operation needs: the providers of the state folder, with the passwords that they and the VM ask for.

use std::path::PathBuf;

use vmseal::{KeyId, LocalProviders, ProviderError, ProviderName, Storage};

use crate::args::KeyArgs;
use crate::password;
use crate::status::Failure;

/// Opens the providers of these keys, and `provider` besides.
pub(crate) fn open<'h>(
    home: &'h dyn Storage,
    args: &KeyArgs,
    ids: &[KeyId],
    provider: Option<&ProviderName>,
) -> Result<LocalProviders<'h>, Failure> {
    let is_stdin = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if is_stdin(&args.provider_password_file) && is_stdin(&args.recovery_password_file) {
        return Err(Failure::usage("standard input can give one password only; put the other into a file"));
    }
    let mut keys = LocalProviders::open(home)?;
    let mut names: Vec<ProviderName> = provider.into_iter().cloned().collect();
    names.extend(ids.iter().map(|id| id.provider().clone()));
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
                // The recovery password is for those who have lost this one; only a new key cannot be had without it.
                None if args.recovery_password_file.is_some() && provider != Some(&name) => continue,
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

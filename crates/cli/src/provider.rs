//! `vmseal provider`.

use serde::Serialize;
use vmseal::{LocalProviders, ProviderInfo, ProviderName};

use crate::args::{Cli, CreateProvider};
use crate::home;
use crate::output::Output;
use crate::password;
use crate::status::Failure;

#[derive(Serialize)]
struct ProviderReport {
    name: String,
    kind: &'static str,
    id: String,
    password_protected: bool,
}

#[derive(Serialize)]
struct ProviderList {
    providers: Vec<ProviderReport>,
}

impl From<ProviderInfo> for ProviderReport {
    fn from(info: ProviderInfo) -> Self {
        Self { name: info.name.to_string(), kind: info.kind, id: info.id, password_protected: info.protected }
    }
}

pub(crate) fn create(cli: &Cli, create: &CreateProvider, output: &mut Output) -> Result<(), Failure> {
    let CreateProvider::Native { name, password_file, .. } = create;
    let name = ProviderName::new(name).map_err(|error| Failure::usage(error.to_string()))?;
    let password = password_file.as_deref().map(password::from_file).transpose()?;
    let home = home::open(cli, output)?;
    let info =
        LocalProviders::open(&home)?.create_native(&name, password.as_ref().map(|password| password.as_slice()))?;
    let text = format!("Native key provider {name} is made.");
    output.result(&ProviderReport::from(info), &text)?;
    output.note(
        "Its primary key lies in the state folder alone, and opens every VM under this provider: keep a copy of that folder in a safe place.",
    );
    Ok(())
}

pub(crate) fn list(cli: &Cli, output: &mut Output) -> Result<(), Failure> {
    let home = home::open_existing(cli, output)?;
    let keys = LocalProviders::open(home.as_ref())?;
    let mut providers = Vec::new();
    let mut failed = None;
    for name in keys.names()? {
        match keys.info(&name) {
            Ok(info) => providers.push(ProviderReport::from(info)),
            Err(error) => {
                let failure = Failure::from(error);
                output.warning(&failure.message);
                failed = Some(Failure::reported(failure.status, "not every key provider can be used"));
            }
        }
    }
    let mut text = String::new();
    for provider in &providers {
        let protection = if provider.password_protected { "password" } else { "no password" };
        text.push_str(&format!("{:24} {}  {}  {protection}\n", provider.name, provider.kind, provider.id));
    }
    if providers.is_empty() && failed.is_none() {
        output.note("There is no key provider here; make one with `vmseal provider create native NAME`.");
        if !output.is_json() {
            return Ok(());
        }
    }
    if !text.is_empty() || output.is_json() {
        output.result(&ProviderList { providers }, &text)?;
    }
    failed.map_or(Ok(()), Err)
}

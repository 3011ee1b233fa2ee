//! The `vmseal` command: encrypts virtual machines at rest.

#![forbid(unsafe_code)]

mod args;
mod datastore;
mod difference;
mod disk_path;
mod disk_transfer;
mod editor;
mod envelope;
mod file_args;
mod home;
mod inspect;
mod inspect_table;
mod inspect_walk;
mod key_file;
mod keys;
mod lock;
mod luks;
mod operate;
mod output;
mod password;
mod plan_report;
mod progress;
mod provider;
mod serve;
mod status;
mod tour;
mod tour_check;
mod tour_vm;
mod vm_path;
mod vmfile;
mod vmx;
mod vmx_keys;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, DatastoreCommand, DiskCommand, ProviderCommand};
use file_args::{CoredumpCommand, EnvelopeCommand, VmfileCommand, VmxCommand};
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    home::keep_secrets_out_of_core_dumps();
    let mut output = Output::new(cli.quiet, cli.command.is_json());
    let result = match &cli.command {
        Command::Provider(ProviderCommand::Create(create)) => provider::create(&cli, create, &mut output),
        Command::Provider(ProviderCommand::List { .. }) => provider::list(&cli, &mut output),
        Command::Inspect(args) => inspect::run(args, &mut output),
        Command::Encrypt(args) => operate::encrypt(&cli, args, &mut output),
        Command::Decrypt(args) => operate::decrypt(&cli, args, &mut output),
        Command::Recrypt(args) => operate::recrypt(&cli, args, &mut output),
        Command::Resume(args) => operate::resume(&cli, args, &mut output),
        Command::Verify(args) => operate::verify(&cli, args, &mut output),
        Command::Unlock(args) => lock::unlock(&cli, args, &output),
        Command::Lock(args) => lock::lock(&cli, args, &output),
        Command::Vmx(VmxCommand::Get(args)) => vmx::get(&cli, args, &mut output),
        Command::Vmx(VmxCommand::Set(args)) => vmx::set(&cli, args, &mut output),
        Command::Vmx(VmxCommand::Edit(args)) => vmx::edit(&cli, args, &mut output),
        Command::Datastore(DatastoreCommand::Create { image, .. }) => datastore::create(image, &mut output),
        Command::Disk(DiskCommand::LuksHeader(args)) => luks::header(&cli, args, &mut output),
        Command::Disk(DiskCommand::Export(args)) => disk_transfer::export(&cli, args, &mut output),
        Command::Disk(DiskCommand::Import(args)) => disk_transfer::import(&cli, args, &mut output),
        Command::Disk(DiskCommand::ImportLuks(args)) => luks::import(&cli, args, &mut output),
        Command::Envelope(EnvelopeCommand::Describe(args)) => envelope::describe(args, &mut output),
        Command::Envelope(EnvelopeCommand::Extract(args)) => envelope::extract(args, &mut output),
        Command::Envelope(EnvelopeCommand::Create(args)) => envelope::create(args, &mut output),
        Command::Coredump(CoredumpCommand::Decrypt(args)) => envelope::decrypt_coredump(args, &mut output),
        Command::Serve(args) => serve::run(&cli, args, &mut output),
        Command::Vmfile(VmfileCommand::Decrypt(args)) => vmfile::decrypt(&cli, args, &mut output),
        Command::Tour(args) => tour::run(args, &mut output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.error(&failure);
            failure.status.into()
        }
    }
}

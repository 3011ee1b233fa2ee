//! The command line: one definition for parsing, help, and what scripts rely on.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::file_args::{CoredumpCommand, EnvelopeCommand, LockArgs, UnlockArgs, VmfileCommand, VmxCommand};

/// Encrypts virtual machines at rest, for any hypervisor, on any storage.
#[derive(Debug, Parser)]
#[command(name = "vmseal", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// The state folder: key providers and their keys
    #[arg(long, global = true, env = "VMSEAL_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// No progress and no remarks: the result, warnings and errors alone
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vmseal provider create native house          make a key provider on this machine
  vmseal inspect web01/                        see what is encrypted; needs no key
  vmseal encrypt web01/web01.vmx --provider house
  vmseal recrypt web01/web01.vmx               a new KEK; no data is touched
  vmseal recrypt web01/web01.vmx --deep        new keys for everything; all data is rewritten
  vmseal resume web01/web01.vmx                complete what a crash interrupted
  vmseal tour                                  all of this on a VM made for the purpose

Exit status: 0 done, 1 failed, 2 usage, 3 refused by a rule, 4 wrong or missing key or password,
5 damaged or unknown input, 6 not permitted, 7 interrupted and resumable.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Key providers of this machine
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Tell of any file what it is, whether and how it is encrypted, and what opens it; needs no key
    Inspect(InspectArgs),
    /// Encrypt a VM: its disks and its files
    Encrypt(EncryptArgs),
    /// Decrypt a VM and all its disks
    Decrypt(DecryptArgs),
    /// Give a VM a new KEK (shallow), or new DEKs and a new KEK (deep)
    Recrypt(RecryptArgs),
    /// Complete, or undo, what was interrupted
    Resume(ResumeArgs),
    /// Check that every key unwraps, every disk is whole, and nothing is pending
    Verify(VerifyArgs),
    /// Put a VMX that a password or a provider's key locks (Workstation, Fusion, ESXi) into the clear
    Unlock(UnlockArgs),
    /// Lock a VMX with a password, as Workstation and Fusion do
    Lock(LockArgs),
    /// Read and change settings of a VMX, encrypted or not
    #[command(subcommand)]
    Vmx(VmxCommand),
    /// Encrypted NVRAM, snapshots and memory of Workstation and Fusion VMs
    #[command(subcommand)]
    Vmfile(VmfileCommand),
    /// ESXi's envelopes: the host's configuration, core dumps
    #[command(subcommand)]
    Envelope(EnvelopeCommand),
    /// ESXi's encrypted core dumps
    #[command(subcommand)]
    Coredump(CoredumpCommand),
    /// Show the main job on a real VM made in a temporary folder
    Tour(TourArgs),
}

impl Command {
    /// Whether a JSON document is wanted.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Provider(
                ProviderCommand::Create(CreateProvider::Native { json, .. }) | ProviderCommand::List { json },
            ) => json.json,
            Self::Inspect(args) => args.json.json,
            Self::Encrypt(args) => args.run.json.json,
            Self::Decrypt(args) => args.run.json.json,
            Self::Recrypt(args) => args.run.json.json,
            Self::Resume(args) => args.json.json,
            Self::Verify(args) => args.json.json,
            Self::Vmx(VmxCommand::Get(args)) => args.json.json,
            Self::Vmx(VmxCommand::Set(args)) => args.json.json,
            Self::Envelope(EnvelopeCommand::Describe(args)) => args.json.json,
            Self::Vmx(VmxCommand::Edit(_))
            | Self::Envelope(_)
            | Self::Coredump(_)
            | Self::Vmfile(_)
            | Self::Unlock(_)
            | Self::Lock(_)
            | Self::Tour(_) => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProviderCommand {
    /// Make a provider
    #[command(subcommand)]
    Create(CreateProvider),
    /// List the providers
    List {
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CreateProvider {
    /// A native provider: its primary key is made and kept in the state folder
    Native {
        /// The provider's name: letters, digits, `-`, `_` and `.`
        name: String,
        /// Protect the primary key with the password in this file (`-` is standard input)
        #[arg(long, value_name = "F")]
        password_file: Option<PathBuf>,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Json {
    /// One JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Files of any kind, or folders to look through
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// What every operation with keys takes.
#[derive(Args, Debug)]
pub(crate) struct KeyArgs {
    /// The password of the native provider, where it has one (`-` is standard input; a terminal is asked otherwise)
    #[arg(long, value_name = "F")]
    pub(crate) provider_password_file: Option<PathBuf>,
    /// The VM's recovery password: a further way in beside the provider's key
    #[arg(long, value_name = "F")]
    pub(crate) recovery_password_file: Option<PathBuf>,
}

/// What every operation that changes a VM takes.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// Print the plan, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct EncryptArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// The key provider that makes the KEK
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: String,
    /// `all`, `none` (the VM files alone), or disk names separated by commas
    #[arg(long, default_value = "all", value_name = "all|none|FILE,FILE")]
    pub(crate) disks: String,
    /// How the data is rewritten: `copy` writes new files beside the old ones
    #[arg(long, value_enum, default_value_t = Strategy::Copy)]
    pub(crate) strategy: Strategy,
    /// The data unit of the disks' encryption, in bytes
    #[arg(long, value_enum, default_value = "512", value_name = "BYTES")]
    pub(crate) data_unit: DataUnit,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// New files beside the old ones, and one atomic commit
    Copy,
    /// Without a second copy; not in this version
    InPlace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DataUnit {
    #[value(name = "512")]
    B512,
    #[value(name = "4096")]
    B4096,
}

#[derive(Args, Debug)]
pub(crate) struct DecryptArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// Give up the keys of disks and files that are not attached now, and with them their data
    #[arg(long)]
    pub(crate) forget_detached: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RecryptArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// New DEKs as well: all data is rewritten
    #[arg(long)]
    pub(crate) deep: bool,
    /// The provider of the new KEK; the VM's own otherwise
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Option<String>,
    /// Deep: drop the VM's recovery password instead of giving it
    #[arg(long, requires = "deep", conflicts_with = "recovery_password_file")]
    pub(crate) drop_recovery: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// Undo instead of completing; needs no key
    #[arg(long)]
    pub(crate) rollback: bool,
    /// Complete a committed operation also where disks or files were written since; what was written to them is lost
    #[arg(long, conflicts_with = "rollback")]
    pub(crate) discard_changes: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct TourArgs {
    /// Leave the folder with the VM, decrypted, for a look at it
    #[arg(long)]
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

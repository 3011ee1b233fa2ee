//! The command line: one definition for parsing, help, and what scripts rely on.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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

/// What opens a VMX. The key of a provider in the state folder is found by its ID.
#[derive(Args, Debug)]
pub(crate) struct VmxKeyArgs {
    /// The file with the VMX's password; with `lock` the new one, with `--change-password` the old one (`-` is standard input; a terminal is
    /// asked otherwise)
    #[arg(long, value_name = "F")]
    pub(crate) password_file: Option<PathBuf>,
    /// The file with the provider's key itself: 32 bytes, 64 hexadecimal digits, or base64
    #[arg(long, value_name = "F")]
    pub(crate) key_file: Option<PathBuf>,
    /// The password of the native provider that has the key, where it has one
    #[arg(long, value_name = "F", conflicts_with = "key_file")]
    pub(crate) provider_password_file: Option<PathBuf>,
}

/// Where a result goes that need not replace its input.
#[derive(Args, Debug)]
pub(crate) struct OutArgs {
    /// The output (`-` is standard output); without it the file itself is replaced
    #[arg(long, short, value_name = "OUT.vmx")]
    pub(crate) output: Option<PathBuf>,
    /// Replace an output that is there already
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UnlockArgs {
    /// The VMX (`-` is standard input)
    #[arg(value_name = "IN.vmx")]
    pub(crate) vmx: PathBuf,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
}

#[derive(Args, Debug)]
pub(crate) struct LockArgs {
    /// The VMX (`-` is standard input)
    #[arg(value_name = "IN.vmx")]
    pub(crate) vmx: PathBuf,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
    /// The cipher: products before Workstation 17.5 and Fusion 13.5 read AES-256 alone
    #[arg(long, value_enum, default_value = "XTS-AES-256", conflicts_with = "change_password")]
    pub(crate) cipher: VmxCipher,
    /// Give a locked VMX another password; its settings stay encrypted as they are
    #[arg(long)]
    pub(crate) change_password: bool,
    /// The file with the new password
    #[arg(long, value_name = "NEW", requires = "change_password")]
    pub(crate) new_password_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) out: OutArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmxCipher {
    #[value(name = "XTS-AES-256")]
    XtsAes256,
    #[value(name = "AES-256")]
    Aes256,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmxCommand {
    /// Print the value of a setting
    Get(VmxGetArgs),
    /// Set settings where the VMX lies; the rest stays as it is
    Set(VmxSetArgs),
    /// Edit the settings with $VISUAL or $EDITOR, in memory, and lock them again
    Edit(VmxEditArgs),
}

#[derive(Args, Debug)]
pub(crate) struct VmxGetArgs {
    /// The VMX (`-` is standard input)
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// The setting
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct VmxSetArgs {
    /// The VMX
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// The settings, as `memsize=8192`
    #[arg(required = true, value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<String>,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct VmxEditArgs {
    /// The VMX
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvelopeCommand {
    /// Tell what an envelope says of itself; needs no key
    Describe(EnvelopeDescribeArgs),
    /// Decrypt an envelope; the output gets its name when the tag has verified
    Extract(EnvelopeExtractArgs),
    /// Seal a file into an envelope
    Create(EnvelopeCreateArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CoredumpCommand {
    /// Decrypt a core dump of a monitor or a kernel (zdump)
    Decrypt(CoredumpDecryptArgs),
}

#[derive(Args, Debug)]
pub(crate) struct EnvelopeDescribeArgs {
    /// The envelope, or a core dump with one behind its header (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("key").required(true).args(["key_file", "keystore"])))]
pub(crate) struct EnvelopeExtractArgs {
    /// The envelope, or a core dump with one behind its header (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The output (`-` is standard output, which gets it when all of it has verified)
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// The file with the key: 32 bytes, 64 hexadecimal digits, or base64
    #[arg(long, value_name = "F")]
    pub(crate) key_file: Option<PathBuf>,
    /// The host's keystore, in mode NONE
    #[arg(long, value_name = "encryption.info")]
    pub(crate) keystore: Option<PathBuf>,
    /// The associated data; with a keystore `ESXConfiguration` unless it is given
    #[arg(long, value_name = "TEXT")]
    pub(crate) aad: Option<String>,
    /// Replace an output that is there already
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct EnvelopeCreateArgs {
    /// What is sealed (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The envelope (`-` is standard output)
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// The file with the key: 32 bytes, 64 hexadecimal digits, or base64
    #[arg(long, value_name = "F")]
    pub(crate) key_file: PathBuf,
    /// What names the key in the envelope
    #[arg(long, value_name = "ID")]
    pub(crate) key_id: String,
    /// The associated data, which extracting needs again
    #[arg(long, value_name = "TEXT")]
    pub(crate) aad: Option<String>,
    /// Replace an output that is there already
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CoredumpDecryptArgs {
    /// The core dump (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The output (`-` is standard output, which gets it when all of it has verified)
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// The file with the key: 32 bytes, 64 hexadecimal digits, or base64
    #[arg(long, value_name = "F")]
    pub(crate) key_file: PathBuf,
    /// Replace an output that is there already
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmfileCommand {
    /// Decrypt a .nvram, .vmsn, .vmss or .vmem with the key in the VM's VMX; nobody can authenticate it
    Decrypt(VmfileDecryptArgs),
}

#[derive(Args, Debug)]
pub(crate) struct VmfileDecryptArgs {
    /// The encrypted file (`-` is standard input)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The VMX of its VM, locked or in the clear
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: PathBuf,
    #[command(flatten)]
    pub(crate) keys: VmxKeyArgs,
    /// Expand memory (.vmem) to a flat image
    #[arg(long)]
    pub(crate) flat: bool,
    /// The output (`-` is standard output)
    #[arg(long, short, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Replace an output that is there already
    #[arg(long)]
    pub(crate) force: bool,
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

//! The arguments of the verbs that work on single files: VMX, encrypted objects, envelopes, core dumps.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::args::Json;

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

//! The command line: one definition for parsing, help, and what scripts rely on.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::file_args::{CoredumpCommand, EnvelopeCommand, LockArgs, UnlockArgs, VmfileCommand, VmxCommand};
use crate::serve::ServeArgs;

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
    /// Single disks
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Image files that are encrypted as a whole, under one key
    #[command(subcommand)]
    Datastore(DatastoreCommand),
    /// Encrypted NVRAM, snapshots and memory of Workstation and Fusion VMs
    #[command(subcommand)]
    Vmfile(VmfileCommand),
    /// ESXi's envelopes: the host's configuration, core dumps
    #[command(subcommand)]
    Envelope(EnvelopeCommand),
    /// ESXi's encrypted core dumps
    #[command(subcommand)]
    Coredump(CoredumpCommand),
    /// Serve a VM's disk, decrypted, over NBD until a signal ends it (SIGINT, SIGTERM)
    Serve(ServeArgs),
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
            Self::Serve(args) => args.json.json,
            Self::Vmx(VmxCommand::Get(args)) => args.json.json,
            Self::Vmx(VmxCommand::Set(args)) => args.json.json,
            Self::Datastore(DatastoreCommand::Create { json, .. }) => json.json,
            Self::Disk(DiskCommand::Export(args)) => args.json.json,
            Self::Disk(DiskCommand::Import(args)) => args.json.json,
            Self::Disk(DiskCommand::LuksHeader(args)) => args.json.json,
            Self::Disk(DiskCommand::ImportLuks(args)) => args.json.json,
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
pub(crate) struct ConvertArgs {
    /// How data is converted: `copy` writes new files beside the old ones, `in-place` needs no room for them
    #[arg(long, value_enum, default_value_t = Strategy::Copy)]
    pub(crate) strategy: Strategy,
    /// What in-place keeps in its journal: `digests`, or the `data` where storage may tear even 512-byte sectors
    #[arg(long, value_enum, default_value_t = Journal::Digests)]
    pub(crate) journal: Journal,
    /// The memory that in-place may use, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(2..=4096))]
    pub(crate) memory: u64,
}

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
    /// The data unit of the disks' encryption, in bytes
    #[arg(long, value_enum, default_value = "512", value_name = "BYTES")]
    pub(crate) data_unit: DataUnit,
    #[command(flatten)]
    pub(crate) convert: ConvertArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Journal {
    Data,
    Digests,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// New files beside the old ones, and one atomic commit
    Copy,
    /// Where it lies, with a journal: no room for a second copy is needed
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
    pub(crate) convert: ConvertArgs,
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
    pub(crate) convert: ConvertArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    /// The VM
    #[arg(value_name = "VM.vmx")]
    pub(crate) vmx: PathBuf,
    /// Undo instead of completing; needs keys only where data was being converted in place
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

#[derive(Debug, Subcommand)]
pub(crate) enum DatastoreCommand {
    /// Make an image file a datastore: a descriptor and a header beside it, with which `encrypt --strategy in-place`, `recrypt`, `serve` and the other verbs work
    Create {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: PathBuf,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Write the decrypted virtual disk, the whole chain flattened, as a raw image
    Export(ExportArgs),
    /// Make a raw image a new disk of a VM, or write its changes to one that is there
    Import(ImportArgs),
    /// Write a detached LUKS header, with which QEMU and dm-crypt open an encrypted disk as it lies
    LuksHeader(LuksHeaderArgs),
    /// Make a LUKS disk a disk of an encrypted VM, without moving a byte of its data
    ImportLuks(ImportLuksArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The disk's descriptor
    #[arg(value_name = "DISK.vmdk")]
    pub(crate) disk: PathBuf,
    /// The raw image (`-` is standard output)
    #[arg(long, short, value_name = "OUT.raw")]
    pub(crate) output: PathBuf,
    /// The disk's VM; the one in the disk's folder otherwise
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: Option<PathBuf>,
    /// Write the digests of the disk's blocks too: they check a copy, and tell a later export what has changed
    #[arg(long, value_name = "F")]
    pub(crate) digests: Option<PathBuf>,
    /// Only the blocks that are not as in these digests of an earlier export; needs `--map`
    #[arg(long, value_name = "F", requires = "map")]
    pub(crate) changed_since: Option<PathBuf>,
    /// Write which ranges are in the image, which have not changed and which could not be read, as GNU ddrescue does
    #[arg(long, value_name = "F")]
    pub(crate) map: Option<PathBuf>,
    /// Go on over unreadable and missing parts of a damaged disk; needs `--map`
    #[arg(long, requires = "map")]
    pub(crate) salvage: bool,
    /// Replace files that are there already
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// The raw image
    #[arg(value_name = "IN.raw")]
    pub(crate) image: PathBuf,
    /// The disk to make, in the VM's folder or below
    #[arg(long, short, value_name = "DISK.vmdk")]
    pub(crate) output: PathBuf,
    /// The VM: the disk is encrypted where that is
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: PathBuf,
    /// The KEK to wrap the disk's key under: the one that it had; the VM's own otherwise
    #[arg(long, value_name = "PROVIDER/ID")]
    pub(crate) key_id: Option<String>,
    /// Check the image against the digests of its export
    #[arg(long, value_name = "F")]
    pub(crate) digests: Option<PathBuf>,
    /// Write the ranges that this map says are there to the disk, which exists already: the changes of an export with `--changed-since`
    #[arg(long, value_name = "F", conflicts_with_all = ["key_id", "digests", "disk_type", "data_unit"])]
    pub(crate) map: Option<PathBuf>,
    /// The kind of disk to make
    #[arg(long = "type", value_enum, default_value_t = DiskType::MonolithicSparse)]
    pub(crate) disk_type: DiskType,
    /// The data unit of the disk's encryption, in bytes
    #[arg(long, value_enum, default_value = "512", value_name = "BYTES")]
    pub(crate) data_unit: DataUnit,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// The kinds of VMDK that are made, by the names that `qemu-img` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskType {
    #[value(name = "monolithicFlat")]
    MonolithicFlat,
    #[value(name = "monolithicSparse")]
    MonolithicSparse,
    #[value(name = "twoGbMaxExtentFlat")]
    TwoGbMaxExtentFlat,
    #[value(name = "twoGbMaxExtentSparse")]
    TwoGbMaxExtentSparse,
    #[value(name = "vmfs")]
    Vmfs,
}

#[derive(Args, Debug)]
pub(crate) struct LuksHeaderArgs {
    /// The encrypted disk's descriptor
    #[arg(value_name = "DISK.vmdk")]
    pub(crate) disk: PathBuf,
    /// The header: whoever has it and its password has the disk's key
    #[arg(long, short, value_name = "HDR.img")]
    pub(crate) output: PathBuf,
    /// The header's password (`-` is standard input; a terminal is asked twice otherwise). QEMU takes UTF-8 alone
    #[arg(long, value_name = "F")]
    pub(crate) password_file: Option<PathBuf>,
    /// The disk's VM; the one in the disk's folder otherwise
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: Option<PathBuf>,
    /// LUKS2 with Argon2id, which QEMU does not read; LUKS1 otherwise
    #[arg(long)]
    pub(crate) luks2: bool,
    /// First write zeros, enciphered, where nothing was ever written: QEMU and dm-crypt read noise there
    #[arg(long)]
    pub(crate) fill: bool,
    /// Replace a header that is there already
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Args, Debug)]
pub(crate) struct ImportLuksArgs {
    /// The file with the data, in the VM's folder or below
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
    /// The VM, which is encrypted
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: PathBuf,
    /// The descriptor to make, in the folder of the image or above
    #[arg(long, short, value_name = "DISK.vmdk")]
    pub(crate) output: PathBuf,
    /// The detached header, where there is one
    #[arg(long, value_name = "HDR")]
    pub(crate) header: Option<PathBuf>,
    /// A passphrase of the LUKS disk (`-` is standard input; a terminal is asked otherwise)
    #[arg(long, value_name = "F")]
    pub(crate) password_file: Option<PathBuf>,
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

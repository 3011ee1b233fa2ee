//! `vmseal serve`: a disk of a VM over NBD.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vmseal::nbd::{DiskAccess, DiskExport, Export, Listener, Server, Stop, TlsSettings, UnixSocket};
use vmseal::{LocalDir, Vm};
use zeroize::Zeroizing;

use crate::args::{Cli, Json, KeyArgs};
use crate::home;
use crate::keys;
use crate::output::{Output, printable};
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("place").required(true).args(["socket", "tcp"])))]
pub(crate) struct ServeArgs {
    /// The disk's descriptor
    #[arg(value_name = "DISK.vmdk")]
    pub(crate) disk: PathBuf,
    /// Listen on this Unix socket, which its owner alone can use
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Listen on TCP; without TLS on this machine's own addresses only (127.0.0.1, ::1)
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) tcp: Option<String>,
    /// Let clients read, and not write
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The disk's VM; found where exactly one VMX in the disk's folder attaches the disk
    #[arg(long, value_name = "VM.vmx")]
    pub(crate) vm: Option<PathBuf>,
    /// A name by which clients may ask for the disk, besides the empty one
    #[arg(long, default_value = "", value_name = "NAME")]
    pub(crate) export_name: String,
    /// Require TLS: the server's certificate, and those between it and its CA (PEM)
    #[arg(long, value_name = "F", requires = "tls_key", conflicts_with = "socket")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "F", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Let in only clients that have a certificate of this CA (PEM)
    #[arg(long, value_name = "F", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// What is told when clients can connect.
#[derive(Serialize)]
struct Ready<'a> {
    uri: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    export_name: &'a str,
    size_bytes: u64,
    read_only: bool,
    tls: bool,
}

pub(crate) fn run(cli: &Cli, args: &ServeArgs, output: &mut Output) -> Result<(), Failure> {
    let tls = tls(args)?;
    let (folder, vmx, disk) = places(args)?;
    let storage = LocalDir::open(&folder)?;
    let vm = match vmx {
        Some(vmx) => Vm::open(&storage, &vmx)?,
        None => Vm::attaching(&storage, &disk)?,
    };
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &vm.inventory()?.key_ids(), None)?;
    let access = if args.read_only { DiskAccess::Read } else { DiskAccess::Write };
    let is_tls = tls.is_some();
    // Before the disk: one that is open for writing has a new content ID.
    let listener = listen(args, is_tls)?;
    let export = DiskExport::open(&vm, &disk, access, &mut keys)?;

    // From here on a signal leaves no socket behind, and nothing that is not durable.
    let stop = Arc::new(Stop::new()?);
    let bell = Arc::clone(&stop);
    ctrlc::set_handler(move || bell.stop())
        .map_err(|error| Failure::new(Status::Failed, format!("signals cannot be caught: {error}")))?;
    let mut server = Server::new(&export)
        .named(&args.export_name)
        .map_err(|error| Failure::usage(format!("--export-name: {error}")))?
        .watched(warn);
    if let Some(tls) = tls {
        server = server.with_tls(tls);
    }
    tell(args, &listener, is_tls, &export, output)?;
    server.serve(&listener, &stop).map_err(|error| {
        let mut failure = Failure::new(Status::Failed, format!("serving {disk} ended: {error}"));
        failure.is_reported = output.is_json();
        failure
    })?;
    output.note(&format!("{disk} is not served any more; everything that was written is durable."));
    Ok(())
}

/// The folder that is the VM's storage, and in it the VMX, where one is named, and the disk.
fn places(args: &ServeArgs) -> Result<(PathBuf, Option<String>, String), Failure> {
    let disk = VmPath::of_file(&args.disk)?;
    let Some(vmx) = &args.vm else { return Ok((disk.folder, None, disk.name)) };
    let vmx = VmPath::new(vmx)?;
    let absolute = |folder: &Path| {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().map_err(|error| {
            Failure::new(Status::Failed, format!("{}: the folder cannot be found: {error}", folder.display()))
        })
    };
    let disk_folder = absolute(&disk.folder)?;
    let inside = disk_folder.strip_prefix(absolute(&vmx.folder)?).ok().and_then(Path::to_str).ok_or_else(|| {
        Failure::usage(format!("{} does not lie in the folder of {}, or below", args.disk.display(), vmx.name))
    })?;
    let disk = if inside.is_empty() { disk.name } else { format!("{inside}/{}", disk.name) };
    Ok((vmx.folder, Some(vmx.name), disk))
}

fn tls(args: &ServeArgs) -> Result<Option<TlsSettings>, Failure> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let read = |file: &PathBuf| {
        std::fs::read(file)
            .map(Zeroizing::new)
            .map_err(|error| Failure::new(Status::Failed, format!("{}: it cannot be read: {error}", file.display())))
    };
    let client_cas = args.tls_client_ca.as_ref().map(read).transpose()?;
    let settings = TlsSettings::new(&read(certificate)?, &read(key)?, client_cas.as_ref().map(|text| text.as_slice()));
    settings.map(Some).map_err(|error| Failure::new(Status::Damaged, error.to_string()))
}

fn listen(args: &ServeArgs, is_tls: bool) -> Result<Listener, Failure> {
    if let Some(path) = &args.socket {
        return Ok(Listener::Unix(UnixSocket::bind(path)?));
    }
    let place = args.tcp.as_deref().unwrap_or_default();
    let addresses: Vec<SocketAddr> = place
        .to_socket_addrs()
        .map_err(|error| Failure::usage(format!("--tcp {place}: this is no address with a port: {error}")))?
        .collect();
    if !is_tls && !addresses.iter().all(|address| address.ip().is_loopback()) {
        return Err(Failure::usage(format!(
            "--tcp {place}: others than this machine reach this address; give --tls-cert and --tls-key"
        )));
    }
    let failed =
        |error| Failure::new(Status::Failed, format!("--tcp {place}: the port cannot be listened on: {error}"));
    Ok(Listener::Tcp(TcpListener::bind(&addresses[..]).map_err(failed)?))
}

fn tell(
    args: &ServeArgs,
    listener: &Listener,
    is_tls: bool,
    export: &DiskExport<'_>,
    output: &mut Output,
) -> Result<(), Failure> {
    let name = encoded(&args.export_name);
    let (uri, socket, address) = match listener {
        Listener::Unix(unix) => {
            let path = std::path::absolute(unix.path())?;
            let path = path.to_string_lossy().into_owned();
            (format!("nbd+unix:///{name}?socket={}", encoded(&path)), Some(path), None)
        }
        Listener::Tcp(tcp) => {
            let address = tcp.local_addr()?;
            (format!("{}://{address}/{name}", if is_tls { "nbds" } else { "nbd" }), None, Some(address))
        }
    };
    let (size_bytes, read_only) = (export.size_bytes(), export.is_read_only());
    let mode = if read_only { "to be read" } else { "to be read and written" };
    let who = match address {
        Some(_) if !is_tls => ", by every user of this machine",
        _ => "",
    };
    let text = format!("Ready: {}, {size_bytes} bytes, {mode}{who}, at {uri}", args.disk.display());
    let ready =
        Ready { uri: &uri, socket, address, export_name: &args.export_name, size_bytes, read_only, tls: is_tls };
    output.ready(&ready, &text)
}

/// A part of a URI (RFC 3986): what does not stand for itself there as bytes in hexadecimal.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[expect(clippy::print_stderr, reason = "connections tell of themselves from their own threads")]
fn warn(text: &str) {
    eprintln!("vmseal: warning: {}", printable(text));
}

#[cfg(test)]
mod tests {
    #[test]
    fn uris_hold_any_path() {
        assert_eq!(super::encoded("/run/a b/ü?.sock"), "/run/a%20b/%C3%BC%3F.sock");
    }
}

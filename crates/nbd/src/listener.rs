//! Where clients connect.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::socket::Connection;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// TCP. Without TLS everyone who reaches the port is let in.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixSocket),
}

impl Listener {
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.set_nonblocking(true),
            Self::Unix(unix) => unix.listener.set_nonblocking(true),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(tcp) => Ok(Connection::Tcp(tcp.accept()?.0)),
            Self::Unix(unix) => Ok(Connection::Unix(unix.listener.accept()?.0)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.listener.as_fd(),
        }
    }
}

/// A Unix socket that its owner alone can connect to. It is removed when this is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// What the name stood for when it was made.
    identity: (u64, u64),
}

/// A Unix socket that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A program listens there.
    #[error("{}: a program listens on this socket already; end it, or name another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: the socket cannot be made: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has the name.
    #[error("{}: this is there already, and it is no socket; name another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
}

impl UnixSocket {
    /// Listens on `path`, for the owner alone (mode 0600) from the first moment on. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        remove_stale(path)?;
        bind(path).map_err(|source| BindError::Io { path: path.to_owned(), source })
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Another server may have replaced what looked stale to it.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        // One whose queue is full, or that belongs to somebody else, is in use too.
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

fn bind(path: &Path) -> io::Result<UnixSocket> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    // On Linux the name gets the socket's own mode, so that it is at no moment open to others.
    let _ = rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR);
    rustix::net::bind(&socket, &address)?;
    let made = UnixSocket { listener: socket.into(), path: path.to_owned(), identity: identity(path)? };
    if std::fs::metadata(path)?.permissions().mode() & 0o777 != 0o600 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    // Nobody is let in before this.
    rustix::net::listen(&made.listener, BACKLOG)?;
    Ok(made)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::InUse { .. })));
        drop(socket);
        assert!(!path.exists());

        // What a killed server leaves.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = UnixSocket::bind(&path).unwrap();
        // A name that stands for something else by now is left alone.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        drop(socket);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(matches!(UnixSocket::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(matches!(UnixSocket::bind(&folder.path().join("x".repeat(200))), Err(BindError::Io { .. })));
    }
}

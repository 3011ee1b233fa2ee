//! TLS over a stream, by rustls.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::stream::Stream;
use crate::transmission::lock;

/// Data that is enciphered before it is sent: some records of 16 KiB.
const CHUNK_LEN: usize = 64 << 10;

/// What the server proves itself with, and what it asks of clients. TLS 1.2 and 1.3.
#[derive(Clone, Debug)]
pub struct TlsSettings(Arc<ServerConfig>);

/// Certificates or a key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A PEM text has nothing of what it should have, or cannot be read.
    #[error("{what}: {source}; it has to be PEM text (`-----BEGIN …-----`)")]
    Pem {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// They were read and do not fit: the key to another certificate, for instance.
    #[error("{what}: {reason}")]
    Unfit {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl TlsSettings {
    /// From PEM texts: the server's certificate with those between it and its CA, the certificate's key (PKCS#8, PKCS#1 or SEC 1), and where clients have to have certificates,
    /// the CAs that these must come from.
    ///
    /// # Errors
    /// [`TlsError`] where they cannot be read or do not fit.
    pub fn new(certificates: &[u8], key: &[u8], client_cas: Option<&[u8]>) -> Result<Self, TlsError> {
        let chain = read_certificates(certificates, CERTIFICATE)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: KEY, source })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unfit("the TLS versions"))?;
        let builder = match client_cas {
            None => builder.with_no_client_auth(),
            Some(text) => {
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(text, CLIENT_CA)? {
                    roots.add(certificate).map_err(unfit(CLIENT_CA))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| TlsError::Unfit { what: CLIENT_CA, reason: error.to_string() })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(unfit("the server's certificate and its key"))?;
        Ok(Self(Arc::new(config)))
    }
}

const CERTIFICATE: &str = "the server's certificate";
const KEY: &str = "the key of the server's certificate";
const CLIENT_CA: &str = "the clients' CA";

fn read_certificates(text: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(TlsError::Pem { what, source: rustls::pki_types::pem::Error::NoItemsFound })
        }
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(TlsError::Pem { what, source }),
    }
}

fn unfit(what: &'static str) -> impl Fn(rustls::Error) -> TlsError {
    move |error| TlsError::Unfit { what, reason: error.to_string() }
}

/// A stream inside TLS. One thread may read while another writes: the state is locked for the moment that a record takes, and not
/// while anybody waits for the network.
pub(crate) struct TlsStream<'s> {
    below: &'s dyn Stream,
    state: Mutex<ServerConnection>,
    /// Bytes of the network that the state has not taken yet.
    incoming: Mutex<Incoming>,
    /// Bytes for the network. Whoever holds them sends in turn: records must not overtake each other.
    outgoing: Mutex<Vec<u8>>,
}

struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<'s> TlsStream<'s> {
    /// Does the handshake of TLS.
    pub(crate) fn accept(below: &'s dyn Stream, settings: &TlsSettings) -> io::Result<Self> {
        let mut state = ServerConnection::new(Arc::clone(&settings.0)).map_err(io::Error::other)?;
        // What is enciphered is sent at once, piece by piece.
        state.set_buffer_limit(None);
        let incoming = Incoming { bytes: vec![0; 32 << 10].into_boxed_slice(), start: 0, end: 0 };
        let stream =
            Self { below, state: Mutex::new(state), incoming: Mutex::new(incoming), outgoing: Mutex::new(Vec::new()) };
        while lock(&stream.state).is_handshaking() {
            if !stream.receive(&mut lock(&stream.incoming))? {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the client left during the handshake of TLS",
                ));
            }
        }
        Ok(stream)
    }

    /// Takes what the network has; `false` where it has ended.
    fn receive(&self, incoming: &mut Incoming) -> io::Result<bool> {
        if incoming.start == incoming.end {
            (incoming.start, incoming.end) = (0, self.below.read(&mut incoming.bytes)?);
            if incoming.end == 0 {
                return Ok(false);
            }
        }
        let mut rest = &incoming.bytes[incoming.start..incoming.end];
        let (processed, answers) = {
            let mut state = lock(&self.state);
            let taken = state.read_tls(&mut rest);
            incoming.start = incoming.end - rest.len();
            taken?;
            let processed = state.process_new_packets();
            (processed, state.wants_write())
        };
        if answers {
            // An alert that tells why, or what the protocol itself has to say.
            let sent = self.send(&mut lock(&self.outgoing));
            if processed.is_ok() {
                sent?;
            }
        }
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    /// Sends what the state has for the network.
    fn send(&self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            while state.wants_write() {
                state.write_tls(outgoing)?;
            }
        }
        let sent = self.below.write_all(outgoing, &[]);
        outgoing.clear();
        sent
    }
}

impl Stream for TlsStream<'_> {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match lock(&self.state).reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The network ended without TLS ending first. A request that it cut off is noticed by its length.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if !self.receive(&mut incoming)? {
                return Ok(0);
            }
        }
    }

    fn write_all(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        lock(&self.state).writer().write_all(header)?;
        for piece in data.chunks(CHUNK_LEN) {
            lock(&self.state).writer().write_all(piece)?;
            self.send(&mut outgoing)?;
        }
        self.send(&mut outgoing)
    }

    fn begin_transmission(&self) {
        self.below.begin_transmission();
    }

    fn close(&self) {
        lock(&self.state).send_close_notify();
        // Where the client is gone already nobody reads it.
        let _ = self.send(&mut lock(&self.outgoing));
        self.below.close();
    }

    fn abort(&self) {
        self.below.abort();
    }
}

//! TLS to a cell: the library's handshake and records, under the CA of the connection string.
//!
//! The files are read for each new connection, so that renewed ones are used without a reload. The user's password goes through
//! SCRAM without channel binding: the certificate has been verified by then.

use moorline_net::clock::Clock;
use moorline_net::tls::{MutualError, MutualFiles, explain};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;

/// Protocol of PostgreSQL in a handshake (ALPN), which servers from version 17 on look at.
const PROTOCOL: &str = "postgresql";

/// A file of the connection string is not usable.
#[derive(Debug, thiserror::Error)]
#[error("{key} in the connection string: {}", .cause.cause)]
pub struct CellTlsError {
    /// Name of the file's word in the connection string.
    key: &'static str,
    cause: Box<MutualError>,
}

/// TLS to the servers of a cell.
#[derive(Clone)]
pub struct CellTls {
    config: Arc<ClientConfig>,
    warnings: Vec<String>,
}

impl CellTls {
    pub(super) fn read(files: &MutualFiles) -> Result<Self, CellTlsError> {
        let read = files.client_config(PROTOCOL, Clock::default().unix_seconds());
        let (config, warnings) = read.map_err(|cause| {
            let key = match cause.key {
                "ca_file" => "sslrootcert",
                "certificate_file" => "sslcert",
                "key_file" => "sslkey",
                _ => "sslcrl",
            };
            CellTlsError { key, cause: cause.into() }
        })?;
        Ok(Self { config: Arc::new(config), warnings })
    }

    /// Returns sentences for the log: a key that others can read, a certificate that ends soon.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl MakeTlsConnect<Socket> for CellTls {
    type Stream = Encrypted;
    type TlsConnect = Connect;
    type Error = rustls::pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Connect, Self::Error> {
        let name = ServerName::try_from(domain.strip_suffix('.').unwrap_or(domain).to_owned())?;
        Ok(Connect { connector: self.config.clone().into(), name })
    }
}

/// One handshake with the server of this name.
pub struct Connect {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsConnect<Socket> for Connect {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        let Self { connector, name } = self;
        Box::pin(async move { connector.connect(name, stream).await.map(Encrypted).map_err(with_advice) })
    }
}

/// Says what is wrong with the server's certificate, and what to do.
fn with_advice(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause.and_then(|cause| explain(cause, "cell", "sslrootcert", "sslcrl")) {
        Some(text) => io::Error::new(error.kind(), text),
        None => error,
    }
}

/// Stream of an encrypted connection.
pub struct Encrypted(tokio_rustls::client::TlsStream<Socket>);

impl tokio_postgres::tls::TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

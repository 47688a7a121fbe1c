//! A certificate for one run: made at the start, believed by the demo's clients alone, gone with the run's folder.

use crate::DemoError;
use crate::folder::RunFolder;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Name in the certificate.
const NAME: &str = "moorline.demo";
/// Protocol that native clients offer (ALPN).
const PROTOCOL: &[u8] = b"moorline/1";
/// Files of the gateway.
const FILES: [&str; 2] = ["certificate.pem", "key.pem"];

/// The gateway's files, and the client's side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// Files of the certificate and of its key.
    pub(crate) files: [PathBuf; 2],
    /// Settings of all clients.
    pub(crate) client: Arc<ClientConfig>,
    /// Name that the certificate must have.
    pub(crate) name: ServerName<'static>,
}

impl Certificate {
    /// Makes a key and a certificate that signs itself, and writes them into the folder.
    pub(crate) fn make(folder: &RunFolder) -> Result<Self, DemoError> {
        let failed = |error: &dyn std::fmt::Display| DemoError::System {
            operation: "make a certificate for this run",
            source: io::Error::other(error.to_string()),
        };
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(|error| failed(&error))?;
        for (name, text) in FILES.iter().zip([cert.pem(), signing_key.serialize_pem()]) {
            let written = folder.file(name).and_then(|file| write_private(file, &text));
            written.map_err(crate::system("write the certificate of this run"))?;
        }
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(cert.der().to_vec())).map_err(|error| failed(&error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS13]);
        let mut client =
            builder.map_err(|error| failed(&error))?.with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Each client of the demo is another device, so none has a ticket of another.
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            files: FILES.map(|name| folder.path().join(name)),
            client: Arc::new(client),
            name: ServerName::try_from(NAME).map_err(|error| failed(&error))?,
        })
    }
}

fn write_private(mut file: File, text: &str) -> io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_owners_alone() {
        let folder = RunFolder::create().expect("a folder");
        let certificate = Certificate::make(&folder).expect("a certificate");
        let mode = std::fs::metadata(&certificate.files[1]).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Certificate::make(&folder).is_err(), "nothing is overwritten");
    }
}

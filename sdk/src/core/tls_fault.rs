//! Fault of TLS that ended a connection, or the attempt.

/// Fault of TLS that ended a connection, or the attempt. The client comes back by itself: a network that asks for a
/// login of its own shows such certificates, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// The certificate does not come from an authority that the client trusts.
    #[error(
        "the gateway's certificate comes from an authority that is not trusted; give it to the builder (roots_pem)"
    )]
    UnknownAuthority,
    /// The certificate is no longer valid, or the device's clock is fast.
    #[error("the gateway's certificate has expired")]
    Expired,
    /// The certificate is not valid yet, or the device's clock is slow.
    #[error("the gateway's certificate is not valid yet; is the clock of this device right?")]
    NotYetValid,
    /// The certificate is another host's.
    #[error("the gateway's certificate is not valid for {name}")]
    WrongName {
        /// Name that the certificate must be valid for.
        name: String,
    },
    /// The certificate's authority has taken it back.
    #[error("the gateway's certificate is revoked")]
    Revoked,
    /// The certificate's key is not one of the pinned keys.
    #[error("the gateway's key is not a pinned one: its SHA-256 is {}", hex(.sha256))]
    WrongKey {
        /// SHA-256 of the key's `SubjectPublicKeyInfo`.
        sha256: [u8; 32],
    },
    /// Another fault of the certificate.
    #[error("the gateway's certificate is not valid: {why}")]
    BadCertificate {
        /// The fault, in the library's words.
        why: String,
    },
    /// The server does not speak Moorline's protocol.
    #[error("the server did not choose the protocol moorline/1 (ALPN); is this a gateway's address?")]
    NoProtocol,
    /// The first bytes are not TLS.
    #[error("the server does not speak TLS; a gateway on this machine may listen at tcp://")]
    NotTls,
    /// The gateway sent an alert.
    #[error("the gateway ended the connection: {alert}")]
    Alert {
        /// The alert, in the library's words.
        alert: String,
    },
    /// The connection ended without a goodbye of TLS: somebody may have cut it off.
    #[error("the connection was cut off")]
    CutOff,
    /// Another fault.
    #[error("TLS failed: {why}")]
    Other {
        /// The fault, in the library's words.
        why: String,
    },
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a string takes everything
        text
    })
}

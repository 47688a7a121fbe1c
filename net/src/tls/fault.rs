//! Reasons why a record layer stops.

use std::fmt;

/// Reason why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A record's length is above 2^14 + 256 bytes, or its content above 2^14.
    #[error("a record is longer than TLS allows")]
    Oversized,
    /// A record was changed, cut, repeated or moved on its way, or was sealed with other keys.
    #[error("a record cannot be decrypted")]
    Undecryptable,
    /// A record or message that has no place after the handshake.
    #[error("a record of a kind that has no place after the handshake")]
    Unexpected,
    /// A KeyUpdate or an alert of the wrong length.
    #[error("a malformed KeyUpdate or alert")]
    Malformed,
    /// A KeyUpdate with a value that does not exist.
    #[error("a KeyUpdate with an unknown value")]
    IllegalUpdate,
    /// More than 8 records without content, KeyUpdates and warnings within a second.
    #[error("more than 8 empty records and KeyUpdates within a second")]
    Flood,
    /// The peer reports an error.
    #[error("the peer sent the alert {0}")]
    Alert(Alert),
    /// A sequence number is used up.
    #[error("a sequence number is used up")]
    Exhausted,
    /// Another process may own the keys: the state is frozen, or retired for ever.
    #[error("the keys are frozen or retired")]
    NotOwner,
    /// This end has said that it writes nothing more.
    #[error("this end has closed its direction")]
    Closed,
    /// The provider refuses to seal.
    #[error("the provider refuses to seal")]
    Provider,
}

impl Fault {
    /// Returns the alert that tells the peer (RFC 8446, 6.2); `None`: the peer is told nothing.
    pub const fn alert(self) -> Option<Alert> {
        match self {
            Self::Oversized => Some(Alert::RECORD_OVERFLOW),
            Self::Undecryptable => Some(Alert::BAD_RECORD_MAC),
            Self::Unexpected | Self::Flood => Some(Alert::UNEXPECTED_MESSAGE),
            Self::Malformed => Some(Alert::DECODE_ERROR),
            Self::IllegalUpdate => Some(Alert::ILLEGAL_PARAMETER),
            Self::Exhausted | Self::Provider => Some(Alert::INTERNAL_ERROR),
            Self::Alert(_) | Self::NotOwner | Self::Closed => None,
        }
    }
}

/// Alerts by which a peer refuses a certificate (RFC 8446, 6.2).
const OF_CERTIFICATES: [u8; 8] = [42, 43, 44, 45, 46, 48, 49, 116];

/// Description of an alert: a number of the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(pub u8);

impl Alert {
    /// Returns whether a peer refuses a certificate by this alert.
    pub fn is_of_certificate(self) -> bool {
        OF_CERTIFICATES.contains(&self.0)
    }

    pub(super) const CLOSE_NOTIFY_CODE: u8 = 0;
    pub(super) const USER_CANCELED_CODE: u8 = 90;
    pub(super) const CLOSE_NOTIFY: Self = Self(Self::CLOSE_NOTIFY_CODE);
    pub(super) const UNEXPECTED_MESSAGE: Self = Self(10);
    pub(super) const BAD_RECORD_MAC: Self = Self(20);
    pub(super) const RECORD_OVERFLOW: Self = Self(22);
    pub(super) const ILLEGAL_PARAMETER: Self = Self(47);
    pub(super) const DECODE_ERROR: Self = Self(50);
    pub(super) const INTERNAL_ERROR: Self = Self(80);
    pub(super) const UNRECOGNIZED_NAME: Self = Self(112);
    pub(super) const NO_APPLICATION_PROTOCOL: Self = Self(120);
}

impl fmt::Display for Alert {
    /// Writes the number, and the name of the alerts that peers send most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            80 => "internal_error",
            112 => "unrecognized_name",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return write!(f, "{}", self.0),
        };
        write!(f, "{} ({name})", self.0)
    }
}

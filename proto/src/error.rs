//! Reasons why a connection ends: each is a value with a wire code, a metric label and a row in `docs/protocol.md` [P-9.2].

use core::fmt;

macro_rules! close_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $label:literal;)+) => {
        /// Reason why a connection ended. A fault of the peer is such a value, never a panic.
        ///
        /// The range of the code tells a client what to do, even when the code is unknown:
        /// 3000-3499 come back, 3500-3999 stop, 4000-4499 and 4500-4999 the same for the
        /// application's own codes (`docs/protocol.md` section 9).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseReason { $($(#[doc = $doc])+ $name,)+ }

        impl CloseReason {
            /// Every reason, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code on the wire.
            pub const fn code(self) -> u32 {
                match self { $(Self::$name => $code,)+ }
            }

            /// The label in metrics and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// The meaning in one sentence; also the text of the CLOSE frame.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+),)+ }
            }

            /// The reason with this code; `None` if this version does not define the code.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

close_reasons! {
    /// The gateway is going away; another one, or this one again, will serve.
    GoingAway = 3000, "going_away";
    /// The gateway takes no new logins for now, or memory is short.
    Busy = 3001, "busy";
    /// The client does not read what it is sent.
    Slow = 3002, "slow";
    /// A reliable frame was not acknowledged in time.
    AckTimeout = 3003, "ack_timeout";
    /// Nothing was heard within one and a half of the promised interval.
    HeartbeatTimeout = 3004, "heartbeat_timeout";
    /// No complete HELLO within the handshake time.
    HandshakeTimeout = 3005, "handshake_timeout";
    /// The gateway could not reach what it needs to admit this login.
    Unavailable = 3006, "unavailable";
    /// Too much in too short a time.
    Throttled = 3007, "throttled";
    /// A fault of the gateway.
    Internal = 3008, "internal";
    /// A frame was not complete in time, or a SEND was missing before others for too long.
    Incomplete = 3009, "incomplete";
    /// The first byte is not a frame of this protocol.
    BadMagic = 3500, "bad_magic";
    /// The protocol version is not spoken here.
    BadVersion = 3501, "bad_version";
    /// A header field has a value that the specification forbids.
    BadHeader = 3502, "bad_header";
    /// The body is larger than the limit.
    TooLarge = 3503, "too_large";
    /// The command or flag is not supported.
    Unsupported = 3504, "unsupported";
    /// The body does not decode as this command's message.
    BadMessage = 3505, "bad_message";
    /// The command is not allowed in this state or direction.
    Unexpected = 3506, "unexpected";
    /// A sequence number lies outside the window, or an ack names a frame never sent.
    Window = 3507, "window";
    /// A batch is empty, nested, cut off or has too many frames.
    BadBatch = 3508, "bad_batch";
    /// The token was refused.
    AuthFailed = 3520, "auth_failed";
    /// The token has expired.
    TokenExpired = 3521, "token_expired";
    /// A newer login of the same device replaced this one.
    Replaced = 3530, "replaced";
    /// The backend ended this login.
    Kicked = 3531, "kicked";
    /// The client asked to log out.
    LoggedOut = 3532, "logged_out";
}

impl CloseReason {
    /// True if a client may come back by itself after this reason.
    pub const fn may_reconnect(self) -> bool {
        may_reconnect(self.code())
    }
}

/// True if a client may come back by itself after a close with `code`, known or not [P-9.1].
///
/// When to come back is the client's policy [P-9.3]; after a KICK its own word decides [P-3.9].
pub const fn may_reconnect(code: u32) -> bool {
    !matches!(code, 3500..=3999 | 4500..=4999)
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_labels_are_unique_rising_and_in_their_range() {
        for pair in CloseReason::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{} before {}", pair[0], pair[1]);
        }
        for (i, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(CloseReason::from_code(reason.code()), Some(*reason));
            assert!(CloseReason::ALL[..i].iter().all(|other| other.label() != reason.label()));
            assert_eq!(reason.may_reconnect(), reason.code() < 3500);
        }
        assert!(may_reconnect(3499) && may_reconnect(4000) && !may_reconnect(3999) && !may_reconnect(4999));
    }
}

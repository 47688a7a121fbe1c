//! The command byte.

use super::SMALL_BODY_BYTES_MAX;

macro_rules! commands {
    ($($(#[doc = $doc:literal])+ $name:ident = $byte:literal;)+) => {
        /// The command byte of a frame (`docs/protocol.md` section 2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Command {
            $($(#[doc = $doc])+ $name,)+
            /// 40-BF: opaque to the gateway, routed to the backend and from it [P-2.3].
            App(u8),
            /// C0-FF: dropped by a receiver that does not know it [P-2.2].
            Ignorable(u8),
        }

        impl Command {
            /// Every command that has a name.
            pub const NAMED: &'static [Self] = &[$(Self::$name,)+];

            /// Reads the byte; `None` for a command that must be refused [P-2.1].
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$name),)+
                    0x40..=0xBF => Some(Self::App(byte)),
                    0xC0..=0xFF => Some(Self::Ignorable(byte)),
                    _ => None,
                }
            }

            /// The byte on the wire.
            pub const fn byte(self) -> u8 {
                match self {
                    $(Self::$name => $byte,)+
                    Self::App(byte) | Self::Ignorable(byte) => byte,
                }
            }
        }
    };
}

commands! {
    /// HELLO, the client's first frame: user, device, token.
    Hello = 0x01;
    /// The gateway's answer to a HELLO that it admits.
    Welcome = 0x02;
    /// Client's heartbeat.
    Ping = 0x05;
    /// Answer to a PING, without a body [P-7.4].
    Pong = 0x06;
    /// Client's message; seq is the cid.
    Send = 0x10;
    /// Answer to a SEND: the message is durable, or the reason why it is not.
    SendAck = 0x11;
    /// A message for the client.
    Push = 0x12;
    /// Ack of a side that has no other frame to send.
    Ack = 0x13;
    /// Hint that there are messages to pull.
    Notify = 0x14;
    /// Client's request.
    Req = 0x15;
    /// Response to a request.
    Resp = 0x16;
    /// Client enters a room.
    Sub = 0x20;
    /// Client leaves a room.
    Unsub = 0x21;
    /// Answer to SUB and UNSUB.
    SubAck = 0x22;
    /// Final frame: the backend or a newer login ended this login.
    Kick = 0x30;
    /// Client's request to end the session.
    Logout = 0x31;
    /// Request to leave soon.
    GoAway = 0x32;
    /// Request to slow down.
    Throttle = 0x33;
    /// Last frame, with a code.
    Close = 0x3F;
}

impl Command {
    /// The longest body of this command, in bytes, if `limit` is the limit of all bodies. A command that carries a
    /// number or a name has a small body, so that nobody pays for the decoding of a large one.
    pub const fn body_max(self, limit: u32) -> u32 {
        let is_small = matches!(
            self,
            Self::Ping | Self::Pong | Self::Ack | Self::Sub | Self::Unsub | Self::Logout | Self::Close
        );
        if is_small && limit > SMALL_BODY_BYTES_MAX { SMALL_BODY_BYTES_MAX } else { limit }
    }
}

//! Settings of a [`Core`](super::Core): its user and device, and every time and limit that it works with.

use crate::core::Backoff;
use moorline_proto::ids::{DEVICE_BYTES_MAX, UID_BYTES_MAX};
use moorline_proto::message::client::Platform;
use moorline_proto::time::Duration;
use std::sync::Arc;

/// Source of the token of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Always this one; an expired one ends the core for good.
    Fixed(Arc<str>),
    /// Asked for by [`Event::TokenNeeded`](super::Event::TokenNeeded), kept until it expires.
    Ask,
}

/// User and device of the login, and the core's times and limits.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The user, 1 to 64 bytes without ':' and control characters.
    pub uid: Arc<str>,
    /// The device among the user's devices; the same rule.
    pub device: Arc<str>,
    /// Kind of device.
    pub platform: Platform,
    /// The proof of who it is.
    pub token: TokenSource,
    /// Addresses, `host:port`, that a gateway with GOAWAY, or a dispatch server, may send this client to. The client sends its token there, so
    /// other addresses are not followed. Default: none, so the client comes back to the address that it has.
    pub alternates: Arc<[Arc<str>]>,
    /// Dispatch servers, by any name that the driver knows: one of them is asked for gateways before the first attempt, and
    /// when gateways fail. Default: none, so the driver's own endpoint is the only one.
    pub dispatch: Arc<[Arc<str>]>,
    /// True if the driver speaks to nobody that does not prove the endpoint's name, as by a certificate: then other
    /// addresses are followed, too. Default: false.
    pub is_proved: bool,
    /// Client software, for the gateway's logs.
    pub agent: Arc<str>,
    /// Times and limits; many cores share one.
    pub tuning: Arc<Tuning>,
}

/// A name in the configuration breaks the rule for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {bytes_max} bytes without ':' and control characters")]
pub struct InvalidName {
    /// The name of the setting.
    pub what: &'static str,
    /// The setting's limit.
    pub bytes_max: usize,
}

impl CoreConfig {
    /// With default behaviour.
    pub fn new(uid: &str, device: &str, platform: Platform, token: TokenSource) -> Self {
        Self {
            uid: uid.into(),
            device: device.into(),
            platform,
            token,
            alternates: Arc::new([]),
            dispatch: Arc::new([]),
            is_proved: false,
            agent: concat!("moorline-sdk/", env!("CARGO_PKG_VERSION")).into(),
            tuning: Arc::new(Tuning::default()),
        }
    }

    /// Checks the names; the gateway would refuse others.
    ///
    /// # Errors
    /// [`InvalidName`] says which one.
    pub fn check(&self) -> Result<(), InvalidName> {
        check_name("uid", &self.uid, UID_BYTES_MAX)?;
        check_name("device", &self.device, DEVICE_BYTES_MAX)
    }
}

fn check_name(what: &'static str, name: &str, bytes_max: usize) -> Result<(), InvalidName> {
    let is_lawful = !name.is_empty()
        && name.len() <= bytes_max
        && !name.chars().any(|letter| letter == ':' || letter.is_control());
    if is_lawful { Ok(()) } else { Err(InvalidName { what, bytes_max }) }
}

/// Times and limits of a core.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Longest time to connect. Default 10 s.
    pub connect_timeout: Duration,
    /// From a question to a dispatch server to its answer. Default 5 s.
    pub dispatch_timeout: Duration,
    /// From HELLO to WELCOME. Default 10 s.
    pub handshake_timeout: Duration,
    /// Waits between connection attempts. Default full jitter, 500 ms to 30 s.
    pub backoff: Backoff,
    /// From SEND to SENDACK; after it the same cid and key go out again, at most three times. Default 10 s.
    pub send_timeout: Duration,
    /// Time spent online after which a SEND that is answered RETRY fails. Default 60 s.
    pub send_retry_for: Duration,
    /// Sends without a final result. Default 1,024.
    pub outbox_sends_max: usize,
    /// Payload bytes of them. Default 4 MiB.
    pub outbox_bytes_max: usize,
    /// Requests without a result. Default 256.
    pub requests_max: usize,
    /// Time that a hole in a conversation waits for its pushes before it is pulled. Default 200 ms.
    pub gap_wait: Duration,
    /// Longest wait of a handled message for its ack. Default 200 ms.
    pub ack_delay: Duration,
    /// Longest wait of a handled message of a group, at most 1 s [P-6.3]. Default 1 s.
    pub group_ack_delay: Duration,
    /// From PING to any sign of life. Default 10 s.
    pub pong_timeout: Duration,
    /// From LOGOUT to the gateway's CLOSE. Default 2 s.
    pub logout_timeout: Duration,
    /// Conversations whose position is remembered; the one longest unused is forgotten. Default 1,024.
    pub conversations_max: usize,
    /// Memory of messages that wait behind a hole, in bytes; more are pulled again later. Default 1 MiB.
    pub held_bytes_max: usize,
    /// Memory of messages with the application, in bytes; a message that comes then is neither delivered nor acked, and
    /// comes again. Default 16 MiB.
    pub unhandled_bytes_max: usize,
    /// Shortest SEND that is compressed, in bytes of body; 0: none is. Default 1 KiB.
    pub compress_min: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            dispatch_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            send_timeout: Duration::from_secs(10),
            send_retry_for: Duration::from_secs(60),
            outbox_sends_max: 1024,
            outbox_bytes_max: 4 << 20,
            requests_max: 256,
            gap_wait: Duration::from_millis(200),
            ack_delay: Duration::from_millis(200),
            group_ack_delay: Duration::from_secs(1),
            pong_timeout: Duration::from_secs(10),
            logout_timeout: Duration::from_secs(2),
            conversations_max: 1024,
            held_bytes_max: 1 << 20,
            unhandled_bytes_max: 16 << 20,
            compress_min: 1 << 10,
        }
    }
}

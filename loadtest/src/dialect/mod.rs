//! Interface of a wire protocol that clients can use.
//!
//! The same loop, pacing and checks drive Moorline's protocol ([`Moorline`]) and the bare server's
//! ([`crate::bare::BareClient`]): both sides of a comparison get exactly the same load.

mod moorline;
pub mod token;

pub use moorline::{Moorline, MoorlineOptions};

use bytes::Bytes;
use std::time::Duration;

/// Client's side of a protocol, without the connection.
pub trait Dialect {
    /// State of a frame that spans reads; as small as possible between frames.
    type Decoder: Default;

    /// Appends the login of client `who`.
    fn hello(&mut self, who: u32, out: &mut Vec<u8>);
    /// Appends a heartbeat.
    fn beat(&mut self, out: &mut Vec<u8>);
    /// Appends a message.
    fn message(&mut self, message: &Message, out: &mut Vec<u8>);
    /// Appends a request of client `who`; false if this wire has none such.
    fn ask(&mut self, who: u32, what: Ask, out: &mut Vec<u8>) -> bool;
    /// Appends a cumulative ack of deliveries, if this wire has one.
    fn ack(&mut self, up_to: u32, out: &mut Vec<u8>);
    /// Appends the reply to [`Event::Probe`], if this wire has one.
    fn probe_reply(&mut self, up_to: u32, out: &mut Vec<u8>);
    /// Uses up `input`; what it held goes to `events`.
    fn decode(
        &mut self,
        decoder: &mut Self::Decoder,
        input: &mut Bytes,
        events: &mut Vec<Event>,
    ) -> Result<(), Broken>;

    /// Advice on the logins of this fleet, if the server ends them with this code;
    /// `None`: the code says nothing about them.
    fn login_advice(&self, _code: u32) -> Option<String> {
        None
    }
}

/// A message as the scenarios think of it.
#[derive(Clone, Debug)]
pub struct Message {
    /// The client that sends it.
    pub from: u32,
    /// Number of the message on this connection, dense from 1.
    pub cid: u32,
    /// Number among all messages of this client; the same when the message is sent again.
    pub number: u32,
    /// Receiver of the message.
    pub to: To,
    /// Highest delivery this client has handled.
    pub ack: u32,
    /// Payload of the message.
    pub payload: Bytes,
}

/// Receiver of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The backend itself: only the answer matters.
    Server,
    /// Another client.
    Client(u32),
    /// Every other member of a group.
    Group(u32),
}

/// Requests of a client beside messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A group that it is the first member of.
    Create(u32),
    /// To become a member.
    Join(u32),
    /// Messages of a group, up to the newest.
    Pull {
        /// The group.
        group: u32,
        /// First seq.
        from: u64,
    },
}

/// Event from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The login is done.
    Welcome,
    /// The echo of a heartbeat.
    BeatBack,
    /// The answer to a message.
    Answer {
        /// Number of the request.
        cid: u32,
        /// True if the server did it.
        outcome: Outcome,
    },
    /// A message of another client.
    Delivery {
        /// Number on this connection.
        number: Numbered,
        /// Payload of the message.
        payload: Bytes,
    },
    /// Messages to pull, instead of the messages themselves: acknowledged like a message.
    Missed {
        /// Number on this connection.
        number: Numbered,
        /// Seq of the first message to pull.
        from: u64,
    },
    /// Answer to [`Ask::Pull`].
    Pulled {
        /// Payloads of the messages; `None`: the server asks to try again later.
        payloads: Option<Vec<Bytes>>,
        /// Seq from which the rest is to be pulled; `None`: this was all.
        rest: Option<u64>,
    },
    /// Something that happened: acknowledged like a message, and no message.
    Notice {
        /// Number on this connection.
        number: Numbered,
    },
    /// The server wants a sign of life or an ack now.
    Probe,
    /// The server asks to leave within this, each client at a moment of its own.
    Leave(Duration),
    /// The answer to an [`Ask`].
    Said(Outcome),
    /// The server ends the connection.
    Closing {
        /// Reason, or close code.
        code: u32,
        /// Shortest wait before the next connection.
        retry_after: Duration,
    },
    /// Anything else lawful.
    Other,
}

/// Number of a delivery on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    /// The number; 0: needs no ack.
    pub seq: u32,
    /// The ack may wait longer than others.
    pub may_wait: bool,
}

impl Event {
    /// Number of what is to be acknowledged; `None`: nothing is.
    pub const fn number(&self) -> Option<Numbered> {
        match self {
            Self::Delivery { number, .. } | Self::Notice { number } | Self::Missed { number, .. } => {
                Some(*number)
            }
            _ => None,
        }
    }
}

/// Result of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, now or before.
    Done,
    /// Not done now; the same again later may be.
    Retry,
    /// Not done, ever.
    Refused,
}

/// The server's bytes are not frames of this wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

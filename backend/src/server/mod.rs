//! The server side of the gateway-backend link (`docs/backend.md`).
//!
//! [`LinkHost`] is pure and holds all state and rules: links, gateways, sessions, rooms, credit, keepalive, leases.
//! [`Server`] is the event loop with the sockets. A [`Handler`] gets [`Event`]s and speaks through an [`Outbox`]. Bodies
//! of messages stay opaque.
//!
//! ```text
//! gateway --link--> socket --bytes--> LinkHost --Output::Event--> Handler
//!                                                                    |
//! gateway <--one write per turn-- buffers of LinkHost <-- Outbox <---+
//!                               other threads --> Remote --> Handler::handle_message
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `host`, `frames` | inputs and outputs of the link host; rules for each kind of frame |
//! | `greeting` | who is at the other end of a new link: secrets, proofs, older epochs |
//! | `links` | state of each link: phase, decoder, credit, output buffer |
//! | `route`, `rooms` | gateways and sessions; members of rooms |
//! | `outbox`, `event` | words of the handler; events for it |
//! | `counters` | figures of the link port |
//! | `reactor` | the event loop, over the sockets and the mailbox of `moorline_net` |
//! | `slots` | slots of a node of a cluster, towards gateways |
//! | `peers`, `dial`, `dialling` | links to the other nodes of a cluster, and their sockets |
//! | `socket`, `tls` | a link's socket and its TLS; the thread for handshakes |

mod counters;
mod dial;
mod dialling;
mod event;
mod frames;
mod greeting;
mod group_rooms;
mod host;
mod links;
mod login_clock;
mod outbox;
mod peers;
mod reactor;
mod rooms;
mod route;
mod slots;
mod socket;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

pub use counters::{LinkCounters, LinkFigures};
pub use event::{Event, GatewayId, JudgeTo, LinkId, Now, PushId, ReplyTo, RoomNumber, SessionId, Up};
pub use greeting::{Peer, Refusal, Visitor};
pub use host::{LinkHost, Output};
pub use links::LinkEnd;
pub use outbox::{Kick, Outbox, PushSpec};
pub use peers::{PeerConnected, PeerLinks, PeerOutput, node_name};
pub use reactor::Server;
pub use slots::NodeSlots;
pub use tls::check as check_tls;

/// Reaches the handler's thread from any other: [`Handler::handle_message`]. Cheap to clone.
pub use moorline_net::mailbox::{SendError as RemoteError, Sender as Remote};

use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::link::LinkAddress;
use moorline_proto::message::backend::Auth;
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;

/// Logic of a backend. One thread drives it, so its methods must not block.
///
/// # Contract
/// - Events of one session come in order: `ConnUp` (first with `is_new`, then perhaps more of them
///   after link changes), any number of `Up` and `Pushed`, exactly one `ConnDown`.
/// - Every [`Up`] with a [`ReplyTo`] needs exactly one answer, now or later. Unanswered UPs use up the link's credit. A
///   handler that answers later keeps the `ReplyTo`. If the link dies first, the answer is dropped and the gateway
///   sends the UP again, with `dup`.
/// - An [`Up`] may come again with `dup` set, so its effect must be idempotent.
/// - Every session of a push with `want_ack` gets one [`Event::Pushed`], unless a `ConnUp` or
///   `ConnDown` of that session comes first: earlier outcomes may be lost, or come late.
/// - Everything put into the outbox is written at the end of the turn, in order per link.
pub trait Handler {
    /// Message that other threads send through a [`Remote`]; `()`: no other thread does.
    type Message: Send + 'static;

    /// Returns the name of the store, at most 64 bytes: the same for all backends that share it, and for no other. A gateway
    /// refuses a backend that has another store than the one that serves. The default is empty: the backend keeps nothing,
    /// or is not compared.
    fn store_name(&self) -> Bytes {
        Bytes::new()
    }

    /// Takes one event.
    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox);

    /// Judges a login (`auth.mode = "backend"`). The answer, now or within the gateway's `backend.up_timeout`, is
    /// [`Outbox::admit`] or [`Outbox::refuse`]. The default refuses every login.
    fn handle_auth(&mut self, now: Now, question: Auth, judge: JudgeTo, out: &mut Outbox) {
        let _ = (now, question);
        out.refuse(judge, CloseReason::AuthFailed, "this backend checks no tokens");
    }

    /// Takes one message from another thread, for instance "this batch is durable".
    fn handle_message(&mut self, now: Now, message: Self::Message, out: &mut Outbox) {
        let _ = (now, message, out);
    }

    /// Ends a turn, after all its events: the place to start one batch of work.
    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// Takes the slots of a node of a cluster, and the addresses of the other nodes that live, if they have changed since the last
    /// call. The default: the backend is of no cluster.
    fn poll_slots(&mut self) -> Option<(NodeSlots, Vec<(NodeId, LinkAddress)>)> {
        None
    }

    /// Takes the next message to another node of the cluster.
    fn poll_peer(&mut self) -> Option<(NodeId, Bytes)> {
        None
    }

    /// Returns the time at which a turn must begin though nothing happens.
    fn next_deadline(&self) -> Instant {
        Instant::FAR_FUTURE
    }

    /// Prepares the end of the process; called once a turn. False: the turns go on, for some seconds at most. The default: there
    /// is nothing to prepare.
    fn try_stop(&mut self, now: Now) -> bool {
        let _ = now;
        true
    }

    /// Returns whether the handler cannot continue and must be replaced: [`Server::run`] returns then. Gateways
    /// reconnect to the next server.
    fn is_over(&self, now: Now) -> bool {
        let _ = now;
        false
    }
}

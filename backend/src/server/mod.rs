//! The server side of the gateway-backend link (`docs/backend.md`).
//!
//! Owns the listening socket, the links, the table of gateways and sessions, credit and keepalive.
//! One thread drives it: [`Server::run`] polls, turns link frames into [`Event`]s for a [`Handler`],
//! and writes what the handler put into its [`Outbox`], once per link and turn. It must not know
//! what a message is: bodies stay opaque.
//!
//! ```text
//! gateway --link--> stream -> decoder -> frames -> Event -> Handler
//!                                                             |
//! gateway <--one write per turn-- link buffers <- Outbox <----+
//!                        other threads -> Remote -> Handler::handle_message
//! ```

mod event;
mod frames;
mod host;
mod links;
mod mailbox;
mod outbox;
mod reactor;
mod rooms;
mod route;
mod stream;
#[cfg(test)]
mod tests;

pub use event::{Event, GatewayId, JudgeTo, LinkId, Now, PushId, ReplyTo, SessionId, Up};
pub use host::{LinkHost, Output};
pub use links::LinkEnd;
pub use mailbox::{Remote, RemoteError};
pub use outbox::{Kick, Outbox, PushSpec};
pub use reactor::Server;

use moorline_proto::error::CloseReason;
use moorline_proto::message::backend::Auth;

/// Answers what gateways say. Driven by one thread; it must not block.
///
/// # Contract
/// - Events of one session come in order: `ConnUp` (first with `is_new`, then perhaps more of them
///   after link changes), any number of `Up` and `Pushed`, exactly one `ConnDown`.
/// - Every [`Up`] with a [`ReplyTo`] wants exactly one answer, now or later. Unanswered ones use up
///   the link's credit. A handler that answers later keeps the `ReplyTo`; if the link dies in the
///   meantime the answer goes nowhere and the gateway asks again, with `dup`.
/// - An [`Up`] may come again with `dup` set: whatever it does must be idempotent.
/// - Every session of a push with `want_ack` gets one [`Event::Pushed`], unless a `ConnUp` or
///   `ConnDown` of that session comes first: outcomes from before those may be lost, or come late.
/// - Everything put into the outbox leaves at the end of the loop turn, in order per link.
pub trait Handler {
    /// What other threads send through a [`Remote`]; `()` if none do.
    type Message: Send + 'static;

    /// Takes one event.
    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox);

    /// A gateway asks whom a token belongs to (`auth.mode = "backend"`). The answer, now or within the
    /// gateway's `backend.up_timeout`, is [`Outbox::admit`] or [`Outbox::refuse`]. Without this method
    /// everybody is refused.
    fn handle_auth(&mut self, now: Now, question: Auth, judge: JudgeTo, out: &mut Outbox) {
        let _ = (now, question);
        out.refuse(judge, CloseReason::AuthFailed, "this backend checks no tokens");
    }

    /// Takes one message from another thread, for instance "this batch is durable".
    fn handle_message(&mut self, now: Now, message: Self::Message, out: &mut Outbox) {
        let _ = (now, message, out);
    }

    /// All events of this loop turn were handled: the place to start one batch of work.
    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// It cannot go on, and has to be made anew: [`Server::run`] returns. Gateways come back to the next one.
    fn is_over(&self, now: Now) -> bool {
        let _ = now;
        false
    }
}

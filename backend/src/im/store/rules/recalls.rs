//! The rule of recalls: which message may be taken back, by whom, and what is left of it. Pure.
//!
//! bob takes `hi` back a minute after he has sent it: the message becomes empty, and says that it was recalled by bob.

use crate::im::store::{Refusal, Role};
use crate::im::{names, time_ms};
use bytes::Bytes;
use moorline_proto::message::client::Push;
use moorline_proto::message::im::{Happened, Recalled, happened};
use moorline_proto::message::{decode, encode};

/// A wish to take a message back.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Name of the user who wants it.
    pub by: &'a str,
    /// Role of the user in the conversation.
    pub role: Role,
    /// Seq of the message.
    pub seq: u64,
    /// Id that the message is said to have.
    pub message_id: u64,
    /// Another wish of the same is under way.
    pub is_under_way: bool,
    /// Unix time in milliseconds.
    pub now_ms: u64,
    /// Age at which a message cannot be taken back any more, in milliseconds.
    pub window_ms: u64,
}

/// Judges a recall of the message with this body. Returns the emptied message.
///
/// # Errors
/// [`Refusal::NotFound`]: another message has this seq. [`Refusal::NotAllowed`]: neither the sender nor an administrator wants
/// it. [`Refusal::Denied`]: nothing was said, or somebody else has taken it back. [`Refusal::TooLate`].
pub fn judge(body: &Bytes, wish: &Wish<'_>) -> Result<Bytes, Refusal> {
    let Wish { by, role, seq, message_id, is_under_way, now_ms, window_ms } = *wish;
    let push: Push = decode(body).map_err(|_| Refusal::NotFound)?;
    if push.message_id != message_id {
        return Err(Refusal::NotFound);
    }
    if push.sender != by && role < Role::Admin {
        return Err(Refusal::NotAllowed);
    }
    if !push.happened.is_empty() || is_under_way {
        return Err(Refusal::Denied);
    }
    // By the time of the id, which a jump of the clock does not move; an imported message has the time of its line.
    let is_imported = push.sender_device == names::IMPORT;
    let stored_ms = if is_imported { push.time_ms } else { time_ms(push.message_id) };
    if now_ms.saturating_sub(stored_ms) > window_ms {
        return Err(Refusal::TooLate);
    }
    let recalled = Recalled { seq, message_id, by: by.to_owned() };
    let happened = encode(&Happened { what: Some(happened::What::Recalled(recalled)) });
    Ok(encode(&Push { r#type: 0, payload: Bytes::new(), happened, ..push }))
}

//! Limits on what a gateway may say. A gateway, or a backend behind it, may be broken or hostile: the core takes values
//! inside of these limits, counts what it keeps for a peer, and waits no longer than [`PAUSE_MAX`] because a peer says so [P-9.4].
//!
//! Example: a PUSH with seq 2^63 is dropped and acknowledged, and the application gets
//! [`Notice::FrameDropped`](super::Notice::FrameDropped). Were the connection closed instead, a backend with one such
//! message would keep the client from ever logging in.

use moorline_proto::message::client::{Notify, Push};
use moorline_proto::message::im::{PullResponse, Signal, VoidRange};
use moorline_proto::time::Duration;

/// Largest seq of a message. The next one must exist, too, and no honest backend comes near it.
pub(super) const SEQ_MAX: u64 = (1 << 63) - 1;
/// Longest name of a conversation, user, device or room, in bytes. The longest conversation id, of two uids, has 133.
pub(super) const NAME_BYTES_MAX: usize = 192;
/// Longest wait that a gateway can ask for: of a retry, of a THROTTLE, of the window of a GOAWAY.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Longest heartbeat interval that a gateway can ask for, as in the gateway's own settings.
pub(super) const HEARTBEAT_MAX_S: u32 = 3_600;
/// Longest ticket, and longest session id, that the core keeps for the next login, in bytes. HELLO has 4 KiB in all.
pub(super) const TICKET_BYTES_MAX: usize = 1_024;
/// Longest reason in an event, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1_024;
/// Addresses of one GOAWAY that are looked at.
pub(super) const ALTERNATES_MAX: usize = 64;
/// Messages and void ranges of one page.
pub(super) const PAGE_ITEMS_MAX: usize = 4_096;
/// Conversations in one answer to `im.conversations`.
pub(super) const CONVERSATIONS_PAGE_MAX: usize = 16_384;
/// Pages of `im.conversations` that are asked for after one login.
pub(super) const SYNC_PAGES_MAX: u32 = 1_000;

/// Bytes that a message costs beside its contents: the structures around it.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// Bytes in memory for one byte of an encoded event: two bytes on the wire can be an empty message of 48 bytes.
const EVENT_EXPANSION: usize = 24;

/// A wait of `millis` milliseconds, at most [`PAUSE_MAX`].
pub(super) fn pause(millis: u32) -> Duration {
    Duration::from_millis(millis.into()).min(PAUSE_MAX)
}

/// Memory that a message takes while it waits, in bytes: all of it, not only its payload.
pub(super) fn held_cost(push: &Push) -> usize {
    let names = push.conversation.len() + push.sender.len() + push.sender_device.len();
    MESSAGE_OVERHEAD_BYTES + names + push.payload.len() + push.happened.len()
}

/// Memory that a message takes with the application, in bytes. Its event is decoded by then.
pub(super) fn delivered_cost(push: &Push) -> usize {
    held_cost(push) + push.happened.len() * (EVENT_EXPANSION - 1)
}

fn check_names(names: &[&str]) -> Result<(), &'static str> {
    let is_short = names.iter().all(|name| name.len() <= NAME_BYTES_MAX);
    if is_short { Ok(()) } else { Err("a name is longer than 192 bytes") }
}

fn check_seqs(seqs: &[u64]) -> Result<(), &'static str> {
    if seqs.iter().all(|seq| *seq <= SEQ_MAX) { Ok(()) } else { Err("a seq is 2^63 or more") }
}

/// Checks the names and the seq of a message.
pub(super) fn check_push(push: &Push) -> Result<(), &'static str> {
    check_names(&[&push.conversation, &push.sender, &push.sender_device])?;
    check_seqs(&[push.seq])
}

/// Checks the name and the seqs of a NOTIFY.
pub(super) fn check_notify(notify: &Notify) -> Result<(), &'static str> {
    check_names(&[&notify.conversation])?;
    check_seqs(&[notify.latest, notify.first])
}

/// Checks the names of a signal.
pub(super) fn check_signal(signal: &Signal) -> Result<(), &'static str> {
    check_names(&[&signal.conversation, &signal.sender, &signal.sender_device])
}

/// Checks the name of a conversation and a seq in it.
pub(super) fn check_place(conversation: &str, seq: u64) -> Result<(), &'static str> {
    check_names(&[conversation])?;
    check_seqs(&[seq])
}

/// Decodes a page, without what no valid page has; `None`: it is not a page.
pub(super) fn page(payload: bytes::Bytes) -> Option<PullResponse> {
    let mut page: PullResponse = decode_list(payload, PAGE_ITEMS_MAX)?;
    page.messages.retain(|push| check_push(push).is_ok());
    page.voids.retain(|VoidRange { from, to }| from <= to && *from <= SEQ_MAX);
    Some(page)
}

/// Decodes an answer whose outermost message has at most `fields_max` fields. `None`: the payload has more, or
/// does not decode.
///
/// A list of empty messages takes two bytes for each on the wire, and over 100 in memory: the fields are counted first.
pub(super) fn decode_list<M: prost::Message + Default>(
    payload: bytes::Bytes,
    fields_max: usize,
) -> Option<M> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut rest = payload.clone();
    for _ in 0..=fields_max {
        if rest.is_empty() {
            return M::decode(payload).ok();
        }
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
    }
    None
}

/// A reason that an event may hold: cut at [`REASON_BYTES_MAX`].
pub(super) fn reason(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
        reason.truncate(end);
        reason.shrink_to_fit();
    }
    reason
}

/// Longest `host:port` that a gateway may name: a host name of 253 bytes.
const PLACE_BYTES_MAX: usize = 253 + 6;

/// Returns whether a text that a gateway has sent is a `host:port`.
pub(super) fn is_place(text: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.:[]".contains(letter);
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    text.len() <= PLACE_BYTES_MAX && text.chars().all(is_letter) && matches!(port, Some(Ok(1..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::message::encode;

    #[test]
    fn a_pause_is_at_most_ten_minutes() {
        assert_eq!((pause(0), pause(700)), (Duration::ZERO, Duration::from_millis(700)));
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn a_list_of_too_many_is_refused_before_it_is_decoded() {
        let page_of =
            |count| PullResponse { messages: vec![Push::default(); count], ..PullResponse::default() };
        assert_eq!(page(encode(&page_of(64))).map(|page| page.messages.len()), Some(64));
        assert_eq!(
            page(encode(&page_of(PAGE_ITEMS_MAX))).map(|page| page.messages.len()),
            Some(PAGE_ITEMS_MAX)
        );
        assert_eq!(page(encode(&page_of(PAGE_ITEMS_MAX + 1))), None);
        assert_eq!(page(bytes::Bytes::from_static(b"\xff\xff")), None);
    }

    #[test]
    fn a_page_loses_what_no_valid_page_has() {
        let long = Push { sender: "s".repeat(NAME_BYTES_MAX + 1), ..Push::default() };
        let beyond = Push { seq: SEQ_MAX + 1, ..Push::default() };
        let messages = vec![long, beyond, Push { seq: 7, ..Push::default() }];
        let voids = vec![VoidRange { from: 9, to: 8 }, VoidRange { from: 1, to: u64::MAX }];
        let page =
            page(encode(&PullResponse { messages, voids, ..PullResponse::default() })).expect("a page");
        assert_eq!((page.messages.len(), page.messages[0].seq, page.voids.len()), (1, 7, 1));
    }

    #[test]
    fn a_reason_is_cut_between_letters() {
        assert_eq!(reason("why".into()), "why");
        let cut = reason(format!("a{}", "é".repeat(REASON_BYTES_MAX)));
        assert_eq!(cut.len(), REASON_BYTES_MAX - 1);
    }
}

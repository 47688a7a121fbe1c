//! The client's side of the bare protocol.

use super::stream::{Kept, each_frame};
use super::wire::{self, Kind};
use crate::dialect::{Ask, Broken, Dialect, Event, Message, Numbered, Outcome, To};
use bytes::Bytes;

/// Uid that answers messages without a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The server itself.
    Echo,
    /// The backend behind it.
    Forward,
}

/// A fleet's dialect.
#[derive(Clone, Copy, Debug)]
pub struct BareClient {
    uplink: Uplink,
}

impl BareClient {
    /// Messages to [`To::Server`] go this way.
    pub const fn new(uplink: Uplink) -> Self {
        Self { uplink }
    }
}

/// The unfinished frame, if there is one.
#[derive(Debug, Default)]
pub struct Partial(Kept);

impl Dialect for BareClient {
    type Decoder = Partial;

    fn hello(&mut self, who: u32, out: &mut Vec<u8>) {
        wire::put(out, Kind::Login, &[&who.to_le_bytes()]);
    }

    fn beat(&mut self, out: &mut Vec<u8>) {
        wire::put(out, Kind::Beat, &[]);
    }

    fn message(&mut self, message: &Message, out: &mut Vec<u8>) {
        let (cid, payload) = (message.cid.to_le_bytes(), message.payload.as_ref());
        match (message.to, self.uplink) {
            (To::Server, Uplink::Echo) => wire::put(out, Kind::Echo, &[&cid, payload]),
            (To::Server, Uplink::Forward) => wire::put(out, Kind::Forward, &[&cid, payload]),
            (To::Client(who), _) => wire::put(out, Kind::To, &[&who.to_le_bytes(), payload]),
            (To::Group(_), _) => wire::put(out, Kind::All, &[payload]),
        }
    }

    fn ask(&mut self, _who: u32, _what: Ask, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn ack(&mut self, _up_to: u32, _out: &mut Vec<u8>) {}

    fn probe_reply(&mut self, _up_to: u32, _out: &mut Vec<u8>) {}

    fn decode(
        &mut self,
        decoder: &mut Partial,
        input: &mut Bytes,
        events: &mut Vec<Event>,
    ) -> Result<(), Broken> {
        let rest = each_frame(input, decoder.0.take(), |kind, body| {
            events.push(match kind {
                Kind::In => Event::Welcome,
                Kind::BeatBack => Event::BeatBack,
                Kind::Answer => Event::Answer { cid: wire::number(body)?.0, outcome: Outcome::Done },
                Kind::Deliver => {
                    let (_, payload) = wire::number(body)?;
                    Event::Delivery { number: Numbered::default(), payload: Bytes::copy_from_slice(payload) }
                }
                _ => Event::Other,
            });
            Ok(())
        });
        let rest = rest.map_err(|_| Broken)?;
        if !rest.is_empty() {
            decoder.0 = Some(Box::new(rest));
        }
        Ok(())
    }
}

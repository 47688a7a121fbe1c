//! Outputs of a core on their way to its driver: one queue of events in the order of causes.
//!
//! Frames are announced in the queue by [`Event::Transmit`], and their bytes are gathered when the driver comes to it, with
//! the newest ack. So a driver that performs the events in their order never writes to a wrong connection. Example: GOAWAY
//! expires. The core queues `Transmit` (of CLOSE), `Hangup`, `Notice(Disconnected)` and `Connect`; CLOSE goes to the old
//! connection, and HELLO is queued only when the driver has performed `Connect` and answers with `handle_connected`.

use super::event::{Event, Notice};
use bytes::BytesMut;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::Seq;
use std::collections::VecDeque;

/// Capacity of the queue of events that an idle core keeps.
const IDLE_EVENTS_MAX: usize = 8;

/// Notices without an answer to them that wait for the driver: a compressed frame of 32 KiB can hold 270,000.
const UNASKED_MAX: usize = 256;
/// Bytes of them.
const UNASKED_BYTES_MAX: usize = 1 << 20;

/// The one queue of outputs. Its length is bounded by the limits of what causes it: the outbox, the requests, the messages
/// that the application has; and [`UNASKED_MAX`] for what a gateway says without being asked.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    events: VecDeque<Event>,
    /// Frames that an [`Event::Transmit`] in the queue stands for.
    frames: Vec<Frame>,
    /// True while there is one in the queue.
    has_transmit: bool,
    /// Notices in `events` that nobody asked for, and their bytes.
    unasked: usize,
    unasked_bytes: usize,
}

impl Outputs {
    /// Appends an event. A notice that nobody asked for is dropped when too many of them wait: an honest gateway sends no
    /// more than its window before the driver has drained the core.
    pub(super) fn push(&mut self, event: Event) {
        if let Some(bytes) = unasked_bytes(&event) {
            if self.unasked >= UNASKED_MAX || self.unasked_bytes >= UNASKED_BYTES_MAX {
                return;
            }
            self.unasked += 1;
            self.unasked_bytes += bytes;
        }
        self.events.push_back(event);
    }

    /// Appends a frame for the connection that stands now.
    pub(super) fn write(&mut self, frame: Frame) {
        debug_assert!(!self.events.contains(&Event::Hangup), "a frame for a connection that is hung up");
        if !std::mem::replace(&mut self.has_transmit, true) {
            self.events.push_back(Event::Transmit);
        }
        self.frames.push(frame);
    }

    /// True if there are frames to write.
    pub(super) const fn has_frames(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Forgets the frames of a connection that is gone.
    pub(super) fn drop_frames(&mut self) {
        self.frames.clear();
    }

    /// Encodes all frames, each with the cumulative `ack`; false: there are none.
    pub(super) fn poll_transmit(&mut self, ack: Seq, out: &mut BytesMut) -> bool {
        let frames = std::mem::take(&mut self.frames);
        out.reserve(frames.iter().map(Frame::wire_len).sum());
        let has_any = !frames.is_empty();
        for frame in frames {
            let ack = if frame.header.command == Command::Hello { 0 } else { ack };
            frame.with_ack(ack).encode(out);
        }
        has_any
    }

    /// Takes the next event.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        self.has_transmit &= event != Some(Event::Transmit);
        if let Some(bytes) = event.as_ref().and_then(unasked_bytes) {
            self.unasked -= 1;
            self.unasked_bytes -= bytes;
        }
        if event.is_none() && self.events.capacity() > IDLE_EVENTS_MAX {
            self.events = VecDeque::new(); // an idle core holds no buffer
        }
        event
    }
}

/// Bytes of a notice that a gateway can cause without being asked; `None`: its number is bounded in another way.
fn unasked_bytes(event: &Event) -> Option<usize> {
    let Event::Notice(notice) = event else { return None };
    let is_unasked = matches!(
        notice,
        Notice::New { .. } | Notice::Signal { .. } | Notice::App { .. } | Notice::FrameDropped { .. }
    );
    is_unasked.then(|| notice.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::TokenWhy;
    use bytes::Bytes;

    fn decoded(bytes: BytesMut) -> Vec<(Command, Seq)> {
        let (mut bytes, mut decoder) = (bytes.freeze(), moorline_proto::frame::Decoder::new());
        let frames = std::iter::from_fn(|| decoder.decode(&mut bytes, u32::MAX).expect("lawful"));
        frames.map(|frame| (frame.header.command, frame.header.ack)).collect()
    }

    #[test]
    fn events_keep_their_order_and_frames_carry_the_newest_ack() {
        let (mut outputs, mut out) = (Outputs::default(), BytesMut::new());
        assert!(!outputs.poll_transmit(1, &mut out));
        outputs.push(Event::TokenNeeded(TokenWhy::First));
        outputs.push(Event::Notice(Notice::LoggedIn { resumed: true }));
        outputs.write(Frame::new(Command::Hello, Bytes::new()));
        outputs.write(Frame::new(Command::Logout, Bytes::new()));
        assert!(outputs.has_frames() && outputs.poll_transmit(7, &mut out));
        assert_eq!(decoded(out), [(Command::Hello, 0), (Command::Logout, 7)]);
        assert_eq!(outputs.poll_event(), Some(Event::TokenNeeded(TokenWhy::First)));
        assert_eq!(outputs.poll_event(), Some(Event::Notice(Notice::LoggedIn { resumed: true })));
        assert_eq!(outputs.poll_event(), Some(Event::Transmit));
        assert_eq!(outputs.poll_event(), None);
    }

    #[test]
    fn frames_have_their_place_among_the_events() {
        let mut outputs = Outputs::default();
        let frame = || Frame::new(Command::Close, Bytes::new());
        outputs.push(Event::Notice(Notice::LoggedIn { resumed: true }));
        outputs.write(frame());
        outputs.write(frame());
        outputs.push(Event::Hangup);
        let order: Vec<Event> = std::iter::from_fn(|| outputs.poll_event()).collect();
        assert_eq!(
            order,
            [Event::Notice(Notice::LoggedIn { resumed: true }), Event::Transmit, Event::Hangup]
        );
        outputs.drop_frames();
        outputs.write(frame());
        assert_eq!(outputs.poll_event(), Some(Event::Transmit), "the next frame is announced again");
    }

    #[test]
    fn notices_that_nobody_asked_for_are_bounded_in_number_and_bytes() {
        let mut outputs = Outputs::default();
        let signal = |bytes| {
            let (conversation, payload) = ("group:g".into(), Bytes::from(vec![7; bytes]));
            let (sender, sender_device) = (String::new(), String::new());
            Event::Notice(Notice::Signal { conversation, sender, sender_device, payload })
        };
        (0..10_000).for_each(|_| outputs.push(signal(1)));
        outputs.push(Event::Notice(Notice::LoggedIn { resumed: false }));
        assert_eq!(outputs.events.len(), UNASKED_MAX + 1, "what the client itself caused has room");
        while outputs.poll_event().is_some() {}
        (0..100).for_each(|_| outputs.push(signal(300_000)));
        assert_eq!(outputs.events.len(), 4);
        while outputs.poll_event().is_some() {}
        assert_eq!((outputs.unasked, outputs.unasked_bytes), (0, 0));
    }

    #[test]
    fn frames_of_a_lost_connection_are_dropped_and_an_idle_queue_holds_no_buffer() {
        let (mut outputs, mut out) = (Outputs::default(), BytesMut::new());
        outputs.write(Frame::new(Command::Logout, Bytes::new()));
        outputs.drop_frames();
        assert!(!outputs.has_frames() && !outputs.poll_transmit(7, &mut out));
        (0..100).for_each(|_| outputs.push(Event::Hangup));
        while outputs.poll_event().is_some() {}
        assert_eq!(outputs.events.capacity(), 0);
    }
}

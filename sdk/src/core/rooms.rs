//! Rooms that the application wants to be in [P-2.5]: asked for, entered, and entered anew with each session.

use super::limits::NAME_BYTES_MAX;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::message::client::{Code, Sub, SubAck, Unsub};
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rooms of one core; the gateway allows as many for a session.
pub(super) const ROOMS_MAX: usize = 256;
/// The wait after a RETRY, or without an answer.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Time after which an answer counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked for from this moment on.
    Due(Instant),
    /// SUB is out, under this id, until then.
    Asked(u32, Instant),
    Inside,
}

/// Result of a SUBACK.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Entered(Arc<str>),
    Refused(Arc<str>, Code, String),
}

#[derive(Debug, Default)]
pub(super) struct Rooms {
    wanted: BTreeMap<Arc<str>, Phase>,
    last_id: u32,
}

impl Rooms {
    /// False: there are too many, or the name is too long for a SUB, which would end the connection.
    pub(super) fn enter(&mut self, now: Instant, room: &str) -> bool {
        if self.wanted.contains_key(room) {
            return true;
        }
        if self.wanted.len() >= ROOMS_MAX || room.len() > NAME_BYTES_MAX {
            return false;
        }
        self.wanted.insert(room.into(), Phase::Due(now));
        true
    }

    /// The UNSUB to send if the gateway may know of it.
    pub(super) fn leave(&mut self, room: &str) -> Option<Frame> {
        let phase = self.wanted.remove(room)?;
        if matches!(phase, Phase::Due(_)) {
            return None;
        }
        self.last_id = self.last_id.wrapping_add(1);
        Some(frame_of(Command::Unsub, &Unsub { id: self.last_id, room: room.to_owned() }))
    }

    /// A new session is in no room.
    pub(super) fn on_new_session(&mut self, now: Instant) {
        self.wanted.values_mut().for_each(|phase| *phase = Phase::Due(now));
    }

    /// The connection is gone: what was asked may not have been heard. Asking twice does no harm.
    pub(super) fn on_offline(&mut self, now: Instant) {
        for phase in self.wanted.values_mut() {
            if matches!(phase, Phase::Asked(..)) {
                *phase = Phase::Due(now);
            }
        }
    }

    /// The next SUB that may go out now.
    pub(super) fn poll_frame(&mut self, now: Instant) -> Option<Frame> {
        let is_due = |phase: &Phase| match phase {
            Phase::Due(from) | Phase::Asked(_, from) => *from <= now,
            Phase::Inside => false,
        };
        let (room, phase) = self.wanted.iter_mut().find(|(_, phase)| is_due(phase))?;
        self.last_id = self.last_id.wrapping_add(1);
        *phase = Phase::Asked(self.last_id, now + ANSWER_TIMEOUT);
        Some(frame_of(Command::Sub, &Sub { id: self.last_id, room: room.to_string() }))
    }

    pub(super) fn handle_ack(&mut self, now: Instant, ack: SubAck) -> Option<Verdict> {
        let is_it = |phase: &Phase| matches!(phase, Phase::Asked(id, _) if *id == ack.id);
        let (room, phase) = self.wanted.iter_mut().find(|(_, phase)| is_it(phase))?;
        let room = Arc::clone(room);
        match Code::try_from(ack.code).unwrap_or(Code::Invalid) {
            Code::Ok | Code::Dup => {
                *phase = Phase::Inside;
                Some(Verdict::Entered(room))
            }
            Code::Retry => {
                *phase = Phase::Due(now + RETRY_PAUSE);
                None
            }
            code => {
                self.wanted.remove(&room);
                Some(Verdict::Refused(room, code, ack.reason))
            }
        }
    }

    /// Time at which [`Self::poll_frame`] has a frame; only while logged in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = |phase: &Phase| match phase {
            Phase::Due(from) | Phase::Asked(_, from) => Some(*from),
            Phase::Inside => None,
        };
        self.wanted.values().filter_map(due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::message::decode;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn asked(rooms: &mut Rooms, secs: u64) -> Option<(u32, String)> {
        let sub: Sub = decode(&rooms.poll_frame(at(secs))?.body).expect("a SUB");
        Some((sub.id, sub.room))
    }

    fn ack(id: u32, code: Code) -> SubAck {
        SubAck { id, code: code.into(), reason: String::new() }
    }

    #[test]
    fn a_room_is_asked_for_until_answered_and_anew_in_each_session() {
        let mut rooms = Rooms::default();
        assert!(rooms.enter(at(0), "hall") && rooms.enter(at(0), "hall"));
        let (id, room) = asked(&mut rooms, 0).expect("a question");
        assert_eq!((room.as_str(), asked(&mut rooms, 0)), ("hall", None));
        assert_eq!(rooms.handle_ack(at(1), ack(id, Code::Retry)), None);
        assert_eq!((asked(&mut rooms, 2), rooms.deadline()), (None, Some(at(3))));
        let (id, _) = asked(&mut rooms, 3).expect("again");
        rooms.on_offline(at(4));
        assert_eq!(rooms.handle_ack(at(4), ack(id, Code::Ok)), None, "of another connection");
        let (id, _) = asked(&mut rooms, 4).expect("again");
        assert_eq!(rooms.handle_ack(at(5), ack(id, Code::Ok)), Some(Verdict::Entered("hall".into())));
        assert_eq!((asked(&mut rooms, 99), rooms.deadline()), (None, None));
        rooms.on_new_session(at(100));
        assert!(asked(&mut rooms, 100).is_some());
        assert!(rooms.leave("hall").is_some() && rooms.leave("hall").is_none());
    }

    #[test]
    fn a_name_that_no_sub_can_hold_is_refused_and_the_longest_is_sent() {
        let mut rooms = Rooms::default();
        assert!(!rooms.enter(at(0), &"n".repeat(NAME_BYTES_MAX + 1)));
        assert!(rooms.poll_frame(at(0)).is_none(), "the gateway would close the connection");
        assert!(rooms.enter(at(0), &"n".repeat(NAME_BYTES_MAX)));
        let body = rooms.poll_frame(at(0)).expect("a question").body;
        assert!(body.len() <= moorline_proto::frame::SMALL_BODY_BYTES_MAX as usize);
    }

    #[test]
    fn a_refusal_is_final_and_the_number_is_bounded() {
        let mut rooms = Rooms::default();
        rooms.enter(at(0), "closed");
        let (id, _) = asked(&mut rooms, 0).expect("a question");
        let verdict = rooms.handle_ack(at(0), ack(id, Code::NotMember));
        assert_eq!(verdict, Some(Verdict::Refused("closed".into(), Code::NotMember, String::new())));
        assert_eq!(rooms.deadline(), None);
        (0..ROOMS_MAX).for_each(|number| assert!(rooms.enter(at(0), &format!("r{number}"))));
        assert!(!rooms.enter(at(0), "one more"));
    }
}

//! Room in a full queue: pushes whose outcome nobody waits for give way.

use super::Flight;
use crate::shard::parcel::Parcel;
use moorline_proto::frame::Command;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

impl Flight {
    /// Makes room: drops waiting parcels whose outcome nobody waits for, and returns their number. Messages among them are not
    /// dropped: one NOTIFY for each conversation takes their place, for nothing else would tell the client of them.
    pub(in crate::shard) fn shed_unasked(&mut self) -> usize {
        let mut dropped = 0;
        for lane in &mut self.waiting {
            let mut kept: VecDeque<Parcel> = VecDeque::new();
            let mut notifies: HashMap<Arc<str>, usize> = HashMap::new();
            for parcel in lane.drain(..) {
                let is_free = parcel.is_unasked() && parcel.command != Command::Notify;
                let parcel = match parcel.notify() {
                    Some(notify) if is_free => notify,
                    None if is_free => {
                        dropped += 1;
                        continue;
                    }
                    _ => parcel,
                };
                let key = parcel.collapse.clone().filter(|_| parcel.command == Command::Notify);
                match key.as_ref().and_then(|key| notifies.get(key)) {
                    Some(at) if is_free => kept[*at].join(&parcel),
                    _ => {
                        key.map(|key| notifies.insert(key, kept.len()));
                        kept.push_back(parcel);
                    }
                }
            }
            *lane = kept;
        }
        let waiting = || self.waiting.iter().flatten();
        (self.waiting_bytes, self.waiting_frames) =
            (waiting().map(|parcel| parcel.body.len()).sum(), waiting().count());
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, parcel};
    use super::*;
    use crate::messages::PushRef;
    use crate::shard::round_trip::RoundTrip;
    use moorline_proto::frame::Lane;
    use moorline_proto::message::client;
    use moorline_proto::message::{decode, encode};
    use moorline_proto::time::Instant;

    #[test]
    fn room_is_made_by_what_nobody_asks_about_and_messages_become_one_notify_in_their_place() {
        let mut flight = Flight::new(LIMITS, 1, RoundTrip::default());
        let ticket = Some(PushRef { worker: 0, link: 0, link_generation: 0, correlation: 1 });
        let message = |seq| {
            let push = client::Push { conversation: "group:g".into(), seq, ..Default::default() };
            Parcel { body: encode(&push), ..parcel(Lane::Group, b"") }
        };
        let signal = Parcel { command: Command::App(0x40), ..parcel(Lane::Group, b"signal") };
        let asked = Parcel { ticket, ..parcel(Lane::Group, b"asked") };
        for parcel in [message(7), signal, asked, message(8)] {
            flight.wait(parcel, Instant::ZERO);
        }
        assert_eq!(flight.shed_unasked(), 1, "the signal");
        let kept: Vec<_> = flight.waiting.iter().flatten().cloned().collect();
        let [notify, asked] = &kept[..] else { panic!("{kept:?}") };
        let told: client::Notify = decode(&notify.body).expect("a NOTIFY");
        assert_eq!((notify.command, told.first, told.latest), (Command::Notify, 7, 8));
        assert_eq!(&asked.body[..], b"asked");
        assert_eq!((flight.waiting(), flight.waiting_bytes()), (2, notify.body.len() + 5));
        assert_eq!((flight.shed_unasked(), flight.waiting()), (0, 2), "a NOTIFY stays");
    }
}

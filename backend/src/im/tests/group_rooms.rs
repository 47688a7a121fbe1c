//! Rooms of large groups that talk [B-6.9].

use super::social::create;
use super::*;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{GroupRequest, GroupResponse};

const MEMBERS: [&str; 4] = ["bob", "carol", "dave", "erin"];

/// A group of alice and [`MEMBERS`], all of them online.
struct Talk {
    bench: Bench,
    alice: SessionId,
    others: Vec<SessionId>,
    said: u8,
}

impl Talk {
    fn new(config: ImConfig) -> Self {
        let mut bench = Bench::new(ImConfig { fanout_members_max: 2, ..config });
        let alice = bench.login(0, "alice", "d", 1);
        let login = |(slot, uid): (u32, &str)| bench.login(slot, uid, "d", 1);
        let others = (1..).zip(MEMBERS).map(login).collect();
        create(&mut bench, alice, &MEMBERS);
        bench.pushes();
        Self { bench, alice, others, said: 0 }
    }

    /// alice speaks. Returns who gets it at once, in the order of their sessions.
    fn say(&mut self) -> Vec<SessionId> {
        self.said += 1;
        let (code, ack) = self.bench.send(self.alice, conversation("group:g"), &key(self.said), b"hi");
        assert_eq!(code, Code::Ok);
        self.bench.fan_out();
        let is_it = |pushed: &Pushed| pushed.command == Command::Push && pushed.push().seq == ack.seq;
        let mut got: Vec<_> = self.bench.pushes().into_iter().filter(is_it).map(|it| it.session).collect();
        got.sort_unstable();
        got
    }

    /// Messages of the group that went to its room since the last call.
    fn take_said_to_rooms(&mut self) -> usize {
        std::mem::take(&mut self.bench.out.to_rooms)
    }

    fn change(&mut self, session: SessionId, method: &str) {
        let request = GroupRequest { conversation: "group:g".into(), ..Default::default() };
        self.bench.req::<GroupResponse>(session, method, &request).expect("done");
        self.bench.fan_out();
        self.bench.pushes();
    }

    /// A talk whose group has a room.
    fn with_room() -> Self {
        let mut talk = Self::new(ImConfig::default());
        (0..3).for_each(|_| _ = talk.say());
        assert_eq!(talk.take_said_to_rooms(), 1, "the third message is the first one that goes to the room");
        talk
    }
}

#[test]
fn a_group_that_talks_has_a_room_and_its_author_gets_nothing_from_it() {
    let mut talk = Talk::with_room();
    assert_eq!(talk.say(), talk.others);
    assert_eq!(talk.take_said_to_rooms(), 1);
}

#[test]
fn a_group_without_rooms_is_pushed_to_by_name() {
    let mut talk = Talk::new(ImConfig { room_idle: Duration::ZERO, ..ImConfig::default() });
    for _ in 0..5 {
        assert_eq!(talk.say(), talk.others);
    }
    assert_eq!(talk.take_said_to_rooms(), 0);
}

#[test]
fn who_logs_in_has_the_next_message_from_the_room() {
    let mut talk = Talk::with_room();
    let phone = talk.bench.login(20, "bob", "phone", 1);
    talk.bench.pushes();
    let mut all = talk.others.clone();
    all.push(phone);
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (all, 1));
    talk.bench.logout(phone);
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 1));
}

#[test]
fn who_has_left_gets_nothing_that_is_said_later_and_who_joins_gets_it() {
    let mut talk = Talk::with_room();
    let (bob, rest) = (talk.others[0], talk.others[1..].to_vec());
    talk.change(bob, "im.group.leave");
    assert_eq!(
        (talk.say(), talk.take_said_to_rooms()),
        (rest.clone(), 0),
        "by name, and the room is filled anew"
    );
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (rest, 1));
    talk.change(bob, "im.group.join");
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 0));
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 1));
}

/// A client that knows nothing of a conversation begins with the first message that it gets: so nothing may overtake.
#[test]
fn who_is_behind_is_told_when_everything_before_has_come() {
    let mut talk = Talk::new(ImConfig { outstanding: 1, ..ImConfig::default() });
    (0..3).for_each(|_| _ = talk.say());
    let bob = talk.others[0];
    // Two entries in bob's inbox, of which one is under way.
    for number in [101, 102] {
        talk.bench.send(talk.alice, user("bob"), &key(number), b"");
    }
    let under_way = talk.bench.pushes().into_iter().find(|pushed| pushed.session == bob).expect("one");
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others[1..].to_vec(), 2));
    talk.bench.outcome(&under_way, Outcome::Acked);
    let next = talk.bench.pushes().into_iter().find(|pushed| pushed.session == bob).expect("the next one");
    assert_eq!(next.push().conversation, "c2c:alice:bob");
    talk.bench.outcome(&next, Outcome::Acked);
    let told = talk.bench.pushes().into_iter().find(|pushed| pushed.session == bob).expect("a NOTIFY");
    let notify: Notify = decode(&told.body).expect("a NOTIFY");
    // From the first message of the room on, for this NOTIFY may overtake what is still under way there.
    assert_eq!((told.command, notify.first, notify.latest), (Command::Notify, 3, 4));
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 1), "bob has entered again");
}

#[test]
fn members_are_told_of_what_a_lost_room_may_have_hidden() {
    let mut talk = Talk::with_room();
    talk.say();
    let room = *talk.bench.out.group_rooms.keys().next().expect("a room");
    talk.bench.out.group_rooms.clear();
    talk.take_said_to_rooms();
    talk.bench.event(Event::RoomLost { room });
    talk.bench.fan_out();
    let told: Vec<_> = talk.bench.pushes();
    assert_eq!(told.len(), 5, "everybody who is online");
    for pushed in told {
        let notify: Notify = decode(&pushed.body).expect("a NOTIFY");
        assert_eq!((pushed.command, notify.first, notify.latest), (Command::Notify, 3, 4));
    }
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 0), "by name for some seconds");
    talk.bench.pass(Duration::from_secs(6));
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 0), "the room is filled anew");
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 1));
}

#[test]
fn a_group_that_falls_silent_gives_its_room_up() {
    let mut talk = Talk::with_room();
    talk.bench.pass(Duration::from_secs(599));
    assert_eq!(talk.bench.out.group_rooms.len(), 1);
    talk.bench.pass(Duration::from_secs(6));
    assert_eq!(talk.bench.out.group_rooms.len(), 0);
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 0));
}

/// The gateways are behind: the list of names holds the group back.
#[test]
fn messages_go_by_name_while_nobody_acknowledges_any() {
    let mut talk = Talk::with_room();
    let mut asked = Vec::new();
    for number in 4..=140u32 {
        talk.said = 0;
        let mut key = [0; 16];
        key[..4].copy_from_slice(&number.to_le_bytes());
        talk.bench.send(talk.alice, conversation("group:g"), &key, b"hi");
        talk.bench.fan_out();
        asked.extend(talk.bench.pushes().into_iter().filter(|pushed| pushed.want_ack));
    }
    assert_eq!(
        talk.take_said_to_rooms(),
        127,
        "up to 128 messages behind the one with which the room was filled"
    );
    assert_eq!(asked.len(), 4 * MEMBERS.len(), "every 32nd asks each member");
    talk.said = 200;
    talk.bench.outcome(asked.last().expect("some"), Outcome::Acked);
    assert_eq!((talk.say(), talk.take_said_to_rooms()), (talk.others.clone(), 1), "one of them has arrived");
}

#[test]
fn a_group_in_which_nobody_else_is_online_has_no_room() {
    let mut talk = Talk::new(ImConfig::default());
    talk.others.clone().into_iter().for_each(|session| talk.bench.logout(session));
    (0..5).for_each(|_| _ = talk.say());
    assert_eq!((talk.take_said_to_rooms(), talk.bench.out.group_rooms.len()), (0, 0));
}

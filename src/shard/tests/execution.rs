//! The executor: order of operations, one write per connection and turn, and keys that are gone.

use super::*;
use crate::messages::Admission;
use moorline_proto::message::client::Resume;

/// Sockets that record what is done to them.
#[derive(Debug, Default)]
struct Recorder {
    open: Vec<ConnKey>,
    done: Vec<String>,
    /// Bytes that a socket takes in one write.
    room: usize,
    is_broken: bool,
}

impl Recorder {
    fn taken(&mut self) -> Vec<String> {
        std::mem::take(&mut self.done)
    }
}

impl Sockets for Recorder {
    fn write(&mut self, key: ConnKey, shard: &Shard) -> Written {
        if !self.open.contains(&key) {
            return Written::Nothing;
        }
        let mut bytes = Vec::new();
        shard.gather(key, &mut bytes, usize::MAX);
        self.done.push(format!("write {}", bytes.len().min(self.room)));
        match bytes.len() {
            _ if self.is_broken => Written::Failed,
            0 => Written::Nothing,
            length if length <= self.room => Written::Fully(length),
            _ => Written::Partly(self.room),
        }
    }

    fn write_final(&mut self, key: ConnKey, _bytes: &[u8]) {
        assert!(self.open.contains(&key), "the last frame comes before the close");
        self.done.push("final".into());
    }

    fn set_code(&mut self, _key: ConnKey, _code: u32) {}

    fn half_close(&mut self, _key: ConnKey) {
        self.done.push("half-close".into());
    }

    fn close(&mut self, key: ConnKey) {
        self.open.retain(|open| *open != key);
        self.done.push("close".into());
    }

    fn reattach(&mut self, from: ConnKey, to: ConnKey) -> bool {
        self.done.push("reattach".into());
        let socket = self.open.iter_mut().find(|open| **open == from);
        socket.map(|socket| *socket = to).is_some()
    }

    fn move_away(&mut self, _key: ConnKey, _transfer: Box<Transfer>) {
        unreachable!("there is one shard only");
    }

    fn set_paused(&mut self, _key: ConnKey, is_paused: bool) {
        self.done.push(format!("paused {is_paused}"));
    }

    fn undelivered(&self, _key: ConnKey) -> Option<usize> {
        None
    }
}

impl World {
    fn perform(&mut self, executor: &mut Executor, sockets: &mut Recorder) {
        executor.perform(self.now, &mut self.shard, &mut self.outputs, sockets);
        self.shard.check();
    }

    fn write(&mut self, executor: &mut Executor, sockets: &mut Recorder) {
        executor.write(self.now, &mut self.shard, &mut self.outputs, sockets);
        self.shard.check();
    }
}

/// A world with one client who has nothing more to hear, and its socket.
fn quiet() -> (World, Executor, Recorder, ConnKey) {
    let mut world = World::new();
    let key = world.login("alice", "phone");
    world.operations();
    (world, Executor::default(), Recorder { open: vec![key], room: 1 << 20, ..Recorder::default() }, key)
}

#[test]
fn all_frames_of_a_turn_are_one_write() {
    let (mut world, mut executor, mut sockets, key) = quiet();
    for number in 0..3 {
        world.push(key, number, b"hello");
        world.perform(&mut executor, &mut sockets);
    }
    world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 60 }));
    assert!(sockets.taken().is_empty(), "writes wait for the end of the turn");
    world.write(&mut executor, &mut sockets);
    assert_eq!(sockets.taken(), ["write 79"], "three pushes and a PONG");
    assert!(!executor.is_waiting());
}

#[test]
fn a_turn_writes_a_share_and_the_next_turn_the_rest() {
    let (mut world, mut executor, mut sockets, key) = quiet();
    sockets.room = 4;
    world.push(key, 1, b"a body of some length");
    world.write(&mut executor, &mut sockets);
    assert_eq!(sockets.taken(), ["write 4"; 4]);
    assert!(executor.is_waiting());
    sockets.room = 1 << 20;
    world.write(&mut executor, &mut sockets);
    assert_eq!(sockets.taken(), ["write 21"]);
}

#[test]
fn a_late_write_to_a_closed_connection_does_nothing() {
    let (mut world, mut executor, mut sockets, key) = quiet();
    world.push(key, 1, b"hello");
    world.perform(&mut executor, &mut sockets);
    world.shard.handle_peer_closed(world.now, key, &mut world.outputs);
    world.write(&mut executor, &mut sockets);
    assert_eq!(sockets.taken(), ["close"]);
}

#[test]
fn a_broken_socket_ends_its_connection() {
    let (mut world, mut executor, mut sockets, key) = quiet();
    sockets.is_broken = true;
    world.push(key, 1, b"hello");
    world.write(&mut executor, &mut sockets);
    assert_eq!(sockets.taken(), ["write 21", "close"]);
    assert_eq!(world.shard.clients(), 0);
}

#[test]
fn the_last_frame_is_followed_by_the_end_of_the_writing_half() {
    let (mut world, mut executor, mut sockets, _key) = quiet();
    world.shard.handle_stop(world.now, &mut world.outputs);
    world.write(&mut executor, &mut sockets);
    let done = sockets.taken();
    assert!(done[0].starts_with("write ") && done[1..] == ["half-close"], "{done:?}");
}

#[test]
fn a_resumed_session_gets_the_new_socket_before_its_welcome() {
    let mut world = World::new();
    let settings = Settings { session_keep: Duration::from_secs(60), ..settings() };
    world.shard = Shard::new(settings, world.now);
    let (mut executor, mut sockets) =
        (Executor::default(), Recorder { room: 1 << 20, ..Recorder::default() });
    let key = world.accept();
    let newcomer = world.accept();
    sockets.open = vec![key, newcomer];
    let (uid, device): (String, String) = ("alice".into(), "phone".into());
    let hello = |resume| Hello {
        version_min: 1,
        version_max: 1,
        uid: uid.clone(),
        device: device.clone(),
        resume,
        ..Hello::default()
    };
    let admission = |resume: Option<Resume>| {
        let resume = resume.map(Box::new);
        Ok(Admission { uid: uid.clone(), device: device.clone(), resume, ..Admission::default() })
    };
    world.frame(key, &frame_of(Command::Hello, &hello(None)));
    world.downlink(Downlink::Verdict { key, verdict: admission(None) });
    let Welcome { session, epoch, ticket, .. } = decode(&world.written(key)[0].body).expect("a WELCOME");
    world.operations();
    let resume = Resume { session, epoch, ticket, ..Resume::default() };
    world.frame(newcomer, &frame_of(Command::Hello, &hello(Some(resume.clone()))));
    world.downlink(Downlink::Verdict { key: newcomer, verdict: admission(Some(resume)) });
    world.write(&mut executor, &mut sockets);
    let done = sockets.taken();
    assert!(done[..3] == ["final", "close", "reattach"] && done[3].starts_with("write "), "{done:?}");
    assert_eq!(sockets.open, [key]);
}

//! The driver of one `Core`: a socket, a timer, and an application that takes its time.

use crate::backend::Device;
use crate::pipe::{Pipe, PipeId, Way};
use crate::scene::{Scene, What};
use bytes::{Bytes, BytesMut};
use moorline_proto::frame::{Batch, Command, Decoder, Flags, Frame, encode_batch};
use moorline_proto::message::client::Platform;
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::{Backoff, Core, CoreConfig, Event, Notice, TokenSource, Tuning};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

pub(crate) struct Client {
    number: usize,
    pub(crate) core: Core,
    pub(crate) device: Device,
    pub(crate) pipe: Option<PipeId>,
    /// Frames that wait for more, to go out together.
    held: Vec<Frame>,
    unwritten: VecDeque<u8>,
    armed: Option<Instant>,
    keys: BTreeSet<Bytes>,
    pub(crate) is_over: bool,
}

/// Order of a client to the world.
#[derive(Debug)]
pub(crate) enum Wish {
    Connect,
    /// An event, for the oracle and the application.
    Tell(Event),
}

fn tuning(scene: &mut Scene) -> Tuning {
    Tuning {
        connect_timeout: Duration::from_secs(3),
        handshake_timeout: Duration::from_secs(4),
        backoff: Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) },
        // Shorter or longer than a worker waits for the backend.
        send_timeout: Duration::from_secs([2, 4][scene.index(2)]),
        pong_timeout: Duration::from_secs(3),
        ..Tuning::default()
    }
}

impl Client {
    pub(crate) fn new(number: usize, device: Device, scene: &mut Scene) -> Self {
        let token = TokenSource::Fixed("token".into());
        let mut config = CoreConfig::new(&device.0, &device.1, Platform::Linux, token);
        config.tuning = Arc::new(tuning(scene));
        Self {
            number,
            core: Core::new(config, scene.random.next_u64()),
            device,
            pipe: None,
            held: Vec::new(),
            unwritten: VecDeque::new(),
            armed: None,
            keys: BTreeSet::new(),
            is_over: false,
        }
    }

    /// The driver's duty after every call into the core.
    pub(crate) fn drain(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) -> Vec<Wish> {
        let mut wishes = Vec::new();
        while let Some(event) = self.core.poll_event() {
            if event == Event::Transmit {
                self.transmit(scene, pipes);
                continue;
            }
            scene.note(|| format!("  client {} {:?}: {event:?}", self.number, self.device));
            match event {
                Event::Hangup => self.hang_up(scene, pipes),
                Event::Connect { .. } => {
                    assert_eq!(self.pipe, None, "one connection at a time");
                    wishes.push(Wish::Connect);
                }
                Event::Notice(Notice::Closed(_)) => {
                    self.is_over = true;
                    wishes.push(Wish::Tell(event));
                }
                event => wishes.push(Wish::Tell(event)),
            }
        }
        self.arm(scene);
        wishes
    }

    /// Writes what the core has to say, or keeps it for a while.
    fn transmit(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let mut out = BytesMut::new();
        if self.core.poll_transmit(&mut out) {
            self.hold(scene, out.freeze());
            let waits = !self.held.is_empty() && self.core.is_logged_in() && scene.random.one_in(3);
            match self.pipe {
                Some(pipe) if waits => scene.within(20, What::Flush(self.number, pipe)),
                _ => self.release(scene, pipes),
            }
        }
    }

    fn arm(&mut self, scene: &mut Scene) {
        let Some(deadline) = self.core.next_deadline() else { return };
        if self.armed.is_none_or(|armed| armed > deadline) {
            let at = deadline.max(scene.now);
            self.armed = Some(at);
            scene.at(at, What::ClientTimer(self.number));
        }
    }

    /// A timer rings; one that was overtaken rings too early, which must change nothing.
    pub(crate) fn on_timer(&mut self, scene: &Scene) {
        if self.armed.is_some_and(|armed| armed <= scene.now) {
            self.armed = None;
        }
        let is_early = self.core.next_deadline().is_none_or(|deadline| deadline > scene.now);
        self.core.handle_timeout(scene.now);
        if is_early {
            assert!(!self.core.poll_transmit(&mut BytesMut::new()), "it speaks before its time");
            assert_eq!(self.core.poll_event(), None, "something happened before its time");
        }
    }

    fn hold(&mut self, scene: &mut Scene, mut bytes: Bytes) {
        let mut decoder = Decoder::new();
        while let Some(frame) = decoder.decode(&mut bytes, u32::MAX).expect("the core keeps the format") {
            if frame.header.command == Command::Send {
                let send: moorline_proto::message::client::Send =
                    moorline_proto::message::decode(&frame.body).expect("a SEND");
                let is_again = !self.keys.insert(send.key);
                scene.coverage.client_retransmissions += u64::from(is_again);
                assert_eq!(is_again, frame.header.flags.contains(Flags::DUP), "DUP says what is so");
            }
            self.held.push(frame);
        }
    }

    /// Frames go to the socket, sometimes several as one batch.
    fn release(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let frames = std::mem::take(&mut self.held);
        let may_batch = frames.len() > 1 && frames[0].header.command != Command::Hello;
        let mut bytes = Vec::new();
        if may_batch && scene.random.one_in(2) {
            let batch = encode_batch(&frames);
            assert_eq!(Batch::new(batch.body.clone()).count(), frames.len());
            batch.encode(&mut bytes);
        } else {
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
        }
        self.unwritten.extend(bytes);
        self.write(scene, pipes);
    }

    pub(crate) fn flush(&mut self, scene: &mut Scene, pipes: &mut [Pipe], pipe: PipeId) {
        if self.pipe == Some(pipe) {
            self.release(scene, pipes);
        }
    }

    /// Writes as much as the socket takes.
    pub(crate) fn write(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let Some(id) = self.pipe else { return };
        let bytes = self.unwritten.make_contiguous();
        if bytes.is_empty() {
            return;
        }
        let taken = pipes[id].write(scene, id, Way::Up, bytes);
        self.unwritten.drain(..taken);
    }

    /// Writes what goes, and drops the socket.
    fn hang_up(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        let Some(id) = self.pipe else { return };
        self.release(scene, pipes);
        self.let_go(scene, pipes);
        scene.note(|| format!("  client {} hangs up {id}", self.number));
    }

    fn let_go(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        if let Some(id) = self.pipe.take() {
            pipes[id].is_client_open = false;
            pipes[id].finish(scene, id, Way::Up);
        }
        self.held.clear();
        self.unwritten.clear();
    }

    /// The socket is gone.
    pub(crate) fn on_gone(&mut self, scene: &mut Scene, pipes: &mut [Pipe]) {
        self.let_go(scene, pipes);
        self.core.handle_disconnected(scene.now, None);
    }
}

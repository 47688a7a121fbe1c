//! A whole worker on its thread, between fake shards and scripted backends on loopback sockets.

mod failover;
mod logins;
mod names;
mod pressure;
mod rogue;
mod rooms;
mod traffic;

use super::*;
use crate::auth::Verify;
use crate::messages::{Admission, Downlink, DownlinkBatch, Uplink};
use crate::router::{
    Balance, Count, LINK_OUTPUT_MAX, LinkSettings, LinkTimes, OverloadLimits, ParkingLimits, Stores, Trust,
    Unproven,
};
use crate::shard_map::ShardMap;
use bytes::{Bytes, BytesMut};
use crossbeam_channel as channel;
use moorline_net::resolve::Hooks;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::Command;
use moorline_proto::ids::{ConnKey, Pin, Seq, ShardId};
use moorline_proto::link::{self, HostPort, Kind, LinkDecoder, LinkFrame};
use moorline_proto::message;
use moorline_proto::message::backend::{self, Announce, ConnUp, LinkHello, UpResult};
use moorline_proto::message::client::{Code, Hello, Resp, SendAck};
use moorline_proto::time::Duration;
use prost::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, RwLock};
use std::thread::JoinHandle;

/// Longest wait; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const SHARDS: usize = 3;

type Logins = Arc<Mutex<Vec<(Pin, ConnUp)>>>;

/// A user with one connection.
#[derive(Clone, Debug)]
struct User {
    uid: String,
    pin: Pin,
    key: ConnKey,
}

impl User {
    fn new(number: u32) -> Self {
        let uid = format!("user-{number}");
        let pin = Pin::of(&uid);
        Self { key: ConnKey::new(pin.shard(SHARDS), number, 1), pin, uid }
    }

    /// The first user (from 0) on this shard.
    fn on_shard(shard: u8) -> Self {
        (0..1_000).map(Self::new).find(|user| user.key.shard() == ShardId(shard)).expect("hashes spread")
    }

    fn login(&self) -> ConnUp {
        ConnUp { handle: self.key.as_u64(), uid: self.uid.clone(), login_version: 1, ..Default::default() }
    }

    fn up(&self, command: Command, number: u32, body: impl Into<Bytes>) -> Uplink {
        let (key, pin) = (self.key, self.pin);
        Uplink::Up { key, pin, command, number, is_dup: false, body: body.into() }
    }

    fn send(&self, cid: Seq) -> Uplink {
        self.up(Command::Send, cid, format!("{}/{cid}", self.uid))
    }
}

/// The shards' side of a worker. Fake shards answer announcements from `logins` by themselves; while
/// a test holds that lock, they do not.
struct World {
    mail: Sender<UplinkBatch>,
    logins: Logins,
    shards: Vec<channel::Receiver<Downlink>>,
    gates: Vec<Arc<AtomicBool>>,
    counter_set: Arc<CounterSet>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct FakeShard {
    queue: channel::Sender<DownlinkBatch>,
    is_shut: Arc<AtomicBool>,
}

impl ShardSink for FakeShard {
    fn try_deliver(&self, batch: DownlinkBatch, _may_run: bool) -> Result<(), DownlinkBatch> {
        if self.is_shut.load(Ordering::SeqCst) {
            return Err(batch);
        }
        self.queue.send(batch).map_err(|refused| refused.0)
    }
}

struct Names;

impl Verify for Names {
    fn verify(&self, hello: &Hello, _unix_now_s: u64) -> Result<Admission, CloseReason> {
        match hello.token.as_str() {
            "good" => Ok(Admission {
                uid: hello.uid.clone(),
                device: "d".into(),
                platform: hello.platform,
                ..Admission::default()
            }),
            _ => Err(CloseReason::AuthFailed),
        }
    }
}

fn settings(endpoints: &[&Backend]) -> RouterSettings {
    let link = LinkSettings {
        hello: LinkHello {
            version_min: 1,
            version_max: 1,
            node: "gw".into(),
            epoch: 5,
            ..Default::default()
        },
        times: LinkTimes::default(),
        reconnect_min: Duration::from_millis(1),
        reconnect_max: Duration::from_millis(20),
        up_timeout: PATIENCE,
        output_max: LINK_OUTPUT_MAX,
        pending_bytes: 1 << 20,
        body_max: 1 << 20,
    };
    RouterSettings {
        shard_map: ShardMap::new(SHARDS),
        number: 4,
        endpoints: endpoints.iter().map(|backend| backend.address().into()).collect(),
        stores: Stores::default(),
        links_per_endpoint: 1,
        balance: Balance::LeastLoaded,
        link,
        parking: ParkingLimits { frames: 1_000, bytes: 1 << 20, changes: 1_000 },
        overload: OverloadLimits {
            latency: Duration::from_secs(60),
            queue_frames: 1 << 20,
            hold: Duration::from_secs(2),
        },
        compress_min: 512,
        seed: 1,
    }
}

/// A resolver without names.
fn no_names(_: Sender<UplinkBatch>) -> Resolver {
    let hooks = Hooks { wake: Box::new(|| ()), count: Box::new(|_| ()) };
    Resolver::start([], hooks).expect("no thread is started")
}

impl World {
    fn start(settings: RouterSettings) -> Self {
        Self::start_by(settings, crate::sys::clock::machine_clock())
    }

    /// With a clock of the test's own; wake the worker after moving it.
    fn start_by(settings: RouterSettings, clock: Clock) -> Self {
        Self::start_judged(settings, clock, Judge::Here(Arc::new(Names)))
    }

    fn start_judged(settings: RouterSettings, clock: Clock, judge: Judge) -> Self {
        Self::start_with((settings, clock, judge), no_names)
    }

    /// With names that `resolver` looks up; it gets the mailbox that wakes the worker.
    fn start_with(
        (settings, clock, judge): (RouterSettings, Clock, Judge),
        resolver: impl FnOnce(Sender<UplinkBatch>) -> Resolver,
    ) -> Self {
        let (mail, inbox) = Inbox::open(1024).expect("poll");
        let logins = Logins::default();
        let (mut sinks, mut shards, mut gates) = (Vec::<Box<dyn ShardSink>>::new(), Vec::new(), Vec::new());
        for shard in 0..SHARDS {
            let (queue, batches) = channel::unbounded();
            let (items, test) = channel::unbounded();
            let (mail, logins) = (mail.clone(), Arc::clone(&logins));
            let from = ShardId(u8::try_from(shard).expect("few"));
            std::thread::spawn(move || fake_shard(from, &batches, &items, &mail, &logins));
            let is_shut = Arc::new(AtomicBool::new(false));
            gates.push(Arc::clone(&is_shut));
            sinks.push(Box::new(FakeShard { queue, is_shut }));
            shards.push(test);
        }
        let (counter_set, stop) =
            (Arc::new(CounterSet::new(crate::router::metrics())), Arc::new(AtomicBool::new(false)));
        let trust = Trust { secrets: Vec::new(), unproven: Unproven::Loopback };
        let resolver = resolver(mail.clone());
        let (poll, worker) = Worker::new(WorkerParts {
            settings,
            inbox,
            shards: sinks,
            judge,
            clock,
            unix_base_nanos: 1_800_000_000_000_000_000,
            stop: Arc::clone(&stop),
            counter_set: Arc::clone(&counter_set),
            peer_uids: Vec::new(),
            credentials: Arc::new(RwLock::new(Credentials { trust, tls: None, had_tls: false })),
            resolver,
            registry: None,
        });
        let group =
            crate::thread_group::ThreadGroup::new(vec![(0, poll, worker)], crate::pause::pause().1, "");
        let thread = std::thread::spawn(move || group.run().expect("polls"));
        Self { mail, logins, shards, gates, counter_set, stop, thread: Some(thread) }
    }

    /// Logs a user in, as its shard would.
    fn login(&self, user: &User) {
        self.logins.lock().expect("unpoisoned").push((user.pin, user.login()));
        self.mail(user, vec![Uplink::ConnUp { pin: user.pin, login: Box::new(user.login()) }]);
    }

    fn mail(&self, user: &User, items: Vec<Uplink>) {
        self.mail.try_send(UplinkBatch { from: user.key.shard(), items }).expect("room");
    }

    /// Next message of the worker to a shard, without read pauses.
    fn downlink(&self, shard: ShardId) -> Downlink {
        let mut items = std::iter::from_fn(|| Some(self.any_downlink(shard)));
        items.find(|item| !matches!(item, Downlink::Hold { .. })).expect("endless")
    }

    fn any_downlink(&self, shard: ShardId) -> Downlink {
        self.shards[shard.index()].recv_timeout(PATIENCE).expect("an item")
    }

    fn send_ack(&self, user: &User) -> SendAck {
        match self.downlink(user.key.shard()) {
            Downlink::Answer { key, command: Command::SendAck, cid, body, .. } if key == user.key => {
                let ack: SendAck = message::decode(&body).expect("a SendAck");
                assert_eq!(ack.cid, cid);
                ack
            }
            other => panic!("no SENDACK: {other:?}"),
        }
    }

    /// Waits until a published number is at least `wanted`.
    fn await_count(&self, count: Count, wanted: u64) {
        let until = crate::sys::clock::now() + PATIENCE;
        while self.counter_set.get(count as usize) < wanted {
            assert!(
                crate::sys::clock::now() < until,
                "{count:?} stays {}",
                self.counter_set.get(count as usize)
            );
            std::thread::yield_now();
        }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.mail.wake().expect("eventfd");
        self.thread.take().expect("running").join().expect("the worker did not panic");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.stop();
        }
    }
}

fn fake_shard(
    from: ShardId,
    batches: &channel::Receiver<DownlinkBatch>,
    items: &channel::Sender<Downlink>,
    mail: &Sender<UplinkBatch>,
    logins: &Logins,
) {
    for item in batches.iter().flat_map(|batch| batch.items) {
        let Downlink::Announce { worker: 4, request, slots } = item else {
            items.send(item).ok();
            continue;
        };
        let is_asked = |(pin, login): &&(Pin, ConnUp)| {
            slots >> pin.slot() & 1 == 1 && ConnKey::from_u64(login.handle).shard() == from
        };
        let logins = logins.lock().expect("unpoisoned").iter().filter(is_asked).cloned().collect();
        // In two parts, the second one empty.
        let first = Uplink::Announced { request, logins, is_last: false };
        let last = Uplink::Announced { request, logins: Vec::new(), is_last: true };
        mail.try_send(UplinkBatch { from, items: vec![first, last] }).expect("room");
    }
}

/// A backend's listener.
struct Backend(TcpListener);

impl Backend {
    fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        // Bounds accept as well.
        socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }

    /// The gateway's next connection, before anything is said.
    fn accept(&self) -> Peer {
        let (stream, _) = self.0.accept().expect("the gateway connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Peer { stream, decoder: LinkDecoder::new(), input: Bytes::new(), frames: None }
    }

    /// The gateway's next connection, greeted; its PINGs are answered.
    fn greet(&self, credit: u32) -> Peer {
        let mut peer = self.greet_by_hand(credit);
        peer.read_on();
        peer
    }

    /// The gateway's next connection, greeted; nobody reads it but the test.
    fn greet_by_hand(&self, credit: u32) -> Peer {
        let mut peer = self.accept();
        let hello: LinkHello = peer.expect(Kind::Hello).message().expect("decodes");
        assert_eq!((hello.node.as_str(), hello.epoch, hello.version_max), ("gw", 5, 1));
        peer.say_hello(credit);
        peer
    }

    /// The gateway's next connection, greeted and announced to: the logins it was told.
    fn greet_announced(&self, credit: u32) -> (Peer, Vec<ConnUp>) {
        let mut peer = self.greet(credit);
        let logins = peer.announced();
        (peer, logins)
    }
}

/// A backend's end of one link.
struct Peer {
    stream: TcpStream,
    decoder: LinkDecoder,
    input: Bytes,
    /// Frames from the thread that reads; `None`: the test itself reads.
    frames: Option<mpsc::Receiver<LinkFrame>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stream.shutdown(Shutdown::Both).ok(); // the reading thread has the socket, too
    }
}

impl Peer {
    /// Reads in a thread from now on, which answers PING at once, as every backend does.
    fn read_on(&mut self) {
        let (sender, frames) = mpsc::channel();
        let stream = self.stream.try_clone().expect("a descriptor is free");
        stream.set_read_timeout(None).expect("no timeout");
        let (decoder, input) = (LinkDecoder::new(), Bytes::new());
        let mut reader = Self { stream, decoder, input, frames: None };
        std::mem::swap(&mut reader.decoder, &mut self.decoder);
        std::mem::swap(&mut reader.input, &mut self.input);
        std::thread::spawn(move || {
            while let Some(frame) = reader.next() {
                if frame.kind == Kind::Ping {
                    reader.send(Kind::Pong, frame.correlation, 0, &());
                } else if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        self.frames = Some(frames);
    }

    /// The next frame; `None`: the gateway closed.
    fn next(&mut self) -> Option<LinkFrame> {
        if let Some(frames) = &self.frames {
            return match frames.recv_timeout(PATIENCE) {
                Ok(frame) => Some(frame),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => panic!("the gateway says nothing"),
            };
        }
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).expect("the gateway speaks well") {
                return Some(frame);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(len) => self.input = Bytes::copy_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the gateway says nothing: {error}"),
            }
        }
    }

    fn expect(&mut self, kind: Kind) -> LinkFrame {
        let frame = self.next().unwrap_or_else(|| panic!("closed instead of {kind:?}"));
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// The next UP: its correlation and itself.
    fn up(&mut self) -> (u64, backend::Up) {
        let frame = self.expect(Kind::Up);
        (frame.correlation, frame.message().expect("decodes"))
    }

    /// Everything announced up to the frame without `more`.
    fn announced(&mut self) -> Vec<ConnUp> {
        let mut logins = Vec::new();
        loop {
            let announce: Announce = self.expect(Kind::Announce).message().expect("decodes");
            logins.extend(announce.connections);
            if !announce.more {
                return logins;
            }
        }
    }

    fn send(&mut self, kind: Kind, correlation: u64, credit: u32, message: &impl Message) {
        let mut out = BytesMut::new();
        link::encode(&mut out, kind, correlation, credit, message);
        self.stream.write_all(&out).expect("the gateway reads");
    }

    fn say_hello(&mut self, credit: u32) {
        let hello = LinkHello { version_min: 1, version_max: 1, node: "be".into(), ..Default::default() };
        self.send(Kind::Hello, 0, credit, &hello);
    }

    /// Answers a SEND with OK and a seq.
    fn answer(&mut self, correlation: u64, seq: u64) {
        let answer = message::encode(&SendAck { seq, ..Default::default() });
        self.send(
            Kind::UpResult,
            correlation,
            0,
            &UpResult { code: Code::Ok.into(), answer, ..Default::default() },
        );
    }

    /// The gateway has taken all that was said and mailed before: its next frame is the PONG.
    fn expect_nothing_before_pong(&mut self) {
        self.send(Kind::Ping, 99, 0, &());
        assert_eq!(self.expect(Kind::Pong).correlation, 99);
    }

    fn cut(self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

//! A small gateway for tests: real frames over real sockets, and faults on demand.
//!
//! One thread accepts, one thread serves each connection; all end with the connection, the accepting
//! one with the test process.

use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{BODY_BYTES_MAX, Command, Decoder, Frame};
use moorline_proto::message::client::{
    Close, Code, Hello, Notify, Push, Req, Resp, Send, SendAck, Welcome, send,
};
use moorline_proto::message::im::{GroupRequest, PullResponse};
use moorline_proto::message::{decode, encode, frame_of};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Fault of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// Every n-th SEND has no answer.
    Lose(u32),
    /// Every n-th SEND is answered twice.
    Duplicate(u32),
    /// Every n-th answer comes after the next one.
    Reorder(u32),
    /// Every n-th SEND is answered DENIED.
    Refuse(u32),
    /// The connection ends at the n-th SEND.
    Drop(u32),
    /// Admits no client: ends each login with this close code.
    NoLogin(CloseReason),
    /// The n-th SEND of a connection and all after it wait this many milliseconds, once.
    Stall(u32, u64),
    /// Heartbeats are not echoed.
    NoPong,
    /// Every n-th delivery to a client does not happen.
    LosePush(u32),
    /// Every n-th delivery to a client happens twice.
    DuplicatePush(u32),
    /// Every n-th delivery to a client comes after the next one.
    ReorderPush(u32),
    /// Every n-th delivery goes to the one who sent it.
    StrayPush(u32),
    /// Not a fault: instead of every n-th delivery comes a NOTIFY, and the message is there to pull.
    NotifyPush(u32),
}

/// Clients and their groups.
#[derive(Default)]
struct World {
    clients: BTreeMap<String, Receiver>,
    groups: HashMap<String, Vec<String>>,
}

struct Receiver {
    stream: TcpStream,
    pushed: u32,
    held: Option<Frame>,
    /// Messages that the client was notified of.
    missed: Vec<Push>,
}

/// Serves until the process ends; where.
pub(crate) fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let world = Arc::new(Mutex::new(World::default()));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let world = Arc::clone(&world);
            std::thread::spawn(move || {
                let end = stream.try_clone();
                Server { fault, world, uid: String::new(), held: None }.serve(stream);
                // The world keeps a handle of it, which would keep it open.
                let _ = end.map(|stream| stream.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

/// A connection.
struct Server {
    fault: Fault,
    world: Arc<Mutex<World>>,
    uid: String,
    held: Option<Frame>,
}

impl Server {
    fn serve(mut self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let (mut decoder, mut buffer) = (Decoder::new(), vec![0; 4 << 10]);
        loop {
            let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
            let mut input = Bytes::copy_from_slice(&buffer[..len]);
            while let Some(frame) = decoder.decode(&mut input, BODY_BYTES_MAX).ok()? {
                let mut out = Vec::new();
                self.answer(&frame, &stream, &mut out)?;
                // Deliveries of other threads go to the same socket: one frame at a time.
                let _world = self.world.lock().expect("no thread fails with it");
                stream.write_all(&out).ok()?;
            }
        }
    }

    /// `None`: end the connection.
    fn answer(&mut self, frame: &Frame, stream: &TcpStream, out: &mut Vec<u8>) -> Option<()> {
        match frame.header.command {
            Command::Hello => self.admit(decode(&frame.body).ok()?, stream, out)?,
            Command::Ping if self.fault == Fault::NoPong => {}
            Command::Ping => Frame::new(Command::Pong, Bytes::new()).encode(out),
            Command::Req => self.answer_req(&decode(&frame.body).ok()?, out),
            Command::Send => {
                self.deliver(&decode(&frame.body).ok()?)?;
                self.answer_send(frame.header.seq, out)?;
            }
            _ => {}
        }
        Some(())
    }

    fn admit(&mut self, hello: Hello, stream: &TcpStream, out: &mut Vec<u8>) -> Option<()> {
        if let Fault::NoLogin(reason) = self.fault {
            frame_of(Command::Close, &Close { code: reason.code(), ..Close::default() }).encode(out);
            return Some(());
        }
        self.uid = hello.uid;
        let receiver =
            Receiver { stream: stream.try_clone().ok()?, pushed: 0, held: None, missed: Vec::new() };
        self.world.lock().ok()?.clients.insert(self.uid.clone(), receiver);
        let welcome = Welcome { version: 1, heartbeat_min_s: 1, uplink_window: 64, ..Welcome::default() };
        frame_of(Command::Welcome, &welcome).encode(out);
        Some(())
    }

    fn answer_req(&self, req: &Req, out: &mut Vec<u8>) {
        let mut world = self.world.lock().expect("no thread fails with it");
        let mut resp = Resp { id: req.id, code: Code::Ok.into(), ..Resp::default() };
        if req.method == "im.group.join" {
            let group: GroupRequest = decode(&req.payload).expect("a GroupRequest");
            world.groups.entry(group.conversation).or_default().push(self.uid.clone());
        } else if let ("im.pull", Some(receiver)) = (&*req.method, world.clients.get_mut(&self.uid)) {
            let messages = std::mem::take(&mut receiver.missed);
            resp.payload = encode(&PullResponse { messages, ..PullResponse::default() });
        }
        frame_of(Command::Resp, &resp).encode(out);
    }

    fn deliver(&self, send: &Send) -> Option<()> {
        let mut world = self.world.lock().ok()?;
        let receivers = match send.target.clone()? {
            send::Target::User(uid) => vec![uid],
            send::Target::Conversation(group) => world.groups.get(&group).cloned().unwrap_or_default(),
        };
        for uid in receivers {
            let stray = matches!(self.fault, Fault::StrayPush(n) if world.clients.get(&uid).is_some_and(|it| (it.pushed + 1).is_multiple_of(n)));
            if let Some(receiver) = world.clients.get_mut(&uid) {
                receiver.pushed += u32::from(stray);
            }
            let uid = if stray { self.uid.clone() } else { uid };
            if let Some(receiver) = world.clients.get_mut(&uid) {
                receiver.push(send.payload.clone(), self.fault);
            }
        }
        Some(())
    }

    #[allow(clippy::disallowed_methods)] // it plays a server that is slow
    fn answer_send(&mut self, cid: u32, out: &mut Vec<u8>) -> Option<()> {
        let hits = |n: u32| cid.is_multiple_of(n);
        let code = if matches!(self.fault, Fault::Refuse(n) if hits(n)) { Code::Denied } else { Code::Ok };
        let ack = SendAck { cid, code: code.into(), ..SendAck::default() };
        let ack = Frame::new(Command::SendAck, encode(&ack));
        match self.fault {
            Fault::Drop(n) if hits(n) => return None,
            Fault::Lose(n) if hits(n) => return Some(()),
            Fault::Reorder(n) if hits(n) => {
                self.held = Some(ack);
                return Some(());
            }
            // The pause is the fault itself: a server that stands still.
            Fault::Stall(n, millis) if cid == n => std::thread::sleep(Duration::from_millis(millis)),
            Fault::Duplicate(n) if hits(n) => ack.encode(out),
            _ => {}
        }
        ack.encode(out);
        if let Some(late) = self.held.take() {
            late.encode(out);
        }
        Some(())
    }
}

impl Receiver {
    fn push(&mut self, payload: Bytes, fault: Fault) {
        self.pushed += 1;
        let mut frame = frame_of(Command::Push, &Push { payload: payload.clone(), ..Push::default() });
        if matches!(fault, Fault::NotifyPush(n) if self.pushed.is_multiple_of(n)) {
            self.missed.push(Push { payload, ..Push::default() });
            frame = frame_of(Command::Notify, &Notify { first: 1, ..Notify::default() });
        }
        (frame.header.seq, frame.header.reliable) = (self.pushed, true);
        let (hits, mut out) = (|n: u32| self.pushed.is_multiple_of(n), Vec::new());
        match fault {
            Fault::LosePush(n) if hits(n) => return,
            Fault::ReorderPush(n) if hits(n) => {
                self.held = Some(frame);
                return;
            }
            Fault::DuplicatePush(n) if hits(n) => frame.encode(&mut out),
            _ => {}
        }
        frame.encode(&mut out);
        if let Some(late) = self.held.take() {
            late.encode(&mut out);
        }
        let _ = self.stream.write_all(&out); // who is gone does not hear it
    }
}

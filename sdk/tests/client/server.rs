//! A gateway and backend in one small blocking server: one thread per connection.

use bytes::{Bytes, BytesMut};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Decoder, Frame};
use moorline_proto::message::client::{
    Close, Code, GoAway, Hello, Ping, Push, Req, Resp, Send, SendAck, Welcome, send,
};
use moorline_proto::message::im::{GroupRequest, GroupResponse, PullRequest, PullResponse};
use moorline_proto::message::{decode, encode, frame_of};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Longer than any step takes; only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

struct Login {
    stream: TcpStream,
    /// Per pushed number: which entry of the inbox.
    pushed: Vec<usize>,
}

#[derive(Default)]
pub(crate) struct State {
    logins: HashMap<String, Login>,
    conversations: BTreeMap<String, Vec<Push>>,
    keys: HashMap<Bytes, (String, u64)>,
    inboxes: HashMap<String, Vec<Push>>,
    /// Entries of the inbox that the user has acked.
    pub(crate) acked: HashMap<String, usize>,
    /// Commands heard, by user.
    pub(crate) heard: Vec<(String, Command)>,
    /// HELLOs with this token are told that it has expired.
    pub(crate) expired: Option<String>,
    pub(crate) is_banned: bool,
    /// SENDs are heard and not answered.
    pub(crate) is_mute: bool,
    pub(crate) hellos: usize,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("tcp://{}", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Waits until `is_so`.
    pub(crate) fn wait(&self, what: &str, mut is_so: impl FnMut(&State) -> bool) {
        let (lock, changed) = &*self.state;
        let waited = changed.wait_timeout_while(lock.lock().unwrap(), PATIENCE, |state| !is_so(state));
        assert!(!waited.unwrap().1.timed_out(), "never: {what}");
    }

    /// Has a client leave for another address at once.
    pub(crate) fn go_away(&self, uid: &str, alternate: &str) {
        let go_away = GoAway { window_ms: 0, alternates: vec![alternate.to_owned()] };
        let mut state = self.state();
        let login = state.logins.get_mut(uid).expect("logged in");
        write(&mut login.stream, &frame_of(Command::GoAway, &go_away));
    }

    pub(crate) fn break_connection(&self, uid: &str) {
        let login = self.state().logins.remove(uid).expect("logged in");
        login.stream.shutdown(Shutdown::Both).unwrap();
    }
}

fn serve(mut stream: TcpStream, state: &(Mutex<State>, Condvar)) {
    let (mut decoder, mut buffer, mut uid) = (Decoder::new(), [0; 4096], String::new());
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let mut bytes = Bytes::copy_from_slice(&buffer[..count]);
        while let Some(frame) = decoder.decode(&mut bytes, 64 << 10).expect("the client keeps the format") {
            let mut state_now = state.0.lock().unwrap();
            let goes_on = state_now.on_frame(&mut uid, &frame, &mut stream);
            drop(state_now);
            state.1.notify_all();
            if !goes_on {
                return;
            }
        }
    }
}

impl State {
    fn on_frame(&mut self, uid: &mut String, frame: &Frame, stream: &mut TcpStream) -> bool {
        self.heard.push((uid.clone(), frame.header.command));
        if frame.header.command != Command::Hello {
            self.on_ack(uid, frame.header.ack);
        }
        match frame.header.command {
            Command::Hello => return self.on_hello(uid, &decode(&frame.body).unwrap(), stream),
            Command::Send if !self.is_mute => self.on_send(uid, frame, stream),
            Command::Req => {
                let req: Req = decode(&frame.body).unwrap();
                if req.method != "silence" {
                    write(stream, &frame_of(Command::Resp, &self.answer(uid, &req)));
                }
            }
            Command::Ping => write(stream, &frame_of(Command::Pong, &Ping::default())),
            Command::Logout => return close(stream, CloseReason::LoggedOut),
            Command::Close => return false,
            _ => {}
        }
        true
    }

    fn on_hello(&mut self, uid: &mut String, hello: &Hello, stream: &mut TcpStream) -> bool {
        self.hellos += 1;
        if self.is_banned {
            return close(stream, CloseReason::AuthFailed);
        }
        if self.expired.as_ref() == Some(&hello.token) {
            return close(stream, CloseReason::TokenExpired);
        }
        uid.clone_from(&hello.uid);
        write(stream, &frame_of(Command::Welcome, &Welcome { version: 1, ..Welcome::default() }));
        let login = Login { stream: stream.try_clone().unwrap(), pushed: Vec::new() };
        self.logins.insert(uid.clone(), login);
        let first = self.acked.get(uid).copied().unwrap_or(0);
        for at in first..self.inboxes.get(uid).map_or(0, Vec::len) {
            self.push(uid, at);
        }
        true
    }

    fn push(&mut self, uid: &str, at: usize) {
        let Some(login) = self.logins.get_mut(uid) else { return };
        login.pushed.push(at);
        let number = u32::try_from(login.pushed.len()).unwrap();
        write(&mut login.stream, &frame_of(Command::Push, &self.inboxes[uid][at]).with_seq(number));
    }

    fn on_ack(&mut self, uid: &str, ack: u32) {
        let Some(login) = self.logins.get(uid) else { return };
        if let Some(last) = ack.checked_sub(1) {
            let entries = login.pushed[last as usize] + 1;
            let acked = self.acked.entry(uid.to_owned()).or_default();
            *acked = entries.max(*acked);
        }
    }

    fn on_send(&mut self, uid: &str, frame: &Frame, stream: &mut TcpStream) {
        let send: Send = decode(&frame.body).unwrap();
        let cid = frame.header.seq;
        let Some(send::Target::User(to)) = send.target else {
            let ack = SendAck { cid, code: Code::NotMember.into(), ..SendAck::default() };
            return write(stream, &frame_of(Command::SendAck, &ack));
        };
        let mut names = [uid, &to];
        names.sort_unstable();
        let conversation = format!("c2c:{}:{}", names[0], names[1]);
        let known = self.keys.get(&send.key).cloned();
        let code = if known.is_some() { Code::Dup } else { Code::Ok };
        let (conversation, seq) = known.unwrap_or_else(|| {
            let places = self.conversations.entry(conversation.clone()).or_default();
            let seq = places.len() as u64 + 1;
            let push = Push {
                message_id: u64::from_be_bytes(send.key[..8].try_into().unwrap()),
                conversation: conversation.clone(),
                seq,
                sender: uid.to_owned(),
                r#type: send.r#type,
                payload: send.payload.clone(),
                ..Push::default()
            };
            places.push(push.clone());
            let inbox = self.inboxes.entry(to.clone()).or_default();
            inbox.push(push);
            let at = inbox.len() - 1;
            self.push(&to, at);
            (conversation, seq)
        });
        self.keys.insert(send.key, (conversation.clone(), seq));
        let ack = SendAck { cid, code: code.into(), conversation, seq, ..SendAck::default() };
        write(stream, &frame_of(Command::SendAck, &ack));
    }

    fn answer(&self, uid: &str, req: &Req) -> Resp {
        let ok = |payload| Resp { id: req.id, payload, ..Resp::default() };
        match &*req.method {
            "im.pull" => {
                let pull = PullRequest::decode(req.payload.clone()).unwrap();
                let places = self.conversations.get(&pull.conversation).cloned().unwrap_or_default();
                let latest = places.len() as u64;
                let to = if pull.to == 0 { latest } else { pull.to };
                let messages =
                    places.into_iter().filter(|push| (pull.from..=to).contains(&push.seq)).collect();
                ok(encode(&PullResponse { messages, latest, ..PullResponse::default() }))
            }
            "im.group.members" => {
                let group = GroupRequest::decode(req.payload.clone()).unwrap().conversation;
                ok(encode(&GroupResponse { members: vec![uid.to_owned(), group], more: false }))
            }
            _ => Resp { id: req.id, code: Code::Unsupported.into(), ..Resp::default() },
        }
    }
}

fn close(stream: &mut TcpStream, reason: CloseReason) -> bool {
    let close = Close { code: reason.code(), reason: reason.text().into(), ..Close::default() };
    write(stream, &frame_of(Command::Close, &close));
    stream.shutdown(Shutdown::Write).unwrap();
    false
}

/// A client that is gone is not an error of the server.
fn write(stream: &mut TcpStream, frame: &Frame) {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    let _ = stream.write_all(&bytes);
}

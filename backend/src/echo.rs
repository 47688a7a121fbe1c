//! Smallest useful handlers: one answers and echoes, one only answers.
//!
//! Example: alice sends `note` to herself. `Mode::Echo` answers the SEND with seq 1 and pushes `note` back to her.

use crate::server::{Event, Handler, Now, Outbox, PushSpec, ReplyTo, SessionId, Up};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::backend::Rank;
use moorline_proto::message::client::{Code, Push, Req, Resp, Send, SendAck, Sub, send};
use moorline_proto::message::{decode, encode};
use std::collections::HashMap;

/// Rooms with their own count of messages; a message to another room is answered RETRY.
const ROOM_COUNTS_MAX: usize = 1 << 20;

/// Reaction of the handler beside its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Pushes a SEND to its own sender back, and a SEND to a conversation to the other members of the room of that
    /// name. Every client may enter every room.
    Echo,
    /// No reaction: SENDs are not decoded. Serves to measure a gateway.
    Acker,
}

/// Handler that answers every SEND with OK and a seq per session, and a REQ `echo` with its payload.
#[derive(Debug)]
pub struct Echo {
    mode: Mode,
    /// Sessions by [`SessionId::slot`].
    sessions: Vec<Peer>,
    /// Last seq of each room.
    rooms: HashMap<String, u64>,
    next_message: u64,
}

#[derive(Debug, Default)]
struct Peer {
    uid: String,
    device: String,
    answered: u64,
}

impl Echo {
    /// Creates a handler with this mode.
    pub fn new(mode: Mode) -> Self {
        Self { mode, sessions: Vec::new(), rooms: HashMap::new(), next_message: 1 }
    }

    fn on_send(&mut self, now: Now, up: &Up, reply: ReplyTo, out: &mut Outbox) {
        let peer = &mut self.sessions[up.session.slot()];
        peer.answered += 1;
        let mut ack = SendAck { seq: peer.answered, time_ms: now.unix_ms, ..Default::default() };
        if self.mode == Mode::Acker {
            return out.answer_send(reply, Code::Ok, ack);
        }
        let Ok(send) = decode::<Send>(&up.body) else {
            peer.answered -= 1;
            return out.answer_send(reply, Code::Invalid, SendAck::default());
        };
        ack.message_id = self.next_message;
        self.next_message += 1;
        if let Some(send::Target::Conversation(room)) = &send.target {
            if self.rooms.len() >= ROOM_COUNTS_MAX && !self.rooms.contains_key(room) {
                return out.answer_send(reply, Code::Retry, SendAck::default());
            }
            let seq = self.rooms.entry(room.clone()).or_default();
            *seq += 1;
            (ack.conversation, ack.seq) = (room.clone(), *seq);
            let push = Push {
                message_id: ack.message_id,
                conversation: room.clone(),
                seq: ack.seq,
                sender: peer.uid.clone(),
                sender_device: peer.device.clone(),
                r#type: send.r#type,
                payload: send.payload,
                time_ms: now.unix_ms,
                ..Push::default()
            };
            let spec = PushSpec::new(Command::Push, Lane::Group);
            out.answer_sent(reply, Code::Ok, ack, Rank::Second);
            return out.push_room(room, Some(up.session), spec, &encode(&push));
        }
        let echo = (send.target == Some(send::Target::User(peer.uid.clone()))).then(|| Push {
            message_id: ack.message_id,
            conversation: format!("c2c:{0}:{0}", peer.uid),
            seq: ack.seq,
            sender: peer.uid.clone(),
            sender_device: peer.device.clone(),
            r#type: send.r#type,
            payload: send.payload,
            time_ms: now.unix_ms,
            ..Push::default()
        });
        out.answer_send(reply, Code::Ok, ack);
        if let Some(echo) = echo {
            let spec = PushSpec::new(Command::Push, Lane::Chat);
            out.push(&[up.session], spec, &encode(&echo));
        }
    }

    /// Enters or leaves a room. Every client may enter every room.
    fn on_room(up: &Up, reply: ReplyTo, out: &mut Outbox) {
        let Ok(Sub { room, .. }) = decode(&up.body) else {
            return out.answer_sub(reply, Code::Invalid, "cannot decode the body as `Sub`");
        };
        if up.command == Command::Unsub {
            out.unbind(up.session, &room);
        } else if !out.bind(up.session, &room) {
            return out.answer_sub(reply, Code::Retry, "a limit of rooms is reached");
        }
        out.answer_sub(reply, Code::Ok, "");
    }

    fn on_req(up: &Up, reply: ReplyTo, out: &mut Outbox) {
        match decode::<Req>(&up.body) {
            Ok(req) if req.method == "echo" => {
                out.answer_req(reply, Code::Ok, Resp { payload: req.payload, ..Default::default() });
            }
            Ok(req) => {
                let reason = format!("unknown method `{}`; use `echo`", req.method);
                out.answer_req(reply, Code::Unsupported, Resp { reason, ..Default::default() });
            }
            Err(_) => out.answer_req(reply, Code::Invalid, Resp::default()),
        }
    }

    fn on_up(&mut self, now: Now, mut up: Up, out: &mut Outbox) {
        let Some(reply) = up.reply.take() else { return };
        match up.command {
            Command::Send => self.on_send(now, &up, reply, out),
            Command::Req => Self::on_req(&up, reply, out),
            Command::Sub | Command::Unsub => Self::on_room(&up, reply, out),
            _ => out.answer(reply, Code::Unsupported, bytes::Bytes::new()),
        }
    }

    fn on_conn_up(&mut self, session: SessionId, uid: String, device: String) {
        let slot = session.slot();
        if self.sessions.len() <= slot {
            self.sessions.resize_with(slot + 1, Peer::default);
        }
        self.sessions[slot] = Peer { uid, device, answered: 0 };
    }
}

impl Handler for Echo {
    type Message = ();

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        match event {
            Event::Up(up) => self.on_up(now, up, out),
            Event::ConnUp { session, login, is_new: true, .. } => {
                self.on_conn_up(session, login.uid, login.device);
            }
            _ => {}
        }
    }
}

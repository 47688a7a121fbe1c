//! The smallest backend: one hall, where everyone hears every message.
//!
//! `cargo run -p moorline-backend --example minimal`, and a gateway with
//! `backend.endpoints = ["127.0.0.1:7100"]` in front. It stores nothing and remembers no keys, so a
//! message that is sent again is heard again: see [`Handler`] for what a real one owes.

use moorline_backend::config::Unproven;
use moorline_backend::server::{Event, Handler, Now, Outbox, PushSpec, Server, SessionId, Up};
use moorline_backend::{BackendConfig, BackendError};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::client::{Code, Push, Send, SendAck};
use moorline_proto::message::{decode, encode};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

#[derive(Default)]
struct Hall {
    online: BTreeMap<SessionId, String>,
    seq: u64,
}

impl Handler for Hall {
    type Message = ();

    fn handle(&mut self, _now: Now, event: Event, out: &mut Outbox) {
        match event {
            Event::ConnUp { session, login, .. } => drop(self.online.insert(session, login.uid)),
            Event::ConnDown { session, .. } => drop(self.online.remove(&session)),
            Event::Up(Up { session, command: Command::Send, body, reply: Some(reply), .. }) => {
                let Ok(Send { payload, .. }) = decode(&body) else {
                    return out.answer_send(reply, Code::Invalid, SendAck::default());
                };
                self.seq += 1;
                let (seq, message_id, conversation) = (self.seq, self.seq, "hall".to_owned());
                let (spoken, sender) = (conversation.clone(), self.online[&session].clone());
                let push = Push { message_id, conversation, seq, sender, payload, ..Push::default() };
                let ack = SendAck { message_id, conversation: spoken, seq, ..SendAck::default() };
                out.answer_send(reply, Code::Ok, ack);
                let others: Vec<_> = self.online.keys().copied().filter(|it| *it != session).collect();
                let spec = PushSpec::new(Command::Push, Lane::Group);
                out.push(&others, spec, &encode(&push));
            }
            Event::Up(Up { reply: Some(reply), .. }) => {
                out.answer(reply, Code::Unsupported, bytes::Bytes::new());
            }
            _ => {}
        }
    }
}

fn main() -> Result<(), BackendError> {
    let mut config = BackendConfig::default();
    config.link.unproven = Unproven::Loopback; // for a trial; link.secrets_file tells gateways from strangers
    let server = Server::bind(&config)?;
    println!("listening on {}", server.address());
    server.run(&mut Hall::default(), &AtomicBool::new(false))
}

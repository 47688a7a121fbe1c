//! The smallest backend: every message goes to every session that is logged in.
//!
//! `cargo run -p moorline-backend --example minimal`, and a gateway with
//! `backend.endpoints = ["127.0.0.1:7100"]` in front.

use moorline_backend::BackendConfig;
use moorline_backend::server::{Event, Handler, Now, Outbox, PushSpec, Server, SessionId};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::client::{Code, Push, Send, SendAck};
use moorline_proto::message::{decode, encode};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

#[derive(Default)]
struct Shout {
    online: BTreeMap<SessionId, String>,
    seq: u64,
}

impl Handler for Shout {
    type Message = ();

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        match event {
            Event::ConnUp { session, login, .. } => drop(self.online.insert(session, login.uid)),
            Event::ConnDown { session, .. } => drop(self.online.remove(&session)),
            Event::Up(up) => {
                let Some(reply) = up.reply else { return };
                let (Command::Send, Ok(send)) = (up.command, decode::<Send>(&up.body)) else {
                    return out.answer(reply, Code::Unsupported, Default::default());
                };
                self.seq += 1;
                let (conversation, seq, sender) =
                    ("hall".to_owned(), self.seq, self.online[&up.session].clone());
                let push = Push {
                    message_id: seq,
                    conversation,
                    seq,
                    sender,
                    r#type: send.r#type,
                    payload: send.payload,
                    time_ms: now.unix_ms,
                    ..Default::default()
                };
                let conversation = push.conversation.clone();
                out.answer_send(
                    reply,
                    Code::Ok,
                    SendAck { message_id: seq, conversation, seq, ..Default::default() },
                );
                let others: Vec<_> = self.online.keys().copied().filter(|it| *it != up.session).collect();
                let spec = PushSpec { command: Command::Push, lane: Lane::Group, want_ack: false, ttl_ms: 0 };
                out.push(&others, spec, &encode(&push));
            }
            _ => {}
        }
    }
}

fn main() -> Result<(), moorline_backend::BackendError> {
    let server = Server::bind(&BackendConfig::default())?;
    println!("listening on {}", server.address());
    server.run(&mut Shout::default(), &AtomicBool::new(false))
}

//! Frames from the gateway: the state table decides whether a frame is lawful, this file what to do with it.

use super::Core;
use super::connection_state::Ending;
use super::downlink::Admission;
use super::event::{ClosedWhy, Event, Lost, Notice, RequestError};
use super::inbox::PullFailure;
use super::outbox::Uplink;
use super::requests::{Answer, Owner};
use super::rooms::Verdict;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::client::{Event as ProtocolEvent, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame};
use moorline_proto::message::client::{Code, Kick, Notify, Push, Resp, SendAck, Throttle, Welcome};
use moorline_proto::message::decode;
use moorline_proto::message::im::{ConversationsResponse, PullResponse, Signal};
use moorline_proto::time::{Duration, Instant};
use prost::Message as _;

/// The application command of signals [P-11.5].
pub(super) const SIGNAL: u8 = 0x40;

impl Core {
    /// Takes one plain frame; the connection is up.
    pub(super) fn handle_frame(&mut self, now: Instant, frame: &Frame) {
        let Some(state) = self.connection.state() else {
            // LOGOUT is out, and its answer is all that counts.
            if frame.header.command == Command::Close {
                self.end(now, Ending::Closed(ClosedWhy::LoggedOut));
            }
            return;
        };
        let seq = frame.header.seq;
        let transition = state.on(ProtocolEvent::Received(frame.header.command));
        if transition == Transition::Broken {
            self.end(now, Ending::lost(Lost::Protocol(CloseReason::Unexpected)));
            return;
        }
        if state.is_logged_in() {
            let admission = self.inbox.admit(now, seq);
            if frame.header.flags.contains(Flags::ACK_REQ) {
                self.inbox.downlink_mut().on_ack_wanted(now, seq);
            }
            match admission {
                Admission::New => {}
                Admission::Again => return,
                Admission::Beyond => {
                    self.end(now, Ending::lost(Lost::Protocol(CloseReason::Window)));
                    return;
                }
            }
        }
        if let Transition::To(next) = transition {
            self.connection.on_state(next);
            if let Err(reason) = self.on_frame(now, frame) {
                self.end(now, Ending::lost(Lost::Protocol(reason)));
                return;
            }
        }
        let is_settled_here = !matches!(frame.header.command, Command::Push | Command::Notify);
        if is_settled_here && self.connection.is_logged_in() && state.is_logged_in() {
            self.inbox.settle(now, seq);
        }
    }

    fn on_frame(&mut self, now: Instant, frame: &Frame) -> Result<(), CloseReason> {
        let body = &frame.body;
        match frame.header.command {
            Command::Welcome => self.on_welcome(now, &decode(body)?)?,
            Command::SendAck => {
                let ack: SendAck = decode(body)?;
                if matches!(Code::try_from(ack.code), Ok(Code::Ok | Code::Dup)) {
                    self.inbox.handle_own(now, &ack, &mut self.outputs);
                }
                self.outbox.handle_ack(now, ack, &mut self.random, &mut self.outputs);
            }
            Command::Push => {
                let push: Push = decode(body)?;
                self.inbox.handle_push(now, frame.header.seq, push, &mut self.outputs);
            }
            Command::Notify => {
                let Notify { conversation, latest, first } = decode(body)?;
                let conversation =
                    self.inbox.handle_notify(now, &conversation, latest, first, frame.header.seq);
                self.outputs.push(Event::Notice(Notice::New { conversation, latest }));
            }
            Command::Resp => {
                let resp: Resp = decode(body)?;
                if let Some(answer) = self.requests.handle_resp(now, resp) {
                    self.on_answer(now, answer);
                }
            }
            // Any frame answers a PING, a PONG must not [P-7.5].
            Command::Ping => self.inbox.downlink_mut().on_ack_wanted(now, 0),
            Command::GoAway => {
                self.connection.on_go_away(now, decode(body)?, &mut self.random);
            }
            Command::Throttle => {
                let throttle: Throttle = decode(body)?;
                self.connection.on_throttle(now, Duration::from_millis(throttle.retry_after_ms.into()));
            }
            Command::Kick => {
                let kick: Kick = decode(body)?;
                let Kick { code, may_reconnect, reason } = kick.clone();
                self.outputs.push(Event::Notice(Notice::Kicked { code, reason, may_reconnect }));
                let ending = self.connection.on_kick(kick);
                self.end(now, ending);
            }
            Command::Close => {
                let ending = self.connection.on_close(decode(body)?);
                self.end(now, ending);
            }
            Command::App(SIGNAL) => {
                let Signal { conversation, payload, sender, sender_device } = decode(body)?;
                let conversation = conversation.into();
                self.outputs.push(Event::Notice(Notice::Signal {
                    conversation,
                    sender,
                    sender_device,
                    payload,
                }));
            }
            Command::App(command) => {
                self.outputs.push(Event::Notice(Notice::App { command, body: body.clone() }));
            }
            Command::SubAck => match self.rooms.handle_ack(now, decode(body)?) {
                Some(Verdict::Entered(room)) => {
                    self.outputs.push(Event::Notice(Notice::RoomEntered { room }));
                }
                Some(Verdict::Refused(room, code, reason)) => {
                    self.outputs.push(Event::Notice(Notice::RoomRefused { room, code, reason }));
                }
                None => {}
            },
            // Frames that only show that the gateway lives.
            _ => {}
        }
        Ok(())
    }

    fn on_welcome(&mut self, now: Instant, welcome: &Welcome) -> Result<(), CloseReason> {
        if welcome.version != u32::from(PROTOCOL_VERSION) {
            return Err(CloseReason::BadVersion);
        }
        self.connection.on_welcome(now, welcome);
        self.uplink = Uplink::new(welcome);
        self.transport.on_welcome(now, welcome, self.config.tuning.pong_timeout, &mut self.random);
        self.outbox.on_login(welcome.resumed);
        if !welcome.resumed {
            self.inbox.downlink_mut().on_new_session();
            self.rooms.on_new_session(now);
            // A message that came meanwhile may be a hole at the end, which no push shows.
            if self.inbox.is_following() {
                self.requests.ask_latest(now, "");
            }
        }
        self.outputs.push(Event::Notice(Notice::LoggedIn { resumed: welcome.resumed }));
        Ok(())
    }

    pub(super) fn on_answer(&mut self, now: Instant, answer: Answer) {
        let Answer { id, owner, result } = answer;
        let (conversation, to) = match owner {
            Owner::Gap { conversation, to } => (conversation, to),
            Owner::Application => return self.outputs.push(Event::Response { id, result }),
            Owner::Sync => {
                let answer = result.ok().and_then(|payload| ConversationsResponse::decode(payload).ok());
                let Some(answer) = answer else { return };
                for it in &answer.conversations {
                    self.inbox.handle_latest(now, &it.id, it.latest);
                }
                if let Some(last) = answer.conversations.last().filter(|_| answer.more) {
                    self.requests.ask_latest(now, &last.id);
                }
                return;
            }
        };
        let page = match result {
            Ok(payload) => PullResponse::decode(payload).map_err(|_| PullFailure::Never),
            Err(RequestError::Refused { code, .. }) if code != Code::Retry => Err(PullFailure::Never),
            Err(_) => Err(PullFailure::Later),
        };
        self.inbox.handle_pull(now, &conversation, to, page, &mut self.random, &mut self.outputs);
    }
}

//! Frames from the gateway: the state table decides whether a frame is lawful, this file what to do with it.

use super::Core;
use super::connection_state::Ending;
use super::downlink::Admission;
use super::event::{ClosedWhy, Event, Lost, Notice, RequestError};
use super::inbox::PullFailure;
use super::limits;
use super::outbox::Uplink;
use super::requests::{Answer, Owner};
use super::rooms::Verdict;
use bytes::Bytes;
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::client::{Event as ProtocolEvent, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Flags, Frame, Lane};
use moorline_proto::message::client::{Close, Code, Kick, Notify, Push, Resp, SendAck, Throttle, Welcome};
use moorline_proto::message::decode;
use moorline_proto::message::im::{ConversationsResponse, Signal};
use moorline_proto::time::Instant;

/// The application command of signals [P-11.5].
pub(super) const SIGNAL: u8 = 0x40;

/// Fault of a frame.
enum Fault {
    /// The gateway does not speak the protocol: the connection ends.
    Connection(CloseReason),
    /// The frame has a value that no valid frame has. It is dropped and acknowledged, or it would come again for ever.
    Frame(&'static str),
}

impl From<CloseReason> for Fault {
    fn from(reason: CloseReason) -> Self {
        Self::Connection(reason)
    }
}

impl From<&'static str> for Fault {
    fn from(reason: &'static str) -> Self {
        Self::Frame(reason)
    }
}

/// The notice of an application frame.
fn app(command: u8, body: &Bytes) -> Result<Notice, Fault> {
    if command != SIGNAL {
        let body = Bytes::copy_from_slice(body); // a slice would hold the whole block that was read
        return Ok(Notice::App { command, body });
    }
    let signal: Signal = decode(body)?;
    limits::check_signal(&signal)?;
    let Signal { conversation, payload, sender, sender_device } = signal;
    let (conversation, payload) = (conversation.into(), Bytes::copy_from_slice(&payload));
    Ok(Notice::Signal { conversation, sender, sender_device, payload })
}

/// The notice of an answer about a room.
fn room(verdict: Verdict) -> Notice {
    match verdict {
        Verdict::Entered(room) => Notice::RoomEntered { room },
        Verdict::Refused(room, code, reason) => {
            Notice::RoomRefused { room, code, reason: limits::reason(reason) }
        }
    }
}

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
            let may_wait = matches!(frame.header.lane, Lane::Group | Lane::Bulk);
            let admission = self.inbox.admit(now, seq, may_wait);
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
            match self.on_frame(now, frame) {
                Ok(()) => {}
                Err(Fault::Connection(reason)) => {
                    self.end(now, Ending::lost(Lost::Protocol(reason)));
                    return;
                }
                Err(Fault::Frame(reason)) => {
                    self.inbox.settle(now, seq);
                    let command = frame.header.command.byte();
                    self.outputs.push(Event::Notice(Notice::FrameDropped { command, reason }));
                    return;
                }
            }
        }
        let is_settled_here = !matches!(frame.header.command, Command::Push | Command::Notify);
        if is_settled_here && self.connection.is_logged_in() && state.is_logged_in() {
            self.inbox.settle(now, seq);
        }
    }

    fn on_frame(&mut self, now: Instant, frame: &Frame) -> Result<(), Fault> {
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
            // Both are reliable [P-1.5]: without a number neither could be acknowledged, nor told from a repetition.
            Command::Push | Command::Notify if frame.header.seq == 0 => {
                return Err(CloseReason::BadHeader.into());
            }
            Command::Push => {
                let push: Push = decode(body)?;
                limits::check_push(&push)?;
                self.inbox.handle_push(now, frame.header.seq, push, &mut self.outputs);
            }
            Command::Notify => {
                let notify: Notify = decode(body)?;
                limits::check_notify(&notify)?;
                let Notify { conversation, latest, first } = notify;
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
                let super::CoreConfig { alternates, is_proved, .. } = &self.config;
                self.connection.on_go_away(now, &decode(body)?, alternates, *is_proved, &mut self.random);
            }
            Command::Throttle => {
                let throttle: Throttle = decode(body)?;
                self.connection.on_throttle(now, limits::pause(throttle.retry_after_ms));
            }
            Command::Kick => {
                let mut kick: Kick = decode(body)?;
                kick.reason = limits::reason(kick.reason);
                let Kick { code, may_reconnect, reason } = kick.clone();
                self.outputs.push(Event::Notice(Notice::Kicked { code, reason, may_reconnect }));
                let ending = self.connection.on_kick(kick);
                self.end(now, ending);
            }
            Command::Close => {
                let mut close: Close = decode(body)?;
                close.reason = limits::reason(close.reason);
                let ending = self.connection.on_close(close);
                self.end(now, ending);
            }
            Command::App(command) => self.outputs.push(Event::Notice(app(command, body)?)),
            Command::SubAck => {
                let verdict = self.rooms.handle_ack(now, decode(body)?);
                if let Some(verdict) = verdict {
                    self.outputs.push(Event::Notice(room(verdict)));
                }
            }
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
                self.requests.ask_latest(now, "", 0);
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
            Owner::Sync { page } => {
                let answer: Option<ConversationsResponse> = result
                    .ok()
                    .and_then(|payload| limits::decode_list(payload, limits::CONVERSATIONS_PAGE_MAX));
                let Some(answer) = answer else { return };
                for it in &answer.conversations {
                    self.inbox.handle_latest(now, &it.id, it.latest);
                }
                let has_more = answer.more && page < limits::SYNC_PAGES_MAX;
                if let Some(last) = answer.conversations.last().filter(|_| has_more)
                    && limits::check_place(&last.id, 0).is_ok()
                {
                    self.requests.ask_latest(now, &last.id, page + 1);
                }
                return;
            }
        };
        let page = match result {
            Ok(payload) => limits::page(payload).ok_or(PullFailure::Never),
            Err(RequestError::Refused { code, .. }) if code != Code::Retry => Err(PullFailure::Never),
            Err(_) => Err(PullFailure::Later),
        };
        self.inbox.handle_pull(now, &conversation, to, page, &mut self.random, &mut self.outputs);
    }
}

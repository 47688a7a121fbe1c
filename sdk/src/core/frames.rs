//! Frames from the gateway: the state table decides whether a frame is lawful, this file what to do with it.

use super::downlink::Admission;
use super::event::{ClosedWhy, Event, Lost, Repeat, RequestError, TokenWhy};
use super::inbox::{Hole, PULL_PAGE, PullFailure};
use super::line::{EXPIRED_MAX, Phase};
use super::outbox::Uplink;
use super::pulse::Pulse;
use super::requests::{Answer, Owner, Question};
use super::rooms::Verdict;
use super::{Core, TokenSource};
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::connection::client::{Event as LineEvent, Transition};
use moorline_proto::error::{CloseReason, may_reconnect};
use moorline_proto::frame::compress::ACCEPT_LZ4;
use moorline_proto::frame::{BODY_BYTES_CEILING, BODY_BYTES_MAX, Batch, Command, Flags, Frame};
use moorline_proto::message::client::{
    Close, Code, GoAway, Kick, Notify, Push, Resp, SendAck, Throttle, Welcome,
};
use moorline_proto::message::im::{ConversationsResponse, PullRequest, PullResponse, Signal};
use moorline_proto::message::{decode, encode};
use moorline_proto::time::{Duration, Instant};
use prost::Message as _;

/// The application command of signals [P-11.5].
pub(super) const SIGNAL: u8 = 0x40;
/// Time after which a pull of a hole counts as failed.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn handle_frame(&mut self, now: Instant, frame: Frame) {
        let frame = match frame.into_plain(BODY_BYTES_CEILING) {
            Ok(frame) => frame,
            Err(reason) => return self.lose(now, Lost::Protocol(reason), None),
        };
        if !frame.header.flags.contains(Flags::BATCH) {
            self.handle_single(now, &frame);
            return;
        }
        for inner in Batch::new(frame.body) {
            let inner = inner.and_then(|inner| inner.into_plain(BODY_BYTES_CEILING));
            if !matches!(self.line.phase, Phase::Up(..) | Phase::LoggingOut(_)) {
                return;
            }
            match inner {
                Ok(inner) => self.handle_single(now, &inner),
                Err(reason) => self.lose(now, Lost::Protocol(reason), None),
            }
        }
    }

    fn handle_single(&mut self, now: Instant, frame: &Frame) {
        let state = match self.line.phase {
            Phase::Up(state, _) => state,
            Phase::LoggingOut(_) if frame.header.command == Command::Close => {
                self.hang_up(ClosedWhy::LoggedOut);
                return;
            }
            _ => return,
        };
        let seq = frame.header.seq;
        let transition = state.on(LineEvent::Received(frame.header.command));
        if transition == Transition::Broken {
            self.lose(now, Lost::Protocol(CloseReason::Unexpected), None);
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
                    self.lose(now, Lost::Protocol(CloseReason::Window), None);
                    return;
                }
            }
        }
        if let Transition::To(next) = transition {
            if next.is_logged_in() && state.is_logged_in() {
                self.line.phase = Phase::Up(next, Instant::FAR_FUTURE);
            }
            if let Err(reason) = self.on_frame(now, frame) {
                self.lose(now, Lost::Protocol(reason), None);
                return;
            }
        }
        let is_settled_here = !matches!(frame.header.command, Command::Push | Command::Notify);
        if is_settled_here && self.line.is_logged_in() && state.is_logged_in() {
            self.inbox.settle(now, seq);
        }
    }

    fn on_frame(&mut self, now: Instant, frame: &Frame) -> Result<(), CloseReason> {
        let body = &frame.body;
        match frame.header.command {
            Command::Welcome => self.on_welcome(now, &decode(body)?)?,
            Command::SendAck => self.on_send_ack(now, decode(body)?),
            Command::Push => {
                let push: Push = decode(body)?;
                self.inbox.handle_push(now, frame.header.seq, push, &mut self.events);
            }
            Command::Notify => {
                let Notify { conversation, latest, first } = decode(body)?;
                let conversation =
                    self.inbox.handle_notify(now, &conversation, latest, first, frame.header.seq);
                self.events.push_back(Event::Notify { conversation, latest });
            }
            Command::Resp => {
                let resp: Resp = decode(body)?;
                if let Some(answer) = self.requests.handle_resp(now, resp) {
                    self.on_answer(now, answer);
                }
            }
            // Any frame answers it, a PONG may not [P-7.5].
            Command::Ping => self.inbox.downlink_mut().on_ack_wanted(now, 0),
            Command::GoAway => self.on_go_away(now, decode(body)?),
            Command::Throttle => {
                let throttle: Throttle = decode(body)?;
                let until = now + Duration::from_millis(throttle.retry_after_ms.into());
                self.line.throttled_until = Some(until);
            }
            Command::Kick => self.on_kick(now, decode(body)?),
            Command::Close => self.on_close(now, decode(body)?),
            Command::App(SIGNAL) => {
                let Signal { conversation, payload, sender, sender_device } = decode(body)?;
                let conversation = conversation.into();
                self.events.push_back(Event::Signal { conversation, sender, sender_device, payload });
            }
            Command::App(command) => {
                self.events.push_back(Event::App { command, body: body.clone() });
            }
            Command::SubAck => match self.rooms.handle_ack(now, decode(body)?) {
                Some(Verdict::Entered(room)) => self.events.push_back(Event::RoomEntered { room }),
                Some(Verdict::Refused(room, code, reason)) => {
                    self.events.push_back(Event::RoomRefused { room, code, reason });
                }
                None => {}
            },
            // Heard, which is all they are for.
            _ => {}
        }
        Ok(())
    }

    fn on_welcome(&mut self, now: Instant, welcome: &Welcome) -> Result<(), CloseReason> {
        if welcome.version != u32::from(PROTOCOL_VERSION) {
            return Err(CloseReason::BadVersion);
        }
        self.line.on_welcome(now, welcome);
        let body_max = if welcome.body_max == 0 { BODY_BYTES_MAX } else { welcome.body_max };
        let body_max = body_max.min(BODY_BYTES_CEILING) as usize;
        let accepts_lz4 = welcome.accept & ACCEPT_LZ4 != 0;
        self.uplink = Uplink { window: welcome.uplink_window, body_max, accepts_lz4 };
        let patience = self.config.tuning.pong_timeout;
        self.pulse = Some(Pulse::new(welcome, patience, now, &mut self.random));
        self.outbox.on_login(welcome.resumed);
        if !welcome.resumed {
            self.inbox.downlink_mut().on_new_session();
            self.rooms.on_new_session(now);
            self.sync(now);
        }
        self.tune_pulse(now);
        self.events.push_back(Event::LoggedIn { resumed: welcome.resumed });
        Ok(())
    }

    fn on_send_ack(&mut self, now: Instant, ack: SendAck) {
        if matches!(Code::try_from(ack.code), Ok(Code::Ok | Code::Dup)) {
            self.inbox.handle_own(now, &ack, &mut self.events);
        }
        self.outbox.handle_ack(now, ack, &mut self.random, &mut self.events);
    }

    fn on_go_away(&mut self, now: Instant, go_away: GoAway) {
        let window = Duration::from_millis(go_away.window_ms.into());
        let alternate = go_away.alternates.into_iter().next().map(Into::into);
        self.line.on_go_away(now, window, alternate, &mut self.random);
    }

    fn on_kick(&mut self, now: Instant, kick: Kick) {
        let Kick { code, may_reconnect, reason } = kick;
        self.events.push_back(Event::Kicked { code, reason: reason.clone(), may_reconnect });
        if may_reconnect {
            self.line.forget_session();
            self.lose(now, Lost::Told { code, reason }, None);
        } else {
            self.hang_up(ClosedWhy::Told { code, reason });
        }
    }

    fn on_close(&mut self, now: Instant, close: Close) {
        let Close { code, reason, retry_after_ms } = close;
        let is_expired = code == CloseReason::TokenExpired.code();
        if is_expired && self.config.token == TokenSource::Ask && self.line.expired < EXPIRED_MAX {
            self.line.expired += 1;
            self.line.token = None;
            self.line.token_why = TokenWhy::Expired;
            self.lose(now, Lost::Told { code, reason }, None);
        } else if may_reconnect(code) {
            let after = Duration::from_millis(retry_after_ms.into());
            self.lose(now, Lost::Told { code, reason }, Some(after));
        } else {
            self.hang_up(ClosedWhy::Told { code, reason });
        }
    }

    pub(super) fn ask_for(&mut self, now: Instant, hole: Hole) {
        let Hole { conversation, from, to } = hole;
        let pull =
            PullRequest { conversation: conversation.to_string(), from, to, limit: PULL_PAGE, confirmed: 0 };
        let question = Question {
            owner: Owner::Gap { conversation, to },
            method: "im.pull".into(),
            payload: encode(&pull),
            deadline: now + PULL_TIMEOUT,
            repeat: Repeat::UntilAnswered,
        };
        self.requests.push(now, question);
    }

    pub(super) fn on_answer(&mut self, now: Instant, answer: Answer) {
        let Answer { id, owner, result } = answer;
        let (conversation, to) = match owner {
            Owner::Gap { conversation, to } => (conversation, to),
            Owner::Application => return self.events.push_back(Event::Response { id, result }),
            Owner::Sync => {
                let answer = result.ok().and_then(|payload| ConversationsResponse::decode(payload).ok());
                let Some(answer) = answer else { return };
                for it in &answer.conversations {
                    self.inbox.handle_latest(now, &it.id, it.latest);
                }
                if let Some(last) = answer.conversations.last().filter(|_| answer.more) {
                    self.ask_latest(now, &last.id);
                }
                return;
            }
        };
        let page = match result {
            Ok(payload) => PullResponse::decode(payload).map_err(|_| PullFailure::Never),
            Err(RequestError::Refused { code, .. }) if code != Code::Retry => Err(PullFailure::Never),
            Err(_) => Err(PullFailure::Later),
        };
        self.inbox.handle_pull(now, &conversation, to, page, &mut self.random, &mut self.events);
    }
}

//! Outputs of [`super::Im`]: one queue, in the order of their causes.
//!
//! alice sends `hi` to bob: the queue gets [`Output::AnswerSend`] for alice, then [`Output::Push`] for bob's devices.
//! The owner drains the queue with [`super::Im::poll_output`] after each input and performs one output after the other.

use super::refusal::Refused;
use super::request::Answer;
use super::tasks::Task;
use super::{ApiAnswer, ApiBody, ApiReply, BUSY_RETRY_MS, WebhookCall};
use crate::server::{Kick, Outbox, PushId, PushSpec, ReplyTo, RoomNumber, SessionId};
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Rank;
use moorline_proto::message::client::{Code, Resp, SendAck};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Lists of sessions that are kept for later pushes, so that a push does not allocate.
const SPARE_LISTS_MAX: usize = 16;
/// Capacity of the largest list that is kept.
const SPARE_CAPACITY_MAX: usize = 65_536;

/// One thing for the owner of an [`super::Im`] to do.
#[derive(Debug)]
pub enum Output {
    /// Answers a SEND.
    AnswerSend {
        /// The question.
        reply: ReplyTo,
        /// Result code.
        code: Code,
        /// The answer, with `cid` and `code` unset.
        answer: SendAck,
        /// Rank of the message.
        rank: Rank,
    },
    /// Answers a REQ.
    AnswerReq {
        /// The question.
        reply: ReplyTo,
        /// Result code.
        code: Code,
        /// The answer, with `id` and `code` unset.
        answer: Resp,
    },
    /// Answers a SUB or an UNSUB, without a change of a room's members.
    AnswerSub {
        /// The question.
        reply: ReplyTo,
        /// Result code.
        code: Code,
        /// Reason for people; empty with [`Code::Ok`].
        reason: Cow<'static, str>,
    },
    /// Answers a question of an unsupported kind, without a body.
    Refuse {
        /// The question.
        reply: ReplyTo,
        /// Result code.
        code: Code,
    },
    /// Answers a call of the server API.
    AnswerApi {
        /// The call.
        reply: ApiReply,
        /// The answer.
        answer: ApiAnswer,
    },
    /// Sends one payload to sessions.
    Push {
        /// Number of the push; later pushes have larger numbers.
        push: PushId,
        /// Receivers, at least one. [`super::Im::reuse`] takes the list back.
        sessions: Vec<SessionId>,
        /// Room of a group: the push follows what went there.
        room: Option<RoomNumber>,
        /// Push options.
        spec: PushSpec,
        /// Body of the push.
        body: Bytes,
    },
    /// Sends a payload to the members of a room.
    PushRoom {
        /// Name of the room.
        room: String,
        /// Sender, which does not get the payload. If the sender is not in the room, nothing is sent. `None`: the
        /// server API, which reaches every member.
        from: Option<SessionId>,
        /// Push options.
        spec: PushSpec,
        /// Body of the push.
        body: Bytes,
    },
    /// Makes sessions the members of a group's room, see [`Outbox::fill_room`].
    FillRoom {
        /// Number of the room.
        room: RoomNumber,
        /// All members.
        sessions: Vec<SessionId>,
    },
    /// Puts sessions into a group's room, and takes others out.
    ChangeRoom {
        /// Number of the room.
        room: RoomNumber,
        /// New members.
        enter: Vec<SessionId>,
        /// Sessions that are members no more.
        leave: Vec<SessionId>,
    },
    /// Sends one payload to the members of a group's room.
    PushToRoom {
        /// Number of the room.
        room: RoomNumber,
        /// Number of the push; later pushes have larger numbers.
        push: PushId,
        /// Member who does not get it.
        except: Option<SessionId>,
        /// Push options.
        spec: PushSpec,
        /// Body of the push.
        body: Bytes,
    },
    /// Ends a group's room.
    CloseRoom {
        /// Number of the room.
        room: RoomNumber,
    },
    /// Ends a login.
    Kick {
        /// The session.
        session: SessionId,
        /// Close code and reason.
        kick: Kick,
    },
    /// Puts a session into a room, then answers the SUB: [`Code::Ok`], or [`Code::Retry`] at a limit of rooms.
    EnterRoom {
        /// The question.
        reply: ReplyTo,
        /// The session.
        session: SessionId,
        /// Name of the room.
        room: String,
    },
    /// Removes a session from a room.
    LeaveRoom {
        /// The session.
        session: SessionId,
        /// Name of the room.
        room: String,
    },
    /// Delivers messages to the endpoint of a webhook; [`super::Im::handle_webhook`] takes the result.
    CallWebhook(WebhookCall),
    /// Begins the next turn at once: there is work that waits for no event.
    TurnAgain,
}

impl Output {
    /// Reason of [`Code::Retry`] when a session cannot enter a room.
    pub const ROOM_LIMIT: &'static str = "a limit of rooms is reached";

    /// Performs the output on the link; `call` takes deliveries of webhooks. Returns the receivers of a push, for
    /// [`super::Im::reuse`].
    pub fn perform(self, out: &mut Outbox, call: &mut dyn FnMut(WebhookCall)) -> Option<Vec<SessionId>> {
        match self {
            Self::AnswerSend { reply, code, answer, rank } => out.answer_sent(reply, code, answer, rank),
            Self::AnswerReq { reply, code, answer } => out.answer_req(reply, code, answer),
            Self::AnswerSub { reply, code, reason } => out.answer_sub(reply, code, &reason),
            Self::Refuse { reply, code } => out.answer(reply, code, Bytes::new()),
            Self::AnswerApi { reply, answer } => reply.give(answer),
            Self::Push { push, sessions, room, spec, body } => {
                out.push_as(push, &sessions, room, spec, &body);
                return Some(sessions);
            }
            Self::PushRoom { room, from, spec, body } => {
                if from.is_none_or(|from| out.is_bound(from, &room)) {
                    out.push_room(&room, from, spec, &body);
                }
            }
            Self::FillRoom { room, sessions } => out.fill_room(room, sessions),
            Self::ChangeRoom { room, enter, leave } => out.change_room(room, &enter, &leave),
            Self::PushToRoom { room, push, except, spec, body } => {
                out.push_to_room(room, push, except, spec, &body);
            }
            Self::CloseRoom { room } => out.close_room(room),
            Self::Kick { session, kick } => out.kick(session, kick),
            Self::EnterRoom { reply, session, room } => {
                if out.bind(session, &room) {
                    out.answer_sub(reply, Code::Ok, "");
                } else {
                    out.answer_sub(reply, Code::Retry, Self::ROOM_LIMIT);
                }
            }
            Self::LeaveRoom { session, room } => out.unbind(session, &room),
            Self::CallWebhook(delivery) => call(delivery),
            Self::TurnAgain => out.come_back(),
        }
        None
    }
}

/// Place of an answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// A client's question.
    Link(ReplyTo),
    /// A call of the server API.
    Api(ApiReply),
}

/// The queue of outputs.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    queue: VecDeque<Output>,
    last_push: u64,
    spare: Vec<Vec<SessionId>>,
    /// SENDs and requests refused since the start.
    refused: u64,
}

impl Outputs {
    /// Takes the oldest output.
    pub(super) fn poll(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    /// Keeps the list of a performed push for a later push.
    pub(super) fn reuse(&mut self, mut sessions: Vec<SessionId>) {
        if self.spare.len() < SPARE_LISTS_MAX && sessions.capacity() <= SPARE_CAPACITY_MAX {
            sessions.clear();
            self.spare.push(sessions);
        }
    }

    pub(super) fn put(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    /// Answers a SEND that was refused, or is to be tried again.
    pub(super) fn answer_send(&mut self, reply: Reply, code: Code, answer: SendAck) {
        self.answer_sent(reply, code, answer, Rank::First);
    }

    /// Answers a SEND of a message of this rank.
    pub(super) fn answer_sent(&mut self, reply: Reply, code: Code, answer: SendAck, rank: Rank) {
        match reply {
            Reply::Link(reply) => self.put(Output::AnswerSend { reply, code, answer, rank }),
            Reply::Api(reply) => self.answer_api(reply, ApiAnswer::of_send(code, answer)),
        }
    }

    pub(super) fn answer_req(&mut self, reply: Reply, code: Code, answer: Resp) {
        match reply {
            Reply::Link(reply) => self.put(Output::AnswerReq { reply, code, answer }),
            Reply::Api(reply) => self.answer_api(reply, ApiAnswer::of_req(code, answer)),
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, reply: Reply, result: Answer) {
        match result {
            Ok(payload) => self.answer_req(reply, Code::Ok, Resp { payload, ..Default::default() }),
            Err((code, reason)) => {
                self.answer_req(reply, code, Resp { reason: reason.into_owned(), ..Default::default() });
            }
        }
    }

    /// Refuses a SEND.
    pub(super) fn refuse_send(&mut self, reply: Reply, (code, reason): Refused) {
        self.refused += 1;
        self.answer_send(reply, code, SendAck { reason: reason.into_owned(), ..Default::default() });
    }

    /// Refuses a request.
    pub(super) fn refuse(&mut self, reply: Reply, refused: Refused) {
        self.refused += 1;
        self.answer(reply, Err(refused));
    }

    /// Refuses what a client asks for.
    pub(super) fn refuse_task(&mut self, task: Task, refused: Refused) {
        match task {
            Task::Send(_, _, reply) | Task::LateSend(_, _, reply) => self.refuse_send(reply, refused),
            Task::Request(_, _, reply) => self.refuse(reply, refused),
            Task::Enter(_, _, reply) => {
                let (code, reason) = refused;
                self.put(Output::AnswerSub { reply, code, reason });
            }
            Task::Admitted(task) => self.refuse_task(*task, refused),
            _ => {} // nobody waits for an answer
        }
    }

    /// Answers a request whose read is done.
    pub(super) fn answer_read(&mut self, reply: Reply, answer: Answer) {
        match answer {
            Ok(payload) => self.answer(reply, Ok(payload)),
            Err(refused) => self.refuse(reply, refused),
        }
    }

    /// Number of SENDs and requests refused since the start.
    pub(super) const fn refused(&self) -> u64 {
        self.refused
    }

    /// Answers a call of the server API with its result.
    pub(super) fn answer_api_result(&mut self, reply: ApiReply, result: Result<ApiBody, Refused>) {
        self.answer_api(reply, ApiAnswer::of(result));
    }

    /// Answers an UP that finds the queue of its session full.
    pub(super) fn refuse_for_now(&mut self, command: Command, reply: ReplyTo) {
        let reason = "the queue of this session is full: too many of its requests wait for an answer";
        let (code, retry_after_ms) = (Code::Retry, BUSY_RETRY_MS);
        match command {
            Command::Send => {
                let answer = SendAck { retry_after_ms, reason: reason.into(), ..Default::default() };
                self.put(Output::AnswerSend { reply, code, answer, rank: Rank::First });
            }
            Command::Req => {
                let answer = Resp { retry_after_ms, reason: reason.into(), ..Default::default() };
                self.put(Output::AnswerReq { reply, code, answer });
            }
            _ => self.put(Output::AnswerSub { reply, code, reason: reason.into() }),
        }
    }

    /// Answers a SEND that may be tried again.
    pub(super) fn put_off_send(&mut self, reply: Reply, reason: &str, retry_after_ms: u32) {
        let answer = SendAck { retry_after_ms, reason: reason.to_owned(), ..Default::default() };
        self.answer_send(reply, Code::Retry, answer);
    }

    /// Answers a request that may be tried again.
    pub(super) fn put_off_req(&mut self, reply: Reply, reason: &str, retry_after_ms: u32) {
        let answer = Resp { retry_after_ms, reason: reason.to_owned(), ..Default::default() };
        self.answer_req(reply, Code::Retry, answer);
    }

    pub(super) fn answer_api(&mut self, reply: ApiReply, answer: ApiAnswer) {
        self.put(Output::AnswerApi { reply, answer });
    }

    /// Sends one payload to some sessions.
    pub(super) fn push(&mut self, to: &[SessionId], spec: PushSpec, body: &Bytes) -> PushId {
        self.push_behind(None, to, spec, body)
    }

    /// Sends one payload to some sessions, behind what went to the room of their group.
    pub(super) fn push_behind(
        &mut self,
        room: Option<RoomNumber>,
        to: &[SessionId],
        spec: PushSpec,
        body: &Bytes,
    ) -> PushId {
        self.last_push += 1;
        let push = PushId::new(self.last_push);
        let mut sessions = self.spare.pop().unwrap_or_default();
        sessions.extend_from_slice(to);
        self.put(Output::Push { push, sessions, room, spec, body: body.clone() });
        push
    }

    /// Sends one payload to a group's room.
    pub(super) fn push_to_room(
        &mut self,
        room: RoomNumber,
        except: Option<SessionId>,
        spec: PushSpec,
        body: Bytes,
    ) -> PushId {
        self.last_push += 1;
        let push = PushId::new(self.last_push);
        self.put(Output::PushToRoom { room, push, except, spec, body });
        push
    }

    pub(super) fn kick(&mut self, session: SessionId, kick: Kick) {
        self.put(Output::Kick { session, kick });
    }
}

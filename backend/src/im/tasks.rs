//! Operations of [`Im`]: planned, prefetched, executed; and what follows a completion.
//!
//! bob asks to join `group:tea`: [`Task::Request`] names the conversation and bob's membership as its plan; when the store
//! has both, the request is judged and becomes a write; its completion is answered by [`Im::on_outcome`].

use super::api::{ApiAnswer, ApiBody, ApiCall, ApiReply};
use super::deletion::DELETED;
use super::names::Names;
use super::newcomers;
use super::output::Reply;
use super::refusal::{NO_SESSION, refused};
use super::request::{REMOVED, Request, SIGNED_OUT, Then};
use super::room;
use super::send;
use super::store::rules::{self, Rules};
use super::store::{
    Completion, ConversationId, Need, Origin, Outcome, ReadSet, Recipient, Store, Ticket, UserId,
};
use super::sweep;
use super::waiting::{Waiter, Waiting};
use super::work::Admission;
use super::{BUSY_RETRY_MS, Im, NOBODY};
use crate::server::{Now, ReplyTo, SessionId};
use bytes::Bytes;
use moorline_proto::message::client::{Code, Resp, Send, SendAck};
use moorline_proto::message::im::Signal;

/// The author of an operation.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) now: Now,
    /// `None`: the server API asks for the user.
    pub(super) session: Option<SessionId>,
    pub(super) origin: Origin,
    pub(super) names: Names,
    /// True: the operation may have been done before.
    pub(super) is_repeat: bool,
}

impl Asked {
    /// Name of the user.
    pub(super) fn uid(&self) -> &str {
        self.names.uid()
    }

    /// Name of the device.
    pub(super) fn device(&self) -> &str {
        self.names.device()
    }

    /// True if the operator's server asks for the user.
    pub(super) fn is_operator(&self) -> bool {
        rules::is_operator(self.origin.1)
    }
}

/// One operation that reads facts.
#[derive(Debug)]
pub(super) enum Task {
    /// Judges a SEND.
    Send(Asked, Send, Reply),
    /// Judges a SEND that has waited for a login (`newcomers`).
    LateSend(Asked, Send, Reply),
    /// Judges a request.
    Request(Asked, Request, Reply),
    /// Does one of the above whose author was charged.
    Admitted(Box<Self>),
    /// Judges a signal, and passes it to the room of its conversation.
    Signal(Asked, Signal),
    /// Judges a SUB of a conversation's room.
    Enter(Asked, String, ReplyTo),
    /// Begins a call of the server API.
    Api(Now, ApiCall, ApiReply),
    /// Answers who has joined a group.
    Welcome(Reply, ConversationId),
    /// Answers a change of a group, and takes users who have left out of its room.
    Left(Reply, ConversationId, Vec<UserId>, Bytes),
    /// Answers a change of a relation, with the name of the other user.
    Related(Reply, UserId, UserId, String),
    /// Answers who has read a message: conversation, seq, and the sender's name.
    Receipts(Reply, ConversationId, u64, String),
    /// Tells a session of messages of a conversation that were put into no inbox.
    Notify(SessionId, ConversationId),
    /// Takes the fan-out of a group a slice further.
    FanOut(ConversationId),
    /// Tells senders how many have read their messages.
    ReadCounts(Now, ConversationId),
    /// Tells these watchers whether a user is online.
    Presence(Now, UserId, Vec<UserId>),
}

impl Task {
    /// Session of the author. `None`: the server API asks, or nobody does.
    fn session(&self) -> Option<SessionId> {
        match self {
            Self::Send(asked, ..)
            | Self::LateSend(asked, ..)
            | Self::Request(asked, ..)
            | Self::Signal(asked, _)
            | Self::Enter(asked, ..) => asked.session,
            Self::Admitted(task) => task.session(),
            _ => None,
        }
    }

    /// Names the facts that the execution will read.
    pub(super) fn plan(&self, set: &mut ReadSet) {
        match self {
            Self::Send(asked, send, _) | Self::LateSend(asked, send, _) => {
                send::plan(asked, send.target.as_ref(), set);
            }
            Self::Signal(asked, signal) => room::plan(asked, &signal.conversation, set),
            Self::Request(asked, request, _) => request.plan(asked, set),
            Self::Admitted(task) => task.plan(set),
            Self::Enter(asked, room, _) => room::plan(asked, room, set),
            Self::Api(_, call, _) => call.plan(set),
            Self::Welcome(_, conversation)
            | Self::FanOut(conversation)
            | Self::ReadCounts(_, conversation) => {
                set.add(Need::Members(*conversation));
            }
            Self::Receipts(_, conversation, _, sender) => {
                set.add(Need::Members(*conversation));
                set.add(Need::User(sender.clone()));
            }
            Self::Left(_, conversation, users, _) => {
                set.add(Need::Conversation(*conversation, None));
                users.iter().for_each(|user| set.add(Need::Conversation(*conversation, Some(*user))));
            }
            Self::Related(_, user, other, _) => set.add(Need::Relation(*user, *other)),
            Self::Notify(_, conversation) => set.add(Need::Conversation(*conversation, None)),
            Self::Presence(_, user, watchers) => {
                for watcher in watchers {
                    set.add(Need::Relation(*user, *watcher));
                    set.add(Need::Relation(*watcher, *user));
                }
            }
        }
    }
}

impl<S: Store> Im<S> {
    /// Executes a task, at once or when its facts are there. A session's later UPs wait for it.
    pub(super) fn run(&mut self, session: Option<SessionId>, task: Task) {
        if let Some(task) = self.storage.prefetch(session, task) {
            self.execute(task);
        } else {
            session.into_iter().for_each(|session| self.queues.begin(session));
        }
    }

    /// Executes a task whose facts are readable, unless its author has to wait, or its login has ended meanwhile.
    fn execute(&mut self, task: Task) {
        let session = task.session().and_then(|session| self.sessions.get(session));
        if session.is_some_and(|session| session.kicked.is_some()) {
            return self.out.refuse_task(task, NO_SESSION);
        }
        let mut admission = Admission {
            config: &self.config,
            facts: &self.storage.store,
            work: &mut self.work,
            disk_floor: &mut self.disk_floor,
            signals: &mut self.signals,
            queues: &mut self.queues,
            out: &mut self.out,
        };
        match admission.admit(task) {
            None => {}
            Some(Task::Admitted(_)) => unreachable!("it is opened by `admit`"),
            Some(Task::Send(asked, send, reply)) => self.execute_send(&asked, send, reply, true),
            Some(Task::LateSend(asked, send, reply)) => self.execute_send(&asked, send, reply, false),
            Some(Task::Request(asked, request, reply)) => self.execute_request(asked, request, reply),
            Some(Task::Enter(asked, room, reply)) => {
                let rules = Rules::new(&self.config);
                let output = room::enter(&self.storage.store, rules, &asked, room, reply);
                output.into_iter().for_each(|output| self.out.put(output));
            }
            Some(Task::Signal(asked, signal)) => {
                let output = room::pass(&self.storage.store, Rules::new(&self.config), &asked, signal);
                self.signals.on_judged(output.is_some());
                output.into_iter().for_each(|output| self.out.put(output));
            }
            Some(Task::Api(now, call, reply)) => self.execute_api(now, call, reply),
            Some(Task::Welcome(reply, conversation)) => {
                let answer = self.requests().welcome(conversation);
                self.out.answer(reply, Ok(answer));
            }
            Some(Task::Left(reply, conversation, users, answer)) => {
                self.deliveries().on_left(reply, conversation, users, answer);
            }
            Some(Task::Related(reply, user, other, uid)) => {
                let answer = self.requests().relation_answer(user, other, uid);
                self.out.answer(reply, Ok(answer));
            }
            Some(Task::Receipts(reply, conversation, seq, sender)) => {
                let answer = self.requests().receipts_answer(conversation, seq, &sender);
                self.out.answer(reply, Ok(answer));
            }
            Some(Task::Notify(session, conversation)) => {
                self.deliveries().notify_planned(session, conversation);
            }
            Some(Task::FanOut(conversation)) => self.deliveries().fan_out_group(conversation),
            Some(Task::ReadCounts(now, group)) => self.hints().tell_read_count(now, group),
            Some(Task::Presence(now, user, watchers)) => self.hints().tell_presence_of(now, user, &watchers),
        }
    }

    /// The store may have completed something.
    pub fn handle_committed(&mut self) {
        self.take_completions();
    }

    pub(super) fn take_completions(&mut self) {
        while let Some((ticket, completion)) = self.storage.store.poll() {
            self.on_completion(ticket, completion);
        }
    }

    fn on_completion(&mut self, ticket: Ticket, completion: Completion) {
        if let Completion::Arrived(mut arrived) = completion {
            self.presences.onlookers.ask(std::mem::take(&mut arrived.asked));
            self.presences.hear(std::mem::take(&mut arrived.online));
            for (user, device) in &arrived.removed {
                let theirs = self.sessions.of(*user).filter(|it| it.owner() == Some((*user, *device)));
                let theirs: Vec<_> = theirs.map(|session| session.id).collect();
                theirs.into_iter().for_each(|session| self.logins().end_login(session, &REMOVED));
            }
            for (user, rule) in &arrived.ruled {
                self.logins().end_denied(*user, *rule);
                withdraw(self, *user);
            }
            return self.deliveries().on_arrived(&arrived);
        }
        let Some(waiting) = self.storage.open.take(ticket) else { return };
        match (waiting, completion) {
            (Waiting::Commit(waiters), Completion::Committed(committed)) => {
                assert_eq!(waiters.len(), committed.outcomes.len(), "one outcome per write");
                for (waiter, outcome) in waiters.into_iter().zip(committed.outcomes) {
                    self.on_outcome(waiter, outcome, &committed.recipients);
                }
            }
            (Waiting::Facts(session, task), Completion::Prefetched) => {
                session.into_iter().for_each(|session| self.queues.end(session));
                self.execute(*task);
                session.into_iter().for_each(|session| self.resume(session));
            }
            (Waiting::Request(question), completion) => {
                let (asked, reply, then) = *question;
                let session = asked.session;
                session.into_iter().for_each(|session| self.queues.end(session));
                self.on_read(&asked, reply, then, completion);
                session.into_iter().for_each(|session| self.resume(session));
            }
            (Waiting::Login(session, now), Completion::LoggedIn(login)) => {
                self.queues.end(session);
                self.logins().on_logged_in(now, session, login);
                self.resume(session);
                if !self.newcomers.is_empty()
                    && let Ok(login) = self.sessions.author(now, session)
                {
                    let waiters = self.newcomers.take(login.uid());
                    newcomers::go_on(self, waiters);
                }
            }
            (Waiting::Login(session, _), Completion::LoginDenied(denied)) => {
                self.queues.end(session);
                self.logins().on_denied(session, denied);
                self.resume(session);
            }
            (Waiting::Backlog(session), Completion::Backlog(backlog)) => {
                self.deliveries().on_backlog(ticket, session, backlog);
            }
            (Waiting::Stream(session), Completion::Stream(page)) => {
                self.deliveries().on_stream(ticket, session, page);
            }
            (Waiting::Webhook(index), completion) => {
                if let Some(read) = self.webhooks.on_completion(index, completion) {
                    self.storage.read(read, Waiting::Webhook(index));
                }
            }
            (waiting, completion) => unreachable!("the store answered {waiting:?} with {completion:?}"),
        }
    }

    /// Begins the UPs that waited for a session's last operation, until one waits itself.
    pub(super) fn resume(&mut self, session: SessionId) {
        while let Some((now, up)) = self.queues.next(session) {
            self.begin_up(now, up);
        }
    }

    /// The store takes no more: nothing of this batch happened.
    pub(super) fn on_busy(&mut self, waiter: Waiter) {
        let reason = || "the store is busy".to_owned();
        let retry_after_ms = BUSY_RETRY_MS;
        self.tally.put_off += 1;
        match waiter {
            Waiter::Request(reply, _, Then::Sent) => {
                let answer = SendAck { retry_after_ms, reason: reason(), ..Default::default() };
                self.out.answer_send(reply, Code::Retry, answer);
            }
            Waiter::Request(reply, ..) => {
                let answer = Resp { retry_after_ms, reason: reason(), ..Default::default() };
                self.out.answer_req(reply, Code::Retry, answer);
            }
            Waiter::Ack(session) => self.sessions.on_acked(session),
            Waiter::Sweep => self.sweeper.on_busy(),
            Waiter::Told(reply, _) | Waiter::Ruled(reply, ..) => {
                let answer = ApiAnswer::new(Code::Retry, reason(), retry_after_ms, ApiBody::Nothing);
                self.out.answer_api(reply, answer);
            }
            Waiter::Invited(_) | Waiter::Nobody => {}
        }
    }

    fn on_outcome(&mut self, waiter: Waiter, outcome: Outcome, recipients: &[Recipient]) {
        match (waiter, outcome) {
            (Waiter::Request(reply, origin, Then::Sent), Outcome::Appended(result)) => {
                self.deliveries().on_appended(reply, origin, result, recipients);
            }
            (Waiter::Request(reply, _, Then::Recalled(asked)), Outcome::Appended(result)) => {
                self.deliveries().on_recalled(reply, *asked, result, recipients);
            }
            (Waiter::Request(reply, origin, Then::Created(invited)), Outcome::Created(result)) => {
                self.deliveries().on_created(reply, origin, invited, result, recipients);
            }
            (Waiter::Request(reply, origin, then), Outcome::Done(result)) => {
                let told = match result {
                    Ok(told) => {
                        self.on_done(reply, origin, then, told.is_some());
                        told
                    }
                    Err(refusal) => {
                        self.out.answer(reply, Err(refused(refusal)));
                        None
                    }
                };
                if let Some(delivery) = &told {
                    self.deliveries().deliver(None, origin, delivery, recipients);
                }
            }
            (Waiter::Told(reply, count), Outcome::Done(Ok(told))) => {
                self.out.answer_api(reply, ApiAnswer::new(Code::Ok, "", 0, ApiBody::Reached(count)));
                if let Some(delivery) = &told {
                    self.deliveries().deliver(None, NOBODY, delivery, recipients);
                }
            }
            (Waiter::Invited(origin), Outcome::Done(Ok(Some(told)))) => {
                self.deliveries().deliver(None, origin, &told, recipients);
            }
            (Waiter::Ack(_) | Waiter::Nobody | Waiter::Invited(_), Outcome::Done(_)) => {}
            (Waiter::Ruled(reply, user, rule), Outcome::Done(Ok(_))) => {
                let ended = self.logins().end_denied(user, rule);
                self.out.answer_api_result(reply, Ok(ApiBody::Reached(ended)));
            }
            (Waiter::Told(reply, _) | Waiter::Ruled(reply, ..), Outcome::Done(Err(refusal))) => {
                self.out.answer_api_result(reply, Err(refused(refusal)));
            }
            (Waiter::Sweep, Outcome::Swept(swept)) => sweep::on_swept(self, swept, recipients),
            (waiter, outcome) => unreachable!("the store answered {waiter:?} with {outcome:?}"),
        }
    }

    /// Answers a write that is done. `has_changed`: somebody is told of it.
    fn on_done(&mut self, reply: Reply, origin: Origin, then: Then, has_changed: bool) {
        let (user, _) = origin;
        match then {
            Then::Joined(conversation) => self.run(None, Task::Welcome(reply, conversation)),
            Then::Left(conversation, users, answer) => {
                self.run(None, Task::Left(reply, conversation, users, answer));
            }
            Then::Related(other, uid) => self.run(None, Task::Related(reply, user, other, uid)),
            Then::Read(conversation) => {
                self.out.answer(reply, Ok(Bytes::new()));
                if has_changed {
                    self.receipts.on_read(conversation);
                }
            }
            Then::Answer(answer) => self.out.answer(reply, Ok(answer)),
            Then::SignedOut => {
                self.out.answer(reply, Ok(Bytes::new()));
                let theirs = self.sessions.of(user).filter(|it| it.owner() == Some(origin)).map(|it| it.id);
                for session in theirs.collect::<Vec<_>>() {
                    self.logins().end_login(session, &SIGNED_OUT);
                }
            }
            Then::Deleted(session) => {
                self.out.answer(reply, Ok(Bytes::new()));
                if let Some(session) = session {
                    self.logins().end_login(session, &DELETED);
                    self.queues.end(session);
                    self.resume(session);
                }
            }
            Then::Sent | Then::Recalled(_) | Then::Created(_) => unreachable!("another kind of outcome"),
        }
    }
}

/// Refuses writes of this turn whose authors' logins have ended: the store has not seen them.
fn withdraw<S: Store>(im: &mut Im<S>, user: UserId) {
    let sessions = &im.sessions;
    let is_out = |origin: Origin| {
        let is_theirs = origin.0 == user && !rules::is_operator(origin.1);
        is_theirs && !sessions.of(user).any(|it| it.owner() == Some(origin))
    };
    for (reply, then) in im.storage.withdraw(is_out) {
        match then {
            Then::Sent => im.out.refuse_send(reply, NO_SESSION),
            _ => im.out.refuse(reply, NO_SESSION),
        }
    }
}

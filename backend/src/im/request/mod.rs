//! REQ: all requests of clients other than SEND (`docs/protocol.md`, section 11).

mod deletion;
mod groups;
mod history;
mod people;

pub(super) use people::{REMOVED, SIGNED_OUT};

use super::deletion::DELETED;
use super::names::{self, Conversation};
use super::output::Reply;
use super::presence::{self, Presences};
use super::quotas::{Quota, Quotas};
use super::refusal::{Refused, USERS_FULL, invalid_user, no_such_user, refuse, refused, undecodable};
use super::send::encode_happened;
use super::sessions::Sessions;
use super::store::{Completion, ConversationId, Facts, Need, Read, ReadSet, Refusal, Store, UserId, Write};
use super::tasks::{Asked, Task};
use super::waiting::{Waiter, Waiting};
use super::{Im, ImConfig, MessageIds};
use crate::server::{Now, ReplyTo, SessionId};
use bytes::{Bytes, BytesMut};
use moorline_proto::message::client::{Code, Req};
use moorline_proto::message::im;
use prost::{DecodeError, Message};

/// An answer may always be this large, in bytes, whatever `im.payload_max` says.
const ANSWER_BYTES: usize = 60 << 10;
/// Room for what surrounds one payload of the largest size.
const ANSWER_OVERHEAD_BYTES: usize = 1 << 10;

/// Payload of an answer, or its refusal.
pub(super) type Answer = Result<Bytes, Refused>;

/// Next step of a request.
pub(super) enum Step {
    /// An answer now.
    Answer(Bytes),
    /// A write, and an answer when it is durable.
    Write(Write, Then),
    /// A write, an invitation that follows it, and an answer when both are durable.
    Invite(Write, Then, Write),
    /// The end of these logins of a removed device, a write, and an empty answer when it is durable.
    EndLogins(Vec<SessionId>, Write),
    /// The end of these logins, and of the author's behind the answer, and a write that deletes the author.
    Delete(Vec<SessionId>, Write),
    /// A read, and an answer when it is done.
    Read(Read, AfterRead),
}

/// Step after a write.
#[derive(Debug)]
pub(super) enum Then {
    /// The answer to a SEND.
    Sent,
    /// The answer to a recall, with its author.
    Recalled(Box<Asked>),
    /// The id of the new group, and the names of those who are invited instead of added.
    Created(Vec<String>),
    /// The members of the group, if it is small.
    Joined(ConversationId),
    /// This payload; these users leave the room of the group.
    Left(ConversationId, Vec<UserId>, Bytes),
    /// Nothing; senders are told how many have read.
    Read(ConversationId),
    /// The relation to this user, with the user's name.
    Related(UserId, String),
    /// Nothing; then the logins of the author's device end, which is forgotten.
    SignedOut,
    /// Nothing; the user is deleted, and the login that asked for it ends. Its later UPs have waited.
    Deleted(Option<SessionId>),
    /// This payload.
    Answer(Bytes),
}

/// Step after a read.
#[derive(Debug)]
pub(super) enum AfterRead {
    /// A page of history. The device has everything of a conversation up to a seq, unless that is 0.
    Pull(ConversationId, u64),
    /// The list of conversations.
    Listing,
    /// Users who have read the message with this seq.
    Receipts(ConversationId, u64),
    /// True if another device was earlier with the same recall, which has this seq.
    Recalled(u64),
    /// Profiles of the users.
    Profiles,
    /// Presence of users, of whom some are known elsewhere.
    Presences(Box<presence::Pending>),
}

/// A request, decoded.
#[derive(Debug)]
pub(super) enum Request {
    Pull(im::PullRequest),
    Conversations(im::ConversationsRequest),
    Read(im::ReadRequest),
    Receipts(im::ReceiptsRequest),
    Recall(im::RecallRequest),
    Create(im::GroupCreateRequest),
    Join(im::GroupRequest),
    Leave(im::GroupRequest),
    Members(im::GroupRequest),
    Change(im::GroupChangeRequest),
    Info(im::GroupRequest),
    Relate(im::RelationRequest),
    Relations(im::RelationsRequest),
    SetProfile(im::ProfileSetRequest),
    Profiles(im::ProfileGetRequest),
    Devices,
    RemoveDevice(im::DeviceRemoveRequest),
    Presence(im::PresenceRequest),
    SetSettings(im::SettingsSetRequest),
    Settings,
    Dissolve(im::GroupRequest),
    DeleteConversation(im::ConversationDeleteRequest),
    DeleteAccount,
}

impl Request {
    fn decode(method: &str, payload: &Bytes) -> Result<Self, Refused> {
        fn of<M: Message + Default>(payload: &Bytes, request: fn(M) -> Request) -> Result<Request, Refused> {
            M::decode(payload.clone()).map(request).map_err(|cause| bad_payload(&cause))
        }
        match method {
            "im.pull" => of(payload, Self::Pull),
            "im.conversations" => of(payload, Self::Conversations),
            "im.read" => of(payload, Self::Read),
            "im.receipts" => of(payload, Self::Receipts),
            "im.recall" => of(payload, Self::Recall),
            "im.group.create" => of(payload, Self::Create),
            "im.group.join" => of(payload, Self::Join),
            "im.group.leave" => of(payload, Self::Leave),
            "im.group.members" => of(payload, Self::Members),
            "im.group.change" => of(payload, Self::Change),
            "im.group.info" => of(payload, Self::Info),
            "im.relation" => of(payload, Self::Relate),
            "im.relations" => of(payload, Self::Relations),
            "im.profile.set" => of(payload, Self::SetProfile),
            "im.profile.get" => of(payload, Self::Profiles),
            "im.devices" => Ok(Self::Devices),
            "im.device.remove" => of(payload, Self::RemoveDevice),
            "im.presence" => of(payload, Self::Presence),
            "im.settings.set" => of(payload, Self::SetSettings),
            "im.settings.get" => Ok(Self::Settings),
            "im.group.dissolve" => of(payload, Self::Dissolve),
            "im.conversation.delete" => of(payload, Self::DeleteConversation),
            "im.account.delete" => Ok(Self::DeleteAccount),
            _ => Err(refuse(Code::Unsupported, "`method` is not a method of the IM backend")),
        }
    }

    /// Names the facts that the request will be judged on.
    pub(super) fn plan(&self, asked: &Asked, set: &mut ReadSet) {
        let user = asked.origin.0;
        match self {
            Self::Pull(im::PullRequest { conversation, .. })
            | Self::Read(im::ReadRequest { conversation, .. })
            | Self::Recall(im::RecallRequest { conversation, .. })
            | Self::Join(im::GroupRequest { conversation, .. })
            | Self::Leave(im::GroupRequest { conversation, .. })
            | Self::DeleteConversation(im::ConversationDeleteRequest { conversation, .. }) => {
                set.add(Need::Named(conversation.clone(), Some(user)));
            }
            Self::Receipts(im::ReceiptsRequest { conversation, .. }) => {
                set.add(Need::Named(conversation.clone(), Some(user)));
                if let Ok(Some(peer)) = peer(asked.uid(), conversation) {
                    set.add(Need::Contact(peer.to_owned(), user));
                }
            }
            Self::Members(im::GroupRequest { conversation, .. })
            | Self::Dissolve(im::GroupRequest { conversation, .. })
            | Self::Info(im::GroupRequest { conversation, .. }) => {
                set.add(Need::NamedMembers(conversation.clone()));
            }
            Self::Change(request) => {
                set.add(Need::Named(request.conversation.clone(), Some(user)));
                groups::plan_change(asked, request, set);
            }
            Self::Create(request) => {
                set.add(Need::Named(format!("group:{}", request.group), None));
                plan_users(asked, &request.members, set);
            }
            Self::Relate(request) => {
                plan_users(asked, std::slice::from_ref(&request.user), set);
                if names::is_valid(&request.user) {
                    set.add(Need::Relating(request.user.clone(), user));
                }
            }
            Self::Relations(_) => set.add(Need::Relations(user)),
            Self::Devices | Self::RemoveDevice(_) => set.add(Need::Devices(user)),
            Self::Presence(request) => {
                let users = request.users.iter().take(presence::USERS_MAX);
                users.for_each(|uid| set.add(Need::Presence(uid.clone(), user)));
            }
            Self::Settings => set.add(Need::Settings(user)),
            Self::Conversations(_)
            | Self::SetProfile(_)
            | Self::Profiles(_)
            | Self::SetSettings(_)
            | Self::DeleteAccount => {}
        }
    }
}

/// Refuses a payload that cannot be decoded.
pub(super) fn bad_payload(cause: &DecodeError) -> Refused {
    refuse(Code::Invalid, format!("cannot decode the payload as the request of this method: {cause}"))
}

/// Names users of whom the author wants something, if all of the names are valid. Those that the operator's server names
/// become known.
fn plan_users(asked: &Asked, uids: &[String], set: &mut ReadSet) {
    if asked.is_operator() {
        plan_new_users(uids, set);
    }
    if uids.iter().all(|uid| names::is_valid(uid)) {
        uids.iter().for_each(|uid| set.add(Need::Contact(uid.clone(), asked.origin.0)));
    }
}

/// Names users who become known, if all of the names are valid.
pub(super) fn plan_new_users(uids: &[String], set: &mut ReadSet) {
    if uids.iter().all(|uid| names::is_valid(uid)) {
        uids.iter().for_each(|uid| set.add(Need::NewUser(uid.clone())));
    }
}

impl<S: Store> Im<S> {
    /// Returns the parts of the backend that requests are judged on.
    pub(super) fn requests(&mut self) -> Requests<'_, S> {
        Requests {
            config: &self.config,
            facts: &mut self.storage.store,
            ids: &mut self.ids,
            sessions: &self.sessions,
            presences: &mut self.presences,
            quotas: &mut self.quotas,
        }
    }

    pub(super) fn on_req(&mut self, now: Now, session: SessionId, body: Bytes, reply: ReplyTo) {
        let reply = Reply::Link(reply);
        let decoded = Req::decode(body).map_err(|cause| undecodable("Req", &cause));
        match decoded.and_then(|req| Ok((req, self.sessions.author(now, session)?))) {
            Ok((Req { method, payload, .. }, asked)) => self.on_request(asked, &method, &payload, reply),
            Err(refused) => self.out.answer(reply, Err(refused)),
        }
    }

    /// Takes a request whose author is known.
    pub(super) fn on_request(&mut self, asked: Asked, method: &str, payload: &Bytes, reply: Reply) {
        self.tally.requests += 1;
        match Request::decode(method, payload) {
            Ok(request) => self.run(asked.session, Task::Request(asked, request, reply)),
            Err(refused) => self.out.refuse(reply, refused),
        }
    }

    pub(super) fn execute_request(&mut self, asked: Asked, request: Request, reply: Reply) {
        match self.requests().step(&asked, request) {
            Ok(Step::Answer(payload)) => self.out.answer(reply, Ok(payload)),
            Ok(Step::Write(write, then)) => {
                self.storage.write(write, Waiter::Request(reply, asked.origin, then));
            }
            Ok(Step::Invite(write, then, invite)) => {
                self.storage.write(write, Waiter::Request(reply, asked.origin, then));
                self.storage.write(invite, Waiter::Invited(asked.origin));
            }
            Ok(Step::EndLogins(sessions, write)) => {
                sessions.into_iter().for_each(|session| self.logins().end_login(session, &people::REMOVED));
                let then = Then::Answer(Bytes::new());
                self.storage.write(write, Waiter::Request(reply, asked.origin, then));
            }
            Ok(Step::Delete(sessions, write)) => {
                sessions.into_iter().for_each(|session| self.logins().end_login(session, &DELETED));
                asked.session.into_iter().for_each(|session| self.queues.begin(session));
                let then = Then::Deleted(asked.session);
                self.storage.write(write, Waiter::Request(reply, asked.origin, then));
            }
            Ok(Step::Read(read, then)) => {
                asked.session.into_iter().for_each(|session| self.queues.begin(session));
                self.storage.read(read, Waiting::Request(Box::new((asked, reply, then))));
            }
            Err(refused) => self.out.refuse(reply, refused),
        }
    }

    /// Answers a request whose read is done.
    pub(super) fn on_read(&mut self, asked: &Asked, reply: Reply, then: AfterRead, completion: Completion) {
        match (then, completion) {
            (AfterRead::Pull(conversation, confirmed), Completion::Page(page)) => {
                if page.is_ok() && confirmed > 0 {
                    let write = Write::Confirm { by: asked.origin, conversation, seq: confirmed };
                    self.storage.write(write, Waiter::Nobody);
                }
                let answer = history::pull_answer(page);
                self.out.answer_read(reply, answer);
            }
            (AfterRead::Listing, Completion::Listing(listing)) => {
                let answer = self.requests().conversations_answer(listing);
                self.out.answer_read(reply, answer);
            }
            (AfterRead::Receipts(conversation, seq), Completion::Page(page)) => {
                match history::sender_of(page) {
                    Ok(sender) => {
                        let session = asked.session;
                        self.run(session, Task::Receipts(reply, conversation, seq, sender));
                    }
                    Err(refused) => self.out.refuse(reply, refused),
                }
            }
            (AfterRead::Recalled(seq), Completion::Page(page)) => {
                let answer = history::recall_answer(asked, seq, page);
                self.out.answer(reply, Ok(answer));
            }
            (AfterRead::Profiles, Completion::Profiles(profiles)) => {
                let answer = self.requests().profiles_answer(profiles);
                self.out.answer_read(reply, answer);
            }
            (AfterRead::Presences(pending), Completion::Presences(others)) => {
                let answer = self.requests().presence_answer(asked, *pending, others);
                self.out.answer_read(reply, answer);
            }
            (then, completion) => unreachable!("the store answered {then:?} with {completion:?}"),
        }
    }
}

/// Parts of the backend that requests are judged on: alice asks to join `group:tea`, so [`Self::join`] reads the group and
/// returns the write that makes her a member.
#[derive(Debug)]
pub(super) struct Requests<'a, F> {
    pub(super) config: &'a ImConfig,
    pub(super) facts: &'a mut F,
    pub(super) ids: &'a mut MessageIds,
    pub(super) sessions: &'a Sessions,
    pub(super) presences: &'a mut Presences,
    pub(super) quotas: &'a mut Quotas,
}

impl<F: Facts> Requests<'_, F> {
    fn step(&mut self, asked: &Asked, request: Request) -> Result<Step, Refused> {
        match request {
            Request::Pull(request) => self.pull(asked, &request),
            Request::Conversations(request) => Ok(self.conversations(asked, request)),
            Request::Read(request) => self.mark_read(asked, &request),
            Request::Receipts(request) => self.receipts_of(asked, &request),
            Request::Recall(request) => self.recall(asked, &request),
            Request::Create(request) => self.create(asked, request),
            Request::Join(request) => self.join(asked, request),
            Request::Leave(request) => self.leave(asked, request),
            Request::Members(request) => self.group_members(asked, &request),
            Request::Change(request) => self.change(asked, request),
            Request::Info(request) => self.group_info(asked, &request),
            Request::Relate(request) => self.relate(asked, request),
            Request::Relations(request) => Ok(self.relations(asked, &request)),
            Request::SetProfile(request) => self.set_profile(asked, request),
            Request::SetSettings(request) => people::set_settings(asked, request),
            Request::Settings => Ok(self.settings(asked)),
            Request::Dissolve(request) => self.dissolve(asked, &request),
            Request::DeleteConversation(request) => self.delete_conversation(asked, &request),
            Request::DeleteAccount => self.delete_account(asked),
            Request::Profiles(request) => people::profiles(request),
            Request::Devices => Ok(self.devices(asked)),
            Request::RemoveDevice(request) => Ok(self.remove_device(asked, &request)),
            Request::Presence(request) => self.presence(asked, &request),
        }
    }

    /// Encodes an event of a conversation; an empty name: of no conversation. Returns its message id and its body.
    fn encode_happened(
        &mut self,
        asked: &Asked,
        conversation: &str,
        what: im::happened::What,
    ) -> (u64, BytesMut) {
        let id = self.ids.next_now(asked.now);
        (id, encode_happened(id, asked, conversation, what))
    }

    fn answer_bytes_max(&self) -> usize {
        self.config.payload_max.max(ANSWER_BYTES) + ANSWER_OVERHEAD_BYTES
    }

    /// Returns users by the names that the author gives in `field`. Nobody becomes known by that, except for users whom the
    /// operator's server names.
    ///
    /// # Errors
    /// INVALID, a name is not valid; NOT_FOUND, a name is nobody's; DENIED, there is no room for a user.
    fn named(&mut self, asked: &Asked, field: &str, uids: &[String]) -> Result<Vec<UserId>, Refused> {
        if asked.is_operator() {
            return self.make_users(field, uids);
        }
        if uids.iter().any(|uid| !names::is_valid(uid)) {
            return Err(invalid_user(field));
        }
        let find = |uid: &String| self.facts.find_user(uid).ok_or_else(|| no_such_user(field, uid));
        uids.iter().map(find).collect()
    }

    /// Returns users by the names that the operator's server gives in `field`. An unknown user becomes known.
    ///
    /// # Errors
    /// INVALID, a name is not valid; DENIED, there is no room for a user.
    pub(super) fn make_users(&mut self, field: &str, uids: &[String]) -> Result<Vec<UserId>, Refused> {
        // Validated before any name becomes known.
        if let Some(at) = uids.iter().position(|uid| !names::is_valid(uid)) {
            return Err(invalid_user(&format!("{field}[{at}]")));
        }
        uids.iter().map(|uid| self.facts.try_user(uid).ok_or(USERS_FULL)).collect()
    }

    /// Charges the author, unless the operator's server asks.
    fn charge(&mut self, asked: &Asked, amounts: &[(Quota, u64)]) -> Result<(), Refused> {
        if asked.is_operator() {
            return Ok(());
        }
        let unix_ms = self.ids.steady_ms(asked.now);
        self.quotas.charge(Now { unix_ms, ..asked.now }, asked.origin.0, amounts)
    }

    /// Returns a conversation of which the author is a member.
    fn own_conversation(&self, asked: &Asked, id: &str) -> Result<ConversationId, Refused> {
        peer(asked.uid(), id)?;
        let conversation = self.facts.find(id).ok_or_else(|| refused(Refusal::NotFound))?;
        self.facts.member(conversation, asked.origin.0).ok_or_else(|| refused(Refusal::NotMember))?;
        Ok(conversation)
    }
}

/// Returns the other user of the one-to-one conversation `id` of the user `uid`; `None`: it is a group.
pub(super) fn peer<'a>(uid: &str, id: &'a str) -> Result<Option<&'a str>, Refused> {
    match Conversation::parse(id) {
        None => Err(refused(Refusal::NotFound)),
        Some(Conversation::Group(_)) => Ok(None),
        Some(Conversation::OneToOne(a, b)) if a == uid => Ok(Some(b)),
        Some(Conversation::OneToOne(a, b)) if b == uid => Ok(Some(a)),
        Some(Conversation::OneToOne(..)) => Err(refused(Refusal::NotMember)),
    }
}

/// Takes entries while they fit in `room` bytes; the first entry is always taken. Returns whether an entry did not fit.
fn fill<T: Message>(mut room: usize, entries: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let mut taken = Vec::new();
    for entry in entries {
        // The tag of the entry, and up to four bytes of length.
        let bytes = entry.encoded_len() + 5;
        if bytes > room && !taken.is_empty() {
            return (taken, true);
        }
        room = room.saturating_sub(bytes);
        taken.push(entry);
    }
    (taken, false)
}

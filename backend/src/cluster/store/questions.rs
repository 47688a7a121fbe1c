//! Questions to the owner of a conversation or user: every write but messages and acks.
//!
//! alice (slot of node 1) adds bob to a group of node 3: node 1 asks node 3, which judges, commits the change with its event, and
//! answers. Without an answer in [`PEER_WAIT`] alice is answered RETRY; asked again, the change changes nothing.

use super::{Asker, ClusterStore, Op, Output, PEER_WAIT, PeerMessage, Place};
use crate::cluster::cell::slot_of;
use crate::im::store::rules::Wish;
use crate::im::store::rules::relations::{Both, Counts};
use crate::im::store::{
    ConversationId, Delivery, DeviceNumber, GroupChange, LoginChange, Origin, Outcome, Recipient, Refusal,
    Relation, RelationChange, Ticket, UserId, WhoMayAdd, Write,
};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::sync::Arc;

/// Questions that wait for other nodes; further ones are answered RETRY.
const QUESTIONS_MAX: usize = 4096;

/// A write at the owner of a conversation or user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Makes a group.
    CreateGroup {
        /// Id of the group.
        id: Arc<str>,
        /// Creator, with the device.
        by: Origin,
        /// Other members and the creator, with their names.
        members: Vec<(UserId, Arc<str>)>,
        /// Event for all members.
        event: Bytes,
    },
    /// Changes a group.
    ChangeGroup {
        /// A group.
        conversation: ConversationId,
        /// By whom, on which device.
        by: Origin,
        /// The change.
        change: GroupChange,
        /// Names of users who may become members.
        users: Vec<(UserId, Arc<str>)>,
        /// Event for all members.
        event: Bytes,
    },
    /// Ends a group.
    Dissolve {
        /// A group.
        conversation: ConversationId,
        /// By whom, on which device.
        by: Origin,
        /// Event for all members.
        event: Bytes,
    },
    /// Sets a read mark.
    Read {
        /// The conversation.
        conversation: ConversationId,
        /// User, with the device.
        by: Origin,
        /// Up to here.
        seq: u64,
        /// Event for the user's devices, and one to one for the other user.
        event: Bytes,
    },
    /// Hides the conversation from a member.
    Clear {
        /// The conversation.
        conversation: ConversationId,
        /// User, with the device.
        by: Origin,
        /// Up to here.
        to: u64,
        /// Event for the user's devices.
        event: Bytes,
    },
    /// Changes the relation of a user to another one, at the owner of their conversation.
    Relate {
        /// Id of the conversation of both; it comes into being with its first message, or here.
        id: Arc<str>,
        /// By whom, on which device.
        by: Origin,
        /// This user and the other one, with their names.
        users: Vec<(UserId, Arc<str>)>,
        /// The change.
        change: RelationChange,
        /// Numbers of relations of both.
        counts: Both<Counts>,
        /// Event for the receivers.
        event: Bytes,
    },
    /// Invites users to a group, once the first question is done, or is not needed.
    Invite {
        /// Id of the group.
        id: Arc<str>,
        /// By whom, on which device.
        by: Origin,
        /// The users.
        users: Vec<UserId>,
        /// Event for the users.
        event: Bytes,
        /// Question that makes or changes the group. `None`: there is none.
        first: Option<Box<Question>>,
    },
    /// Removes a device of a user. Unknown: no change.
    RemoveDevice {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceNumber,
    },
    /// Changes the rule for logins of a user.
    RuleLogins {
        /// The user.
        user: UserId,
        /// The change.
        change: LoginChange,
    },
    /// Sets who may make a user a member of a group.
    SetSettings {
        /// The user.
        user: UserId,
        /// The rule.
        who_may_add: WhoMayAdd,
    },
    /// Replaces a profile.
    SetProfile {
        /// The user.
        user: UserId,
        /// The profile.
        profile: Bytes,
    },
    /// Makes a user known.
    MakeUser {
        /// Name of the user.
        uid: Arc<str>,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// A conversation. True: it has changed.
    Conversation(HeadRow, bool),
    /// Nothing is told.
    Done,
    /// A user.
    User(UserId, Arc<str>),
    /// Two users.
    Related {
        /// The user who has asked.
        user: UserId,
        /// The other one.
        other: UserId,
        /// Relations of both to each other.
        relations: Both<Relation>,
        /// True: the question has changed it.
        has_changed: bool,
    },
}

/// A conversation without its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// True for a group.
    pub is_group: bool,
    /// True once the group is gone.
    pub is_dissolved: bool,
    /// Number of members.
    pub members: usize,
    /// Newest seq.
    pub latest: u64,
}

/// Kind of outcome that a write has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Created,
    Done,
    Related,
}

impl Question {
    /// Returns the slot of the conversation or user.
    pub fn slot(&self) -> Slot {
        match self {
            Self::CreateGroup { id: name, .. }
            | Self::MakeUser { uid: name }
            | Self::Relate { id: name, .. }
            | Self::Invite { id: name, .. } => Slot::of(name),
            Self::SetProfile { user, .. }
            | Self::RuleLogins { user, .. }
            | Self::SetSettings { user, .. }
            | Self::RemoveDevice { user, .. } => slot_of(user.number()),
            Self::ChangeGroup { conversation, .. }
            | Self::Dissolve { conversation, .. }
            | Self::Read { conversation, .. }
            | Self::Clear { conversation, .. } => slot_of(conversation.number()),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Invite { first: Some(first), .. } => first.kind(),
            Self::CreateGroup { .. } => Kind::Created,
            Self::Relate { .. } => Kind::Related,
            _ => Kind::Done,
        }
    }
}

/// The questions of a node.
pub(super) struct Asking<'a> {
    pub(super) store: &'a mut ClusterStore,
}

impl Asking<'_> {
    /// Puts a question on its way to its owner.
    pub(super) fn question(&mut self, asker: Asker, question: Question) {
        let slot = question.slot();
        match self.store.table.owner(slot).node {
            Some(node) if node != self.store.me && !self.store.slots.contains_key(&slot) => {
                if self.store.questions.len() >= QUESTIONS_MAX {
                    return self.answer_question(asker, question.kind(), Err(Refusal::Moved), None, &[]);
                }
                self.store.last_request += 1;
                let request = self.store.last_request;
                self.store.questions.insert(request, (asker, question.kind(), self.store.now + PEER_WAIT));
                self.store.out.push_back(Output::Peer(node, PeerMessage::Ask(request, Box::new(question))));
            }
            _ => self.store.push(slot, Op::Ask(Box::new(question), asker, None)),
        }
    }

    /// Answers questions whose wait has ended, and makes users again that could not be made.
    pub(super) fn end_questions(&mut self) {
        let now = self.store.now;
        let due =
            self.store.questions.iter().filter(|(_, (.., until))| *until <= now).map(|(request, _)| *request);
        for request in due.collect::<Vec<_>>() {
            self.on_answered(request, Err(Refusal::Moved));
        }
        for making in std::mem::take(&mut self.store.users_again) {
            if let Some((_, uid)) = self.store.making.get(&making) {
                self.question(Asker::Facts(making), Question::MakeUser { uid: uid.clone() });
            }
        }
    }

    /// Makes a user known for a prefetch.
    pub(super) fn make_user(&mut self, ticket: Ticket, uid: Arc<str>) {
        self.store.last_request += 1;
        let making = self.store.last_request;
        self.store.making.insert(making, (ticket, uid.clone()));
        self.question(Asker::Facts(making), Question::MakeUser { uid });
    }

    /// Takes the answer of another node.
    pub(super) fn on_answered(&mut self, request: u64, result: Result<Answered, Refusal>) {
        let Some((asker, kind, _)) = self.store.questions.remove(&request) else { return };
        self.store.status.asked += u64::from(result.is_ok());
        self.answer_question(asker, kind, result, None, &[]);
    }

    /// Answers a question. `told` is its event, which `recipients` have in their streams on this node.
    pub(super) fn answer_question(
        &mut self,
        asker: Asker,
        kind: Kind,
        result: Result<Answered, Refusal>,
        told: Option<(Bytes, Origin)>,
        recipients: &[Recipient],
    ) {
        self.store.status.moved += u64::from(result == Err(Refusal::Moved));
        match &result {
            Ok(Answered::Conversation(head, _)) => self.store.known.learn_head_row(head),
            Ok(Answered::User(user, uid)) => self.store.known.learn_user(*user, uid),
            Ok(Answered::Related { user, other, relations, .. }) => {
                self.store.known.learn_related(*user, *other, *relations);
            }
            Ok(Answered::Done) | Err(_) => {}
        }
        match asker {
            Asker::Here(place) => {
                let done = result.map(|answered| {
                    let (conversation, has_changed) = match answered {
                        Answered::Conversation(head, has_changed) => (head.conversation, has_changed),
                        Answered::Related { has_changed, .. } => (ConversationId::MAX, has_changed),
                        Answered::User(..) | Answered::Done => (ConversationId::MAX, false),
                    };
                    let delivery = has_changed.then(|| {
                        let recipients = self.store.batches.add(place.ticket, recipients);
                        let body = told.map(|(body, _)| body).unwrap_or_default();
                        Delivery { body, recipients, is_read_fanout: false }
                    });
                    (conversation, delivery)
                });
                let outcome = match kind {
                    Kind::Created => Outcome::Created(done),
                    Kind::Done | Kind::Related => Outcome::Done(done.map(|(_, delivery)| delivery)),
                };
                self.store.batches.set(place, outcome);
            }
            // Without room for the user the prefetch ends, and nobody has the name.
            Asker::Facts(making) if matches!(result, Ok(_) | Err(Refusal::StoreFull)) => {
                if let Some((ticket, _)) = self.store.making.remove(&making) {
                    super::reads::Reading { store: self.store }.on_part(ticket);
                }
            }
            // The slot moves: the user is asked for again with the next time.
            Asker::Facts(making) => self.store.users_again.push(making),
            Asker::Nobody => {
                if let Some((body, origin)) = told {
                    self.store.tell(None, origin, body, recipients);
                }
            }
            Asker::Peer(node, request) => {
                if let Some((body, origin)) = told {
                    self.store.tell(None, origin, body, recipients);
                }
                self.store.out.push_back(Output::Peer(node, PeerMessage::Answered(request, result)));
            }
        }
    }

    /// Takes a write that is a question to an owner, and an invitation that follows it.
    pub(super) fn write_question(&mut self, place: Place, write: Write, invite: Option<Write>) {
        let kind = if matches!(write, Write::CreateGroup { .. }) { Kind::Created } else { Kind::Done };
        let question = self.question_of(write).map(|question| match invite {
            Some(Write::Invite { group, by, users, event }) => {
                let (id, first) = (format!("group:{group}").into(), Some(Box::new(question)));
                Question::Invite { id, by, users, event, first }
            }
            _ => question,
        });
        match question {
            Ok(question) => self.question(Asker::Here(place), question),
            Err(refusal) => self.answer_question(Asker::Here(place), kind, Err(refusal), None, &[]),
        }
    }

    fn question_of(&self, write: Write) -> Result<Question, Refusal> {
        if let Some(author) = write.author() {
            self.store.judge_author(author)?;
        }
        Ok(match write {
            Write::CreateGroup { name, creator, members, event } => {
                let members: Vec<_> = members.into_iter().chain([creator.0]).collect();
                self.judge_add(creator, &members)?;
                let (id, members) = (format!("group:{name}").into(), self.named(&members));
                Question::CreateGroup { id, by: creator, members, event }
            }
            Write::ChangeGroup { conversation, by, change, event } => {
                let users = match &change {
                    GroupChange::Join => self.named(&[by.0]),
                    GroupChange::Leave => Vec::new(),
                    GroupChange::Edit(edit) => {
                        self.judge_add(by, &edit.add)?;
                        self.named(&edit.add)
                    }
                };
                Question::ChangeGroup { conversation, by, change, users, event }
            }
            Write::Dissolve { conversation, by, event } => Question::Dissolve { conversation, by, event },
            Write::Read { conversation, by, seq, event } => Question::Read { conversation, by, seq, event },
            Write::Clear { conversation, by, to, event } => Question::Clear { conversation, by, to, event },
            Write::SetProfile { user, profile } => {
                // On the way to the owner it could be overtaken by a later one that the user has sent there.
                self.judge_here(user)?;
                Question::SetProfile { user, profile }
            }
            Write::RuleLogins { user, change } => {
                // The sessions that it ends are there.
                self.judge_here(user)?;
                Question::RuleLogins { user, change }
            }
            Write::RemoveDevice { user, device } => Question::RemoveDevice { user, device },
            Write::SetSettings { user, who_may_add } => Question::SetSettings { user, who_may_add },
            Write::Invite { group, by, users, event } => {
                Question::Invite { id: format!("group:{group}").into(), by, users, event, first: None }
            }
            Write::Relate { by, other, change, event } => {
                if other == by.0 {
                    return Err(Refusal::Denied);
                }
                let id = self.store.known.id_of_two(by.0, other).ok_or(Refusal::Moved)?;
                let counts = |user| self.store.known.relation_counts(user);
                let counts = Both { own: counts(by.0), theirs: counts(other) };
                Question::Relate { id, by, users: self.named(&[by.0, other]), change, counts, event }
            }
            _ => return Err(Refusal::Denied),
        })
    }

    /// Judges whether the slot of a user is this node's.
    fn judge_here(&self, user: UserId) -> Result<(), Refusal> {
        let is_here = self.store.slots.contains_key(&slot_of(user.number()));
        if is_here { Ok(()) } else { Err(Refusal::Moved) }
    }

    /// Judges whether a user may make others members of a group. Relations belong to users, so the owner of the group does not.
    fn judge_add(&self, by: Origin, users: &[UserId]) -> Result<(), Refusal> {
        let rules = self.store.limits.rules;
        users.iter().try_for_each(|user| rules.judge_users(self.store, by, *user, Wish::Add))
    }

    /// Users with their names, as far as those are known.
    fn named(&self, users: &[UserId]) -> Vec<(UserId, Arc<str>)> {
        users.iter().filter_map(|user| Some((*user, self.store.known.uid(*user)?.clone()))).collect()
    }
}

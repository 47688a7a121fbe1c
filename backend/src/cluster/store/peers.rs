//! Messages between the stores of nodes, and figures of a store.

use super::{Answered, Append, Question};
use crate::cluster::cell::{Deliver, Known};
use crate::im::store::{ConversationId, Online, Refusal, UserId};
use crate::im::{ApiAnswer, ApiCall};
use moorline_proto::slots::{Owner, Slot};
use std::sync::Arc;

/// A message between nodes.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// Asks the owner of a conversation to store a message. Answered by [`Self::Appended`].
    Append(u64, Append),
    /// Answers an [`Self::Append`].
    Appended(u64, Result<AppendedAt, Refusal>),
    /// Brings a message or event to the owner of a receiver. Answered by [`Self::Delivered`].
    Deliver(Deliver),
    /// Asks the owner of a conversation or user to write something else. Answered by [`Self::Answered`].
    Ask(u64, Box<Question>),
    /// Answers an [`Self::Ask`].
    Answered(u64, Result<Answered, Refusal>),
    /// Confirms the messages and events of a conversation to a user, up to an order.
    Delivered(ConversationId, UserId, u64),
    /// Slots that were given to the receiver.
    Given(Vec<(Slot, Owner)>),
    /// The sender gives its slots away, and should own none.
    Stopping,
    /// Has the owner of a user do a call of the server API. Answered by [`Self::Called`]. For [`crate::cluster::calls`].
    Call(u64, Box<ApiCall>),
    /// Answers a [`Self::Call`].
    Called(u64, Box<ApiAnswer>),
    /// Asks for the presence of users. 0: and to be told of changes, for a while. Answered by [`Self::Online`].
    AskOnline(u64, Vec<UserId>),
    /// Answers an [`Self::AskOnline`], or tells of a change. `None`: the sender has not the sessions of all users.
    Online(u64, Option<Vec<Online>>),
}

/// A message that another node has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendedAt {
    /// The conversation.
    pub conversation: ConversationId,
    /// Id of the conversation.
    pub id: Arc<str>,
    /// True for a group.
    pub is_group: bool,
    /// Number of members.
    pub members: usize,
    /// Seq, id and time of the message.
    pub known: Known,
    /// True: it was stored before.
    pub is_repeat: bool,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Slots taken over.
    pub claimed: u64,
    /// Slots that a fence did not return.
    pub fenced: u64,
    /// Slots given to another node.
    pub handed_over: u64,
    /// Slots forgotten because the lease ended.
    pub leases_ended: u64,
    /// Transactions whose outcome was unknown.
    pub unknown: u64,
    /// Messages that a transaction of unknown outcome had stored.
    pub found: u64,
    /// Numbers that became voids.
    pub voids: u64,
    /// Messages that went into a stream with their transaction.
    pub direct: u64,
    /// DELIVERs that were sent, also again.
    pub delivers: u64,
    /// DELIVERs that were not appended: repeated, or too early.
    pub ignored: u64,
    /// SENDs that another node stored.
    pub forwarded: u64,
    /// SENDs answered RETRY because their slot moved.
    pub moved: u64,
    /// Transactions that were durable.
    pub transactions: u64,
    /// Messages in them.
    pub messages: u64,
    /// Events in them.
    pub events: u64,
    /// Questions that another node answered.
    pub asked: u64,
    /// Rows that were read from cells into the memory of slots.
    pub rows_read: u64,
    /// Rows of slots that were forgotten, because there were too many.
    pub rows_forgotten: u64,
    /// Messages that were emptied since their groups are gone.
    pub swept: u64,
    /// Users of whom other nodes were asked whether they are online.
    pub presences_asked: u64,
    /// Users of whom other nodes were told.
    pub presences_told: u64,
    /// Questions of clients about presence that another node did not answer.
    pub presences_unanswered: u64,
}

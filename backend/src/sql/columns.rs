//! The columns of a transaction, table by table, in the order of the parameters of the statement.

use super::{conversation_column, slot_of_conversation, slot_of_user, user_column};
use crate::cluster::cell::{
    Content, ConversationRow, Passage, RecipientRow, Transaction, relation_code, relation_of,
};
use crate::im::store::{ConversationId, Member, Relation, UserId};
use std::marker::PhantomData;
use tokio_postgres::types::ToSql;

/// Parameters of a statement.
pub(super) type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// Defines the columns of one table.
macro_rules! columns {
    ($name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        #[derive(Default)]
        pub(super) struct $name<'a> {
            $($field: Vec<$type>,)+
            of: PhantomData<&'a ()>,
        }

        impl $name<'_> {
            /// Adds the columns in their order.
            pub(super) fn add_to<'b>(&'b self, parameters: &mut Parameters<'b>) {
                $(parameters.push(&self.$field);)+
            }
        }
    };
}

columns!(Messages {
    slot: i32,
    conversation: i64,
    seq: i64,
    order: i64,
    sender: i64,
    device: i64,
    key: &'a [u8],
    id: i64,
    time_ms: i64,
    digest: i64,
    counts: bool,
    body: &'a [u8],
});
columns!(Emptied { slot: i32, conversation: i64, seq: i64, by: i64, body: &'a [u8] });
columns!(Events {
    slot: i32,
    conversation: i64,
    order: i64,
    number: Option<i64>,
    is_settings: bool,
    is_for_all: bool,
    sender: i64,
    device: i64,
    body: &'a [u8],
});
columns!(Conversations {
    slot: i32,
    conversation: i64,
    id: &'a str,
    is_group: bool,
    creator: Option<i64>,
    title: &'a str,
    notice: &'a str,
    by_invitation: bool,
    is_silent: bool,
    is_dissolved: bool,
});
columns!(Groups {
    slot: i32,
    conversation: i64,
    creator: Option<i64>,
    title: &'a str,
    notice: &'a str,
    by_invitation: bool,
    is_silent: bool,
    is_dissolved: bool,
});
columns!(Members {
    slot: i32,
    conversation: i64,
    user: i64,
    uid: &'a str,
    visible_from: i64,
    role: i32,
    since: i64,
    silent_until: i64,
    read: i64,
    cleared: i64,
    entered: i64,
    relation: i32,
});
columns!(Parted { slot: i32, conversation: i64, user: i64 });
columns!(Recipients {
    conversation_slot: i32,
    conversation: i64,
    order: i64,
    slot: i32,
    user: i64,
    position: Option<i64>,
    entered: i64,
    passage: i32,
    other: Option<i64>,
    relation: Option<i32>,
});
columns!(Arrivals {
    slot: i32,
    user: i64,
    position: i64,
    conversation: i64,
    order: i64,
    seq: Option<i64>,
    event: Option<i64>,
    body: Option<&'a [u8]>,
    device: Option<i64>,
});
columns!(Listed { slot: i32, user: i64, conversation: i64, id: &'a str, position: i64, is_member: bool });
columns!(Related {
    slot: i32,
    user: i64,
    conversation: i64,
    order: i64,
    other: i64,
    uid: &'a str,
    relation: i32,
});
columns!(Invitations { slot: i32, user: i64, conversation: i64, order: i64 });
columns!(Invited { slot: i32, conversation: i64, user: i64, has_one: bool });
columns!(Uninvited { slot: i32, conversation: i64 });
columns!(Settings { slot: i32, user: i64, who_may_add: i32 });
columns!(Rules { slot: i32, user: i64, valid_from: i64, banned_until: i64 });
columns!(Pushed { slot: i32, user: i64, key: &'a [u8], digest: i64, position: i64 });
columns!(Acks { slot: i32, user: i64, device: i64, acked: i64, trimmed: i64, seen_ms: i64, is_gone: bool });
columns!(Accounts { slot: i32, user: i64, uid: &'a str });
columns!(Profiles { slot: i32, user: i64, body: &'a [u8] });
columns!(Devices { slot: i32, user: i64, device: i64, name: &'a str, platform: i64, acked: i64, seen_ms: i64 });
columns!(Confirmed { slot: i32, conversation: i64, user: i64, order: i64 });

/// The columns for a seq and for the number of an event.
pub(super) const fn seq_and_event(content: Content) -> (Option<i64>, Option<i64>) {
    match content {
        Content::Message(seq) => (Some(seq.cast_signed()), None),
        Content::Event(number) => (None, Some(number.cast_signed())),
        Content::Own => (None, None),
    }
}

/// The content of two columns.
pub(super) const fn content(seq: Option<i64>, event: Option<i64>) -> Content {
    match (seq, event) {
        (Some(seq), _) => Content::Message(seq.cast_unsigned()),
        (None, Some(number)) => Content::Event(number.cast_unsigned()),
        (None, None) => Content::Own,
    }
}

/// The columns of an effect, with the other user of a relation, and the relation.
fn passage_columns(passage: Passage) -> (i32, Option<i64>, Option<i32>) {
    match passage {
        Passage::Stays => (0, None, None),
        Passage::Enters => (1, None, None),
        Passage::Leaves => (2, None, None),
        Passage::Invited => (4, None, None),
        Passage::Relates(other, relation) => (3, Some(user_column(other)), Some(relation_column(relation))),
    }
}

/// The effect of three columns.
pub(super) fn passage(column: i32, other: Option<i64>, relation: Option<i32>) -> Passage {
    match (column, other, relation) {
        (1, ..) => Passage::Enters,
        (2, ..) => Passage::Leaves,
        (4, ..) => Passage::Invited,
        (3, Some(other), Some(relation)) => {
            Passage::Relates(UserId::new(other.cast_unsigned()), relation_of_column(relation))
        }
        _ => Passage::Stays,
    }
}

fn relation_column(relation: Relation) -> i32 {
    relation_code(relation).cast_signed()
}

/// The relation of a column.
pub(super) const fn relation_of_column(column: i32) -> Relation {
    relation_of(column.cast_unsigned())
}

impl<'a> Accounts<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for (user, uid) in &transaction.users {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.uid.push(uid);
        }
        columns
    }
}

impl<'a> Profiles<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for (user, body) in &transaction.profiles {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.body.push(body);
        }
        columns
    }
}

impl<'a> Devices<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for (user, row) in &transaction.devices {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.device.push(row.number.0.into());
            columns.name.push(&row.name);
            columns.platform.push(row.platform.into());
            columns.acked.push(row.acked.cast_signed());
            columns.seen_ms.push(row.seen_ms.cast_signed());
        }
        columns
    }
}

impl<'a> Conversations<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.conversations {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.id.push(&row.id);
            columns.is_group.push(row.is_group);
            columns.creator.push(row.creator.map(user_column));
            columns.title.push(&row.settings.title);
            columns.notice.push(&row.settings.notice);
            columns.by_invitation.push(row.settings.by_invitation);
            columns.is_silent.push(row.settings.is_silent);
            columns.is_dissolved.push(row.is_dissolved);
        }
        columns
    }
}

impl<'a> Groups<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.groups {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.creator.push(row.creator.map(user_column));
            columns.title.push(&row.settings.title);
            columns.notice.push(&row.settings.notice);
            columns.by_invitation.push(row.settings.by_invitation);
            columns.is_silent.push(row.settings.is_silent);
            columns.is_dissolved.push(row.is_dissolved);
        }
        columns
    }
}

impl<'a> Members<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let of_new = |row: &'a ConversationRow| row.members.iter().map(|it| (row.conversation, it));
        let new = transaction.conversations.iter().flat_map(of_new);
        let changed = transaction.members.iter().map(|(conversation, it)| (*conversation, it));
        let mut columns = Self::default();
        for (conversation, it) in new.chain(changed) {
            let Member { user, visible_from, cleared, read, silent_until_ms, since, .. } = it.member;
            columns.slot.push(slot_of_conversation(conversation));
            columns.conversation.push(conversation_column(conversation));
            columns.user.push(user_column(user));
            columns.uid.push(&it.uid);
            columns.visible_from.push(visible_from.cast_signed());
            columns.role.push(it.member.role().into());
            columns.since.push(since.cast_signed());
            columns.silent_until.push(silent_until_ms.cast_signed());
            columns.read.push(read.cast_signed());
            columns.cleared.push(cleared.cast_signed());
            columns.entered.push(it.entered.cast_signed());
            columns.relation.push(relation_column(it.relation));
        }
        columns
    }
}

impl Parted<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for (conversation, user) in &transaction.parted {
            columns.slot.push(slot_of_conversation(*conversation));
            columns.conversation.push(conversation_column(*conversation));
            columns.user.push(user_column(*user));
        }
        columns
    }
}

impl<'a> Messages<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.messages {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.seq.push(row.seq.cast_signed());
            columns.order.push(row.order.cast_signed());
            columns.sender.push(user_column(row.origin.0));
            columns.device.push(row.origin.1.0.into());
            columns.key.push(&row.key.0);
            columns.id.push(row.id.cast_signed());
            columns.time_ms.push(row.time_ms.cast_signed());
            columns.digest.push(row.digest.cast_signed());
            columns.counts.push(row.is_counted);
            columns.body.push(&row.body);
        }
        columns
    }
}

impl<'a> Emptied<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.emptied {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.seq.push(row.seq.cast_signed());
            columns.by.push(row.by.cast_signed());
            columns.body.push(&row.body);
        }
        columns
    }
}

impl<'a> Events<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.events {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.order.push(row.order.cast_signed());
            columns.number.push(row.number.map(u64::cast_signed));
            columns.is_settings.push(row.is_settings);
            columns.is_for_all.push(row.is_for_all);
            columns.sender.push(user_column(row.origin.0));
            columns.device.push(row.origin.1.0.into());
            columns.body.push(&row.body);
        }
        columns
    }
}

impl Recipients<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.messages {
            columns.add(row.conversation, row.order, &row.recipients);
        }
        for row in &transaction.events {
            columns.add(row.conversation, row.order, &row.recipients);
        }
        columns
    }

    fn add(&mut self, conversation: ConversationId, order: u64, rows: &[RecipientRow]) {
        for row in rows {
            self.conversation_slot.push(slot_of_conversation(conversation));
            self.conversation.push(conversation_column(conversation));
            self.order.push(order.cast_signed());
            self.slot.push(slot_of_user(row.user));
            self.user.push(user_column(row.user));
            self.position.push(row.position.map(u64::cast_signed));
            self.entered.push(row.entered.cast_signed());
            let (passage, other, relation) = passage_columns(row.passage);
            self.passage.push(passage);
            self.other.push(other);
            self.relation.push(relation);
        }
    }
}

impl<'a> Arrivals<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.arrivals {
            let (seq, event) = seq_and_event(row.content);
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.position.push(row.position.cast_signed());
            columns.conversation.push(conversation_column(row.conversation));
            columns.order.push(row.order.cast_signed());
            columns.seq.push(seq);
            columns.event.push(event);
            columns.body.push((row.content == Content::Own).then_some(&row.body[..]));
            columns.device.push(row.origin.map(|device| device.0.into()));
        }
        columns
    }
}

impl<'a> Listed<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.listed {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.conversation.push(conversation_column(row.conversation));
            columns.id.push(&row.id);
            columns.position.push(row.position.cast_signed());
            columns.is_member.push(row.is_member);
        }
        columns
    }
}

impl<'a> Related<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.related {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.conversation.push(conversation_column(row.conversation));
            columns.order.push(row.order.cast_signed());
            columns.other.push(user_column(row.other));
            columns.uid.push(&row.uid);
            columns.relation.push(relation_column(row.relation));
        }
        columns
    }
}

impl Invitations<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.invitations {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.conversation.push(conversation_column(row.conversation));
            columns.order.push(row.order.cast_signed());
        }
        columns
    }
}

impl Invited<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for (conversation, user, is_invited) in &transaction.invited {
            columns.slot.push(slot_of_conversation(*conversation));
            columns.conversation.push(conversation_column(*conversation));
            columns.user.push(user_column(*user));
            columns.has_one.push(*is_invited);
        }
        columns
    }
}

impl Uninvited<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for conversation in &transaction.uninvited {
            columns.slot.push(slot_of_conversation(*conversation));
            columns.conversation.push(conversation_column(*conversation));
        }
        columns
    }
}

impl Settings<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for (user, who_may_add) in &transaction.settings {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.who_may_add.push((*who_may_add).into());
        }
        columns
    }
}

impl Rules<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for (user, rule) in &transaction.rules {
            columns.slot.push(slot_of_user(*user));
            columns.user.push(user_column(*user));
            columns.valid_from.push(rule.valid_from_s.cast_signed());
            columns.banned_until.push(rule.banned_until_s.cast_signed());
        }
        columns
    }
}

impl<'a> Pushed<'a> {
    pub(super) fn of(transaction: &'a Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.pushed {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.key.push(&row.key.0);
            columns.digest.push(row.digest.cast_signed());
            columns.position.push(row.position.cast_signed());
        }
        columns
    }
}

impl Acks<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.cursors {
            columns.slot.push(slot_of_user(row.user));
            columns.user.push(user_column(row.user));
            columns.device.push(row.device.0.into());
            columns.acked.push(row.acked.cast_signed());
            columns.trimmed.push(row.trimmed.cast_signed());
            columns.seen_ms.push(row.seen_ms.cast_signed());
            columns.is_gone.push(row.is_gone);
        }
        columns
    }
}

impl Confirmed<'_> {
    pub(super) fn of(transaction: &Transaction) -> Self {
        let mut columns = Self::default();
        for row in &transaction.confirmed {
            columns.slot.push(slot_of_conversation(row.conversation));
            columns.conversation.push(conversation_column(row.conversation));
            columns.user.push(user_column(row.user));
            columns.order.push(row.order.cast_signed());
        }
        columns
    }
}

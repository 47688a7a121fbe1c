//! Reads of a cell. All reads of one request see the tables at one moment.

use super::{
    capped, conversation_column, slot_column, slot_of_conversation, slot_of_user, statements, user_column,
};
use crate::cluster::cell::{
    ArrivalRow, ConversationRow, DeviceRow, Known, Load, Loaded, Membership, UserState,
};
use crate::im::store::{ConversationId, DeviceNumber, UserId};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_postgres::{Client, Error, IsolationLevel, Row, Statement, Transaction};

/// The prepared statements.
pub(super) struct Loads {
    account_by_uid: Statement,
    account: Statement,
    devices: Statement,
    arrived: Statement,
    conversation_by_id: Statement,
    conversation: Statement,
    members: Statement,
    key: Statement,
    stream: Statement,
    bodies: Statement,
    page: Statement,
}

impl Loads {
    pub(super) async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            account_by_uid: client.prepare(statements::ACCOUNT_BY_UID).await?,
            account: client.prepare(statements::ACCOUNT).await?,
            devices: client.prepare(statements::DEVICES).await?,
            arrived: client.prepare(statements::ARRIVED).await?,
            conversation_by_id: client.prepare(statements::CONVERSATION_BY_ID).await?,
            conversation: client.prepare(statements::CONVERSATION).await?,
            members: client.prepare(statements::MEMBERS).await?,
            key: client.prepare(statements::KEY).await?,
            stream: client.prepare(statements::STREAM).await?,
            bodies: client.prepare(statements::BODIES).await?,
            page: client.prepare(statements::PAGE).await?,
        })
    }

    /// Performs reads, in order.
    pub(super) async fn load(&self, client: &mut Client, loads: &[Load]) -> Result<Vec<Loaded>, Error> {
        let begin =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let transaction = begin.start().await?;
        let reader = Reader { loads: self, transaction };
        let mut loaded = Vec::with_capacity(loads.len());
        for load in loads {
            loaded.push(reader.read(load).await?);
        }
        reader.transaction.commit().await?;
        Ok(loaded)
    }
}

struct Reader<'a> {
    loads: &'a Loads,
    transaction: Transaction<'a>,
}

impl Reader<'_> {
    async fn read(&self, load: &Load) -> Result<Loaded, Error> {
        let (loads, transaction) = (self.loads, &self.transaction);
        Ok(match load {
            Load::Name(uid) => {
                let (slot, name) = (slot_column(Slot::of(uid)), &**uid);
                let row = transaction.query_opt(&loads.account_by_uid, &[&slot, &name]).await?;
                Loaded::Name(uid.clone(), row.map(|row| user(&row, 0)))
            }
            Load::User(uid) => {
                let (slot, name) = (slot_column(Slot::of(uid)), &**uid);
                Loaded::User(
                    self.user(transaction.query_opt(&loads.account_by_uid, &[&slot, &name]).await?).await?,
                )
            }
            Load::UserNumber(user) => {
                let (slot, user) = (slot_of_user(*user), user_column(*user));
                Loaded::User(self.user(transaction.query_opt(&loads.account, &[&slot, &user]).await?).await?)
            }
            Load::Conversation(id) => {
                let (slot, id) = (slot_column(Slot::of(id)), &**id);
                let row = transaction.query_opt(&loads.conversation_by_id, &[&slot, &id]).await?;
                Loaded::Conversation(self.conversation(row).await?.map(Box::new))
            }
            Load::ConversationNumber(of) => {
                Loaded::Conversation(self.conversation_of(*of).await?.map(Box::new))
            }
            Load::Key(of, sender, key) => {
                let (slot, of, sender) =
                    (slot_of_conversation(*of), conversation_column(*of), user_column(*sender));
                let key = &key.0[..];
                let row = transaction.query_opt(&loads.key, &[&slot, &of, &sender, &key]).await?;
                Loaded::Key(row.map(|row| Known {
                    seq: number(&row, 0),
                    id: number(&row, 1),
                    time_ms: number(&row, 2),
                    digest: number(&row, 3),
                }))
            }
            Load::Stream(user, after, to, limit) => self.stream(*user, *after, *to, *limit).await?,
            Load::Bodies(messages) => self.bodies(messages).await?,
            Load::Page(of, from, to, limit) => {
                let (slot, of) = (slot_of_conversation(*of), conversation_column(*of));
                let (from, to, limit) = (capped(*from), capped(*to), capped(*limit as u64));
                let rows = transaction.query(&loads.page, &[&slot, &of, &from, &to, &limit]).await?;
                Loaded::Page(rows.iter().map(|row| (number(row, 0), body(row, 1))).collect())
            }
        })
    }

    async fn user(&self, row: Option<Row>) -> Result<Option<Box<UserState>>, Error> {
        let Some(row) = row else { return Ok(None) };
        let user = user(&row, 0);
        let (slot, name) = (slot_of_user(user), user_column(user));
        let devices = self.transaction.query(&self.loads.devices, &[&slot, &name]).await?;
        let devices = devices.iter().map(|row| DeviceRow {
            number: device(row.get(0)),
            name: text(row, 1),
            platform: u32::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            acked: number(row, 3),
        });
        let devices = devices.collect();
        let arrived = self.transaction.query(&self.loads.arrived, &[&slot, &name]).await?;
        let arrived = arrived.iter().map(|row| (conversation(row, 0), number(row, 1))).collect();
        Ok(Some(Box::new(UserState { user, uid: text(&row, 1), devices, end: number(&row, 2), arrived })))
    }

    async fn conversation_of(&self, of: ConversationId) -> Result<Option<(ConversationRow, u64)>, Error> {
        let (slot, of) = (slot_of_conversation(of), conversation_column(of));
        self.conversation(self.transaction.query_opt(&self.loads.conversation, &[&slot, &of]).await?).await
    }

    async fn conversation(&self, row: Option<Row>) -> Result<Option<(ConversationRow, u64)>, Error> {
        let Some(row) = row else { return Ok(None) };
        let of = conversation(&row, 0);
        let (slot, name) = (slot_of_conversation(of), conversation_column(of));
        let members = self.transaction.query(&self.loads.members, &[&slot, &name]).await?;
        let members = members.iter().map(|row| Membership {
            user: user(row, 0),
            uid: text(row, 1),
            visible_from: number(row, 2),
        });
        let members = members.collect();
        let known = ConversationRow { conversation: of, id: text(&row, 1), is_group: row.get(2), members };
        Ok(Some((known, number(&row, 3))))
    }

    async fn stream(&self, user: UserId, after: u64, to: u64, limit: usize) -> Result<Loaded, Error> {
        let (slot, name) = (slot_of_user(user), user_column(user));
        let (after, to, limit) = (capped(after), capped(to), capped(limit as u64));
        let rows = self.transaction.query(&self.loads.stream, &[&slot, &name, &after, &to, &limit]).await?;
        let rows = rows.iter().map(|row| ArrivalRow {
            user,
            position: number(row, 0),
            conversation: conversation(row, 1),
            seq: number(row, 2),
            origin: row.get::<_, Option<i64>>(3).map(device),
        });
        Ok(Loaded::Stream(rows.collect()))
    }

    async fn bodies(&self, messages: &[(ConversationId, u64)]) -> Result<Loaded, Error> {
        let mut heads = BTreeMap::new();
        for (of, _) in messages {
            if !heads.contains_key(of) {
                heads.insert(*of, self.conversation_of(*of).await?);
            }
        }
        let slots: Vec<_> = messages.iter().map(|(of, _)| slot_of_conversation(*of)).collect();
        let names: Vec<_> = messages.iter().map(|(of, _)| conversation_column(*of)).collect();
        let seqs: Vec<_> = messages.iter().map(|(_, seq)| capped(*seq)).collect();
        let rows = self.transaction.query(&self.loads.bodies, &[&slots, &names, &seqs]).await?;
        let bodies = rows.iter().map(|row| (conversation(row, 0), number(row, 1), body(row, 2))).collect();
        Ok(Loaded::Bodies(bodies, heads.into_values().flatten().collect()))
    }
}

pub(super) fn number(row: &Row, index: usize) -> u64 {
    row.get::<_, i64>(index).cast_unsigned()
}

pub(super) fn user(row: &Row, index: usize) -> UserId {
    UserId::new(number(row, index))
}

pub(super) fn conversation(row: &Row, index: usize) -> ConversationId {
    ConversationId::new(number(row, index))
}

/// The device of a column; what no device has becomes the operator's.
pub(super) fn device(number: i64) -> DeviceNumber {
    DeviceNumber(u32::try_from(number).unwrap_or(u32::MAX))
}

pub(super) fn text(row: &Row, index: usize) -> Arc<str> {
    row.get::<_, &str>(index).into()
}

pub(super) fn body(row: &Row, index: usize) -> Bytes {
    Bytes::copy_from_slice(row.get(index))
}

//! Reads of a cell. All reads of one request see the tables at one moment.

mod people;

use super::columns::{content, relation_of_column, seq_and_event};
use super::{
    capped, conversation_column, slot_column, slot_of_conversation, slot_of_user, statements, user_column,
};
use crate::cluster::cell::{
    Content, ConversationRow, DeviceRow, Ends, EntryRow, Known, ListedState, Load, Loaded, Membership,
    UNREAD_MAX, UserState,
};
use crate::im::store::rules::relations::Both;
use crate::im::store::{
    ConversationId, DeviceNumber, GroupSettings, LAST_BYTES_MAX, LoginRule, Member, Role, UserId,
};
use bytes::Bytes;
use moorline_proto::slots::Slot;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::{Client, Error, IsolationLevel, Row, Statement, Transaction};

/// Reads of one request whose statements are under way at once.
const AT_ONCE_MAX: usize = 64;

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
    profiles: Statement,
    listed_since: Statement,
    listing: Statement,
    listed: Statement,
    contacts: Statement,
    pairs: Statement,
    relations: Statement,
    relation_counts: Statement,
    settings: Statement,
    last_gone: Statement,
    devices_of: Statement,
    invitations: Statement,
    invited_to: Statement,
    invited: Statement,
    pushed: Statement,
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
            profiles: client.prepare(statements::PROFILES).await?,
            listed_since: client.prepare(statements::LISTED_SINCE).await?,
            listing: client.prepare(statements::LISTING).await?,
            listed: client.prepare(statements::LISTED).await?,
            contacts: client.prepare(statements::CONTACTS).await?,
            pairs: client.prepare(statements::PAIRS).await?,
            relations: client.prepare(statements::RELATIONS).await?,
            relation_counts: client.prepare(statements::RELATION_COUNTS).await?,
            settings: client.prepare(statements::SETTINGS).await?,
            last_gone: client.prepare(statements::LAST_GONE).await?,
            devices_of: client.prepare(statements::DEVICES_OF).await?,
            invitations: client.prepare(statements::INVITATIONS).await?,
            invited_to: client.prepare(statements::INVITED_TO).await?,
            invited: client.prepare(statements::INVITED).await?,
            pushed: client.prepare(statements::PUSHED).await?,
        })
    }

    /// Performs reads. Their statements go out together, and the server answers them one behind the other.
    pub(super) async fn load(&self, client: &mut Client, loads: &[Load]) -> Result<Vec<Loaded>, Error> {
        let begin =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let transaction = begin.start().await?;
        let reader = Reader { loads: self, transaction };
        let mut loaded = Vec::with_capacity(loads.len());
        for some in loads.chunks(AT_ONCE_MAX) {
            let read = some.iter().map(|load| Box::pin(reader.read(load))).collect();
            loaded.extend(all(read).await.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        reader.transaction.commit().await?;
        Ok(loaded)
    }
}

/// Waits for several reads at once; the results have their order.
async fn all<T, F: Future<Output = T> + Unpin>(mut reads: Vec<F>) -> Vec<T> {
    let mut results: Vec<Option<T>> = reads.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (read, result) in reads.iter_mut().zip(&mut results).filter(|(_, result)| result.is_none()) {
            if let Poll::Ready(done) = Pin::new(read).poll(cx) {
                *result = Some(done);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
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
            Load::Profiles(uids) => {
                let (slots, uids) = by_slot(uids);
                let rows = transaction.query(&loads.profiles, &[&slots, &uids]).await?;
                Loaded::Profiles(rows.iter().map(|row| (text(row, 0), body(row, 1))).collect())
            }
            Load::Listing(user, after, limit) => self.listing(*user, after, *limit).await?,
            Load::Listed(user, conversations) => self.listed(*user, conversations).await?,
            load => self.people(load).await?,
        })
    }

    async fn user(&self, row: Option<Row>) -> Result<Option<Box<UserState>>, Error> {
        let Some(row) = row else { return Ok(None) };
        let user = user(&row, 0);
        let (slot, name) = (slot_of_user(user), user_column(user));
        let devices = self.transaction.query(&self.loads.devices, &[&slot, &name]).await?;
        let devices = devices.iter().map(device_row).collect();
        let gone = self.transaction.query_opt(&self.loads.last_gone, &[&slot, &name]).await?;
        let last_gone = gone.map_or(0, |row| u32::try_from(number(&row, 0)).unwrap_or(u32::MAX));
        let arrived = self.transaction.query(&self.loads.arrived, &[&slot, &name]).await?;
        let arrived = arrived.iter().map(|row| (conversation(row, 0), number(row, 1))).collect();
        Ok(Some(Box::new(UserState {
            user,
            uid: text(&row, 1),
            devices,
            last_gone,
            rule: LoginRule { valid_from_s: number(&row, 3), banned_until_s: number(&row, 4) },
            end: number(&row, 2),
            arrived,
        })))
    }

    async fn conversation_of(&self, of: ConversationId) -> Result<Option<(ConversationRow, Ends)>, Error> {
        let (slot, of) = (slot_of_conversation(of), conversation_column(of));
        self.conversation(self.transaction.query_opt(&self.loads.conversation, &[&slot, &of]).await?).await
    }

    async fn conversation(&self, row: Option<Row>) -> Result<Option<(ConversationRow, Ends)>, Error> {
        let Some(row) = row else { return Ok(None) };
        let of = conversation(&row, 0);
        let (slot, name) = (slot_of_conversation(of), conversation_column(of));
        let members = self.transaction.query(&self.loads.members, &[&slot, &name]).await?;
        let members = members.iter().map(|row| Membership {
            member: member(row, 0),
            uid: text(row, 7),
            entered: number(row, 8),
            relation: relation_of_column(row.get(9)),
        });
        let members = members.collect();
        let ends = Ends {
            time_ms: number(&row, 13),
            seq: number(&row, 3),
            order: number(&row, 4),
            all: number(&row, 5),
            events: number(&row, 6),
        };
        let settings = GroupSettings {
            title: row.get(8),
            notice: row.get(9),
            by_invitation: row.get(10),
            is_silent: row.get(11),
        };
        let known = ConversationRow {
            conversation: of,
            id: text(&row, 1),
            is_group: row.get(2),
            creator: row.get::<_, Option<i64>>(7).map(|creator| UserId::new(creator.cast_unsigned())),
            settings,
            is_dissolved: row.get(12),
            members,
        };
        Ok(Some((known, ends)))
    }

    async fn stream(&self, user: UserId, after: u64, to: u64, limit: usize) -> Result<Loaded, Error> {
        let (slot, name) = (slot_of_user(user), user_column(user));
        let (after, to, limit) = (capped(after), capped(to), capped(limit as u64));
        let rows = self.transaction.query(&self.loads.stream, &[&slot, &name, &after, &to, &limit]).await?;
        let rows = rows.iter().map(|row| EntryRow {
            position: number(row, 0),
            conversation: conversation(row, 1),
            content: content(row.get(2), row.get(3)),
            body: maybe_body(row, 4).unwrap_or_default(),
            origin: row.get::<_, Option<i64>>(5).map(device),
        });
        Ok(Loaded::Stream(rows.collect()))
    }

    async fn bodies(&self, entries: &[(ConversationId, Content)]) -> Result<Loaded, Error> {
        let mut heads = BTreeMap::new();
        for (of, _) in entries {
            if !heads.contains_key(of) {
                heads.insert(*of, self.conversation_of(*of).await?);
            }
        }
        let slots: Vec<_> = entries.iter().map(|(of, _)| slot_of_conversation(*of)).collect();
        let names: Vec<_> = entries.iter().map(|(of, _)| conversation_column(*of)).collect();
        let (seqs, events): (Vec<_>, Vec<_>) =
            entries.iter().map(|(_, content)| seq_and_event(*content)).unzip();
        let rows = self.transaction.query(&self.loads.bodies, &[&slots, &names, &seqs, &events]).await?;
        let bodies =
            rows.iter().map(|row| (conversation(row, 0), content(row.get(1), row.get(2)), body(row, 3)));
        Ok(Loaded::Bodies(bodies.collect(), heads.into_values().flatten().collect()))
    }

    async fn listing(&self, user: UserId, after: &str, limit: usize) -> Result<Loaded, Error> {
        let (slot, name, limit) = (slot_of_user(user), user_column(user), capped(limit as u64));
        let mut since = i64::MAX;
        if !after.is_empty() {
            let found = self.transaction.query_opt(&self.loads.listed_since, &[&slot, &name, &after]).await?;
            let Some(found) = found else { return Ok(Loaded::Listing(None)) };
            since = found.get(0);
        }
        let rows = self.transaction.query(&self.loads.listing, &[&slot, &name, &since, &limit]).await?;
        Ok(Loaded::Listing(Some(rows.iter().map(|row| conversation(row, 0)).collect())))
    }

    async fn listed(&self, user: UserId, conversations: &[ConversationId]) -> Result<Loaded, Error> {
        let slots: Vec<_> = conversations.iter().map(|of| slot_of_conversation(*of)).collect();
        let names: Vec<_> = conversations.iter().map(|of| conversation_column(*of)).collect();
        let bytes_max = i32::try_from(LAST_BYTES_MAX).unwrap_or(i32::MAX);
        let (user, unread_max) = (user_column(user), capped(UNREAD_MAX));
        let rows = self
            .transaction
            .query(&self.loads.listed, &[&slots, &names, &user, &bytes_max, &unread_max])
            .await?;
        let states = rows.iter().map(|row| ListedState {
            conversation: conversation(row, 14),
            id: text(row, 15),
            latest: number(row, 16),
            members: usize::try_from(number(row, 17)).unwrap_or(0),
            own: member(row, 0),
            peer: row.get::<_, Option<i64>>(7).map(|_| member(row, 7)),
            relations: Both { own: relation_of_column(row.get(20)), theirs: relation_of_column(row.get(21)) },
            unread: number(row, 18),
            last: maybe_body(row, 19),
        });
        Ok(Loaded::Listed(states.collect()))
    }
}

/// Names with their slots.
fn by_slot(names: &[Arc<str>]) -> (Vec<i32>, Vec<&str>) {
    names.iter().map(|name| (slot_column(Slot::of(name)), &**name)).unzip()
}

/// A member, from this column on.
fn member(row: &Row, first: usize) -> Member {
    let role = Role::try_from(row.get::<_, i32>(first + 2)).unwrap_or_default();
    let mut member = Member::new(user(row, first), role, number(row, first + 1).max(1));
    member.since = number(row, first + 3);
    member.silent_until_ms = number(row, first + 4);
    (member.read, member.cleared) = (number(row, first + 5), number(row, first + 6));
    member
}

fn maybe_body(row: &Row, index: usize) -> Option<Bytes> {
    row.get::<_, Option<&[u8]>>(index).map(Bytes::copy_from_slice)
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

/// A device, from the first column on.
fn device_row(row: &Row) -> DeviceRow {
    DeviceRow {
        number: device(row.get(0)),
        name: text(row, 1),
        platform: u32::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        acked: number(row, 3),
        seen_ms: number(row, 4),
    }
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

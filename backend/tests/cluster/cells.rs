//! Simulated cells: tables in memory, transactions behind fences, and a clock of their own.
//!
//! Each request is done in one piece, as a serializable database would do it. Panics where a node breaks what the fences
//! promise: a seq or a position that is given twice, a stream with a hole.

use bytes::Bytes;
use moorline_backend::cluster::cell::{
    Applied, ArrivalRow, CellReply, CellRequest, ConversationRow, Deliver, DeviceRow, Known, Life, Load,
    Loaded, MessageRow, SlotHead, Transaction, UserState, counter_of, slot_of,
};
use moorline_backend::cluster::lease::LEASE;
use moorline_backend::im::store::{ConversationId, UserId};
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Owner, Slot, SlotTable};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A user.
#[derive(Debug)]
pub(crate) struct UserTable {
    pub(crate) uid: Arc<str>,
    devices: Vec<DeviceRow>,
    inbox: BTreeMap<u64, ArrivalRow>,
    end: u64,
    trimmed: u64,
    arrived: BTreeMap<ConversationId, u64>,
    /// Everything that was ever put into the stream.
    pub(crate) history: Vec<(ConversationId, u64)>,
}

/// A conversation.
#[derive(Debug)]
pub(crate) struct ConversationTable {
    pub(crate) row: ConversationRow,
    pub(crate) messages: BTreeMap<u64, MessageRow>,
    keys: BTreeMap<(UserId, MessageKey), Known>,
}

impl ConversationTable {
    fn latest(&self) -> u64 {
        self.messages.last_key_value().map_or(0, |(seq, _)| *seq)
    }
}

/// All cells.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    owners: SlotTable,
    /// Lives with the ends of their leases, in milliseconds of the first cell.
    leases: BTreeMap<NodeId, (Life, u64)>,
    pub(crate) users: BTreeMap<UserId, UserTable>,
    uids: BTreeMap<Arc<str>, UserId>,
    pub(crate) conversations: BTreeMap<ConversationId, ConversationTable>,
    ids: BTreeMap<Arc<str>, ConversationId>,
    /// Seq of the message before each that is on its way.
    pub(crate) outbox: BTreeMap<(ConversationId, UserId, u64), u64>,
    last_ids: BTreeMap<NodeId, u64>,
}

impl Cells {
    pub(crate) fn last_id(&self, node: NodeId) -> u64 {
        self.last_ids.get(&node).copied().unwrap_or(0)
    }

    pub(crate) fn owner(&self, slot: Slot) -> Owner {
        self.owners.owner(slot)
    }

    /// Gives a slot to a node whose owner lives, as a claim by a wrong clock would.
    pub(crate) fn steal(&mut self, slot: Slot, node: NodeId) {
        let epoch = self.owners.owner(slot).epoch + 1;
        self.owners.learn(slot, Owner { node: Some(node), epoch });
    }

    /// Puts a user into the tables, as an import would.
    pub(crate) fn seed_user(&mut self, user: UserId, uid: &str) {
        let uid: Arc<str> = uid.into();
        self.uids.insert(uid.clone(), user);
        self.users.insert(user, UserTable::new(uid));
    }

    /// Puts a conversation into the tables.
    pub(crate) fn seed(&mut self, row: ConversationRow) {
        self.ids.insert(row.id.clone(), row.conversation);
        let (messages, keys) = (BTreeMap::new(), BTreeMap::new());
        self.conversations.insert(row.conversation, ConversationTable { row, messages, keys });
    }

    /// The stream of a user, for people.
    pub(crate) fn describe(&self, uid: &str) -> String {
        let table = self.uids.get(uid).and_then(|user| self.users.get(user));
        format!("{table:?}")
    }

    /// Performs a request at this time of the cells, in milliseconds. Requests of slots of other cells are faults of the node.
    pub(crate) fn perform(
        &mut self,
        now_ms: u64,
        is_here: impl Fn(Slot) -> bool,
        request: &CellRequest,
    ) -> CellReply {
        match request {
            CellRequest::Renew(life) => {
                let lease_ms = u64::try_from(LEASE.as_millis()).expect("short");
                let known = self.leases.get(&life.node);
                if known.is_none_or(|(known, until)| known.is(life) || *until <= now_ms) {
                    self.leases.insert(life.node, (life.clone(), now_ms + lease_ms));
                }
                self.lives(now_ms)
            }
            CellRequest::Release(life) => {
                self.leases.retain(|_, (known, _)| !known.is(life));
                self.lives(now_ms)
            }
            CellRequest::Owners => {
                let here = Slot::all().filter(|slot| is_here(*slot));
                CellReply::Owners(here.map(|slot| (slot, self.owners.owner(slot))).collect())
            }
            CellRequest::Claim(node, claims) => self.claim(*node, claims, &is_here),
            CellRequest::HandOver(node, steps) => {
                for (slot, epoch, to) in steps {
                    if self.owners.owner(*slot) == (Owner { node: Some(*node), epoch: *epoch }) {
                        self.owners.learn(*slot, Owner { node: Some(*to), epoch: epoch + 1 });
                    }
                }
                CellReply::Owners(steps.iter().map(|(slot, ..)| (*slot, self.owners.owner(*slot))).collect())
            }
            CellRequest::Commit(transaction) => {
                assert!(transaction.fences.iter().all(|(slot, _)| is_here(*slot)), "one cell's slots");
                CellReply::Applied(self.apply(transaction))
            }
            CellRequest::Load(loads) => CellReply::Loaded(loads.iter().map(|load| self.load(load)).collect()),
        }
    }

    fn lives(&self, now_ms: u64) -> CellReply {
        let living = self.leases.values().filter(|(_, until)| *until > now_ms);
        CellReply::Renewed(living.map(|(life, _)| life.clone()).collect())
    }

    fn claim(&mut self, node: NodeId, claims: &[(Slot, u64)], is_here: &impl Fn(Slot) -> bool) -> CellReply {
        let (mut heads, mut refused) = (Vec::new(), Vec::new());
        for (slot, seen) in claims {
            assert!(is_here(*slot), "one cell's slots");
            if self.owners.owner(*slot).epoch != *seen {
                refused.push((*slot, self.owners.owner(*slot)));
                continue;
            }
            self.owners.learn(*slot, Owner { node: Some(node), epoch: seen + 1 });
            heads.push(self.head(*slot, seen + 1));
        }
        CellReply::Claimed(heads, refused)
    }

    fn head(&self, slot: Slot, epoch: u64) -> SlotHead {
        let users = self.users.keys().map(|user| user.number());
        let users = users.filter(|number| slot_of(*number) == slot).map(counter_of).max();
        let conversations = self.conversations.keys().map(|of| of.number());
        let conversations = conversations.filter(|number| slot_of(*number) == slot).map(counter_of).max();
        let outbox =
            self.outbox.iter().filter(|((conversation, ..), _)| slot_of(conversation.number()) == slot);
        let outbox = outbox.map(|((conversation, user, seq), after)| {
            let table = &self.conversations[conversation];
            let message = &table.messages[seq];
            Deliver {
                user: *user,
                conversation: *conversation,
                id: table.row.id.clone(),
                is_group: table.row.is_group,
                members: table.row.members.len(),
                visible_from: 1,
                seq: *seq,
                after: *after,
                origin: message.origin,
                body: message.body.clone(),
            }
        });
        let (users, conversations) = (users.unwrap_or(0), conversations.unwrap_or(0));
        SlotHead { slot, epoch, users, conversations, outbox: outbox.collect() }
    }

    fn apply(&mut self, transaction: &Transaction) -> Applied {
        let Transaction { node, fences, .. } = transaction;
        let last_id = self.last_ids.entry(*node).or_default();
        *last_id = (*last_id).max(transaction.last_id);
        let owners = &self.owners;
        let is_held =
            |(slot, epoch): &&(Slot, u64)| owners.owner(*slot) == Owner { node: Some(*node), epoch: *epoch };
        let held: Vec<Slot> = fences.iter().filter(is_held).map(|(slot, _)| *slot).collect();
        let lost = fences.iter().map(|(slot, _)| *slot).filter(|slot| !held.contains(slot)).collect();
        let is_ours = |number: u64| held.contains(&slot_of(number));
        for (user, uid) in transaction.users.iter().filter(|(user, _)| is_ours(user.number())) {
            assert!(self.uids.insert(uid.clone(), *user).is_none(), "{uid} has one number");
            assert!(
                self.users.insert(*user, UserTable::new(uid.clone())).is_none(),
                "numbers are given once"
            );
        }
        for (user, device) in transaction.devices.iter().filter(|(user, _)| is_ours(user.number())) {
            let devices = &mut self.users.get_mut(user).expect("a user").devices;
            assert!(devices.iter().all(|it| it.number != device.number), "numbers are given once");
            devices.push(device.clone());
        }
        for row in transaction.conversations.iter().filter(|row| is_ours(row.conversation.number())) {
            assert!(!self.ids.contains_key(&row.id), "{} comes into being once", row.id);
            self.seed(row.clone());
        }
        let (mut known, mut arriving) = (Vec::new(), Vec::new());
        for (index, message) in transaction.messages.iter().enumerate() {
            if is_ours(message.conversation.number())
                && let Some(found) = self.store(message, &is_ours, &mut arriving)
            {
                known.push((index, found));
            }
        }
        let arrivals = transaction.arrivals.iter().filter(|row| is_ours(row.user.number()));
        arriving.extend(arrivals.cloned());
        arriving.sort_by_key(|row: &ArrivalRow| row.position);
        for row in arriving {
            self.users.get_mut(&row.user).expect("a user").arrive(row);
        }
        for row in transaction.cursors.iter().filter(|row| is_ours(row.user.number())) {
            let user = self.users.get_mut(&row.user).expect("a user");
            let device = user.devices.iter_mut().find(|it| it.number == row.device).expect("a device");
            assert!(row.acked <= user.end, "an ack of what there is");
            device.acked = device.acked.max(row.acked);
            let trimmed = user.devices.iter().map(|device| device.acked).min().unwrap_or(0);
            assert!(row.trimmed <= trimmed, "what a device has not acked stays");
            user.trimmed = user.trimmed.max(row.trimmed);
            user.inbox.retain(|position, _| *position > user.trimmed);
        }
        for row in transaction.confirmed.iter().filter(|row| is_ours(row.conversation.number())) {
            self.outbox.retain(|(conversation, user, seq), _| {
                (*conversation, *user) != (row.conversation, row.user) || *seq > row.seq
            });
        }
        Applied { lost, known }
    }

    /// Stores a message. Returns the first result of its key, if there is one.
    fn store(
        &mut self,
        message: &MessageRow,
        is_ours: &impl Fn(u64) -> bool,
        arriving: &mut Vec<ArrivalRow>,
    ) -> Option<Known> {
        let table = self.conversations.get_mut(&message.conversation).expect("a conversation");
        let (conversation, seq) = (message.conversation, message.seq);
        let key = (message.origin.0, message.key);
        if let Some(known) = table.keys.get(&key) {
            return Some(*known);
        }
        let after = table.latest();
        assert!(seq > after, "{} has {after} already, and gets {seq}", table.row.id);
        let MessageRow { id, time_ms, digest, .. } = *message;
        table.keys.insert(key, Known { seq, id, time_ms, digest });
        table.messages.insert(seq, MessageRow { recipients: Vec::new(), ..message.clone() });
        for (user, position) in &message.recipients {
            if let Some(position) = position.filter(|_| is_ours(user.number())) {
                let origin = (*user == message.origin.0).then_some(message.origin.1);
                let row = ArrivalRow { user: *user, conversation, seq, position, origin };
                arriving.push(row);
            } else {
                self.outbox.insert((conversation, *user, seq), after);
            }
        }
        None
    }

    fn load(&self, load: &Load) -> Loaded {
        match load {
            Load::Name(uid) => Loaded::Name(uid.clone(), self.uids.get(uid).copied()),
            Load::User(uid) => Loaded::User(self.uids.get(uid).and_then(|user| self.user(*user))),
            Load::UserNumber(user) => Loaded::User(self.user(*user)),
            Load::Conversation(id) => {
                Loaded::Conversation(self.ids.get(id).and_then(|of| self.conversation(*of)).map(Box::new))
            }
            Load::ConversationNumber(of) => Loaded::Conversation(self.conversation(*of).map(Box::new)),
            Load::Key(conversation, sender, key) => {
                let table = self.conversations.get(conversation);
                Loaded::Key(table.and_then(|table| table.keys.get(&(*sender, *key))).copied())
            }
            Load::Stream(user, after, to, limit) => {
                let inbox = self.users.get(user).map(|user| &user.inbox);
                let rows = inbox.into_iter().flat_map(|inbox| inbox.range(after + 1..=*to.max(after)));
                Loaded::Stream(rows.take(*limit).map(|(_, row)| row.clone()).collect())
            }
            Load::Bodies(messages) => {
                let mut heads = BTreeMap::new();
                let bodies = messages.iter().filter_map(|(of, seq)| {
                    heads.insert(*of, self.conversation(*of)?);
                    let body: Bytes = self.conversations.get(of)?.messages.get(seq)?.body.clone();
                    Some((*of, *seq, body))
                });
                let bodies = bodies.collect();
                Loaded::Bodies(bodies, heads.into_values().collect())
            }
            Load::Page(of, from, to, limit) => {
                let messages = self.conversations.get(of).map(|table| &table.messages);
                let range = *from..(*to + 1).max(*from);
                let rows = messages.into_iter().flat_map(|messages| messages.range(range.clone()));
                Loaded::Page(rows.take(*limit).map(|(seq, row)| (*seq, row.body.clone())).collect())
            }
        }
    }

    fn user(&self, user: UserId) -> Option<Box<UserState>> {
        let table = self.users.get(&user)?;
        let (uid, devices) = (table.uid.clone(), table.devices.clone());
        let arrived = table.arrived.iter().map(|(of, seq)| (*of, *seq)).collect();
        Some(Box::new(UserState { user, uid, devices, end: table.end, arrived }))
    }

    fn conversation(&self, of: ConversationId) -> Option<(ConversationRow, u64)> {
        let table = self.conversations.get(&of)?;
        Some((table.row.clone(), table.latest()))
    }
}

impl UserTable {
    fn new(uid: Arc<str>) -> Self {
        Self {
            uid,
            devices: Vec::new(),
            inbox: BTreeMap::new(),
            end: 0,
            trimmed: 0,
            arrived: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Puts a message behind the end of the stream.
    fn arrive(&mut self, row: ArrivalRow) {
        assert!(row.position > self.end, "positions are given once");
        let arrived = self.arrived.entry(row.conversation).or_default();
        assert!(
            row.seq > *arrived,
            "{} has {:?} {arrived} already, and gets {}",
            self.uid,
            row.conversation,
            row.seq
        );
        *arrived = row.seq;
        self.end = row.position;
        self.history.push((row.conversation, row.seq));
        self.inbox.insert(row.position, row);
    }
}

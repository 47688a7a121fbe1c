//! Simulated cells: tables in memory, transactions behind fences, and a clock of their own.
//!
//! Each request is done in one piece, as a serializable database would do it. Panics where a node breaks what the fences
//! promise: a seq or a position that is given twice, a stream with a hole.

mod loads;
mod sweeping;
mod users;

use bytes::Bytes;
use moorline_backend::cluster::cell::{
    Applied, ArrivalRow, CellReply, CellRequest, Content, ConversationRow, Deliver, DeviceRow, EVENTS_MAX,
    Ends, EntryRow, EventRow, InvitationRow, Known, Life, MessageRow, Passage, RecipientRow, SlotHead,
    Transaction, counter_of, slot_of,
};
use moorline_backend::cluster::lease::LEASE;
use moorline_backend::im::store::{ConversationId, LoginRule, Origin, Relation, UserId, WhoMayAdd};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::message::decode;
use moorline_proto::slots::{NodeId, Owner, Slot, SlotTable};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A user.
#[derive(Debug)]
pub(crate) struct UserTable {
    pub(crate) uid: Arc<str>,
    profile: Option<Bytes>,
    devices: Vec<DeviceRow>,
    last_gone: u32,
    /// Rule for logins.
    pub(crate) rule: LoginRule,
    inbox: BTreeMap<u64, EntryRow>,
    end: u64,
    trimmed: u64,
    arrived: BTreeMap<ConversationId, u64>,
    /// Conversations of the user's list: id, and position at which the membership began.
    pub(crate) listing: BTreeMap<ConversationId, (Arc<str>, u64)>,
    who_may_add: WhoMayAdd,
    /// List of invitations: position of each.
    pub(crate) invitations: BTreeMap<ConversationId, u64>,
    /// Relations to others, with their names.
    pub(crate) relations: BTreeMap<UserId, (Arc<str>, Relation)>,
    /// Everything that was ever put into the stream: conversation, order, position.
    pub(crate) history: Vec<(ConversationId, u64, u64)>,
    /// Keys of pushes, with the digest and the position of each.
    pub(crate) keys: BTreeMap<MessageKey, (u64, u64)>,
    /// Pushes of the server API, with their positions.
    pub(crate) pushes: Vec<(u64, Push)>,
    /// Position up to which the stream was trimmed when a device became known.
    pub(crate) known_at: BTreeMap<Arc<str>, u64>,
}

/// A conversation.
#[derive(Debug)]
pub(crate) struct ConversationTable {
    pub(crate) row: ConversationRow,
    pub(crate) messages: BTreeMap<u64, MessageRow>,
    /// Seqs behind which, and up to which, messages are to be emptied. `None`: none is.
    doomed: Option<(u64, u64)>,
    ends: Ends,
    /// Users who may join by invitation.
    pub(crate) invited: BTreeSet<UserId>,
    events: BTreeMap<u64, EventRow>,
    /// Everything that was ever told, by order: the event's body if it was one, and the receivers.
    pub(crate) told: BTreeMap<u64, Told>,
    keys: BTreeMap<(UserId, MessageKey), Known>,
}

impl ConversationTable {
    fn latest(&self) -> u64 {
        self.messages.last_key_value().map_or(0, |(seq, _)| *seq)
    }
}

/// Largest number that a client gives.
const NUMBER_MAX: u64 = 10_000;

/// Returns the client's number of a message; of a recall, which has a key of the node's, the message id.
pub(crate) fn number(message: &MessageRow) -> u64 {
    let number = u64::from_le_bytes(message.key.0[..8].try_into().expect("8 bytes"));
    if number <= NUMBER_MAX { number } else { message.id }
}

/// A message or event that was told.
#[derive(Debug)]
pub(crate) struct Told {
    /// `None`: a message.
    pub(crate) event: Option<Bytes>,
    pub(crate) is_for_all: bool,
    pub(crate) is_settings: bool,
    pub(crate) origin: Origin,
    pub(crate) users: Vec<UserId>,
}

/// A message or event on its way.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    after: u64,
    content: Content,
    passage: Passage,
    origin: Origin,
    /// Body of [`Content::Own`]; else empty.
    body: Bytes,
}

/// A message or event of a transaction.
struct Entry<'a> {
    conversation: ConversationId,
    order: u64,
    content: Content,
    is_for_all: bool,
    is_settings: bool,
    origin: Origin,
    body: &'a Bytes,
    recipients: &'a [RecipientRow],
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
    /// By order.
    pub(crate) outbox: BTreeMap<(ConversationId, UserId, u64), Waiting>,
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

    /// Lets only friends make a user a member of groups.
    pub(crate) fn seed_friends_only(&mut self, user: UserId) {
        self.users.get_mut(&user).expect("a user").who_may_add = WhoMayAdd::AddFriends;
    }

    /// Rule of a user.
    pub(crate) fn who_may_add(&self, uid: &str) -> WhoMayAdd {
        self.uids.get(uid).map(|user| self.users[user].who_may_add).unwrap_or_default()
    }

    /// Puts a conversation into the tables.
    pub(crate) fn seed(&mut self, row: ConversationRow) {
        self.ids.insert(row.id.clone(), row.conversation);
        let (messages, keys, events) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (ends, told, invited) = (Ends::default(), BTreeMap::new(), BTreeSet::new());
        let table = ConversationTable { row, messages, doomed: None, ends, invited, events, told, keys };
        self.conversations.insert(table.row.conversation, table);
    }

    pub(crate) fn profile(&self, uid: &str) -> Option<Bytes> {
        self.users.get(self.uids.get(uid)?)?.profile.clone()
    }

    /// The client's number of a message.
    pub(crate) fn number_of(&self, id: &str, seq: u64) -> u64 {
        number(&self.conversations[&self.ids[id]].messages[&seq])
    }

    /// The conversation that is there from the beginning.
    pub(crate) fn seeded(&self) -> ConversationId {
        self.ids[crate::world::GROUP]
    }

    /// User and number of a device.
    pub(crate) fn device(&self, uid: &str, name: &str) -> Option<Origin> {
        let user = *self.uids.get(uid)?;
        let device = self.users.get(&user)?.devices.iter().find(|device| *device.name == *name)?;
        Some((user, device.number))
    }

    /// True if a device has to get an entry: it was in the inbox when the device became known, or came later.
    pub(crate) fn is_owed(&self, uid: &str, name: &str, of: ConversationId, order: u64) -> bool {
        let Some(account) = self.uids.get(uid).and_then(|user| self.users.get(user)) else { return true };
        let trimmed = account.known_at.get(name).copied().unwrap_or(0);
        let entry = account.history.iter().find(|(known, at, _)| (*known, *at) == (of, order));
        entry.is_none_or(|(.., position)| *position > trimmed)
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
            CellRequest::Sweep(node, fences, limit) => {
                assert!(fences.iter().all(|(slot, _)| is_here(*slot)), "one cell's slots");
                CellReply::Swept(self.sweep(*node, fences, *limit))
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
        let outbox = outbox.map(|((conversation, user, order), waiting)| {
            let table = &self.conversations[conversation];
            let Waiting { after, content, passage, origin, .. } = *waiting;
            let body = match content {
                Content::Own => waiting.body.clone(),
                content => table.body(content).unwrap_or_default(),
            };
            Deliver {
                user: *user,
                conversation: *conversation,
                id: table.row.id.clone(),
                is_group: table.row.is_group,
                members: table.row.members.len(),
                visible_from: table.row.member(*user).map_or(1, |it| it.member.visible_from),
                order: *order,
                after,
                content,
                passage,
                origin,
                body,
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
        for (user, profile) in transaction.profiles.iter().filter(|(user, _)| is_ours(user.number())) {
            self.users.get_mut(user).expect("a user").profile = Some(profile.clone());
        }
        for (user, who_may_add) in transaction.settings.iter().filter(|(user, _)| is_ours(user.number())) {
            self.users.get_mut(user).expect("a user").who_may_add = *who_may_add;
        }
        for (user, rule) in transaction.rules.iter().filter(|(user, _)| is_ours(user.number())) {
            self.users.get_mut(user).expect("a user").rule = *rule;
        }
        for row in transaction.conversations.iter().filter(|row| is_ours(row.conversation.number())) {
            assert!(!self.ids.contains_key(&row.id), "{} comes into being once", row.id);
            self.seed(row.clone());
        }
        let known = self.tell(transaction, &is_ours);
        self.change(transaction, &is_ours);
        let pushed: Vec<_> = transaction.pushed.iter().filter(|row| is_ours(row.user.number())).collect();
        for user in pushed.iter().map(|row| row.user).collect::<BTreeSet<_>>() {
            let rows = pushed.iter().copied().filter(|row| row.user == user);
            self.users.get_mut(&user).expect("a user").keep_keys(rows);
        }
        for row in transaction.cursors.iter().filter(|row| is_ours(row.user.number())) {
            let user = self.users.get_mut(&row.user).expect("a user");
            let at = user.devices.iter().position(|it| it.number == row.device).expect("a device");
            assert!(row.acked <= user.end, "an ack of what there is");
            if row.is_gone {
                user.devices.remove(at);
                user.last_gone = user.last_gone.max(row.device.0);
            } else {
                let device = &mut user.devices[at];
                device.acked = device.acked.max(row.acked);
                device.seen_ms = device.seen_ms.max(row.seen_ms);
            }
            let trimmed = user.devices.iter().map(|device| device.acked).min().unwrap_or(0);
            assert!(row.trimmed <= trimmed, "what a device has not acked stays");
            user.trimmed = user.trimmed.max(row.trimmed);
            user.inbox.retain(|position, _| *position > user.trimmed);
        }
        // A device that comes with the ack of another one found the inbox as that left it.
        for (user, device) in transaction.devices.iter().filter(|(user, _)| is_ours(user.number())) {
            let account = self.users.get_mut(user).expect("a user");
            account.known_at.insert(device.name.clone(), account.trimmed);
            let devices = &mut account.devices;
            assert!(devices.iter().all(|it| it.number != device.number), "numbers are given once");
            assert!(device.number.0 > account.last_gone, "numbers are not given again");
            devices.push(device.clone());
        }
        for row in transaction.confirmed.iter().filter(|row| is_ours(row.conversation.number())) {
            self.outbox.retain(|(conversation, user, order), _| {
                (*conversation, *user) != (row.conversation, row.user) || *order > row.order
            });
        }
        Applied { lost, known }
    }

    /// Changes groups, members and lists.
    fn change(&mut self, transaction: &Transaction, is_ours: &impl Fn(u64) -> bool) {
        for row in transaction.groups.iter().filter(|row| is_ours(row.conversation.number())) {
            let known = &mut self.conversations.get_mut(&row.conversation).expect("a conversation").row;
            let members = std::mem::take(&mut known.members);
            *known = ConversationRow { members, ..row.clone() };
        }
        let changed = transaction.groups.iter().chain(&transaction.conversations);
        for row in changed.filter(|row| row.is_dissolved && is_ours(row.conversation.number())) {
            self.conversations.get_mut(&row.conversation).expect("a conversation").doom();
        }
        for (of, member) in transaction.members.iter().filter(|(of, _)| is_ours(of.number())) {
            let members = &mut self.conversations.get_mut(of).expect("a conversation").row.members;
            members.retain(|it| it.member.user != member.member.user);
            members.push(member.clone());
            members.sort_by_key(|it| it.member.user);
        }
        for (of, user) in transaction.parted.iter().filter(|(of, _)| is_ours(of.number())) {
            let members = &mut self.conversations.get_mut(of).expect("a conversation").row.members;
            members.retain(|it| it.member.user != *user);
        }
        for of in transaction.uninvited.iter().filter(|of| is_ours(of.number())) {
            self.conversations.get_mut(of).expect("a conversation").invited.clear();
        }
        for (of, user, is_invited) in transaction.invited.iter().filter(|(of, ..)| is_ours(of.number())) {
            let invited = &mut self.conversations.get_mut(of).expect("a conversation").invited;
            if *is_invited {
                invited.insert(*user);
            } else {
                invited.remove(user);
            }
        }
        for row in transaction.listed.iter().filter(|row| is_ours(row.user.number())) {
            let account = self.users.get_mut(&row.user).expect("a user");
            // Without the entry, a fence of the conversation was lost.
            let is_entry =
                |(of, _, at): &(ConversationId, u64, u64)| (*of, *at) == (row.conversation, row.position);
            if !account.history.iter().any(is_entry) {
                continue;
            }
            if row.is_member {
                account.listing.insert(row.conversation, (row.id.clone(), row.position));
            } else {
                account.listing.remove(&row.conversation);
            }
            let is_row = |it: &InvitationRow| (it.user, it.conversation) == (row.user, row.conversation);
            if row.is_member && !transaction.invitations.iter().any(is_row) {
                self.users.get_mut(&row.user).expect("a user").invitations.remove(&row.conversation);
            }
        }
    }

    /// Stores messages and events, and puts them into streams. Returns messages whose keys were there.
    fn tell(&mut self, transaction: &Transaction, is_ours: &impl Fn(u64) -> bool) -> Vec<(usize, Known)> {
        let (mut known, mut entries) = (Vec::new(), Vec::new());
        for (index, row) in transaction.messages.iter().enumerate() {
            if !is_ours(row.conversation.number()) {
                continue;
            }
            if let Some(found) = self.store(row) {
                known.push((index, found));
                continue;
            }
            entries.push(Entry {
                conversation: row.conversation,
                order: row.order,
                content: Content::Message(row.seq),
                is_for_all: true,
                is_settings: false,
                origin: row.origin,
                body: &row.body,
                recipients: &row.recipients,
            });
        }
        for row in transaction.events.iter().filter(|row| is_ours(row.conversation.number())) {
            self.conversations.get_mut(&row.conversation).expect("a conversation").log(row);
            entries.push(Entry {
                conversation: row.conversation,
                order: row.order,
                content: row.number.map_or(Content::Own, Content::Event),
                is_for_all: row.is_for_all,
                is_settings: row.is_settings,
                origin: row.origin,
                body: &row.body,
                recipients: &row.recipients,
            });
        }
        for row in transaction.emptied.iter().filter(|row| is_ours(row.conversation.number())) {
            let messages =
                &mut self.conversations.get_mut(&row.conversation).expect("a conversation").messages;
            if entries
                .iter()
                .any(|it| (it.conversation, it.content) == (row.conversation, Content::Message(row.by)))
            {
                let message = messages.get_mut(&row.seq).expect("a message");
                assert!(message.is_counted, "a message is taken back once");
                (message.body, message.is_counted) = (row.body.clone(), false);
            }
        }
        entries.sort_by_key(|entry| (entry.conversation, entry.order));
        let mut arriving = Vec::new();
        entries.iter().for_each(|entry| self.fan_out(entry, is_ours, &mut arriving));
        let arrivals = transaction.arrivals.iter().filter(|row| is_ours(row.user.number()));
        arriving.extend(arrivals.cloned());
        arriving.sort_by_key(|row: &ArrivalRow| row.position);
        for row in arriving {
            let (place, position) = ((row.user, row.conversation, row.order), row.position);
            let user = self.users.get_mut(&row.user).expect("a user");
            user.arrive(row);
            let related = transaction.related.iter();
            for row in related.filter(|row| (row.user, row.conversation, row.order) == place) {
                user.relate(row);
            }
            let mut invitations = transaction.invitations.iter();
            if invitations.any(|row| (row.user, row.conversation, row.order) == place) {
                user.invitations.insert(place.1, position);
            }
        }
        known
    }

    /// Stores a message. Returns the first result of its key, if there is one.
    fn store(&mut self, message: &MessageRow) -> Option<Known> {
        let table = self.conversations.get_mut(&message.conversation).expect("a conversation");
        let seq = message.seq;
        let key = (message.origin.0, message.key);
        if let Some(known) = table.keys.get(&key) {
            return Some(*known);
        }
        let latest = table.latest();
        assert!(seq > latest, "{} has {latest} already, and gets {seq}", table.row.id);
        let MessageRow { id, time_ms, digest, .. } = *message;
        table.keys.insert(key, Known { seq, id, time_ms, digest });
        table.messages.insert(seq, MessageRow { recipients: Vec::new(), ..message.clone() });
        table.ends.seq = seq;
        assert!(time_ms >= table.ends.time_ms, "{} goes back in time", table.row.id);
        table.ends.time_ms = time_ms;
        let push: Push = decode(&message.body).expect("a Push");
        assert!(push.seq == seq && [0, time_ms].contains(&push.time_ms), "clients are told what is stored");
        None
    }

    /// Takes a stored message or event to its receivers.
    fn fan_out(&mut self, entry: &Entry<'_>, is_ours: &impl Fn(u64) -> bool, arriving: &mut Vec<ArrivalRow>) {
        let Entry { conversation, order, content, is_for_all, is_settings, origin, body, recipients } =
            *entry;
        let table = self.conversations.get_mut(&conversation).expect("a conversation");
        assert!(order > table.ends.order, "{} gets the order {order} twice", table.row.id);
        let before = table.ends.all;
        table.ends.order = order;
        if is_for_all {
            table.ends.all = order;
        }
        let users = recipients.iter().map(|it| it.user).collect();
        let event = (!matches!(content, Content::Message(_))).then(|| body.clone());
        table.told.insert(order, Told { event, is_for_all, is_settings, origin, users });
        let body = if content == Content::Own { body.clone() } else { Bytes::new() };
        for RecipientRow { user, position, entered, passage } in recipients {
            if let Some(position) = position.filter(|_| is_ours(user.number())) {
                let origin = (*user == origin.0).then_some(origin.1);
                let (user, body) = (*user, body.clone());
                arriving.push(ArrivalRow { user, conversation, order, content, position, origin, body });
                continue;
            }
            let mut waiting = self.outbox.range((conversation, *user, 0)..=(conversation, *user, order));
            let waiting = waiting.next_back().map_or(0, |((.., last), _)| *last);
            let after = if before >= *entered { before.max(waiting) } else { waiting };
            let (passage, body) = (*passage, body.clone());
            let waiting = Waiting { after, content, passage, origin, body };
            self.outbox.insert((conversation, *user, order), waiting);
        }
    }
}

impl ConversationTable {
    fn body(&self, content: Content) -> Option<Bytes> {
        match content {
            Content::Message(seq) => {
                self.messages.get(&seq).map(|it| it.body.clone()).filter(|it| !it.is_empty())
            }
            Content::Event(number) => self.events.get(&number).map(|it| it.body.clone()),
            Content::Own => None,
        }
    }

    /// Puts an event into the log, which holds the newest ones.
    fn log(&mut self, row: &EventRow) {
        let Some(number) = row.number else { return };
        assert!(number > self.ends.events, "{} gets the event {number} twice", self.row.id);
        self.ends.events = number;
        self.events.retain(|known, it| known + EVENTS_MAX > number && !(row.is_settings && it.is_settings));
        self.events.insert(number, EventRow { recipients: Vec::new(), ..row.clone() });
    }
}

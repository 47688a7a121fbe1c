//! A hand on a store: one command at a time, until it is complete.

use super::{EVENT, by, event};
use crate::clock::Clock;
use crate::im::store::{
    Backlog, Batch, Command, Completion, ConversationId, Delivery, DeviceCursor, DeviceInfo, DeviceNumber,
    Draft, Entry, GroupChange, Listed, Listing, Login, Member, Need, Outcome, Pace, Page, PageLimits, Read,
    Refusal, Relation, RelationChange, SEQ_BYTES_MAX, Store, Stored, Sweep, SweepNeed, Swept, Target, Ticket,
    UserId, Write,
};
use bytes::{Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use prost::Message;
use std::collections::HashSet;
use std::time::Duration;

/// Longest time of a command.
const COMMIT_MAX: Duration = Duration::from_secs(30);

pub(super) struct Bench<S> {
    pub(super) store: S,
    pub(super) next_id: u64,
    ticket: Ticket,
    /// Users in the order in which they became known.
    users: Vec<UserId>,
    /// Keys of drafts, by sender.
    keys: HashSet<(UserId, u8)>,
}

impl<S: Store> Bench<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, next_id: 1, ticket: Ticket::FIRST, users: Vec::new(), keys: HashSet::new() }
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.ticket = self.ticket.next();
        self.ticket
    }

    /// The completion of a ticket, which is the only open one.
    pub(super) fn complete(&mut self, ticket: Ticket) -> Completion {
        let clock = Clock::new();
        let deadline = clock.read().instant + COMMIT_MAX;
        loop {
            if let Some((of, completion)) = self.store.poll() {
                assert_eq!(of, ticket, "one completion per command");
                return completion;
            }
            assert!(clock.read().instant < deadline, "the command was never completed");
            std::thread::yield_now();
        }
    }

    pub(super) fn command(&mut self, command: Command) -> Completion {
        let ticket = self.next_ticket();
        assert!(self.store.submit(ticket, command).is_ok(), "an idle store takes a command");
        self.complete(ticket)
    }

    /// Makes facts readable.
    pub(super) fn fetch(&mut self, needs: &[Need]) -> &mut S {
        let ticket = self.next_ticket();
        if !self.store.prefetch(ticket, |set| needs.iter().cloned().for_each(|need| set.add(need))) {
            assert!(matches!(self.complete(ticket), Completion::Prefetched));
        }
        &mut self.store
    }

    pub(super) fn user(&mut self, uid: &str) -> UserId {
        let store = self.fetch(&[Need::NewUser(uid.into())]);
        let user = store.try_user(uid).expect("room for users");
        assert_eq!(store.try_user(uid), Some(user), "a uid keeps its number");
        assert_eq!(store.uid(user), uid);
        if !self.users.contains(&user) {
            self.users.push(user);
        }
        user
    }

    /// In the order in which the users became known: the numbers that a store gives mean nothing.
    fn in_order(&self, mut users: Vec<UserId>) -> Vec<UserId> {
        users.sort_by_key(|user| self.users.iter().position(|known| known == user));
        users
    }

    pub(super) fn find_user(&mut self, uid: &str) -> Option<UserId> {
        self.fetch(&[Need::User(uid.into())]).find_user(uid)
    }

    pub(super) fn find(&mut self, id: &str) -> Option<ConversationId> {
        self.fetch(&[Need::Named(id.into(), None)]).find(id)
    }

    pub(super) fn conversation(&mut self, conversation: ConversationId) -> &S {
        self.fetch(&[Need::Conversation(conversation, None)])
    }

    pub(super) fn member(&mut self, conversation: ConversationId, user: UserId) -> Option<Member> {
        self.fetch(&[Need::Conversation(conversation, Some(user))]).member(conversation, user)
    }

    pub(super) fn members(&mut self, conversation: ConversationId) -> Vec<UserId> {
        let store = self.fetch(&[Need::Members(conversation)]);
        let members = store.members(conversation, None).map(|member| member.user).collect();
        self.in_order(members)
    }

    pub(super) fn relation(&mut self, user: UserId, other: UserId) -> Relation {
        self.fetch(&[Need::Relation(user, other)]).relation(user, other)
    }

    pub(super) fn relations(&mut self, user: UserId) -> Vec<UserId> {
        let relations = self.fetch(&[Need::Relations(user)]).relations(user);
        relations.into_iter().map(|(other, _)| other).collect()
    }

    pub(super) fn devices(&mut self, user: UserId) -> Vec<DeviceInfo> {
        self.fetch(&[Need::Devices(user)]).devices(user)
    }

    pub(super) fn page(
        &mut self,
        conversation: ConversationId,
        reader: UserId,
        range: (u64, u64),
        limits: PageLimits,
    ) -> Result<Page, Refusal> {
        match self.command(Command::Read(Read::Page { conversation, reader, range, limits })) {
            Completion::Page(page) => page,
            other => panic!("a page was answered by {other:?}"),
        }
    }

    /// A user's conversations, newest membership first.
    pub(super) fn listing(&mut self, user: UserId) -> Vec<Listed> {
        let read = Read::Conversations { user, after: String::new(), bytes: 1 << 20 };
        match self.command(Command::Read(read)) {
            Completion::Listing(Ok(Listing { entries, more: false })) => entries,
            other => panic!("a list was answered by {other:?}"),
        }
    }

    pub(super) fn conversations(&mut self, user: UserId) -> Vec<String> {
        self.listing(user).into_iter().map(|listed| listed.id).collect()
    }

    pub(super) fn unread(&mut self, id: &str, user: UserId) -> u64 {
        self.listing(user).into_iter().find(|listed| listed.id == id).map_or(0, |listed| listed.unread)
    }

    pub(super) fn backlog(&mut self, user: UserId, device: DeviceNumber) -> Backlog {
        match self.command(Command::Read(Read::Backlog { of: (user, device) })) {
            Completion::Backlog(backlog) => backlog,
            other => panic!("a backlog was answered by {other:?}"),
        }
    }

    pub(super) fn unconfirmed(&mut self, user: UserId, device: DeviceNumber) -> Vec<(ConversationId, u64)> {
        self.backlog(user, device).unconfirmed
    }

    pub(super) fn stream_end(&mut self, user: UserId) -> u64 {
        self.backlog(user, DeviceNumber(0)).end
    }

    pub(super) fn profile(&mut self, uid: &str) -> Option<Bytes> {
        match self.command(Command::Read(Read::Profiles { uids: vec!["nobody".into(), uid.into()] })) {
            Completion::Profiles(profiles) => profiles.into_iter().next(),
            other => panic!("profiles were answered by {other:?}"),
        }
    }

    pub(super) fn commit(&mut self, now_ms: u64, writes: Vec<Write>) -> Vec<(Outcome, Vec<(UserId, u64)>)> {
        let wanted = writes.len();
        let batch = Batch { now_ms, last_id: self.next_id, writes };
        let Completion::Committed(committed) = self.command(Command::Commit(batch)) else {
            panic!("a batch is answered by Committed");
        };
        assert_eq!(committed.outcomes.len(), wanted, "one outcome per write");
        let inboxes = |outcome: &Outcome| match outcome {
            Outcome::Appended(Ok(Stored { delivery: Some(Delivery { recipients, .. }), .. }))
            | Outcome::Created(Ok((_, Some(Delivery { recipients, .. }))))
            | Outcome::Swept(Swept {
                told: Some(Stored { delivery: Some(Delivery { recipients, .. }), .. }),
                ..
            })
            | Outcome::Done(Ok(Some(Delivery { recipients, .. }))) => {
                committed.recipients[recipients.clone()].iter().map(|it| (it.user, it.position)).collect()
            }
            _ => Vec::new(),
        };
        let inboxes: Vec<_> = committed.outcomes.iter().map(inboxes).collect();
        committed.outcomes.into_iter().zip(inboxes).collect()
    }

    /// Users are called by one letter here.
    pub(super) fn name_of(&mut self, user: UserId) -> String {
        let known = ('a'..='z').map(String::from).find(|uid| self.find_user(uid) == Some(user));
        known.expect("a user of this test")
    }

    pub(super) fn draft(
        &mut self,
        sender: UserId,
        device: u32,
        target: Target,
        key: u8,
        digest: u64,
    ) -> Write {
        let id = self.next_id;
        self.next_id += 1;
        let push = Push { message_id: id, sender: self.name_of(sender), ..Default::default() };
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        let is_repeat = !self.keys.insert((sender, key));
        let (device, key) = (DeviceNumber(device), MessageKey([key; 16]));
        Write::Append(Draft { is_repeat, sender, device, target, key, id, time_ms: id, digest, body })
    }

    pub(super) fn append(&mut self, draft: Write) -> Result<Stored, Refusal> {
        let Some((Outcome::Appended(result), _)) = self.commit(0, vec![draft]).pop() else {
            panic!("an Append is answered by Appended");
        };
        result
    }

    pub(super) fn say(&mut self, sender: UserId, target: Target, key: u8) -> Stored {
        let draft = self.draft(sender, 0, target, key, 7);
        self.append(draft).expect("stored")
    }

    pub(super) fn create(
        &mut self,
        creator: UserId,
        members: Vec<UserId>,
    ) -> Result<ConversationId, Refusal> {
        let write = Write::CreateGroup { name: "g".into(), creator: by(creator), members, event: event() };
        match self.commit(0, vec![write]).pop() {
            Some((Outcome::Created(result), _)) => result.map(|(group, _)| group),
            other => panic!("a new group was answered by {other:?}"),
        }
    }

    /// Notified users.
    pub(super) fn done(&mut self, write: Write) -> Result<Vec<UserId>, Refusal> {
        match self.commit(0, vec![write]).pop() {
            Some((Outcome::Done(result), told)) => {
                let told = self.in_order(told.into_iter().map(|(user, _)| user).collect());
                result.map(|_| told)
            }
            other => panic!("it was answered by {other:?}"),
        }
    }

    /// Sweeps until nothing is left to do now; messages are judged at `judged_ms`. Returns the number of messages that
    /// were removed, and the users who were told something.
    pub(super) fn sweep(&mut self, judged_ms: u64) -> (u64, Vec<UserId>) {
        let (mut count, mut all) = (0, Vec::new());
        for _ in 0..1000 {
            if self.store.sweep_need() == SweepNeed::Nothing {
                return (count, all);
            }
            let sweep = Sweep { id: self.next_id, judged_ms, clock_ms: judged_ms };
            match self.commit(0, vec![Write::Sweep(sweep)]).pop() {
                Some((Outcome::Swept(Swept { pace, removed, .. }), told)) => {
                    count += removed;
                    all.extend(told.into_iter().map(|(user, _)| user));
                    if pace == Pace::Later {
                        return (count, all);
                    }
                }
                other => panic!("a sweep was answered by {other:?}"),
            }
        }
        panic!("sweeps come to an end");
    }

    pub(super) fn change(
        &mut self,
        group: ConversationId,
        who: UserId,
        change: GroupChange,
    ) -> Result<Vec<UserId>, Refusal> {
        self.done(Write::ChangeGroup { conversation: group, by: by(who), change, event: event() })
    }

    pub(super) fn relate(
        &mut self,
        who: UserId,
        other: UserId,
        change: RelationChange,
    ) -> Result<Vec<UserId>, Refusal> {
        let uid = self.name_of(other);
        self.fetch(&[Need::Relating(uid, who)]);
        self.done(Write::Relate { by: by(who), other, change, event: event() })
    }

    pub(super) fn login(&mut self, uid: &str, device: &str) -> DeviceCursor {
        let login = Login { uid: uid.into(), device: device.into(), platform: 2, now_ms: 7, issued_s: 0 };
        match self.command(Command::Login(login)) {
            Completion::LoggedIn(Some(login)) => {
                assert_eq!((login.names.uid(), login.names.device()), (uid, device));
                login.cursor
            }
            other => panic!("a login was answered by {other:?}"),
        }
    }

    pub(super) fn acked(&mut self, user: UserId, device: DeviceNumber, position: u64) {
        self.commit(0, vec![Write::Acked { user, device, position, gone_ms: 0 }]);
    }

    /// Positions and ids (0: dropped) after `after`.
    pub(super) fn stream(&mut self, user: UserId, after: u64) -> Vec<(u64, u64)> {
        let read = Read::Stream { user, after, limit: 100, into: Vec::new() };
        let Completion::Stream(page) = self.command(Command::Read(read)) else {
            panic!("a stream is answered by Stream");
        };
        assert!(page.is_readable && page.after == after);
        let entries = page.entries;
        let id = |entry| match entry {
            Entry::Message { body, .. } => Push::decode(body).expect("a Push").message_id,
            Entry::Event { body, .. } => {
                // An event of the store itself is a whole push.
                let is_whole = || Push::decode(body.clone()).is_ok_and(|push| !push.happened.is_empty());
                assert!(body == event() || is_whole(), "{body:?}");
                EVENT
            }
            Entry::Dropped { .. } | Entry::EventsDropped => 0,
        };
        entries.into_iter().map(|(position, entry)| (position, id(entry))).collect()
    }
}

/// Number of entries in the stream of a user; nothing else is open.
#[cfg(test)]
pub(in crate::im) fn stream_of(store: &mut impl Store, uid: &str) -> usize {
    let ticket = Ticket(std::num::NonZeroU64::MAX);
    let mut complete = |command: Option<Command>| {
        match command {
            Some(command) => assert!(store.submit(ticket, command).is_ok(), "a read is always taken"),
            None => {
                if store.prefetch(ticket, |set| set.add(Need::NewUser(uid.into()))) {
                    return (store.try_user(uid), 0);
                }
            }
        }
        loop {
            match store.poll() {
                Some((_, Completion::Prefetched)) => return (store.try_user(uid), 0),
                Some((_, Completion::Stream(page))) => return (None, page.entries.len()),
                _ => std::thread::yield_now(),
            }
        }
    };
    let user = complete(None).0.expect("room");
    complete(Some(Command::Read(Read::Stream { user, after: 0, limit: 1000, into: Vec::new() }))).1
}

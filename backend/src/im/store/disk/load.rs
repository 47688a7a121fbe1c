//! Loads the database into memory: everything except messages, keys, inbox entries and profiles.

use super::DiskError;
use super::stream_tails::Written;
use super::tables::{
    ConversationRecord, DeviceRecord, ErasureRecord, InboxRecord, LAST_ID, MemberRecord, RETENTION,
    RelationRecord, Tables, UserRecord, numbers,
};
use crate::config::ImConfig;
use crate::im::names::Names;
use crate::im::store::directory::{ALL_GROUPS, Device, Directory, Erasure, KEYS, Kind};
use crate::im::store::rules::limits::SendLimit;
use crate::im::store::{ConversationId, DeviceNumber, LoginChange, Member, Relation, Role, UserId};

/// All of it. What is there is taken whatever the limits; they count for what comes.
pub(super) fn directory(
    tables: &Tables,
    written: &Written,
    config: &ImConfig,
) -> Result<Directory, DiskError> {
    let mut directory = Directory::new(config);
    directory.last_id = tables.number(LAST_ID)?;
    directory.retention_ms = tables.number(RETENTION)?;
    directory.shared_events = Tables::last(&tables.events, u32::MAX)?.unwrap_or(0);
    directory.users.capacity = usize::MAX;
    directory.conversations.capacity = usize::MAX;
    users(tables, written, &mut directory)?;
    devices(tables, &mut directory)?;
    conversations(tables, written, &mut directory)?;
    members(tables, &mut directory)?;
    confirmed(tables, &mut directory)?;
    erasures(tables, &mut directory)?;
    directory.complete();
    Tables::all(&tables.relations, "a relation", |key, record: RelationRecord| {
        let (user, other) = pair(key, "a relation")?;
        let (friendship, is_blocked) = (record.friendship(), record.is_blocked);
        directory.relations.set(UserId::of(user), UserId::of(other), Relation { friendship, is_blocked });
        Ok(())
    })?;
    directory.users.capacity = config.users_max;
    directory.conversations.capacity = config.conversations_max;
    Ok(directory)
}

fn damaged(what: &'static str, problem: impl Into<String>) -> DiskError {
    DiskError::Damaged { what, problem: problem.into() }
}

fn pair(key: &[u8], what: &'static str) -> Result<(u32, u32), DiskError> {
    let (first, second) = numbers(key)?;
    Ok((first, u32::try_from(second).map_err(|_| damaged(what, "its key"))?))
}

pub(super) fn known_user(directory: &Directory, user: u32, what: &'static str) -> Result<UserId, DiskError> {
    let is_known = (user as usize) < directory.users.len();
    is_known.then_some(UserId::of(user)).ok_or_else(|| damaged(what, "of nobody"))
}

pub(super) fn known_conversation(
    directory: &Directory,
    conversation: u32,
    what: &'static str,
) -> Result<ConversationId, DiskError> {
    let is_known = (conversation as usize) < directory.conversations.len();
    is_known.then_some(ConversationId::of(conversation)).ok_or_else(|| damaged(what, "of no conversation"))
}

fn users(tables: &Tables, written: &Written, directory: &mut Directory) -> Result<(), DiskError> {
    Tables::all(&tables.users, "a user", |key, record: UserRecord| {
        let number = u32::try_from(directory.users.len()).unwrap_or(u32::MAX);
        if numbers(key)?.0 != number || directory.users.find(&record.uid).is_some() {
            return Err(damaged("a user", format!("number {number}")));
        }
        let id = directory.users.insert(&record.uid, true).expect("no limit yet");
        let end = written.of_user(tables, number)?;
        let user = directory.users.get_mut(id);
        (user.numbered, user.durable_end) = (end, end);
        user.next_device = record.next_device;
        user.who_may_add = record.who_may_add();
        user.change_rare(|rare| {
            rare.invitations = record.invitations.into_iter().map(ConversationId::of).collect();
            rare.parted = record.parted.into_iter().map(ConversationId::of).collect();
            rare.has_unknown_groups = !record.knows_parted;
        });
        user.rule_logins(LoginChange::ValidFrom(record.valid_from_s));
        user.rule_logins(LoginChange::BannedUntil(record.banned_until_s));
        Ok(())
    })?;
    Tables::all(&tables.inboxes, "an inbox", |key, record: InboxRecord| {
        let id = known_user(directory, numbers(key)?.0, "an inbox")?;
        let user = directory.users.get_mut(id);
        (user.trimmed, user.removed) = (record.trimmed, record.trimmed);
        user.numbered = user.numbered.max(record.trimmed);
        user.durable_end = user.numbered;
        for [position, conversation, first] in record.dropped.as_chunks::<3>().0 {
            let conversation =
                u32::try_from(*conversation).map_err(|_| damaged("an inbox", "what it dropped"))?;
            let place = (ConversationId::of(conversation), *first);
            user.note_dropped(*position, place);
        }
        Ok(())
    })
}

fn devices(tables: &Tables, directory: &mut Directory) -> Result<(), DiskError> {
    let mut logins = 0;
    Tables::all(&tables.devices, "a device", |key, record: DeviceRecord| {
        let (user, number) = pair(key, "a device")?;
        let id = known_user(directory, user, "a device")?;
        let names = Names::new(directory.users.uid(id), &record.name);
        let user = directory.users.get_mut(id);
        logins = logins.max(record.login);
        let next = number.checked_add(1).ok_or_else(|| damaged("a device", "its number is the last one"))?;
        user.next_device = user.next_device.max(next);
        let DeviceRecord { name: _, acked, login, platform, seen_ms } = record;
        user.devices.push(Device::new(names, DeviceNumber(number), platform, (acked, login, seen_ms)));
        Ok(())
    })?;
    directory.users.logins = logins;
    for user in directory.users.all_mut() {
        user.devices.sort_unstable_by_key(|device| device.login);
        // Entries may have been trimmed later than it was written down.
        user.trimmed = user.trimmed.min(user.numbered);
        user.removed = user.trimmed;
    }
    Ok(())
}

fn conversations(tables: &Tables, written: &Written, directory: &mut Directory) -> Result<(), DiskError> {
    Tables::all(&tables.conversations, "a conversation", |key, record: ConversationRecord| {
        let number = u32::try_from(directory.conversations.len()).unwrap_or(u32::MAX);
        if numbers(key)?.0 != number {
            return Err(damaged("a conversation", format!("number {number} is missing")));
        }
        let kind = match record.group {
            Some(name) => Kind::Group { name: name.into(), creator: UserId::of(record.first) },
            None => Kind::OneToOne(UserId::of(record.first), UserId::of(record.second)),
        };
        let id = directory.conversations.open(kind).expect("no limit yet");
        let last = written.of_conversation(tables, number)?.max(record.began_after).max(record.gone);
        let place = directory.conversations.get_mut(id);
        (place.numbered, place.durable) = (last, last);
        place.settings = record.settings.map(|settings| Box::new(settings.into()));
        place.began_after = record.began_after;
        (place.gone, place.removed) = (record.gone, record.removed.min(record.gone));
        (place.is_dissolved, place.keep_s) = (record.is_dissolved, record.keep_s);
        (place.events, place.settings_event) = (record.events, record.settings_event);
        place.is_read_fanout = record.is_read_fanout;
        place.unstreamed_from = record.unstreamed_from;
        place.unstreamed = if record.is_read_fanout { last } else { record.unstreamed };
        if let Some(per_minute) = record.send_limit {
            directory.limits.insert(id, SendLimit::new(per_minute));
        }
        Ok(())
    })?;
    for entry in tables.uncounted.iter() {
        let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
        let (conversation, seq) = numbers(&key)?;
        let id = known_conversation(directory, conversation, "a recall")?;
        let end = if value.is_empty() {
            seq
        } else {
            u64::from_be_bytes(value[..].try_into().map_err(|_| damaged("a recall", "its value"))?)
        };
        directory.conversations.get_mut(id).uncount(seq, end);
    }
    Ok(())
}

fn members(tables: &Tables, directory: &mut Directory) -> Result<(), DiskError> {
    let mut memberships = Vec::new();
    Tables::all(&tables.members, "a membership", |key, record: MemberRecord| {
        let (conversation, user) = pair(key, "a membership")?;
        let user = known_user(directory, user, "a membership")?;
        let id = known_conversation(directory, conversation, "a membership")?;
        let place = directory.conversations.get_mut(id);
        let role = match record.role() {
            Role::Unset if place.creator() == Some(user) => Role::Owner,
            Role::Unset => Role::Member,
            role => role,
        };
        let MemberRecord { visible_from, since, read, silent_until_ms, cleared, .. } = record;
        // In the order of the keys, so the members are sorted.
        directory.members += 1;
        let role = role as u8;
        place.members.push(Member { user, role, visible_from, cleared, read, silent_until_ms, since });
        memberships.push((since, user, id));
        Ok(())
    })?;
    memberships.sort_unstable();
    directory.memberships = memberships.last().map_or(0, |(since, ..)| *since);
    for (_, user, conversation) in memberships {
        directory.users.get_mut(user).join(conversation);
    }
    Ok(())
}

fn erasures(tables: &Tables, directory: &mut Directory) -> Result<(), DiskError> {
    const WHAT: &str = "an erasure";
    Tables::all(&tables.erasures, WHAT, |key, record: ErasureRecord| {
        let (user, number) = pair(key, WHAT)?;
        let user = known_user(directory, user, WHAT)?;
        let conversation = match ConversationId::of(number) {
            all @ (ALL_GROUPS | KEYS) => all,
            _ => known_conversation(directory, number, WHAT)?,
        };
        let ErasureRecord { to_id, next, is_told } = record;
        directory.erasures.set(user, conversation, Erasure { to_id, next, is_told });
        directory.erasures.begin(user);
        Ok(())
    })
}

fn confirmed(tables: &Tables, directory: &mut Directory) -> Result<(), DiskError> {
    for entry in tables.confirmed.iter() {
        let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
        let wrong = || damaged("a confirmation", "its key or its value");
        let key: [u8; 12] = key[..].try_into().map_err(|_| wrong())?;
        let seq = u64::from_be_bytes(value[..].try_into().map_err(|_| wrong())?);
        let number = |at: usize| u32::from_be_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
        let user = known_user(directory, number(0), "a confirmation")?;
        let conversation = known_conversation(directory, number(8), "a confirmation")?;
        // Without its device it counts for nothing.
        if let Some(device) = directory.users.get_mut(user).device_mut(DeviceNumber(number(4))) {
            device.confirm(conversation, seq);
        }
    }
    Ok(())
}

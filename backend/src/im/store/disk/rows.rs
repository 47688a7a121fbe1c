//! Rows of the directory's objects in the tables.

use super::tables::{
    self, Change, ConversationRecord, DeviceRecord, ErasureRecord, InboxRecord, MemberRecord, RelationRecord,
    Tables, UserRecord,
};
use crate::im::store::LoginRule;
use crate::im::store::directory::{Changed, Directory, Kind, Rare};
use crate::im::store::rules::limits::SendLimit;
use fjall::Keyspace;
use prost::Message as _;

/// Table, key and value; without a value it is to be removed.
type Row<'a> = (&'a Keyspace, Vec<u8>, Option<Vec<u8>>);

/// Writes down what it is by now.
pub(super) fn change(tables: &Tables, directory: &Directory, changed: Changed) -> Change {
    let (table, key, value) = match changed {
        Changed::User(_)
        | Changed::Device(..)
        | Changed::Confirmed(..)
        | Changed::Inbox(_)
        | Changed::Erasure(..)
        | Changed::Relation(..) => of_user(tables, directory, changed),
        Changed::Conversation(_) | Changed::Member(..) | Changed::Uncounted(..) => {
            of_conversation(tables, directory, changed)
        }
    };
    match value {
        Some(value) => Change::put(table, key, value),
        None => Change::remove(table, key),
    }
}

/// Table, key and value of something that is a user's.
fn of_user<'a>(tables: &'a Tables, directory: &Directory, changed: Changed) -> Row<'a> {
    match changed {
        Changed::User(id) => {
            let user = directory.users.get(id);
            let none = Rare::default();
            let Rare { parted, has_unknown_groups, rule, .. } = user.rare().unwrap_or(&none);
            let LoginRule { valid_from_s, banned_until_s } = *rule;
            let record = UserRecord {
                uid: directory.users.uid(id).to_owned(),
                next_device: user.next_device,
                who_may_add: user.who_may_add.into(),
                invitations: user.invitations().iter().map(|group| group.index()).collect(),
                valid_from_s,
                banned_until_s,
                parted: parted.iter().map(|group| group.index()).collect(),
                knows_parted: !has_unknown_groups,
            };
            (&tables.users, id.index().to_be_bytes().to_vec(), Some(record.encode_to_vec()))
        }
        Changed::Device(id, number) => {
            let record = directory.users.get(id).device(number).map(|device| DeviceRecord {
                name: device.names.device().to_owned(),
                acked: device.acked,
                login: device.login,
                platform: device.platform,
                seen_ms: device.seen_ms,
            });
            let value = record.map(|record| record.encode_to_vec());
            (&tables.devices, tables::pair(id.index(), number.0), value)
        }
        Changed::Confirmed(id, number, conversation) => {
            let device = directory.users.get(id).device(number);
            let seq = device.and_then(|device| device.confirmed_of(conversation));
            let value = seq.map(|seq| seq.to_be_bytes().to_vec());
            (&tables.confirmed, tables::triple(id.index(), number.0, conversation.index()), value)
        }
        Changed::Inbox(id) => {
            let user = directory.users.get(id);
            let dropped = user.dropped_after(0);
            let dropped =
                dropped.flat_map(|(position, (of, first))| [position, of.index().into(), first]).collect();
            let record = InboxRecord { trimmed: user.trimmed, dropped };
            (&tables.inboxes, id.index().to_be_bytes().to_vec(), Some(record.encode_to_vec()))
        }
        Changed::Erasure(user, conversation) => {
            let record = directory.erasures.get(user, conversation).map(|erasure| ErasureRecord {
                to_id: erasure.to_id,
                next: erasure.next,
                is_told: erasure.is_told,
            });
            let value = record.map(|record| record.encode_to_vec());
            (&tables.erasures, tables::pair(user.index(), conversation.index()), value)
        }
        Changed::Relation(user, other) => {
            let relation = directory.relations.get(user, other);
            let record =
                RelationRecord { friendship: relation.friendship.into(), is_blocked: relation.is_blocked };
            let value = Some(record.encode_to_vec()).filter(|value| !value.is_empty());
            (&tables.relations, tables::pair(user.index(), other.index()), value)
        }
        other => unreachable!("{other:?} is another table's"),
    }
}

/// Row of an object of a conversation.
fn of_conversation<'a>(tables: &'a Tables, directory: &Directory, changed: Changed) -> Row<'a> {
    match changed {
        Changed::Conversation(id) => {
            let place = directory.conversations.get(id);
            let (first, second, group) = match &place.kind {
                Kind::OneToOne(a, b) => (a.index(), b.index(), None),
                Kind::Group { name, creator } => (creator.index(), 0, Some(name.to_string())),
            };
            let record = ConversationRecord {
                first,
                second,
                group,
                settings: place.settings.as_deref().cloned().map(Into::into),
                is_read_fanout: place.is_read_fanout,
                unstreamed: place.unstreamed,
                unstreamed_from: place.unstreamed_from,
                began_after: place.began_after,
                events: place.events,
                settings_event: place.settings_event,
                gone: place.gone,
                removed: place.removed,
                is_dissolved: place.is_dissolved,
                keep_s: place.keep_s,
                send_limit: directory.limits.get(&id).map(SendLimit::per_minute),
            };
            (&tables.conversations, id.index().to_be_bytes().to_vec(), Some(record.encode_to_vec()))
        }
        Changed::Member(id, user) => {
            let record = directory.conversations.get(id).member(user).map(|member| MemberRecord {
                visible_from: member.visible_from,
                since: member.since,
                role: member.role().into(),
                read: member.read,
                silent_until_ms: member.silent_until_ms,
                cleared: member.cleared,
            });
            let value = record.map(|record| record.encode_to_vec());
            (&tables.members, tables::pair(id.index(), user.index()), value)
        }
        Changed::Uncounted(id, seq) => {
            let end = directory.conversations.get(id).uncounted_from(seq);
            let value = |end: u64| if end > seq { end.to_be_bytes().to_vec() } else { Vec::new() };
            (&tables.uncounted, tables::place(id.index(), seq), end.map(value))
        }
        other => unreachable!("{other:?} is another table's"),
    }
}

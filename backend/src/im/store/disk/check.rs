//! Checks of what was loaded: everything that is named exists, and every number has a next one.
//!
//! The engine's checksums find bytes that were changed on the disk. Records that could never have been written, by a fault of
//! this program or by somebody's hand, are found here: opening fails with [`DiskError::Damaged`], and later code may rely on
//! what it reads. Example: a group whose creator does not exist would end the backend when somebody asks for the group.

use super::DiskError;
use super::load::known_user;
use crate::im::store::directory::{Conversations, Directory, Kind, Users};
use crate::im::store::{ConversationId, UserId};

/// Largest number of anything that rises by one: there must be a next one, and room for a step of many.
pub(super) const NUMBER_MAX: u64 = 1 << 62;
/// Entries of one inbox. `im.inbox_entries_max` may have been anything; the entries are removed in one batch.
const HELD_MAX: u64 = 10_000_000;

fn damaged(what: &'static str, problem: impl Into<String>) -> DiskError {
    DiskError::Damaged { what, problem: problem.into() }
}

fn has_next(numbers: &[u64], what: &'static str) -> Result<(), DiskError> {
    match numbers.iter().find(|number| **number > NUMBER_MAX) {
        None => Ok(()),
        Some(number) => Err(damaged(what, format!("the number {number} has none behind it"))),
    }
}

/// Checks a number that rises by one.
///
/// # Errors
/// [`DiskError::Damaged`]: there is no next one.
pub(super) fn counter(number: u64) -> Result<u64, DiskError> {
    has_next(&[number], "a counter").map(|()| number)
}

/// Checks all of it.
///
/// # Errors
/// [`DiskError::Damaged`]
pub(super) fn directory(directory: &Directory) -> Result<(), DiskError> {
    has_next(
        &[directory.last_id >> 2, directory.memberships, directory.users.logins, directory.shared_events],
        "a counter",
    )?;
    for id in (0..directory.users.len()).filter_map(|at| u32::try_from(at).ok()).map(UserId::of) {
        user(&directory.users, id)?;
        for (other, _) in directory.relations.of(id) {
            known_user(directory, other.index(), "a relation")?;
        }
    }
    if directory.relations.users().any(|user| user.index() as usize >= directory.users.len()) {
        return Err(damaged("a relation", "of nobody"));
    }
    for id in directory.conversations.all() {
        conversation(directory, id)?;
    }
    Ok(())
}

fn user(users: &Users, id: UserId) -> Result<(), DiskError> {
    let user = users.get(id);
    has_next(&[user.numbered, user.trimmed], "an inbox")?;
    if user.numbered < user.trimmed || user.held() > HELD_MAX {
        return Err(damaged("an inbox", format!("it holds entries {} to {}", user.trimmed, user.numbered)));
    }
    if user.next_device == u32::MAX {
        return Err(damaged("a user", "there is no number for another device"));
    }
    for (position, (_, seq)) in user.dropped_after(0) {
        has_next(&[position, seq], "an inbox")?;
    }
    for device in user.devices.iter() {
        has_next(&[device.login], "a device")?;
        for (_, seq) in device.confirmed() {
            has_next(&[seq], "a confirmation")?;
        }
    }
    Ok(())
}

fn conversation(directory: &Directory, id: ConversationId) -> Result<(), DiskError> {
    const WHAT: &str = "a conversation";
    let place = directory.conversations.get(id);
    match &place.kind {
        Kind::OneToOne(a, b) => {
            known_user(directory, a.index(), WHAT)?;
            known_user(directory, b.index(), WHAT)?;
        }
        Kind::Group { creator, .. } => _ = known_user(directory, creator.index(), WHAT)?,
    }
    if place.is_dissolved && !(place.is_group() && place.members.is_empty()) {
        return Err(damaged(WHAT, format!("number {} is dissolved and has members", id.index())));
    }
    if !place.is_dissolved && found_by_name(&directory.conversations, &place.kind) != Some(id) {
        return Err(damaged(WHAT, format!("number {} has the name of another one", id.index())));
    }
    has_next(
        &[
            place.numbered,
            place.unstreamed,
            place.unstreamed_from,
            place.began_after,
            place.events,
            place.gone,
            place.removed,
        ],
        WHAT,
    )?;
    let mut behind = 0;
    for (first, last) in place.uncounted() {
        if first <= behind || last < first || last > NUMBER_MAX {
            return Err(damaged("a recall", format!("from {first} to {last}")));
        }
        behind = last;
    }
    for member in &place.members {
        has_next(&[member.visible_from, member.read, member.since, member.cleared], "a membership")?;
        if member.visible_from == 0 {
            return Err(damaged("a membership", "it may read from seq 0"));
        }
    }
    Ok(())
}

fn found_by_name(conversations: &Conversations, kind: &Kind) -> Option<ConversationId> {
    match kind {
        Kind::OneToOne(a, b) => conversations.one_to_one(*a, *b),
        Kind::Group { name, .. } => conversations.group(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImConfig;
    use crate::im::store::{Relation, Role};

    /// Two users, a conversation of both, and a group of the first.
    fn whole() -> Directory {
        let mut whole = Directory::new(&ImConfig::default());
        for uid in ["ann", "ben"] {
            whole.users.insert(uid, true).expect("room");
        }
        let members = [UserId::of(0), UserId::of(1)].map(|user| (user, Role::Member));
        whole.open(Kind::OneToOne(UserId::of(0), UserId::of(1)), &members).expect("room");
        whole.open(Kind::Group { name: "g".into(), creator: UserId::of(0) }, &members[..1]).expect("room");
        whole
    }

    fn refused(damage: impl FnOnce(&mut Directory)) -> bool {
        let mut directory = whole();
        damage(&mut directory);
        matches!(super::directory(&directory), Err(DiskError::Damaged { .. }))
    }

    const PAIR: ConversationId = ConversationId::of(0);

    #[test]
    fn what_was_written_by_a_store_passes() {
        assert!(!refused(|_| ()));
        assert!(!refused(|whole| _ = whole.conversations.get_mut(PAIR).skip_to(50_000)));
    }

    #[test]
    fn names_of_nobody_are_damage() {
        assert!(refused(|whole| _ = whole.conversations.open(Kind::OneToOne(UserId::of(0), UserId::of(7)))));
        let group = |creator| Kind::Group { name: "h".into(), creator };
        assert!(refused(|whole| _ = whole.conversations.open(group(UserId::of(7)))));
        let blocked = Relation { is_blocked: true, ..Relation::default() };
        assert!(refused(|whole| whole.relations.set(UserId::of(0), UserId::of(7), blocked)));
        assert!(refused(|whole| whole.relations.set(UserId::of(7), UserId::of(0), blocked)));
    }

    #[test]
    fn two_conversations_of_one_name_are_damage() {
        assert!(refused(|whole| _ = whole.conversations.open(Kind::OneToOne(UserId::of(0), UserId::of(1)))));
        assert!(refused(|whole| _ = whole.conversations.open(Kind::OneToOne(UserId::of(1), UserId::of(0)))));
        let again = Kind::Group { name: "g".into(), creator: UserId::of(1) };
        assert!(refused(|whole| _ = whole.conversations.open(again)));
    }

    #[test]
    fn numbers_with_nothing_behind_them_are_damage() {
        assert!(refused(|whole| whole.memberships = u64::MAX));
        assert!(refused(|whole| whole.users.logins = u64::MAX));
        assert!(refused(|whole| whole.users.get_mut(UserId::of(1)).next_device = u32::MAX));
        assert!(refused(|whole| whole.users.get_mut(UserId::of(1)).numbered = u64::MAX));
        assert!(refused(|whole| whole.users.get_mut(UserId::of(1)).numbered = HELD_MAX + 1));
        assert!(refused(|whole| whole.users.get_mut(UserId::of(1)).trimmed = 1));
        assert!(refused(|whole| whole.conversations.get_mut(PAIR).numbered = u64::MAX));
        assert!(refused(|whole| whole.conversations.get_mut(PAIR).removed = u64::MAX));
        assert!(refused(|whole| whole.conversations.get_mut(PAIR).members[0].read = u64::MAX));
        assert!(refused(|whole| whole.conversations.get_mut(PAIR).members[0].visible_from = 0));
        assert!(matches!((counter(NUMBER_MAX), counter(u64::MAX)), (Ok(NUMBER_MAX), Err(_))));
    }

    #[test]
    fn ranges_that_end_before_they_begin_or_overlap_are_damage() {
        for ranges in [&[(9, 8)][..], &[(0, 3)], &[(1, 5), (5, 6)], &[(1, u64::MAX)]] {
            let damage = |whole: &mut Directory| {
                ranges
                    .iter()
                    .for_each(|(first, last)| whole.conversations.get_mut(PAIR).uncount(*first, *last));
            };
            assert!(refused(damage), "{ranges:?}");
        }
    }
}

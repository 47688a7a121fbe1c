//! The cast: users, their devices, and who talks with whom. Pure; one seed always makes the same roster.

use moorline_proto::random::Random;
use std::sync::Arc;

/// One of this many users has two devices.
const TWO_DEVICES_EVERY: usize = 10;
/// Users of a group; the last group takes all users that are left.
const GROUP_MIN: usize = 10;
const GROUP_MAX: usize = 20;

/// All users, devices and conversations.
#[derive(Debug)]
pub(crate) struct Roster {
    pub(crate) users: Vec<User>,
    /// One per connection.
    pub(crate) devices: Vec<Device>,
    pub(crate) conversations: Vec<Conversation>,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: Arc<str>,
    pub(crate) devices: Vec<u32>,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) user: u32,
    pub(crate) name: &'static str,
    /// Parts in conversations: with the partner, in the group.
    pub(crate) seats: Vec<Seat>,
}

/// A device's part in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) conversation: u32,
    /// Index in [`Conversation::devices`].
    pub(crate) place: u32,
}

#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) id: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) devices: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pair,
    Group {
        name: String,
        /// Users; the first one creates it.
        members: Vec<u32>,
    },
}

impl Roster {
    /// Makes a roster of `connections` devices, two or more.
    pub(crate) fn new(connections: u32, seed: u64) -> Self {
        let mut roster = Self { users: Vec::new(), devices: Vec::new(), conversations: Vec::new() };
        let connections = connections as usize;
        while roster.devices.len() < connections {
            let has_two = roster.users.len() % TWO_DEVICES_EVERY == TWO_DEVICES_EVERY - 1
                && roster.devices.len() + 1 < connections;
            roster.add_user(if has_two { &["phone", "desktop"] } else { &["phone"] });
        }
        for pair in 0..roster.users.len() / 2 {
            let (one, other) = (number(pair * 2), number(pair * 2 + 1));
            let id = format!("c2c:{}:{}", roster.user(one).uid, roster.user(other).uid);
            roster.add_conversation(&id, Kind::Pair, &[one, other]);
        }
        roster.add_groups(&mut Random::new(seed));
        roster
    }

    pub(crate) fn user(&self, number: u32) -> &User {
        &self.users[number as usize]
    }

    pub(crate) fn device(&self, number: u32) -> &Device {
        &self.devices[number as usize]
    }

    pub(crate) fn uid_of(&self, device: u32) -> &Arc<str> {
        &self.user(self.device(device).user).uid
    }

    /// A device's seat in a conversation, by its index among the device's seats.
    pub(crate) fn seat_in(&self, device: u32, conversation: u32) -> Option<(usize, Seat)> {
        let seats = &self.devices.get(device as usize)?.seats;
        let index = seats.iter().position(|seat| seat.conversation == conversation)?;
        Some((index, seats[index]))
    }

    /// Groups with the device that creates them.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (u32, &Conversation)> {
        self.conversations.iter().filter_map(|conversation| match &conversation.kind {
            Kind::Group { members, .. } => Some((self.user(members[0]).devices[0], conversation)),
            Kind::Pair => None,
        })
    }

    fn add_user(&mut self, names: &[&'static str]) {
        let user = number(self.users.len());
        let mut devices = Vec::new();
        for &name in names {
            devices.push(number(self.devices.len()));
            self.devices.push(Device { user, name, seats: Vec::new() });
        }
        // Digits of equal number: the order of names is the order of numbers, as a pair's id wants it.
        self.users.push(User { uid: format!("u{user:06}").into(), devices });
    }

    fn add_groups(&mut self, random: &mut Random) {
        let mut left: Vec<u32> = (0..number(self.users.len())).collect();
        for at in (1..left.len()).rev() {
            left.swap(at, below(random, at + 1));
        }
        let mut made = 0;
        while !left.is_empty() {
            let size = GROUP_MIN + below(random, GROUP_MAX - GROUP_MIN + 1);
            let size = if left.len() < size + GROUP_MIN { left.len() } else { size };
            let members = left.split_off(left.len() - size);
            let name = format!("g{made:04}");
            made += 1;
            self.add_conversation(
                &format!("group:{name}"),
                Kind::Group { name, members: members.clone() },
                &members,
            );
        }
    }

    fn add_conversation(&mut self, id: &str, kind: Kind, users: &[u32]) {
        let conversation = number(self.conversations.len());
        let mut devices = Vec::new();
        for &user in users {
            devices.extend_from_slice(&self.user(user).devices);
        }
        for (place, &device) in (0..).zip(&devices) {
            self.devices[device as usize].seats.push(Seat { conversation, place });
        }
        self.conversations.push(Conversation { id: id.into(), kind, devices });
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("bounded by the number of ports")
}

fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).expect("below a usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_its_seats_and_every_seat_its_device() {
        for connections in [2, 3, 11, 100, 1_001] {
            let roster = Roster::new(connections, 7);
            assert_eq!(roster.devices.len(), connections as usize);
            for (device, known) in (0..).zip(&roster.devices) {
                assert!((1..=2).contains(&known.seats.len()), "{known:?}");
                for seat in &known.seats {
                    let conversation = &roster.conversations[seat.conversation as usize];
                    assert_eq!(conversation.devices[seat.place as usize], device);
                    assert!(conversation.devices.len() > 1, "{conversation:?} is a monologue");
                }
            }
            let in_groups: usize = roster.groups().map(|(_, group)| group.devices.len()).sum();
            assert_eq!(in_groups, connections as usize, "everybody is in one group");
        }
    }

    #[test]
    fn some_have_two_devices_and_groups_have_their_size() {
        let roster = Roster::new(1_000, 1);
        assert_eq!(roster.users.iter().filter(|user| user.devices.len() == 2).count(), 90);
        for (leader, group) in roster.groups() {
            let Kind::Group { members, .. } = &group.kind else { panic!("{group:?}") };
            assert!((GROUP_MIN..GROUP_MAX + GROUP_MIN).contains(&members.len()), "{}", members.len());
            assert!(group.devices.contains(&leader));
        }
    }

    #[test]
    fn the_seed_decides() {
        let groups = |seed| -> Vec<Kind> {
            Roster::new(200, seed).groups().map(|(_, group)| group.kind.clone()).collect()
        };
        assert_eq!(groups(1), groups(1));
        assert_ne!(groups(1), groups(2));
    }
}

//! Judgement at the end of each run: the facts that have to be true, whatever happened.

use crate::cells::number;
use crate::world::World;
use moorline_backend::cluster::cell::MessageRow;
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// Returns a message that a device does not have.
    pub(crate) fn missing(&self) -> Option<String> {
        if let Some(table) = self.cells.conversations.values().find(|table| table.is_doomed()) {
            return Some(format!("{} has messages of before its end", table.row.id));
        }
        for device in &self.gateway.devices {
            let told = device.told.iter().map(|(_, _, conversation, seq)| (conversation.as_str(), *seq));
            let received = device.received.iter().map(|(conversation, seq, _)| (conversation.as_str(), *seq));
            let has: BTreeSet<_> = told.chain(received).collect();
            for table in self.cells.conversations.values() {
                // Who has left, has just come, or has deleted the conversation, sees no message before that any more.
                let own = table.row.members.iter().find(|it| *it.uid == *device.uid);
                let from = own.map_or(u64::MAX, |it| it.member.first_visible());
                let is_refused = |message: &MessageRow| {
                    let key = number(message);
                    // The answer to a recall is not kept here.
                    let own = self.cells.device(&device.uid, &device.name);
                    let is_own_recall = own == Some(message.origin) && !message.is_counted;
                    device.refused.contains(&key) || is_own_recall
                };
                let is_owed = |message: &MessageRow| {
                    self.cells.is_owed(&device.uid, &device.name, table.row.conversation, message.order)
                };
                let lacks = |(seq, message): &(&u64, &MessageRow)| {
                    **seq >= from
                        && !message.body.is_empty()
                        && is_owed(message)
                        && !has.contains(&(&*table.row.id, **seq))
                        && !is_refused(message)
                };
                if let Some((seq, _)) = table.messages.iter().find(lacks) {
                    let stream = self.cells.describe(&device.uid);
                    return Some(format!(
                        "{}/{} lacks {seq} of {}: {stream}",
                        device.uid, device.name, table.row.id
                    ));
                }
            }
        }
        self.missing_event().or_else(|| self.missing_push()).or_else(|| self.missing_presence())
    }

    /// Panics where a promise is broken.
    pub(crate) fn check(&mut self) {
        let numbers = self.check_conversations();
        self.check_streams();
        self.check_groups();
        self.check_relations();
        self.check_invitations();
        self.check_lists();
        self.check_profiles();
        self.check_devices(&numbers);
        self.check_calls(&numbers);
        assert!(self.cells.outbox.is_empty(), "everything was delivered");
        assert_eq!(self.missing(), None);
    }

    /// Each message is stored once, and seqs are dense but for voids: numbers of repetitions that came without DUP, or that were
    /// overtaken by a repetition with DUP. Returns the number at each place.
    fn check_conversations(&self) -> BTreeMap<(String, u64), u64> {
        let (mut numbers, mut places, mut missing) = (BTreeMap::new(), BTreeMap::new(), 0);
        for table in self.cells.conversations.values() {
            let mut expected = 1;
            for (seq, message) in &table.messages {
                missing += seq - expected;
                expected = seq + 1;
                let key = number(message);
                let place = (table.row.id.to_string(), *seq);
                assert_eq!(places.insert(key, place.clone()), None, "message {key} is stored twice");
                numbers.insert(place, key);
            }
        }
        assert!(
            missing <= self.coverage.voids,
            "{missing} seqs are missing, {} are voids",
            self.coverage.voids
        );
        numbers
    }

    /// Each member's stream has each message of the conversation once, in order.
    fn check_streams(&self) {
        for table in self.cells.conversations.values() {
            for (user, account) in &self.cells.users {
                let told = table.told.iter().filter(|(_, told)| told.users.contains(user));
                let all: Vec<u64> = told.map(|(order, _)| *order).collect();
                let of = table.row.conversation;
                let history = account.history.iter().filter(|(known, ..)| *known == of);
                let stream: Vec<u64> = history.map(|(_, order, _)| *order).collect();
                assert_eq!(stream, all, "{} in {}", account.uid, table.row.id);
            }
        }
    }

    /// Tells whether all that was answered is stored, in the order of each device; each device has everything, in order.
    fn check_devices(&self, numbers: &BTreeMap<(String, u64), u64>) {
        for device in &self.gateway.devices {
            let name = format!("{}/{}", device.uid, device.name);
            let mut last = BTreeMap::new();
            for (target, number, conversation, seq) in &device.told {
                let place = (conversation.clone(), *seq);
                assert_eq!(numbers.get(&place), Some(number), "{name} was told of {place:?}");
                let before = last.insert(target.clone(), *seq);
                assert!(before < Some(*seq), "{name}: order of {target}: {before:?}, {seq}");
            }
            let mut newest = BTreeMap::new();
            for (conversation, seq, number) in &device.received {
                let place = (conversation.clone(), *seq);
                assert_eq!(numbers.get(&place), Some(number), "{name} received {place:?}");
                // A device that was removed and came again is another one, and gets what it wrote as the old one.
                let is_own = device.told.iter().any(|(_, own, ..)| own == number);
                if is_own || device.refused.contains(number) {
                    continue;
                }
                let before = newest.insert(conversation.clone(), *seq);
                assert!(before < Some(*seq), "{name}: order of {conversation}: {before:?}, {seq}");
            }
        }
    }
}

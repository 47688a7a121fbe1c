//! End of a run: everyone comes online, and every device sees what its user should.

use super::*;

impl<S: Store> World<S> {
    /// Everyone comes online and handles everything: then everyone has everything, once.
    pub(super) fn settle(&mut self) {
        (0..self.devices.len()).for_each(|device| self.connect(device));
        while let Some(device) = self.devices.iter().position(|it| !it.queue.is_empty()) {
            self.ack(device, 1);
        }
        for index in 0..self.devices.len() {
            let user = index / DEVICES;
            // What an earlier membership could read is not to be had any more.
            let first = match self.members.get(&user) {
                _ if !self.has_left.contains(&user) => 1,
                Some(first) => *first,
                None => u64::MAX,
            };
            let is_due = |(conversation, seqs): (&String, &BTreeSet<u64>)| {
                let first = if conversation == GROUP { first } else { 1 };
                let first = first.max(self.first_kept(user, conversation));
                (conversation.clone(), seqs.range(first..).copied().collect::<BTreeSet<_>>())
            };
            let due = |views: &BTreeMap<String, BTreeSet<u64>>| {
                views.iter().map(is_due).filter(|(_, seqs)| !seqs.is_empty()).collect::<BTreeMap<_, _>>()
            };
            assert_eq!(due(&self.devices[index].has), due(&self.expected[user]), "device {index}");
            self.settle_recalls(index, first);
            let session = self.devices[index].session.expect("online");
            let listed = self.list(session);
            let device = &self.devices[index];
            let is_judged = |it: &&Conversation| {
                !self.deleted.contains(&user) && (it.id != GROUP || !self.has_left.contains(&user))
            };
            for it in listed.iter().filter(is_judged) {
                // Below what the user has deleted nobody asks any more.
                let first = self.first_kept(user, &it.id);
                let known = |uid: &str| {
                    let known = device.reads.get(&(it.id.clone(), uid.to_owned())).copied();
                    known.unwrap_or(0).max(first - 1)
                };
                let (read, peer_read) = (it.read.max(first - 1), it.peer_read.max(first - 1));
                assert_eq!(known(&uid(user)), read, "device {index}: what its user has read of {}", it.id);
                // That a deleted user had read, those know who saw the user's messages.
                let is_peer = |peer: &usize| {
                    *peer != user && !self.deleted.contains(peer) && it.id.contains(&uid(*peer))
                };
                if let Some(peer) = (0..USERS).find(is_peer) {
                    assert_eq!(known(&uid(peer)), peer_read, "device {index}: what {peer} has read");
                }
            }
        }
        (0..USERS).for_each(|user| assert_eq!(self.bench.stream_of(&uid(user)), 0, "all acked"));
    }

    /// Whoever has a message, and the word that it was taken back, does not show it.
    fn settle_recalls(&self, index: usize, first: u64) {
        let (device, expected) = (&self.devices[index], &self.expected[index / DEVICES]);
        for ((conversation, seq), by) in &self.recalls {
            let is_due = |seq: &u64| {
                let first = if conversation == GROUP { first } else { 1 };
                let first = first.max(self.first_kept(index / DEVICES, conversation));
                *seq >= first && expected.get(conversation).is_some_and(|seqs| seqs.contains(seq))
            };
            if is_due(seq) && is_due(by) {
                let place = (conversation.clone(), *seq);
                assert!(device.recalled.contains(&place), "device {index} shows {place:?}");
            }
        }
        let is_known = |place: &(String, u64)| self.recalls.contains_key(place);
        assert!(device.recalled.iter().all(is_known), "device {index} hides what was not taken back");
    }
}

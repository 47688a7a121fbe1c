//! Messages that the backend stored, and their receivers: the truth for the clients' check.

use crate::backend::Device;
use bytes::Bytes;
use moorline_proto::message::client::{self, Code, SendAck};
use std::collections::BTreeMap;

/// A stored message; its place is its index plus one.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) key: Bytes,
    pub(crate) push: client::Push,
}

/// One message that concerns a user.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) conversation: String,
    pub(crate) seq: u64,
    sender: Device,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    users: Vec<String>,
    pub(crate) conversations: BTreeMap<String, Vec<Stored>>,
    keys: BTreeMap<Bytes, (String, u64)>,
    streams: BTreeMap<String, Vec<Entry>>,
    /// Number of entries when a device was first seen.
    starts: BTreeMap<Device, usize>,
}

impl Ledger {
    pub(crate) fn new(users: &[&str]) -> Self {
        Self {
            users: users.iter().map(|uid| (*uid).to_owned()).collect(),
            conversations: BTreeMap::new(),
            keys: BTreeMap::new(),
            streams: BTreeMap::new(),
            starts: BTreeMap::new(),
        }
    }

    pub(crate) fn on_device(&mut self, device: &Device) {
        let entries = self.streams.get(&device.0).map_or(0, Vec::len);
        self.starts.entry(device.clone()).or_insert(entries);
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.starts.keys()
    }

    /// The backend answers a SEND: OK stores it, once per key, at the next place; DUP names that place.
    pub(crate) fn on_answer(&mut self, from: &Device, send: client::Send, code: Code, ack: &SendAck) {
        let place = (ack.conversation.clone(), ack.seq);
        match code {
            Code::Ok => {
                let older = self.keys.insert(send.key.clone(), place);
                assert_eq!(older, None, "{:?} is stored twice", send.key);
                self.store(from, send, ack);
            }
            Code::Dup => assert_eq!(self.keys.get(&send.key), Some(&place), "{:?} moved", send.key),
            _ => {}
        }
    }

    fn store(&mut self, from: &Device, send: client::Send, ack: &SendAck) {
        let (conversation, seq) = (ack.conversation.clone(), ack.seq);
        let places = self.conversations.entry(conversation.clone()).or_default();
        assert_eq!(seq, places.len() as u64 + 1, "places of {conversation} are dense");
        let push = client::Push {
            message_id: ack.message_id,
            conversation: conversation.clone(),
            seq,
            sender: from.0.clone(),
            sender_device: from.1.clone(),
            r#type: send.r#type,
            payload: send.payload,
            time_ms: ack.time_ms,
            ..client::Push::default()
        };
        places.push(Stored { key: send.key, push });
        for uid in &self.users {
            let is_named = || conversation.split(':').skip(1).any(|name| name == uid);
            if conversation.starts_with("group:") || is_named() {
                let entry = Entry { conversation: conversation.clone(), seq, sender: from.clone() };
                self.streams.entry(uid.clone()).or_default().push(entry);
            }
        }
    }

    pub(crate) fn stored(&self, conversation: &str, seq: u64) -> Option<&Stored> {
        let place = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.conversations.get(conversation)?.get(place)
    }

    /// Messages that a device must get: everything since it was first seen, except its own.
    pub(crate) fn expected(&self, device: &Device) -> impl Iterator<Item = &Entry> {
        let start = self.starts.get(device).map_or(usize::MAX, |start| *start);
        let stream = self.streams.get(&device.0).into_iter().flatten();
        stream.skip(start).filter(move |entry| entry.sender != *device)
    }
}

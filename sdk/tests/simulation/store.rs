//! A reference backend: conversations with places, void places, keys stored once, device streams.

use bytes::Bytes;
use moorline_proto::message::client::Push;
use moorline_proto::message::im::{PullRequest, PullResponse, VoidRange};
use moorline_proto::random::Random;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Device = (String, String);

/// State of an entry of a device's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    InFlight,
    Acked,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) conversation: String,
    pub(crate) seq: u64,
    pub(crate) state: State,
    /// The device knows nothing of this conversation before it.
    pub(crate) is_first: bool,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) devices: Vec<Device>,
    /// Place n is at n - 1; `None` is void.
    pub(crate) conversations: BTreeMap<String, Vec<Option<Push>>>,
    keys: BTreeMap<Bytes, (String, u64)>,
    pub(crate) streams: BTreeMap<Device, Vec<Entry>>,
    known: BTreeSet<(Device, String)>,
    /// Messages that each device's application received.
    pub(crate) handled: BTreeSet<(Device, String, u64)>,
}

pub(crate) struct Stored {
    pub(crate) conversation: String,
    pub(crate) seq: u64,
    pub(crate) is_repeat: bool,
}

impl Store {
    pub(crate) fn new(devices: Vec<Device>) -> Self {
        Self { devices, ..Self::default() }
    }

    fn members(conversation: &str) -> impl Fn(&str) -> bool + use<> {
        let names: Vec<String> = conversation.split(':').skip(1).map(str::to_owned).collect();
        let is_group = conversation.starts_with("group:");
        move |uid| is_group || names.iter().any(|name| name == uid)
    }

    pub(crate) fn append(
        &mut self,
        from: &Device,
        conversation: &str,
        key: Bytes,
        payload: Bytes,
        random: &mut Random,
    ) -> Stored {
        if let Some((conversation, seq)) = self.keys.get(&key) {
            return Stored { conversation: conversation.clone(), seq: *seq, is_repeat: true };
        }
        let places = self.conversations.entry(conversation.to_owned()).or_default();
        if random.one_in(12) {
            places.push(None);
        }
        let seq = places.len() as u64 + 1;
        places.push(Some(Push {
            message_id: u64::from_be_bytes(key[..8].try_into().unwrap()),
            conversation: conversation.to_owned(),
            seq,
            sender: from.0.clone(),
            sender_device: from.1.clone(),
            payload,
            ..Push::default()
        }));
        self.keys.insert(key, (conversation.to_owned(), seq));
        let is_member = Self::members(conversation);
        for device in self.devices.iter().filter(|device| is_member(&device.0) && *device != from) {
            let is_first = self.known.insert((device.clone(), conversation.to_owned()));
            let entry = Entry { conversation: conversation.to_owned(), seq, state: State::Pending, is_first };
            self.streams.entry(device.clone()).or_default().push(entry);
        }
        Stored { conversation: conversation.to_owned(), seq, is_repeat: false }
    }

    pub(crate) fn message(&self, conversation: &str, seq: u64) -> Push {
        let place = usize::try_from(seq - 1).unwrap();
        self.conversations[conversation][place].clone().expect("not void")
    }

    pub(crate) fn pull(&self, pull: &PullRequest) -> PullResponse {
        let mut page = PullResponse::default();
        let Some(places) = self.conversations.get(&pull.conversation) else { return page };
        page.latest = places.len() as u64;
        let limit = pull.limit.min(5) as usize;
        for seq in pull.from..=pull.to.min(page.latest) {
            if page.messages.len() == limit {
                page.more = true;
                break;
            }
            match &places[usize::try_from(seq - 1).unwrap()] {
                Some(message) => page.messages.push(message.clone()),
                None => page.voids.push(VoidRange { from: seq, to: seq }),
            }
        }
        page
    }

    /// Messages of a conversation that a device must have seen, in order.
    pub(crate) fn expected(&self, device: &Device, conversation: &str) -> Vec<u64> {
        let stream = self.streams.get(device).into_iter().flatten();
        stream.filter(|entry| entry.conversation == conversation).map(|entry| entry.seq).collect()
    }
}

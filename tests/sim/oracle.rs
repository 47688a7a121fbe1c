//! Promises to every application: one result per send, messages once and in order, and in
//! the end everything.

use crate::backend::Device;
use crate::ledger::Ledger;
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::SendAck;
use moorline_sdk::core::{Event, Message, Notice, Receipt, RequestId, SendFailure, SendId, Token};
use std::collections::{BTreeMap, BTreeSet};

/// One send of one application.
#[derive(Debug)]
struct Sent {
    key: MessageKey,
    conversation: String,
    payload: Bytes,
    is_final: bool,
}

/// One life of an application on one device.
#[derive(Debug)]
struct Life {
    device: Device,
    sends: BTreeMap<SendId, Sent>,
    requests: BTreeMap<RequestId, bool>,
    /// Places seen, by conversation.
    seen: BTreeMap<String, Vec<u64>>,
    /// Messages with the application.
    open: BTreeMap<Token, (String, u64)>,
    /// Messages that the application has safe.
    handled: BTreeSet<(String, u64)>,
    /// Signals heard of each device.
    signals: BTreeMap<Device, BTreeSet<u64>>,
    /// Signals sent in the current session.
    signals_sent: BTreeSet<u64>,
    is_closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// The gateway stands still at times, or does not read, for longer than a client asks again.
    knows_long_silence: bool,
    lives: Vec<Life>,
    /// Keys that an application used twice on purpose: their order is the application's affair.
    reused: BTreeSet<MessageKey>,
}

impl Oracle {
    pub(crate) fn new(knows_long_silence: bool) -> Self {
        Self { knows_long_silence, ..Self::default() }
    }

    pub(crate) fn on_life(&mut self, device: Device) {
        self.lives.push(Life {
            device,
            sends: BTreeMap::new(),
            requests: BTreeMap::new(),
            seen: BTreeMap::new(),
            open: BTreeMap::new(),
            handled: BTreeSet::new(),
            signals: BTreeMap::new(),
            signals_sent: BTreeSet::new(),
            is_closed: false,
        });
    }

    pub(crate) fn on_send(
        &mut self,
        life: usize,
        id: SendId,
        key: MessageKey,
        conversation: String,
        payload: Bytes,
    ) {
        let is_known = self.lives.iter().any(|life| life.sends.values().any(|sent| sent.key == key));
        if is_known {
            self.reused.insert(key);
        }
        let sent = Sent { key, conversation, payload, is_final: false };
        assert!(self.lives[life].sends.insert(id, sent).is_none(), "a send id is given once");
    }

    pub(crate) fn on_signal_sent(&mut self, life: usize, number: u64) {
        self.lives[life].signals_sent.insert(number);
    }

    pub(crate) fn on_request(&mut self, life: usize, id: RequestId) {
        assert!(self.lives[life].requests.insert(id, false).is_none(), "a request id is given once");
    }

    pub(crate) fn on_handled(&mut self, life: usize, token: Token) {
        let place = self.lives[life].open.remove(&token).expect("a token counts once");
        self.lives[life].handled.insert(place);
    }

    pub(crate) fn on_event(&mut self, at: usize, event: &Event, ledger: &Ledger) {
        let life = &mut self.lives[at];
        assert!(!life.is_closed, "{:?} hears {event:?} after its end", life.device);
        match event {
            Event::Sent(receipt) => life.on_receipt(receipt, ledger),
            Event::SendFailed { id, key, failure } => {
                let sent = life.sends.get_mut(id).expect("a result belongs to a send");
                assert!(!std::mem::replace(&mut sent.is_final, true), "a second result of {id:?}");
                assert_eq!(sent.key, *key);
                // Else every try is answered, and the chaos is shorter than anybody's patience.
                let is_lawful = *failure == SendFailure::Closed
                    || (self.knows_long_silence && *failure == SendFailure::Unanswered);
                assert!(is_lawful, "{failure:?}");
            }
            Event::Message(message) => life.on_message(message, ledger),
            Event::Response { id, .. } => {
                let is_final = life.requests.get_mut(id).expect("a result belongs to a request");
                assert!(!std::mem::replace(is_final, true), "a second result of {id:?}");
            }
            Event::Notice(Notice::LoggedIn { resumed: false }) => life.signals_sent.clear(),
            Event::Notice(Notice::Signal { conversation, sender, sender_device, payload }) => {
                assert_eq!(&**conversation, "group:g");
                life.on_signal((sender.clone(), sender_device.clone()), payload);
            }
            Event::Notice(Notice::RoomRefused { .. }) => {
                panic!("{:?}: {event:?}, but it is a member", life.device)
            }
            Event::Notice(Notice::Hole { .. }) => {
                panic!("{:?}: {event:?}, but no message is lost here", life.device)
            }
            Event::Notice(Notice::Closed(_)) => life.is_closed = true,
            _ => {}
        }
    }

    /// A positive SENDACK on the wire is true, whether or not it arrives.
    pub(crate) fn check_claim(claim: &SendAck, ledger: &Ledger) {
        let stored = ledger.stored(&claim.conversation, claim.seq);
        assert_eq!(
            stored.map(|stored| stored.push.message_id),
            Some(claim.message_id),
            "{claim:?} is not stored"
        );
    }

    /// Payload and key of the sends of a closed life that may not have been stored.
    pub(crate) fn uncertain(&self, life: usize, ledger: &Ledger) -> Vec<(MessageKey, String, Bytes)> {
        let sends = self.lives[life].sends.values();
        let is_stored = |sent: &&Sent| {
            let stored = ledger.conversations.get(&sent.conversation).into_iter().flatten();
            stored.into_iter().any(|stored| stored.key == sent.key.0[..])
        };
        // The application cannot know; some of those that were stored go out again as well.
        let wanted = sends.filter(|sent| !is_stored(sent) || sent.key.0[0].is_multiple_of(2));
        wanted.map(|sent| (sent.key, sent.conversation.clone(), sent.payload.clone())).collect()
    }

    /// True if each life has its results.
    pub(crate) fn is_settled(&self) -> bool {
        let is_settled = |life: &Life| {
            life.sends.values().all(|sent| sent.is_final) && life.requests.values().all(|is_final| *is_final)
        };
        self.lives.iter().all(is_settled)
    }

    /// True if everything that a device must hear of is safe with one of its lives.
    pub(crate) fn has_all(&self, device: &Device, ledger: &Ledger) -> bool {
        let lives = || self.lives.iter().filter(|life| life.device == *device);
        ledger.expected(device).all(|entry| {
            let place = (entry.conversation.clone(), entry.seq);
            lives().any(|life| life.handled.contains(&place))
        })
    }

    /// Entries that a device has not handled.
    pub(crate) fn missing(&self, device: &Device, ledger: &Ledger) -> Vec<(String, u64)> {
        let lives = || self.lives.iter().filter(|life| life.device == *device);
        let places = ledger.expected(device).map(|entry| (entry.conversation.clone(), entry.seq));
        places.filter(|place| !lives().any(|life| life.handled.contains(place))).collect()
    }

    /// Everything was drained.
    pub(crate) fn check(&self, ledger: &Ledger) {
        let mut keys = BTreeSet::new();
        for stored in ledger.conversations.values().flatten() {
            assert!(keys.insert(stored.key.clone()), "{:?} is stored twice", stored.key);
        }
        for device in ledger.devices() {
            self.check_device(device, ledger);
        }
        self.lives.iter().for_each(|life| self.check_order(life, ledger));
        assert!(self.is_settled(), "a send or request without its result");
    }

    /// Every entry is safe with some life of the device; no life has a hole between what it saw.
    fn check_device(&self, device: &Device, ledger: &Ledger) {
        let lives = || self.lives.iter().filter(|life| life.device == *device);
        if lives().next().is_none() {
            return; // not one of ours
        }
        for entry in ledger.expected(device) {
            let place = (entry.conversation.clone(), entry.seq);
            let is_safe = lives().any(|life| life.handled.contains(&place));
            assert!(is_safe, "{device:?} was never given {place:?} for long enough");
        }
        for (name, seen) in lives().flat_map(|life| &life.seen) {
            for pair in seen.windows(2) {
                for seq in pair[0] + 1..pair[1] {
                    let push = &ledger.stored(name, seq).expect("a place below another").push;
                    let is_own = (&push.sender, &push.sender_device) == (&device.0, &device.1);
                    assert!(is_own, "{device:?} in {name}: {seq} is missing between {pair:?}");
                }
            }
        }
    }

    /// Messages of an application in a conversation are stored in the order in which it sent them.
    fn check_order(&self, life: &Life, ledger: &Ledger) {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for sent in life.sends.values().filter(|sent| !self.reused.contains(&sent.key)) {
            let mut places = ledger.conversations.get(&sent.conversation).into_iter().flatten();
            let Some(stored) = places.find(|stored| stored.key == sent.key.0[..]) else { continue };
            let seq = stored.push.seq;
            let before = last.insert(&sent.conversation, seq);
            assert!(before < Some(seq), "{:?} in {}: stored out of order", life.device, sent.conversation);
        }
    }
}

impl Life {
    fn on_receipt(&mut self, receipt: &Receipt, ledger: &Ledger) {
        let sent = self.sends.get_mut(&receipt.id).expect("a receipt belongs to a send");
        assert!(!std::mem::replace(&mut sent.is_final, true), "a second result of {:?}", receipt.id);
        assert_eq!(*receipt.conversation, *sent.conversation);
        let stored = ledger.stored(&receipt.conversation, receipt.seq).expect("it is durable");
        assert_eq!((&stored.key[..], &stored.push.payload), (&sent.key.0[..], &sent.payload));
        assert_eq!(stored.push.message_id, receipt.message_id);
        assert_eq!(receipt.key, sent.key);
    }

    /// Checks that a signal comes at most once, and not back to its own session.
    fn on_signal(&mut self, from: Device, payload: &[u8]) {
        let number = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
        let number: u64 = number.expect("a number was said");
        // A later session may hear a signal of an earlier one of its own device [P-11.5].
        assert!(!self.signals_sent.contains(&number), "{:?} hears its own signal {number}", self.device);
        let is_new = self.signals.entry(from).or_default().insert(number);
        assert!(is_new, "{:?} hears signal {number} twice", self.device);
    }

    fn on_message(&mut self, message: &Message, ledger: &Ledger) {
        if message.happened.is_some() {
            self.open.insert(message.token, (message.conversation.to_string(), 0));
            return;
        }
        let stored = &ledger.stored(&message.conversation, message.seq).expect("it is stored").push;
        assert_eq!((&stored.payload, &stored.sender), (&message.payload, &message.sender));
        let is_own = (&stored.sender, &stored.sender_device) == (&self.device.0, &self.device.1);
        assert!(!is_own, "{:?} hears itself", self.device);
        let seen = self.seen.entry(message.conversation.to_string()).or_default();
        let is_next = seen.last().is_none_or(|last| *last < message.seq);
        assert!(
            is_next,
            "{:?} hears {} of {} after {seen:?}",
            self.device, message.seq, message.conversation
        );
        seen.push(message.seq);
        self.open.insert(message.token, (message.conversation.to_string(), message.seq));
    }
}

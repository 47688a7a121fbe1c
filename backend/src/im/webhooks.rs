//! Users that are answered by an HTTP endpoint: the endpoint gets what is in their inboxes, in order, at least once, and
//! messages that are in no inbox from the history.
//!
//! Pure: [`Output::CallWebhook`] says what to deliver, [`Im::handle_webhook`] takes what became of the delivery. A webhook is
//! a user with one device, whose ack is the endpoint's answer; so messages wait where they always wait.
//!
//! alice writes to the user `bot`: the webhook's stream grows, its next entries are read, and the push with her message is
//! one delivery; the endpoint answers 200, so the device of `bot` has acked.

use super::store::{
    Completion, ConversationId, Entry, Facts, Login, Origin, Page, PageLimits, Read, Recipient, Refusal,
    Store, StreamPage, Write,
};
use super::waiting::{Waiter, Waiting};
use super::{Im, ImConfig, Output};
use crate::server::Now;
use bytes::Bytes;
use moorline_proto::message::client::{Platform, Push};
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Name of the device that an endpoint is.
const DEVICE: &str = "endpoint";
/// Pause after the first failure, doubled with each further failure: one try after each pause.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Bytes of messages of one delivery; one message is always taken.
const BYTES_MAX: usize = 1 << 20;

/// One delivery to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookCall {
    /// Number of the webhook, in the order of their names.
    pub webhook: usize,
    /// Encoded [`Push`]es, in order.
    pub messages: Vec<Bytes>,
    /// The endpoint has failed for the longest allowed time, so this try is the last: the next messages follow in any case.
    pub is_last_try: bool,
}

/// State of a webhook; counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookStatus {
    /// Name of its user.
    pub name: String,
    /// Messages that the endpoint took.
    pub delivered: u64,
    /// Deliveries that failed; each is tried again.
    pub failed: u64,
    /// Messages that were given up.
    pub given_up: u64,
    /// The last delivery failed.
    pub is_failing: bool,
}

/// Result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookResult {
    /// The endpoint has the messages.
    Delivered,
    /// The endpoint does not have the messages, and they are written down.
    GivenUp,
    /// The delivery is to be tried again.
    Failed,
}

/// One endpoint, and how far its user's stream and conversations are delivered to it.
#[derive(Debug)]
struct Webhook {
    /// The user and the device. `None`: the login is not complete.
    origin: Option<Origin>,
    batch_max: usize,
    give_up_after: Duration,
    /// Position up to which everything is delivered.
    acked: u64,
    /// Position of the newest entry of the user's stream that is known here.
    end: u64,
    /// Conversations with messages that are in no inbox.
    due: BTreeMap<ConversationId, Due>,
    /// Entries of the inbox that were delivered from the history of their conversation.
    passed: BTreeMap<ConversationId, Passed>,
    /// The store is asked for something.
    is_reading: bool,
    /// Entries that were read and are not delivered.
    stream: Option<StreamPage>,
    /// A page of history that was read and is not delivered.
    history: Option<History>,
    /// End of the delivery that is under way.
    in_flight: Option<Until>,
    /// Messages of the delivery that is under way.
    in_flight_count: u64,
    failures: u32,
    failing_since: Option<Instant>,
    next_try: Instant,
    status: WebhookStatus,
}

/// Messages of a conversation that are to be delivered from its history.
#[derive(Clone, Copy, Debug)]
struct Due {
    first: u64,
    /// Newest seq that is known here.
    latest: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    /// Seq up to which everything is delivered.
    seq: u64,
    /// Position of the inbox up to which these messages are all that it dropped of the conversation.
    position: u64,
}

#[derive(Debug)]
struct History {
    conversation: ConversationId,
    first: u64,
    /// End of the stream when the page was asked for.
    end: u64,
    /// `None`: the page is not there yet.
    page: Option<Result<Page, Refusal>>,
}

/// End of a delivery.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// To a position of the inbox.
    Position(u64),
    /// To a seq of a conversation's history.
    Seq(ConversationId, Passed),
}

impl Webhook {
    fn new(name: &str, batch_max: usize, give_up_after: Duration) -> Self {
        Self {
            origin: None,
            batch_max,
            give_up_after,
            acked: 0,
            end: 0,
            due: BTreeMap::new(),
            passed: BTreeMap::new(),
            is_reading: true, // its login
            stream: None,
            history: None,
            in_flight: None,
            in_flight_count: 0,
            failures: 0,
            failing_since: None,
            next_try: Instant::ZERO,
            status: WebhookStatus { name: name.to_owned(), ..WebhookStatus::default() },
        }
    }

    /// Adds messages of a conversation that are in no inbox.
    fn add_due(&mut self, conversation: ConversationId, first: u64, latest: u64) {
        let due = self.due.entry(conversation).or_insert(Due { first, latest });
        (due.first, due.latest) = (due.first.min(first), due.latest.max(latest));
    }

    /// Messages of the inbox, and the position of the last of them. With a conversation: messages of its history come
    /// before anything else.
    fn next_of_stream(&mut self) -> (Option<ConversationId>, Vec<Bytes>, u64) {
        let Some(stream) = self.stream.take() else { return (None, Vec::new(), self.acked) };
        let next = self.next_of(&stream);
        self.stream = Some(stream);
        next
    }

    fn next_of(&mut self, stream: &StreamPage) -> (Option<ConversationId>, Vec<Bytes>, u64) {
        let (mut messages, mut bytes, mut end) = (Vec::new(), 0, self.acked);
        if stream.entries.is_empty() && stream.is_readable {
            return (None, messages, stream.end); // it was trimmed
        }
        for (position, entry) in &stream.entries {
            let body = match entry {
                Entry::Dropped { conversation, first } => {
                    let passed = self.passed.get(conversation).copied().unwrap_or_default();
                    if passed.position < *position {
                        let (conversation, first) = (*conversation, (*first).max(passed.seq + 1));
                        self.add_due(conversation, first, first);
                        return (Some(conversation), messages, end);
                    }
                    None
                }
                Entry::Message { conversation, seq, body, .. } => {
                    if self.due.get(conversation).is_some_and(|due| due.first <= *seq) {
                        return (Some(*conversation), messages, end);
                    }
                    let is_passed = self.passed.get(conversation).is_some_and(|passed| passed.seq >= *seq);
                    (!is_passed).then_some(body)
                }
                Entry::Event { body, .. } => Some(body),
                Entry::EventsDropped => None,
            };
            if let Some(body) = body {
                bytes += body.len();
                if bytes > BYTES_MAX && !messages.is_empty() {
                    break;
                }
                messages.push(body.clone());
            }
            end = *position;
        }
        (None, messages, end)
    }

    /// Takes the next delivery from a page of history. `None`: it cannot be read now, or the user is not a member.
    fn next_of_history(&mut self, history: History) -> Option<(Vec<Bytes>, Until)> {
        let History { conversation, end, page, .. } = history;
        let page = match page? {
            Ok(page) => page,
            Err(Refusal::Unreadable) => return None,
            Err(_) => {
                let latest = self.due.remove(&conversation).map_or(0, |due| due.latest);
                self.passed.insert(conversation, Passed { seq: latest, position: end });
                return None;
            }
        };
        let last = page.messages.last().and_then(|body| decode::<Push>(body).ok()).map(|push| push.seq);
        let last = last.filter(|_| page.more);
        let position = if last.is_none() { end } else { 0 };
        let passed = Passed { seq: last.unwrap_or(page.latest), position };
        if let Some(due) = self.due.get_mut(&conversation) {
            due.latest = due.latest.max(page.latest);
        }
        Some((page.messages, Until::Seq(conversation, passed)))
    }
}

/// One thing for a webhook's owner to do.
#[derive(Debug)]
enum WebhookStep {
    /// Asks the store, and gives the completion to [`Webhooks::on_completion`].
    Read(Read),
    /// Makes the progress of the endpoint durable.
    Write(Write),
    /// Calls the endpoint.
    Call(WebhookCall),
}

/// Result of a look for the next messages.
enum Gathered {
    /// The store is to be asked first.
    Read(Read),
    /// Encoded messages, and how far they go.
    Messages(Vec<Bytes>, Until),
}

impl Webhook {
    /// Returns the next step. `None`: there is nothing to deliver now, or a delivery or a read is under way.
    fn next(&mut self, now: Now, index: usize) -> Option<WebhookStep> {
        if self.in_flight.is_some() || self.next_try > now.instant {
            return None;
        }
        let (mut messages, until) = match self.gather()? {
            Gathered::Messages(messages, until) => (messages, until),
            Gathered::Read(read) => {
                self.is_reading = true;
                return Some(WebhookStep::Read(read));
            }
        };
        // The user knows its own messages.
        messages.retain(|body| decode::<Push>(body).is_ok_and(|push| push.sender != self.status.name));
        if messages.is_empty() {
            return self.on_delivered(until).map(WebhookStep::Write);
        }
        let failing = self.failing_since.map(|since| now.instant.saturating_since(since));
        let is_last_try = failing.is_some_and(|failing| failing >= self.give_up_after);
        self.in_flight = Some(until);
        self.in_flight_count = messages.len() as u64;
        Some(WebhookStep::Call(WebhookCall { webhook: index, messages, is_last_try }))
    }

    /// Returns the next messages, or the read that they need. `None`: there are no messages, or a read is under way.
    fn gather(&mut self) -> Option<Gathered> {
        loop {
            let (user, _) = self.origin.filter(|_| !self.is_reading)?;
            if self.end > self.acked && self.stream.is_none() {
                let (after, limit, into) = (self.acked, self.batch_max, Vec::new());
                return Some(Gathered::Read(Read::Stream { user, after, limit, into }));
            }
            let (due, messages, end) = self.next_of_stream();
            if !messages.is_empty() || due.is_none() && end > self.acked {
                return Some(Gathered::Messages(messages, Until::Position(end)));
            }
            if self.stream.as_ref().is_some_and(|stream| stream.entries.is_empty()) {
                self.stream = None; // not readable now
            }
            if due.is_none() {
                self.passed.clear();
            }
            let conversation = due.or_else(|| self.due.keys().next().copied())?;
            let first = self.due.get(&conversation)?.first;
            let is_it = |history: &History| history.conversation == conversation && history.first == first;
            if let Some(history) = self.history.take().filter(is_it) {
                match self.next_of_history(history) {
                    Some((messages, until)) => return Some(Gathered::Messages(messages, until)),
                    None if self.due.contains_key(&conversation) => return None, // not readable now
                    None => continue,
                }
            }
            self.history = Some(History { conversation, first, end: self.end, page: None });
            let limits = PageLimits { messages: self.batch_max, bytes: BYTES_MAX };
            let range = (first, u64::MAX);
            return Some(Gathered::Read(Read::Page { conversation, reader: user, range, limits }));
        }
    }

    /// Takes a completion of the store. Returns the read that follows a login.
    fn on_completion(&mut self, completion: Completion) -> Option<Read> {
        self.is_reading = false;
        match completion {
            Completion::LoggedIn(Some(login)) => {
                let of = (login.user, login.cursor.device);
                (self.origin, self.acked, self.is_reading) = (Some(of), login.cursor.acked, true);
                return Some(Read::Backlog { of });
            }
            Completion::LoggedIn(None) | Completion::LoginDenied(_) => {
                let webhook = &*self.status.name;
                tracing::error!(
                    webhook,
                    "cannot log in the webhook's user: it is banned, or there are `im.users_max`"
                );
            }
            Completion::Backlog(backlog) => {
                self.end = self.end.max(backlog.end);
                for (conversation, first) in backlog.unconfirmed {
                    self.add_due(conversation, first, first);
                }
            }
            Completion::Stream(page) => self.stream = Some(page),
            Completion::Page(page) => {
                if let Some(history) = &mut self.history {
                    history.page = Some(page);
                }
            }
            other => unreachable!("a webhook did not ask for {other:?}"),
        }
        None
    }

    /// Takes note that everything up to `until` is delivered or given up. Returns the write that makes this durable.
    fn on_delivered(&mut self, until: Until) -> Option<Write> {
        (self.failures, self.failing_since, self.next_try) = (0, None, Instant::ZERO);
        (self.stream, self.history) = (None, None);
        let by = self.origin?;
        Some(match until {
            Until::Position(position) => {
                self.acked = position;
                Write::Acked { user: by.0, device: by.1, position, gone_ms: 0 }
            }
            Until::Seq(conversation, passed) => {
                let seq = passed.seq;
                let before = self.passed.get(&conversation).map_or(0, |before| before.position);
                let position = passed.position.max(before);
                self.passed.insert(conversation, Passed { seq, position });
                let due = self.due.remove(&conversation);
                if let Some(Due { latest, .. }) = due.filter(|due| seq < due.latest) {
                    self.due.insert(conversation, Due { first: seq + 1, latest });
                }
                Write::Confirm { by, conversation, seq }
            }
        })
    }

    /// Takes the result of the delivery that is under way. Returns the write that makes progress durable.
    fn on_result(&mut self, now: Now, result: WebhookResult) -> Option<Write> {
        let until = self.in_flight.take()?;
        self.status.is_failing = result != WebhookResult::Delivered;
        match result {
            WebhookResult::Delivered => self.status.delivered += self.in_flight_count,
            WebhookResult::GivenUp => self.status.given_up += self.in_flight_count,
            WebhookResult::Failed => self.status.failed += 1,
        }
        if result != WebhookResult::Failed {
            return self.on_delivered(until);
        }
        (self.stream, self.history) = (None, None);
        let pause = (PAUSE_MIN * (1 << self.failures.min(10))).min(PAUSE_MAX);
        self.failures += 1;
        self.failing_since.get_or_insert(now.instant);
        self.next_try = now.instant + pause;
        None
    }
}

/// The webhooks of the configuration, by name.
#[derive(Debug)]
pub(super) struct Webhooks(Vec<Webhook>);

impl Webhooks {
    pub(super) fn new(config: &ImConfig) -> Self {
        let of = |(name, of): (&String, &crate::config::WebhookConfig)| {
            Webhook::new(name, of.batch_max, of.give_up_after)
        };
        Self(config.webhooks.iter().map(of).collect())
    }

    /// Returns the logins of the webhooks' users, in the order of the webhooks.
    pub(super) fn logins(&self) -> Vec<Login> {
        let platform = u32::try_from(Platform::Bot as i32).unwrap_or(0);
        let login = |webhook: &Webhook| {
            let (uid, device) = (webhook.status.name.clone(), DEVICE.to_owned());
            Login { uid, device, platform, now_ms: 0, issued_s: u64::MAX } // its token is never too old
        };
        self.0.iter().map(login).collect()
    }

    /// Takes a completion for the webhook with this index. Returns the read that follows a login.
    pub(super) fn on_completion(&mut self, index: usize, completion: Completion) -> Option<Read> {
        self.0[index].on_completion(completion)
    }

    pub(super) fn statuses(&self) -> Vec<WebhookStatus> {
        self.0.iter().map(|webhook| webhook.status.clone()).collect()
    }

    /// Notes messages of a large group, which bypass inboxes. A prefetch has covered the members of the group.
    pub(super) fn note_messages(
        &mut self,
        facts: &impl Facts,
        conversation: ConversationId,
        first: u64,
        latest: u64,
    ) {
        for webhook in &mut self.0 {
            if let Some((user, _)) = webhook.origin
                && facts.member(conversation, user).is_some()
            {
                webhook.add_due(conversation, first, latest);
            }
        }
    }

    /// Notes an entry of a stream.
    pub(super) fn note_entry(&mut self, recipient: Recipient) {
        for webhook in &mut self.0 {
            if webhook.origin.is_some_and(|(user, _)| user == recipient.user) {
                webhook.end = webhook.end.max(recipient.position);
            }
        }
    }
}

impl<S: Store> Im<S> {
    /// Begins the deliveries that are due, and reads for those that wait.
    pub(super) fn call_webhooks(&mut self, now: Now) {
        for index in 0..self.webhooks.0.len() {
            while let Some(step) = self.webhooks.0[index].next(now, index) {
                match step {
                    WebhookStep::Read(read) => {
                        self.storage.read(read, Waiting::Webhook(index));
                        self.take_completions();
                    }
                    WebhookStep::Write(write) => self.storage.write(write, Waiter::Nobody),
                    WebhookStep::Call(call) => self.out.put(Output::CallWebhook(call)),
                }
            }
        }
    }

    /// Takes the result of a delivery. A failed delivery is tried again; a delivery that was given up is not.
    pub fn handle_webhook(&mut self, now: Now, index: usize, result: WebhookResult) {
        let webhook = self.webhooks.0.get_mut(index);
        if let Some(write) = webhook.and_then(|webhook| webhook.on_result(now, result)) {
            self.storage.write(write, Waiter::Nobody);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::im::names::Names;
    use crate::im::store::{Backlog, DeviceCursor, DeviceNumber, LoggedIn, UserId};
    use moorline_proto::message::encode;

    const BOT: Origin = (UserId::of(7), DeviceNumber(0));
    const TEA: ConversationId = ConversationId::of(3);

    fn at(secs: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_secs(secs), unix_ms: secs * 1_000 }
    }

    fn said(sender: &str, seq: u64) -> Bytes {
        encode(&Push { sender: sender.into(), seq, ..Push::default() })
    }

    /// A webhook that is logged in, with `end` entries in its inbox.
    fn ready(end: u64) -> Webhook {
        let mut webhook = Webhook::new("bot", 10, Duration::from_secs(60));
        assert!(webhook.next(at(0), 0).is_none(), "its login is not complete");
        let cursor = DeviceCursor { device: BOT.1, acked: 0, is_new: true, forgotten: None };
        let login = LoggedIn { user: BOT.0, names: Names::new("bot", DEVICE), cursor };
        let read = webhook.on_completion(Completion::LoggedIn(Some(login)));
        assert!(matches!(read, Some(Read::Backlog { of }) if of == BOT));
        assert!(webhook.next(at(0), 0).is_none(), "its backlog is not there");
        webhook.on_completion(Completion::Backlog(Backlog { end, ..Backlog::default() }));
        webhook
    }

    fn entries(webhook: &mut Webhook, now: Now, bodies: &[Bytes]) {
        let step = webhook.next(now, 0);
        assert!(
            matches!(step, Some(WebhookStep::Read(Read::Stream { user, .. })) if user == BOT.0),
            "{step:?}"
        );
        assert!(webhook.next(now, 0).is_none(), "a read is under way");
        let entry = |(position, body): (u64, &Bytes)| {
            (position, Entry::Message { conversation: TEA, seq: position, body: body.clone(), origin: None })
        };
        let (after, end) = (webhook.acked, webhook.end);
        let entries = (after + 1..).zip(bodies).map(entry).collect();
        webhook.on_completion(Completion::Stream(StreamPage { entries, after, end, is_readable: true }));
    }

    fn call(webhook: &mut Webhook, now: Now) -> WebhookCall {
        match webhook.next(now, 5) {
            Some(WebhookStep::Call(call)) => call,
            other => panic!("expected a call: {other:?}"),
        }
    }

    #[test]
    fn entries_are_delivered_together_and_acked_when_the_endpoint_has_them() {
        let mut webhook = ready(2);
        let bodies = [said("ann", 1), said("ben", 2)];
        entries(&mut webhook, at(0), &bodies);
        let expected = WebhookCall { webhook: 5, messages: bodies.to_vec(), is_last_try: false };
        assert_eq!(call(&mut webhook, at(0)), expected);
        assert!(webhook.next(at(9), 0).is_none(), "one delivery at a time");
        let write = webhook.on_result(at(9), WebhookResult::Delivered);
        assert!(matches!(write, Some(Write::Acked { position: 2, .. })), "{write:?}");
        assert!(webhook.next(at(9), 0).is_none(), "there is nothing more");
        assert_eq!((webhook.status.delivered, webhook.status.is_failing), (2, false));
        assert!(webhook.on_result(at(9), WebhookResult::Delivered).is_none(), "no delivery is under way");
    }

    #[test]
    fn a_failed_delivery_is_read_again_after_a_pause_that_doubles_until_the_last_try() {
        let mut webhook = ready(1);
        let (mut now, mut pause) = (at(0), 1);
        loop {
            entries(&mut webhook, now, &[said("ann", 1)]);
            let is_last_try = call(&mut webhook, now).is_last_try;
            if is_last_try {
                break;
            }
            assert!(webhook.on_result(now, WebhookResult::Failed).is_none(), "nothing is acked");
            let due = at(now.unix_ms / 1_000 + pause);
            assert!(webhook.next(at(due.unix_ms / 1_000 - 1), 0).is_none(), "a pause of {pause} s");
            (now, pause) = (due, (2 * pause).min(60));
        }
        assert_eq!((now.unix_ms, webhook.status.failed), (63_000, 6), "after 60 s of failing");
        let write = webhook.on_result(now, WebhookResult::GivenUp);
        assert!(matches!(write, Some(Write::Acked { position: 1, .. })));
        assert_eq!((webhook.status.given_up, webhook.failures), (1, 0));
    }

    #[test]
    fn own_messages_are_passed_without_a_call() {
        let mut webhook = ready(1);
        entries(&mut webhook, at(0), &[said("bot", 1)]);
        let step = webhook.next(at(0), 0);
        assert!(matches!(step, Some(WebhookStep::Write(Write::Acked { position: 1, .. }))), "{step:?}");
    }

    #[test]
    fn messages_in_no_inbox_come_from_the_history_up_to_the_newest() {
        let mut webhook = ready(0);
        webhook.add_due(TEA, 4, 9);
        for (first, last, more) in [(4, 6, true), (7, 9, false)] {
            let step = webhook.next(at(0), 0);
            let is_page = matches!(
                step,
                Some(WebhookStep::Read(Read::Page { conversation: TEA, range, .. })) if range == (first, u64::MAX)
            );
            assert!(is_page, "{step:?}");
            let messages = (first..=last).map(|seq| said("ann", seq)).collect();
            let page = Page { messages, latest: 9, more, ..Page::default() };
            webhook.on_completion(Completion::Page(Ok(page)));
            assert_eq!(call(&mut webhook, at(0)).messages.len(), 3);
            let write = webhook.on_result(at(0), WebhookResult::Delivered);
            assert!(matches!(write, Some(Write::Confirm { seq, .. }) if seq == last), "{write:?}");
        }
        assert!(webhook.next(at(0), 0).is_none());
    }

    #[test]
    fn a_group_that_the_user_has_left_is_passed() {
        let mut webhook = ready(0);
        webhook.add_due(TEA, 4, 9);
        assert!(matches!(webhook.next(at(0), 0), Some(WebhookStep::Read(Read::Page { .. }))));
        webhook.on_completion(Completion::Page(Err(Refusal::NotMember)));
        assert!(webhook.next(at(0), 0).is_none());
        assert!(webhook.due.is_empty(), "it is not asked for again");
    }
}

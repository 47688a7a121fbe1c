//! Users that are answered by an HTTP endpoint: what is in their inboxes is delivered there, in order, at least once; what
//! is in none, from the history.
//!
//! Pure: [`Im::poll_service`] says what to deliver, [`Im::handle_service`] takes what became of it. A service is a user
//! with one device, whose ack is the endpoint's answer; so what is not delivered waits where messages wait.

use super::store::{ConversationId, Entry, Origin, PageLimits, Refusal, Store, Write};
use super::{Im, Waiting};
use crate::config::ImConfig;
use crate::server::Now;
use bytes::Bytes;
use moorline_proto::message::client::{Platform, Push};
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;

/// The name of the device that an endpoint is.
const DEVICE: &str = "endpoint";
/// The wait after the first failure, doubled with each further one: while it fails, one try each.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Bytes of messages of one delivery; one message is always taken.
const BYTES_MAX: usize = 1 << 20;

/// What goes to an endpoint in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCall {
    /// Which service, in the order of their names.
    pub service: usize,
    /// Encoded [`Push`]es, in order.
    pub messages: Vec<Bytes>,
    /// It failed for so long that this is the last time: whatever becomes of it, the next ones follow.
    pub is_last_try: bool,
}

#[derive(Debug)]
pub(super) struct Service {
    origin: Origin,
    batch_max: usize,
    give_up_after: Duration,
    /// Up to here everything is delivered.
    acked: u64,
    /// Conversations of which something is in no inbox: from which seq on it is to be delivered.
    due: BTreeMap<ConversationId, u64>,
    /// What the inbox holds of these conversations was delivered from their history.
    passed: BTreeMap<ConversationId, Passed>,
    /// What is being delivered ends here.
    in_flight: Option<Until>,
    /// So many messages.
    in_flight_count: u64,
    failures: u32,
    failing_since: Option<Instant>,
    next_try: Instant,
    status: ServiceStatus,
}

/// How a service is doing; counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Whose.
    pub name: String,
    /// Messages its endpoint took.
    pub delivered: u64,
    /// Deliveries that failed; each is tried again.
    pub failed: u64,
    /// Messages that were given up.
    pub given_up: u64,
    /// The last delivery failed.
    pub is_failing: bool,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceResult {
    /// The endpoint has it.
    Delivered,
    /// The endpoint does not have it, and what it was is written down.
    GivenUp,
    /// To be tried again.
    Failed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    /// Up to here.
    seq: u64,
    /// That is all that the inbox dropped up to this position.
    position: u64,
}

/// How far a delivery goes.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// In the inbox.
    Position(u64),
    /// In the history of a conversation.
    Seq(ConversationId, Passed),
}

impl Service {
    pub(super) const fn status(&self) -> &ServiceStatus {
        &self.status
    }
}

impl<S: Store> Im<S> {
    /// The services of the configuration, by name.
    pub(super) fn open_services(config: &ImConfig, store: &mut S) -> Vec<Service> {
        let mut services = Vec::new();
        for (name, of) in &config.services {
            let Some(user) = store.try_user(name) else {
                tracing::error!(service = name, "there is no room for this service among im.users_max users");
                continue;
            };
            let platform = u32::try_from(Platform::Bot as i32).unwrap_or(0);
            let cursor = store.login(user, DEVICE, platform, 0);
            services.push(Service {
                origin: (user, cursor.device),
                batch_max: of.batch_max,
                give_up_after: of.give_up_after,
                acked: cursor.acked,
                due: store.unconfirmed(user, cursor.device).into_iter().collect(),
                passed: BTreeMap::new(),
                in_flight: None,
                in_flight_count: 0,
                failures: 0,
                failing_since: None,
                next_try: Instant::ZERO,
                status: ServiceStatus { name: name.clone(), ..ServiceStatus::default() },
            });
        }
        services
    }

    /// The next thing to deliver; to be asked at the end of each turn, until there is none.
    pub fn poll_service(&mut self, now: Now) -> Option<ServiceCall> {
        (0..self.services.len()).find_map(|index| self.poll_one(now, index))
    }

    fn poll_one(&mut self, now: Now, index: usize) -> Option<ServiceCall> {
        loop {
            let service = &self.services[index];
            if service.in_flight.is_some() || service.next_try > now.instant {
                return None;
            }
            let (mut messages, until) = self.gather(index)?;
            let service = &mut self.services[index];
            // What the service said itself it knows.
            messages.retain(|body| decode::<Push>(body).is_ok_and(|push| push.sender != service.status.name));
            if messages.is_empty() {
                self.on_delivered(index, until);
                continue;
            }
            let failing = service.failing_since.map(|since| now.instant.saturating_since(since));
            let is_last_try = failing.is_some_and(|failing| failing >= service.give_up_after);
            service.in_flight = Some(until);
            service.in_flight_count = messages.len() as u64;
            return Some(ServiceCall { service: index, messages, is_last_try });
        }
    }

    /// A message of a large group, which is in no inbox.
    pub(super) fn note_for_services(&mut self, conversation: ConversationId, seq: u64) {
        for service in &mut self.services {
            if self.store.member(conversation, service.origin.0).is_some() {
                service.due.entry(conversation).or_insert(seq);
            }
        }
    }

    /// What comes next, and how far that is.
    fn gather(&mut self, index: usize) -> Option<(Vec<Bytes>, Until)> {
        loop {
            let (due, stream) = self.gather_stream(index);
            if !stream.0.is_empty() || due.is_none() && stream.1 > self.services[index].acked {
                return Some((stream.0, Until::Position(stream.1)));
            }
            let service = &mut self.services[index];
            if due.is_none() {
                service.passed.clear();
            }
            let conversation = due.or_else(|| service.due.keys().next().copied())?;
            let first = service.due.get(&conversation).copied()?;
            let limits = PageLimits { messages: service.batch_max, bytes: BYTES_MAX };
            let (user, _) = service.origin;
            let page = match self.store.read_range(conversation, user, (first, u64::MAX), limits) {
                Ok(page) => page,
                Err(Refusal::Unreadable) => return None, // not now
                Err(_) => {
                    service.due.remove(&conversation); // no member any more
                    let (seq, position) = (self.store.latest(conversation), self.store.stream_end(user));
                    service.passed.insert(conversation, Passed { seq, position });
                    continue;
                }
            };
            let last = page.messages.last().and_then(|body| decode::<Push>(body).ok()).map(|push| push.seq);
            let last = last.filter(|_| page.more);
            let position = if last.is_none() { self.store.stream_end(user) } else { 0 };
            let passed = Passed { seq: last.unwrap_or(page.latest), position };
            return Some((page.messages, Until::Seq(conversation, passed)));
        }
    }

    /// Messages of the inbox, and the position of the last of them; with a conversation, something of that comes from its
    /// history before anything else.
    fn gather_stream(&mut self, index: usize) -> (Option<ConversationId>, (Vec<Bytes>, u64)) {
        let Self { services, store, .. } = self;
        let service = &mut services[index];
        let (mut messages, mut bytes, mut end) = (Vec::new(), 0, service.acked);
        let (user, _) = service.origin;
        let stream_end = store.stream_end(user);
        if stream_end <= end {
            return (None, (messages, end));
        }
        let mut entries = Vec::new();
        let is_readable = store.read_stream(user, end, service.batch_max, &mut entries);
        if entries.is_empty() && is_readable {
            return (None, (messages, stream_end)); // it was trimmed
        }
        for (position, entry) in entries {
            let body = match entry {
                Entry::Dropped { conversation, first } => {
                    let passed = service.passed.get(&conversation).copied().unwrap_or_default();
                    let first = first.max(passed.seq + 1);
                    if passed.position < position && first <= store.latest(conversation) {
                        let due = service.due.entry(conversation).or_insert(first);
                        *due = first.min(*due);
                        return (Some(conversation), (messages, end));
                    }
                    None
                }
                Entry::Message { conversation, seq, body, .. } => {
                    if service.due.get(&conversation).is_some_and(|first| *first <= seq) {
                        return (Some(conversation), (messages, end));
                    }
                    let is_passed = service.passed.get(&conversation).is_some_and(|passed| passed.seq >= seq);
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
                messages.push(body);
            }
            end = position;
        }
        (None, (messages, end))
    }

    fn on_delivered(&mut self, index: usize, until: Until) {
        let service = &mut self.services[index];
        (service.failures, service.failing_since, service.next_try) = (0, None, Instant::ZERO);
        let (by, (user, device)) = (service.origin, service.origin);
        let write = match until {
            Until::Position(position) => {
                service.acked = position;
                Write::Acked { user, device, position, gone_ms: 0 }
            }
            Until::Seq(conversation, passed) => {
                let seq = passed.seq;
                let before = service.passed.get(&conversation).map_or(0, |before| before.position);
                let position = passed.position.max(before);
                service.passed.insert(conversation, Passed { seq, position });
                service.due.remove(&conversation);
                if seq < self.store.latest(conversation) {
                    service.due.insert(conversation, seq + 1);
                }
                Write::Confirm { by, conversation, seq }
            }
        };
        self.write(write, Waiting::Nobody);
    }

    /// What became of a delivery. One that failed is tried again; one that was given up is not.
    pub fn handle_service(&mut self, now: Now, index: usize, result: ServiceResult) {
        let Some(service) = self.services.get_mut(index) else { return };
        let Some(until) = service.in_flight.take() else { return };
        service.status.is_failing = result != ServiceResult::Delivered;
        match result {
            ServiceResult::Delivered => service.status.delivered += service.in_flight_count,
            ServiceResult::GivenUp => service.status.given_up += service.in_flight_count,
            ServiceResult::Failed => service.status.failed += 1,
        }
        if result != ServiceResult::Failed {
            return self.on_delivered(index, until);
        }
        let service = &mut self.services[index];
        let pause = (PAUSE_MIN * (1 << service.failures.min(10))).min(PAUSE_MAX);
        service.failures += 1;
        service.failing_since.get_or_insert(now.instant);
        service.next_try = now.instant + pause;
    }
}

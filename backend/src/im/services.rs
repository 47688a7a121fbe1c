//! Users that are answered by an HTTP endpoint: what is in their inboxes is delivered there, in order, at least once.
//!
//! Pure: [`Im::poll_service`] says what to deliver, [`Im::handle_service`] takes what became of it. A service is a user
//! with one device, whose ack is the endpoint's answer; so what is not delivered waits where messages wait.

use super::store::{Entry, Origin, Store, Write};
use super::{Im, Waiting};
use crate::config::ImConfig;
use crate::server::Now;
use bytes::Bytes;
use moorline_proto::message::client::{Platform, Push};
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};

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
    name: String,
    batch_max: usize,
    give_up_after: Duration,
    /// Up to here everything is delivered.
    acked: u64,
    /// What is being delivered ends here.
    in_flight: Option<u64>,
    failures: u32,
    failing_since: Option<Instant>,
    next_try: Instant,
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
                name: name.clone(),
                batch_max: of.batch_max,
                give_up_after: of.give_up_after,
                acked: cursor.acked,
                in_flight: None,
                failures: 0,
                failing_since: None,
                next_try: Instant::ZERO,
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
            let (user, _) = service.origin;
            let is_busy = service.in_flight.is_some() || service.next_try > now.instant;
            if is_busy || self.store.stream_end(user) <= service.acked {
                return None;
            }
            let mut entries = Vec::new();
            self.store.read_stream(user, service.acked, service.batch_max, &mut entries);
            let (mut messages, mut bytes, mut end) = (Vec::new(), 0, self.store.stream_end(user));
            for (position, entry) in &entries {
                let body = match entry {
                    Entry::Message { body, .. } | Entry::Event { body, .. } => body,
                    // They are in the history.
                    Entry::Dropped { .. } | Entry::EventsDropped => {
                        tracing::error!(
                            service = service.name,
                            "messages are not delivered: im.inbox_entries_max"
                        );
                        continue;
                    }
                };
                bytes += body.len();
                if bytes > BYTES_MAX && !messages.is_empty() {
                    break;
                }
                end = *position;
                // What the service said itself it knows.
                if decode::<Push>(body).is_ok_and(|push| push.sender != service.name) {
                    messages.push(body.clone());
                }
            }
            if let Some((last, _)) = entries.last() {
                end = end.min(*last);
            }
            if messages.is_empty() {
                self.on_delivered(index, end);
                continue;
            }
            let failing = service.failing_since.map(|since| now.instant.saturating_since(since));
            let is_last_try = failing.is_some_and(|failing| failing >= service.give_up_after);
            self.services[index].in_flight = Some(end);
            return Some(ServiceCall { service: index, messages, is_last_try });
        }
    }

    fn on_delivered(&mut self, index: usize, end: u64) {
        let service = &mut self.services[index];
        service.acked = end;
        (service.failures, service.failing_since, service.next_try) = (0, None, Instant::ZERO);
        let (user, device) = service.origin;
        self.write(Write::Acked { user, device, position: end, gone_ms: 0 }, Waiting::Nobody);
    }

    /// What became of a delivery. One that failed is tried again; one that was given up is not.
    pub fn handle_service(&mut self, now: Now, service: usize, is_done: bool) {
        let Some(end) = self.services.get_mut(service).and_then(|service| service.in_flight.take()) else {
            return;
        };
        if is_done {
            return self.on_delivered(service, end);
        }
        let service = &mut self.services[service];
        let pause = (PAUSE_MIN * (1 << service.failures.min(10))).min(PAUSE_MAX);
        service.failures += 1;
        service.failing_since.get_or_insert(now.instant);
        service.next_try = now.instant + pause;
    }
}

//! Store of the backends: all links of a gateway lead to one. Pure, apart from the lock that the workers' routers share.
//!
//! Two backends that do not share a store each answer OK to what the users of the other never get. So a backend names its store
//! in HELLO, and a link to another store is refused while the first one serves. Example, with the endpoints A and B:
//!
//! ```text
//! HELLO of A: store 5f..   serves
//! HELLO of B: store 77..   refused; log, status and `link_stores_refused` name both
//! all links to A break     for 10 s only A may bring another store: it was restored, or its store is in memory
//! HELLO of A: store 90..   serves
//! ```
//!
//! A backend that names no store is believed: it is of an earlier version, or keeps nothing.

use super::{Failure, LinkIndex};
use bytes::Bytes;
use moorline_proto::link::Endpoint;
use moorline_proto::message::backend::LinkHello;
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Time after the end of the last link to a store in which only its own endpoints may bring another one. It is longer than
/// the default of `backend.reconnect_max`, so that a backend that starts again comes first.
const HOLD: Duration = Duration::from_secs(10);
/// Endpoints that are remembered to have brought the store; the oldest one is forgotten.
const OWNERS_MAX: usize = 4_096;
/// Longest name of a backend in a message, in characters.
const NODE_CHARS_MAX: usize = 64;

/// Name of a link in its gateway: number of the worker, and the link.
type Holder = (u16, LinkIndex);

/// The store that serves, and who was refused. A clone is the same: the routers of one gateway share it.
#[derive(Clone, Debug, Default)]
pub struct Stores(Arc<Mutex<Claims>>);

#[derive(Debug, Default)]
struct Claims {
    /// Name of the store that serves, or served last; empty: none was named yet.
    store: Bytes,
    /// Endpoints that have brought this store.
    owners: Vec<Endpoint>,
    /// Links to it.
    holders: BTreeSet<Holder>,
    /// End of the last link to it.
    gone_at: Instant,
    /// Links that were refused at their last try because of their store.
    refused: BTreeMap<Holder, OtherStore>,
    /// Links whose last try failed in a way that only an operator can mend, each with a sentence.
    distrusted: BTreeMap<Holder, String>,
}

/// Refusal of a backend that has another store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherStore {
    /// Backend that was refused, as it calls itself.
    node: String,
    /// Endpoint of that backend.
    refused: Endpoint,
    /// Endpoint of a backend whose store serves.
    serving: Endpoint,
}

impl fmt::Display for OtherStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, refused, serving } = self;
        write!(
            f,
            "the backend {node:?} at {refused} has another store than the one at {serving}, so their users would not reach \
             each other; name only backends of one store in backend.endpoints"
        )
    }
}

impl Stores {
    /// Has a link serve the store that its backend names in HELLO.
    ///
    /// # Errors
    /// [`Failure::OtherStore`]: another store serves.
    pub(super) fn claim(
        &self,
        now: Instant,
        holder: Holder,
        endpoint: &Endpoint,
        hello: &LinkHello,
    ) -> Result<(), Failure> {
        let mut claims = self.lock();
        if claims.allows(now, endpoint, &hello.store) {
            claims.refused.remove(&holder);
            claims.distrusted.remove(&holder);
            claims.hold(holder, endpoint, &hello.store);
            return Ok(());
        }
        let serving = claims.owners.first().unwrap_or(endpoint).clone();
        let node = hello.node.chars().take(NODE_CHARS_MAX).collect();
        let other = OtherStore { node, refused: endpoint.clone(), serving };
        claims.refused.insert(holder, other.clone());
        Err(Failure::OtherStore(other))
    }

    /// Continues a link of the process before.
    pub(super) fn thaw(&self, holder: Holder, endpoint: &Endpoint, store: &Bytes) {
        let mut claims = self.lock();
        // An earlier version, which did not compare, may have let two stores in: the second one counts as unknown.
        if claims.store.is_empty() || claims.store == *store {
            claims.hold(holder, endpoint, store);
        }
    }

    /// Notes that a link has ended.
    pub(super) fn release(&self, now: Instant, holder: Holder, endpoint: &Endpoint, failure: &Failure) {
        let mut claims = self.lock();
        if claims.holders.remove(&holder) && claims.holders.is_empty() {
            claims.gone_at = now;
        }
        if !matches!(failure, Failure::OtherStore(_)) {
            claims.refused.remove(&holder);
            claims.distrusted.remove(&holder);
            if failure.is_of_trust() {
                claims.distrusted.insert(holder, format!("no link to {endpoint}: {failure}"));
            }
        }
    }

    /// Returns a sentence for each endpoint that refuses this gateway, or is refused, now.
    pub fn refused(&self) -> Vec<String> {
        let claims = self.lock();
        let mut told: Vec<String> = claims.refused.values().map(ToString::to_string).collect();
        told.extend(claims.distrusted.values().cloned());
        told.sort_unstable();
        told.dedup();
        told
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    fn allows(&self, now: Instant, endpoint: &Endpoint, store: &Bytes) -> bool {
        if store.is_empty() || self.store.is_empty() || self.store == *store {
            return true;
        }
        let is_held = now < self.gone_at + HOLD && !self.owners.contains(endpoint);
        self.holders.is_empty() && !is_held
    }

    fn hold(&mut self, holder: Holder, endpoint: &Endpoint, store: &Bytes) {
        if store.is_empty() {
            return;
        }
        if self.store != *store {
            if !self.store.is_empty() {
                tracing::warn!(%endpoint, "the backends have another store than before: a new, restored or emptied one");
            }
            self.store = store.clone();
            self.owners.clear();
        }
        if !self.owners.contains(endpoint) {
            if self.owners.len() >= OWNERS_MAX {
                self.owners.remove(0);
            }
            self.owners.push(endpoint.clone());
        }
        self.holders.insert(holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Holder = (0, LinkIndex(0));
    const B: Holder = (0, LinkIndex(1));

    fn endpoint(holder: Holder) -> Endpoint {
        format!("10.0.0.{}:7100", holder.1.0 + 1).parse().expect("an address")
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn claim(stores: &Stores, seconds: u64, holder: Holder, store: &'static str) -> bool {
        let hello = LinkHello { node: "b".into(), store: store.into(), ..LinkHello::default() };
        stores.claim(at(seconds), holder, &endpoint(holder), &hello).is_ok()
    }

    #[test]
    fn a_second_store_is_refused_and_named_while_the_first_one_serves() {
        let stores = Stores::default();
        assert!(claim(&stores, 1, A, "one") && claim(&stores, 1, (1, A.1), "one"));
        assert!(!claim(&stores, 2, B, "two"));
        let told = stores.refused();
        assert!(told.len() == 1 && told[0].contains("10.0.0.2:7100 has another store"), "{told:?}");
        assert!(told[0].contains("10.0.0.1:7100"), "{told:?}");
        // The end of the refused connection is not news; that of a later try without HELLO is.
        let hello = LinkHello { store: "two".into(), ..LinkHello::default() };
        let Err(refusal) = stores.claim(at(3), B, &endpoint(B), &hello) else { panic!("another store") };
        stores.release(at(3), B, &endpoint(B), &refusal);
        assert_eq!(stores.refused().len(), 1);
        stores.release(at(4), B, &endpoint(B), &Failure::ConnectTimeout);
        assert!(stores.refused().is_empty());
        stores.release(at(5), B, &endpoint(B), &Failure::NoSecret);
        let told = stores.refused();
        assert!(
            told.len() == 1 && told[0].contains("10.0.0.2:7100: the backend asks for a proof"),
            "{told:?}"
        );
        stores.release(at(6), B, &endpoint(B), &Failure::Closed);
        assert!(stores.refused().is_empty());
        // One link is left: the store still serves.
        stores.release(at(100), A, &endpoint(A), &Failure::Closed);
        assert!(!claim(&stores, 200, A, "two"));
        assert!(claim(&stores, 200, B, "one"));
    }

    #[test]
    fn an_endpoint_brings_another_store_when_all_links_to_the_old_one_are_gone() {
        let stores = Stores::default();
        assert!(claim(&stores, 1, A, "one"));
        stores.release(at(5), A, &endpoint(A), &Failure::Closed);
        // Another endpoint has to wait, in case the first one only starts again.
        assert!(!claim(&stores, 6, B, "two"));
        assert!(claim(&stores, 6, A, "three"));
        assert!(!claim(&stores, 20, B, "two"));
        stores.release(at(30), A, &endpoint(A), &Failure::Closed);
        assert!(!claim(&stores, 39, B, "two"));
        assert!(claim(&stores, 40, B, "two") && stores.refused().is_empty());
        assert!(!claim(&stores, 41, A, "three"));
    }

    #[test]
    fn backends_that_name_no_store_are_not_compared() {
        let stores = Stores::default();
        assert!(claim(&stores, 1, A, "") && claim(&stores, 1, B, "one"));
        assert!(claim(&stores, 2, (1, A.1), ""));
        stores.release(at(3), A, &endpoint(A), &Failure::Closed);
        assert!(!claim(&stores, 4, A, "two"), "the link to the store of B is open");
    }

    #[test]
    fn links_that_go_on_in_another_process_keep_their_store() {
        let stores = Stores::default();
        stores.thaw(A, &endpoint(A), &"one".into());
        // An earlier version did not compare.
        stores.thaw(B, &endpoint(B), &"two".into());
        stores.thaw((1, A.1), &endpoint(A), &Bytes::new());
        assert!(!claim(&stores, 1, B, "two"));
        stores.release(at(2), A, &endpoint(A), &Failure::Closed);
        assert!(claim(&stores, 3, A, "three"));
    }
}

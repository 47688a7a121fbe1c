//! Backends as the whole gateway sees them: the addresses of their names, and what is wrong with them.

use super::GatewayError;
use crate::admin::Problems;
use crate::config::Config;
use crate::messages::UplinkBatch;
use crate::metrics::{CounterSet, Metric, Registry};
use crate::router::Stores;
use moorline_net::mailbox::Sender;
use moorline_net::resolve::{Hooks, Looked, Resolver};
use std::sync::Arc;

/// Counters of look-ups.
const METRICS: &[Metric] = &[
    Metric::counter("backend_lookups", "Look-ups of names in backend.endpoints that have ended."),
    Metric::counter(
        "backend_lookups_failed",
        "Look-ups of names in backend.endpoints without an address; the last addresses stay in use.",
    ),
];
const ENDED: usize = 0;
const FAILED: usize = 1;

/// State that all workers share about the backends.
pub(super) struct Backends {
    /// The store that serves.
    pub(super) stores: Stores,
    /// Addresses of the names.
    pub(super) resolver: Resolver,
}

impl Backends {
    /// Starts the threads that look up the names in `backend.endpoints`; without a name there is none.
    pub(super) fn start(
        config: &Config,
        workers: Vec<Sender<UplinkBatch>>,
        metrics: &Registry,
    ) -> Result<Self, GatewayError> {
        let counter_set = Arc::new(CounterSet::new(METRICS));
        metrics.carry(METRICS);
        metrics.add(Arc::clone(&counter_set));
        let count = move |looked| {
            counter_set.add(ENDED, 1);
            counter_set.add(FAILED, u64::from(looked == Looked::Failed));
        };
        let wake = move || workers.iter().for_each(|worker| _ = worker.wake());
        let names = config.backend.endpoints.iter().filter_map(|endpoint| endpoint.name().cloned());
        let hooks = Hooks { wake: Box::new(wake), count: Box::new(count) };
        let resolver = Resolver::start(names, hooks)
            .map_err(GatewayError::system("start a thread for a name in backend.endpoints"))?;
        Ok(Self { stores: Stores::default(), resolver })
    }

    /// Returns what tells the status of faults that an operator has to mend.
    pub(super) fn problems(self) -> Problems {
        let Self { stores, resolver } = self;
        Problems::new(move || {
            let mut problems = stores.refused();
            problems.extend(resolver.problems());
            problems
        })
    }
}

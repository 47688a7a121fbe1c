//! The whole system as its users meet it: real processes, real sockets, a client that knows only the
//! protocol.
//!
//! Each test starts its own gateway and, where needed, backend, on free ports, and ends them whatever
//! happens. Nothing sleeps: tests wait for frames by read timeouts, and look at figures until a deadline
//! ([`until`]). Counts scale with the open-files limit and are printed.
//!
//! | module | holds |
//! |---|---|
//! | `process`, `gateway` | children of the test: readiness, signals, figures from `/proc`, the admin address |
//! | `raw` | a blocking client on the codec |
//! | `proxy` | weather between two ends of a connection |
//! | `beside` | a chat that must not notice what happens beside it |
//! | `series` | a gateway through its hot restarts |
//! | `lateness` | how late this machine runs a thread: what bounds on time allow for |
//! | `tracer` | calls of a process under test, recorded or injected by `strace` |
//! | `soak` | how long and how many, for those who want more |
//! | `descriptors` | how many sockets this machine gives |
//! | the others | tests, by topic |

mod accounts;
mod admin;
mod api;
mod authority;
mod backend_death;
mod bad_input;
mod beside;
mod caps;
mod carriers;
mod chat;
mod clocks;
mod cluster;
mod commands;
mod counters;
mod deletion;
mod descriptors;
mod dev;
mod dispatch;
mod drain;
mod durable;
mod endpoints;
mod exhaustion;
mod flood;
mod full_disk;
mod gateway;
mod handover;
mod handover_binary;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_commit;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_faults;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_hostile;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_inject;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_kinds;
mod handover_memory;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_orders;
mod handover_pause;
mod handover_places;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod handover_settings;
mod handover_waiting;
mod hostile;
mod hostile_cost;
mod http;
mod import;
mod kick;
mod lateness;
mod limited;
mod link;
mod link_storm;
mod link_tls;
mod link_tls_handover;
mod listeners;
mod load;
mod login;
mod logs;
mod mass_login;
mod oracle;
#[path = "../../backend/tests/postgres/mod.rs"]
mod postgres;
mod process;
mod proxy;
mod raw;
mod resume;
mod returning;
mod rooms;
mod sdk;
mod series;
mod signals;
mod slow;
mod soak;
mod stop;
mod storm;
mod tls;
mod tls_hostile;
#[cfg(any(feature = "failpoints", debug_assertions))]
mod tracer;
mod tunnel;
mod weather;

use moorline::sys::clock;
use moorline_proto::time::Instant;
use std::io::Write as _;
use std::time::Duration;

/// For anything that must happen, on a machine that is busy with something else: at a load of 20 a second of processor time takes
/// twenty.
const PATIENCE: Duration = Duration::from_secs(240);
/// Longest `backend.up_timeout`.
const UP_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a figure that nobody announces.
const LOOK: Duration = Duration::from_millis(5);

/// Says that this machine cannot run a test, also where the output of tests that pass is hidden. With `MOORLINE_SKIPS=fail`
/// the test fails.
fn skipped(reason: &str) {
    assert!(std::env::var("MOORLINE_SKIPS").as_deref() != Ok("fail"), "SKIPPED: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // The runner hides what `println!` writes.
    std::io::stderr().write_all(format!("\nSKIPPED: {test}: {reason}\n").as_bytes()).ok();
}

/// True, and said, if more than this time has passed since then, which the product itself allows for something.
fn is_over(time: Duration, since: Instant, reason: &str) -> bool {
    let is_over = clock::now().saturating_since(since) > time;
    if is_over {
        skipped(reason);
    }
    is_over
}

/// True, and said, if questions asked at `since` have outlasted the longest `backend.up_timeout`, so that RETRY answers them.
fn is_too_slow(since: Instant) -> bool {
    let reason = "on this busy machine questions outlast backend.up_timeout, which is a minute at most";
    is_over(UP_TIMEOUT_MAX, since, reason)
}

/// Looks until there is something. Panics, naming `what`, when there is nothing in time.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(LOOK);
    }
}

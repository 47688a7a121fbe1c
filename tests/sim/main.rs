//! The access layer on a virtual clock: real client cores, simulated TCP, real shards, real
//! routers, the real link host and the real instant-messaging backend.
//!
//! ```text
//!  Core ◄──pipe──► Reactor{Shard} ◄──mail──► Worker{Router} ◄──pipe──► Backend{LinkHost, Im}
//!   └── events ──► Oracle ◄──────────── what is stored ───────────┘
//! ```
//!
//! One seed decides everything: who says what when, how bytes are cut, what breaks. Every step checks
//! what holds always; the end checks that everything accepted was delivered and nothing is left.
//! `SIM_SEED=n` runs one seed and prints its coverage, `SIM_TRACE=n` shows its last n events if it fails,
//! `SIM_SEEDS=n` runs seeds 0 to n - 1. A run lists the seeds that failed, then shows the first one's step and
//! last events.
//!
//! | module | holds |
//! |---|---|
//! | `world`, `network` | the parts, the event loop, the phases of a run; what is between the parts |
//! | `scene` | clock, event heap, dice, trace: what every part shares |
//! | `pipe`, `tap` | a TCP connection; a decoder that listens in and checks |
//! | `client`, `talk`, `hostile` | the driver of a `Core`; what applications do; connections that misbehave |
//! | `gateway`, `sockets` | a reactor's loop around a `Shard`; its sockets, which the shipped executor drives |
//! | `logins`, `worker` | what a shard tells of logins; a worker's loop around a `Router` |
//! | `backend`, `console` | the loop around the shipped `LinkHost` and `Im`; a second gateway, without a pipe |
//! | `stranger` | connections to the backend that know no secret |
//! | `witness`, `ledger` | what passes between `LinkHost` and `Im`; what `Im` said that it stored |
//! | `oracle` | what must be true of sends and messages |
//! | `faults`, `coverage` | what goes wrong; what really occurred |

mod backend;
mod client;
mod console;
mod coverage;
mod faults;
mod gateway;
mod hostile;
mod ledger;
mod logins;
mod network;
mod oracle;
mod pipe;
mod scene;
mod sockets;
mod stranger;
mod talk;
mod tap;
mod witness;
mod worker;
mod world;

use coverage::Coverage;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use world::World;

/// Seeds of an ordinary run.
const SEEDS: u64 = 256;
/// Threads that share them.
const THREADS: usize = 2;
/// Failed seeds after which a run gives up.
const FAILURES: usize = 16;

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

/// Runs the seeds once, for all tests of this process.
fn coverage_of_all_seeds() -> &'static Coverage {
    static RUN: OnceLock<Coverage> = OnceLock::new();
    RUN.get_or_init(|| {
        let seeds = number_of("SIM_SEEDS").unwrap_or(SEEDS);
        let (next, total) = (AtomicU64::new(0), Mutex::new((Coverage::default(), Vec::new())));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            break;
                        }
                        let seen = panic::catch_unwind(|| World::new(seed, false).run());
                        let mut total = total.lock().expect("no run panics while adding");
                        match seen {
                            Ok((seen, _)) => total.0.add(&seen),
                            Err(_) => total.1.push(seed),
                        }
                        if total.1.len() >= FAILURES {
                            break;
                        }
                    }
                });
            }
        });
        let (coverage, mut failed) = total.into_inner().expect("all runs are over");
        failed.sort_unstable();
        if let Some(first) = failed.first() {
            println!("seeds that failed: {failed:?}; the first one again, with a trace:");
            World::new(*first, true).run();
        }
        coverage
    })
}

#[test]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = number_of("SIM_SEED") {
        println!("{}", World::new(seed, true).run().0);
        return;
    }
    println!("{}", coverage_of_all_seeds());
}

#[test]
fn the_seeds_reach_what_they_are_meant_to_reach() {
    if number_of("SIM_SEED").is_some() {
        return;
    }
    let missing = coverage_of_all_seeds().missing();
    assert!(missing.is_empty(), "no seed reached {missing:?}; tune `faults`");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 7] {
        let (one, other) = (World::new(seed, false).run(), World::new(seed, true).run());
        assert_eq!(one.1, other.1, "seed {seed} ran differently the second time");
        assert_eq!(one.0, other.0);
    }
}

//! A cluster in one thread: three real `Im`s, each on the real store of a node, over simulated cells, links and clients.
//!
//! Transactions end with an unknown outcome, DELIVERs get lost and come twice, slots are stolen in the middle of a batch, nodes
//! end and stand still, clocks are an hour apart. At the end each conversation is dense, each stream complete, and each answer
//! true. `SIM_SEED=7` replays one seed.

mod calls;
mod cells;
mod conformance;
mod coverage;
mod gateway;
mod invitations;
mod mirror;
mod one_node;
mod oracle;
#[path = "../postgres/mod.rs"]
mod postgres;
mod presences;
mod relations;
mod requests;
mod world;

use coverage::Coverage;
use std::panic;
use std::thread;
use world::World;

/// Seeds of an ordinary run, which reach everything in [`Coverage`]. `SIM_SEEDS=256` runs more.
const SEEDS: u64 = 32;

fn run(seed: u64) -> Coverage {
    let result = panic::catch_unwind(|| {
        let mut world = World::new(seed, None);
        world.run();
        world.check();
        world.coverage
    });
    result.unwrap_or_else(|cause| {
        eprintln!("seed {seed}; replay: SIM_SEED={seed} cargo test -p moorline-backend --test cluster");
        panic::resume_unwind(cause)
    })
}

fn run_all(seeds: &[u64]) -> Coverage {
    let mut sum = Coverage::default();
    seeds.iter().for_each(|seed| sum.add(&run(*seed)));
    sum
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice_whatever_fails() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return println!("{:#?}", run(seed));
    }
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let all: Vec<u64> = (0..seeds).collect();
    let mut coverage = Coverage::default();
    thread::scope(|scope| {
        let halves = all.chunks(all.len().div_ceil(2).max(1)).map(|seeds| scope.spawn(|| run_all(seeds)));
        for half in halves.collect::<Vec<_>>() {
            match half.join() {
                Ok(sum) => coverage.add(&sum),
                Err(cause) => panic::resume_unwind(cause),
            }
        }
    });
    println!("{coverage:#?}");
    let never: Vec<_> = coverage.rows().into_iter().filter(|(_, count)| *count == 0).collect();
    assert!(never.is_empty() || seeds < SEEDS, "these never happened: {never:?}");
}

#[test]
fn a_seed_decides_everything() {
    assert_eq!(run(3), run(3));
}

/// Seeds whose requests go to PostgreSQL, too. `SQL_SEEDS=32` runs more.
const SQL_SEEDS: u64 = 3;

#[test]
fn real_cells_reply_as_the_simulated_ones_do() {
    let Some(server) = mirror::server() else { return };
    let seeds = std::env::var("SQL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SQL_SEEDS);
    let mut compared = 0;
    for seed in 0..seeds {
        let mut world = World::new(seed, Some(&server));
        world.run();
        world.check();
        compared += world.mirror.map_or(0, |mirror| mirror.compared);
    }
    println!("{compared} replies of {seeds} seeds");
    assert!(compared > 100 * seeds, "{compared} replies of {seeds} seeds");
}

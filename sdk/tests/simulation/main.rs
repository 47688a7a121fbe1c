//! Cores against a scripted gateway on a virtual clock: random chunks, delays, resets, RETRY, lost
//! answers, pushes that come twice, early or never.
//!
//! Every message reaches each device once and in order, every send has exactly one final result, and
//! what a sender said in a conversation is stored in the order in which it was said. `SIM_SEED=n`
//! runs one seed.

#![allow(clippy::unwrap_used)] // a test says what is wrong by failing

mod gateway;
mod store;
mod world;

use world::World;

const SEEDS: u64 = 32;

#[test]
fn every_message_once_in_order_and_one_result_per_send() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        let seed = seed.parse().expect("SIM_SEED is a number");
        println!("{:#?}", World::new(seed).run());
        return;
    }
    for seed in 0..SEEDS {
        println!("seed {seed}"); // shown if it fails
        let (seen, _) = World::new(seed).run();
        let counts = [
            seen.retries,
            seen.repeats,
            seen.lost_pushes,
            seen.swapped_pushes,
            seen.repeated_pushes,
            seen.pulls,
            seen.resets,
            seen.batches,
        ];
        assert!(counts.iter().all(|count| *count > 0), "seed {seed} tested too little: {seen:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(World::new(7).run(), World::new(7).run());
}

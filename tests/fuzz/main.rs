//! Hostile bytes for everything that reads bytes: each body takes one input and must not panic, whatever
//! it is; what it can check beside that, it does.
//!
//! The ordinary run replays the corpus (the golden frames of `proto/vectors`, every truncation of each, and
//! the inputs of `corpus/`), then a few thousand mutations of it. More of them, and others:
//!
//! ```text
//! FUZZ_INPUTS=10000000 cargo test --release --test fuzz -- --nocapture
//! FUZZ_SEED=7 cargo test --test fuzz
//! ```
//!
//! An input that fails is printed as hex: put it on a line of `corpus/BODY.hex` and it is replayed for ever.

mod bodies;
mod corpus;
mod host;
mod mutate;
mod shard;

use mutate::Mutator;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations in an ordinary run, over all bodies.
const INPUTS_DEFAULT: u64 = 60_000;
/// Cost of a whole shard, or of a whole link host, in inputs of the other bodies.
const SHARD_PARTS: u64 = 10;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?}, expected a whole number")),
        Err(_) => default,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Replays `corpus`, then `count` mutations of it.
fn fuzz(name: &str, corpus: &[Vec<u8>], count: u64, body: impl Fn(&[u8])) {
    let seed = number("FUZZ_SEED", 1);
    let run = |input: &[u8], what: &dyn Fn() -> String| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
            eprintln!("{name}, {}: fails with {} bytes, {}", what(), input.len(), hex(input));
            std::panic::resume_unwind(panic);
        }
    };
    for (index, input) in corpus.iter().enumerate() {
        run(input, &|| format!("input {index} of the corpus"));
    }
    let mut mutator = Mutator::new(seed ^ corpus.len() as u64);
    let mut input = Vec::new();
    for index in 0..count {
        mutator.next(corpus, &mut input);
        run(&input, &|| format!("FUZZ_SEED={seed}, mutation {index}"));
    }
    println!("{name:<12}{:>12} inputs of the corpus{count:>14} mutations", corpus.len());
}

/// Share of [`INPUTS_DEFAULT`] or `FUZZ_INPUTS` for one of the cheap bodies.
fn share() -> u64 {
    let all = number("FUZZ_INPUTS", INPUTS_DEFAULT);
    // Four cheap ones and two that count a tenth each, rounded up so that the whole is reached.
    (all * SHARD_PARTS).div_ceil(4 * SHARD_PARTS + 2)
}

#[test]
fn frames() {
    fuzz("frame", &corpus::of("frame", corpus::Golden::Client), share(), bodies::frame);
}

#[test]
fn messages() {
    fuzz("message", &corpus::of("message", corpus::Golden::Bodies), share(), bodies::message);
}

#[test]
fn link_frames() {
    fuzz("link", &corpus::of("link", corpus::Golden::Link), share(), bodies::link);
}

#[test]
fn compressed_bodies() {
    fuzz("compress", &corpus::of("compress", corpus::Golden::Packed), share(), bodies::compress);
}

#[test]
fn a_whole_link_host() {
    let corpus = corpus::of("host", corpus::Golden::HostScripts);
    fuzz("host", &corpus, share().div_ceil(SHARD_PARTS), host::body);
    host::check_reach();
}

#[test]
fn a_whole_shard() {
    let corpus = corpus::of("shard", corpus::Golden::Scripts);
    // Every truncation of every golden frame, said by a client that is logged in.
    fuzz("golden", &shard::golden_scripts(), 0, shard::body);
    fuzz("shard", &corpus, share().div_ceil(SHARD_PARTS), shard::body);
    shard::check_reach();
}

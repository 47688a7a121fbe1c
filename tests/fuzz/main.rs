//! Hostile bytes for everything that reads bytes: each body takes one input and must not panic, whatever the input is. A body
//! also checks what it can: that frames do not depend on how bytes are cut, that the parts of a state machine agree.
//!
//! The ordinary run replays the corpus (golden bytes of `proto/vectors` with every truncation of each, golden snapshots,
//! scripts, and the files of `fuzz/corpus`), then a few thousand mutations of it. `fuzz/run.sh` runs the same bodies by
//! coverage. More mutations, and others:
//!
//! ```text
//! FUZZ_INPUTS=10000000 cargo test --release --test fuzz -- --nocapture
//! FUZZ_SEED=7 cargo test --test fuzz
//! FUZZ_SEEDS=write cargo test --test fuzz seeds      # writes fuzz/corpus/*/seed-*
//! ```
//!
//! An input that fails is printed as hex. Put it into a file, and the ordinary run replays it for ever:
//! `xxd -r -p >fuzz/corpus/TARGET/what-it-showed`.

mod bodies;
mod corpus;
mod entrance;
mod golden;
mod link_host;
mod mutate;
mod router;
mod script;
mod sdk_core;
mod shard;
mod snapshot;

use mutate::Mutator;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations in an ordinary run, over all bodies.
const INPUTS_DEFAULT: u64 = 60_000;
/// Cost of a whole state machine, in inputs of a decoder.
const MACHINE_PARTS: u64 = 10;
/// Targets that are decoders, and targets that are state machines.
const TARGETS: (u64, u64) = (7, 5);

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

/// Share of [`INPUTS_DEFAULT`] or `FUZZ_INPUTS` for one of the decoders.
fn share() -> u64 {
    let (decoders, machines) = TARGETS;
    // A state machine counts a tenth, rounded up so that the whole is reached.
    (number("FUZZ_INPUTS", INPUTS_DEFAULT) * MACHINE_PARTS).div_ceil(decoders * MACHINE_PARTS + machines)
}

/// Share for one of the state machines.
fn machine_share() -> u64 {
    share().div_ceil(MACHINE_PARTS)
}

#[test]
fn frames() {
    fuzz("frame", &corpus::of("frame"), share(), bodies::frame);
}

#[test]
fn messages() {
    fuzz("message", &corpus::of("message"), share(), bodies::message);
}

#[test]
fn every_message_of_the_schema_has_its_round() {
    for file in ["client.proto", "link.proto", "im.proto"] {
        let schema = golden::file(&std::path::Path::new("proto/schema").join(file));
        let schema = String::from_utf8(schema).expect("text");
        let names =
            schema.lines().filter_map(|line| line.trim_start().strip_prefix("message ")?.split(' ').next());
        names.for_each(|name| {
            assert!(bodies::MESSAGES.contains(&name), "{file}: {name} is missing in `bodies.rs`");
        });
    }
}

#[test]
fn link_frames() {
    fuzz("link", &corpus::of("link"), share(), bodies::link);
}

#[test]
fn compressed_bodies() {
    fuzz("compress", &corpus::of("compress"), share(), bodies::compress);
}

#[test]
fn web_socket_frames() {
    fuzz("websocket", &corpus::of("websocket"), share(), entrance::websocket);
}

#[test]
fn proxy_headers() {
    fuzz("proxy_v2", &corpus::of("proxy_v2"), share(), entrance::proxy_v2);
}

#[test]
fn upgrade_requests() {
    fuzz("upgrade_head", &corpus::of("upgrade_head"), share(), entrance::upgrade_head);
}

#[test]
fn a_whole_shard() {
    let corpus = corpus::of("shard");
    // Every truncation of every golden frame, said by a client that is logged in.
    fuzz("golden", &shard::golden_scripts(), 0, shard::body);
    fuzz("shard", &corpus, machine_share(), shard::body);
    shard::check_reach();
}

#[test]
fn snapshots() {
    fuzz("snapshot", &corpus::of("snapshot"), machine_share(), snapshot::body);
}

#[test]
fn a_client_core_against_a_hostile_gateway() {
    fuzz("sdk_core", &corpus::of("sdk_core"), machine_share(), sdk_core::body);
}

/// The application learns of a place of its own after the end: a message that waits behind it stays where it is.
#[test]
fn no_message_follows_the_end_of_a_client_core() {
    sdk_core::body(include_bytes!("../../fuzz/corpus/sdk_core/own-place-after-the-end"));
}

#[test]
fn a_link_host_against_hostile_gateways() {
    fuzz("link_host", &corpus::of("link_host"), machine_share(), link_host::body);
}

#[test]
fn a_router_against_hostile_backends() {
    fuzz("router", &corpus::of("router"), machine_share(), router::body);
}

#[test]
fn seeds() {
    if std::env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        corpus::write_seeds();
    }
    let (decoders, machines) = TARGETS;
    assert_eq!(corpus::TARGETS.len() as u64, decoders + machines);
    for (target, _) in corpus::TARGETS {
        assert!(corpus::of(target).len() > 10, "{target} has few inputs");
    }
}

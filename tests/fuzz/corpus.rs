//! Starting points of mutations: the golden frames, and inputs that failed once.

use moorline_proto::frame::HEADER_BYTES;
use moorline_proto::frame::compress::try_compress;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Golden bytes that a body starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Golden {
    /// Frames between client and gateway.
    Client,
    /// Frames between gateway and backend.
    Link,
    /// The bodies of both.
    Bodies,
    /// The golden frames, compressed.
    Packed,
    /// Scripts for a shard.
    Scripts,
    /// Scripts for a link host.
    HostScripts,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The frames of a vector file.
pub(crate) fn golden(file: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(root().join("proto/vectors").join(file)).expect("checked in");
    let lines: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let frames: Vec<_> = lines.iter().map(|line| bytes(line["hex"].as_str().expect("hex"))).collect();
    assert!(frames.len() > 20, "{file} has {} frames", frames.len());
    frames
}

/// The inputs of a body: golden ones with each truncation, then those of `corpus/BODY.hex`.
pub(crate) fn of(body: &str, golden_of: Golden) -> Vec<Vec<u8>> {
    let (client, link) = (golden("frames.json"), golden("link.json"));
    let without = |frames: &[Vec<u8>], head: usize| -> Vec<Vec<u8>> {
        // Some golden inputs are refused before their body.
        frames.iter().filter_map(|frame| frame.get(head..).map(<[u8]>::to_vec)).collect()
    };
    let bodies =
        || [without(&client, HEADER_BYTES), without(&link, moorline_proto::link::HEADER_BYTES)].concat();
    let whole: Vec<Vec<u8>> = match golden_of {
        Golden::Client => client,
        Golden::Link => link,
        Golden::Bodies => bodies(),
        Golden::Packed => {
            let long = bodies().into_iter().map(|body| body.repeat(8));
            let plain = long.chain([vec![0; 4_000], b"moorline ".repeat(100)]);
            plain.filter_map(|body: Vec<u8>| try_compress(&body).map(Vec::from)).collect()
        }
        Golden::Scripts => crate::shard::scripts(),
        Golden::HostScripts => crate::host::scripts(),
    };
    let mut inputs = whole.clone();
    if !matches!(golden_of, Golden::Scripts | Golden::HostScripts) {
        inputs.extend(whole.iter().flat_map(|input| (0..input.len()).map(|cut| input[..cut].to_vec())));
    }
    let file = root().join("tests/fuzz/corpus").join(format!("{body}.hex"));
    let lines = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    inputs.extend(lines.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(bytes));
    inputs
}

//! Starting points of mutations: golden bytes and scripts, and the files of `fuzz/corpus`.
//!
//! For example, the inputs of the target `frame` are the golden frames of `proto/vectors/frames.json`, each truncation of each,
//! and every file of `fuzz/corpus/frame`: the same golden frames, for the fuzzing engine, and inputs that failed once.

use crate::golden::{file, golden, root};
use moorline_proto::frame::HEADER_BYTES;
use moorline_proto::frame::compress::try_compress;
use std::fs;
use std::path::PathBuf;

/// Every target, with whether its seeds are also cut off behind each byte.
pub(crate) const TARGETS: [(&str, bool); 12] = [
    ("frame", true),
    ("message", true),
    ("link", true),
    ("compress", true),
    ("websocket", true),
    ("proxy_v2", true),
    ("upgrade_head", true),
    ("shard", false),
    ("snapshot", false),
    ("sdk_core", false),
    ("link_host", false),
    ("router", false),
];
/// Scripts of a target that become files.
const SCRIPT_FILES_MAX: usize = 12;

/// The bodies of all golden frames.
fn bodies() -> Vec<Vec<u8>> {
    let without = |frames: Vec<Vec<u8>>, head: usize| -> Vec<Vec<u8>> {
        // Some golden inputs are refused before their body.
        frames.iter().filter_map(|frame| frame.get(head..).map(<[u8]>::to_vec)).collect()
    };
    let (client, link) = (golden("frames.json"), golden("link.json"));
    [without(client, HEADER_BYTES), without(link, moorline_proto::link::HEADER_BYTES)].concat()
}

/// The seeds of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frame" => golden("frames.json"),
        "link" => golden("link.json"),
        "message" => bodies(),
        "compress" => {
            let long = bodies().into_iter().map(|body| body.repeat(8));
            let plain = long.chain([vec![0; 4_000], b"moorline ".repeat(100)]);
            plain.filter_map(|body: Vec<u8>| try_compress(&body).map(Vec::from)).collect()
        }
        "websocket" => crate::entrance::websocket_seeds(),
        "proxy_v2" => crate::entrance::proxy_v2_seeds(),
        "upgrade_head" => crate::entrance::upgrade_head_seeds(),
        "shard" => crate::shard::scripts(),
        "snapshot" => crate::snapshot::seeds(),
        "sdk_core" => crate::sdk_core::scripts(),
        "link_host" => [crate::link_host::golden_scripts(), crate::link_host::scripts()].concat(),
        "router" => crate::router::scripts(),
        other => panic!("there is no target {other}"),
    }
}

fn folder(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

/// The inputs of a target: its seeds, with each truncation if that is wanted, then the files of its folder.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    let (_, is_cut) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let mut inputs = seeds(target);
    if *is_cut {
        let cuts = inputs.iter().flat_map(|input| (0..input.len()).map(|cut| input[..cut].to_vec()));
        let cuts: Vec<Vec<u8>> = cuts.collect();
        inputs.extend(cuts);
    }
    let folder = folder(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    inputs.extend(paths.iter().map(|path| file(path)));
    inputs
}

/// Writes the seeds of all targets as files, for the fuzzing engine.
pub(crate) fn write_seeds() {
    for (target, is_cut) in TARGETS {
        fs::create_dir_all(folder(target)).expect("the folder");
        let count_max = if is_cut { usize::MAX } else { SCRIPT_FILES_MAX };
        for (number, seed) in seeds(target).iter().take(count_max).enumerate() {
            fs::write(folder(target).join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
}

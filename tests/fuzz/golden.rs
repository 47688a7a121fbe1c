//! Golden bytes of the workspace.
//!
//! For example, `golden("frames.json")` are the frames of `proto/vectors/frames.json`.

use serde_json::Value;
use std::fs;
use std::path::Path;

/// The workspace's root: the fuzz targets are another crate than the ordinary tests.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("proto/vectors").is_dir()).expect("a folder of the workspace")
}

/// The bytes of a file of the workspace.
pub(crate) fn file(path: &Path) -> Vec<u8> {
    fs::read(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The frames of a vector file.
pub(crate) fn golden(name: &str) -> Vec<Vec<u8>> {
    let text = file(&Path::new("proto/vectors").join(name));
    let lines: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
    let frames: Vec<_> = lines.iter().map(|line| bytes(line["hex"].as_str().expect("hex"))).collect();
    assert!(frames.len() > 20, "{name} has {} frames", frames.len());
    frames
}

//! The golden byte vectors of `proto/vectors` are what this implementation writes and reads.
//!
//! `MOORLINE_REGENERATE=1 cargo test -p moorline-proto --test vectors` writes them anew; a change of
//! an existing line is a change of the wire format.

mod client_frames;
mod link_frames;
mod reflect;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A line of a vector file.
struct Vector {
    name: &'static str,
    bytes: Vec<u8>,
    /// Expected result of reading the bytes, see `proto/vectors/README.md`.
    meaning: Value,
}

fn path_of(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file)
}

fn hold(file: &str, vectors: &[Vector]) {
    let lines: Vec<Value> = vectors
        .iter()
        .map(|vector| {
            let mut line = json!({ "name": vector.name, "hex": reflect::hex(&vector.bytes) });
            let meaning = vector.meaning.as_object().expect("an object").clone();
            line.as_object_mut().expect("an object").extend(meaning);
            line
        })
        .collect();
    if env::var_os("MOORLINE_REGENERATE").is_some() {
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        fs::write(path_of(file), format!("[\n{}\n]\n", text.join(",\n"))).expect("writable");
        return;
    }
    let text = fs::read_to_string(path_of(file)).expect("checked in");
    let golden: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    for (golden, line) in golden.iter().zip(&lines) {
        assert_eq!(golden, line, "{file}: the wire format changed");
    }
    assert_eq!(golden.len(), lines.len(), "{file}: vectors were added or removed, regenerate");
}

#[test]
fn client_frames() {
    let vectors = client_frames::all();
    client_frames::check_coverage(&vectors);
    hold("frames.json", &vectors);
}

#[test]
fn link_frames() {
    let vectors = link_frames::all();
    link_frames::check_coverage(&vectors);
    hold("link.json", &vectors);
}

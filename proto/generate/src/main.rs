//! Writes `proto/src/message/generated` from `proto/schema`, or checks that it is up to date.
//!
//! `cargo run --manifest-path proto/generate/Cargo.toml` writes the files; with `-- check` it writes nothing and
//! fails with the name of each file that differs. `.ci/run` checks.

use prost::Message as _;
use prost_build::Module;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

/// Files of the schema, in the order in which the compiled schema lists them.
const SCHEMAS: [&str; 3] = ["client.proto", "link.proto", "im.proto"];
/// Compiled schema without its comments: what `moorline_proto::message::SCHEMA` holds.
const COMPILED: &str = "schema.bin";

/// File name to content.
type Files = BTreeMap<String, Vec<u8>>;

/// Compiles the schema and generates all files.
fn generate(schema: &Path) -> Result<Files, Box<dyn Error>> {
    let mut compiled = protox::compile(SCHEMAS, [schema])?;
    let modules =
        compiled.file.iter().map(|file| (Module::from_protobuf_package_name(file.package()), file.clone()));
    let code = prost_build::Config::new().bytes(["."]).generate(modules.collect())?;
    let named = |(module, text): (Module, String)| (module.to_file_name_or("_"), text.into_bytes());
    let mut files: Files = code.into_iter().map(named).collect();
    compiled.file.iter_mut().for_each(|file| file.source_code_info = None);
    files.insert(COMPILED.to_owned(), compiled.encode_to_vec());
    Ok(files)
}

/// Reads all checked-in files.
fn checked_in(folder: &Path) -> Result<Files, Box<dyn Error>> {
    let mut files = Files::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, fs::read(path)?);
    }
    Ok(files)
}

/// Returns the names of the files that differ, or that only one side has.
fn differing(ours: &Files, theirs: &Files) -> Vec<String> {
    let names = ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
    names.filter(|name| ours.get(*name) != theirs.get(*name)).cloned().collect()
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = proto.join("src/message/generated");
    let fresh = generate(&proto.join("schema"))?;
    match env::args().nth(1).as_deref() {
        None => {
            for (name, content) in &fresh {
                fs::write(folder.join(name), content)?;
            }
        }
        Some("check") => {}
        Some(other) => return Err(format!("`{other}` is not an argument; expected `check` or none").into()),
    }
    let differing = differing(&fresh, &checked_in(&folder)?);
    if differing.is_empty() {
        println!("{} files are what the schema says", fresh.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "{} differ from the schema: {}; run `cargo run --manifest-path proto/generate/Cargo.toml`",
        folder.display(),
        differing.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

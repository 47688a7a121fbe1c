//! The checked-in protobuf code is what the schema says. After a schema change:
//! `MOORLINE_REGENERATE=1 cargo test -p moorline-proto --test generated`.

use prost::Message as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

const SCHEMAS: [&str; 3] = ["client.proto", "link.proto", "im.proto"];

fn generate(into: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let mut files = protox::compile(SCHEMAS, [&root]).expect("the schema compiles");
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(into)
        .compile_fds(files.clone())
        .expect("prost generates");
    files.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(into.join("schema.bin"), files.encode_to_vec()).expect("written");
}

fn sorted_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs" || ext == "bin"))
        .collect();
    files.sort();
    files
}

#[test]
fn checked_in_code_matches_the_schema() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/message/generated");
    if env::var_os("MOORLINE_REGENERATE").is_some() {
        fs::create_dir_all(&checked_in).expect("folder for generated code");
        generate(&checked_in);
        return;
    }
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&fresh).expect("temporary folder");
    generate(&fresh);
    let (ours, theirs) = (sorted_files(&checked_in), sorted_files(&fresh));
    assert_eq!(ours.len(), theirs.len(), "same set of generated files");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.file_name(), theirs.file_name());
        let same = fs::read(ours).expect("checked-in") == fs::read(theirs).expect("fresh");
        assert!(same, "{} drifted: regenerate it", ours.display());
    }
}

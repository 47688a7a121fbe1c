//! Fuzz bodies of what is private to this crate, for the tests and for the targets `backend_*` of `fuzz/`.

pub use crate::api::fuzz::body as api;
pub use crate::im::store::fuzz::body as disk;
pub use crate::im::store::fuzz::files::body as files;

/// The files of a target's folder in `fuzz/corpus`. With `FUZZ_SEEDS=write` in the environment, `seeds` are written there
/// before.
#[cfg(test)]
pub(crate) fn corpus(target: &str, seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    use std::fs;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    if std::env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).expect("the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
    let entries = fs::read_dir(&folder).expect("the folder is committed");
    let files: Vec<Vec<u8>> =
        entries.map(|entry| fs::read(entry.expect("an entry").path()).expect("a file")).collect();
    assert!(files.len() >= 10, "{} inputs in {}", files.len(), folder.display());
    files
}

//! Replay of the corpus of a fuzz target, for the tests of the bodies.

use std::fs;
use std::path::Path;

/// Gives a body each seed, cut at every byte, and each input of `fuzz/corpus/TARGET`. With `FUZZ_SEEDS=write` the seeds are
/// written there first.
pub(crate) fn replay(target: &str, seeds: &[Vec<u8>], body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    if std::env::var("FUZZ_SEEDS").is_ok_and(|value| value == "write") {
        fs::create_dir_all(&folder).expect("the folder");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("a file");
        }
    }
    seeds.iter().for_each(|seed| (0..=seed.len()).for_each(|cut| body(&seed[..cut])));
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the folder is committed") {
        body(&fs::read(entry.expect("an entry").path()).expect("a file"));
        count += 1;
    }
    assert!(count >= 10, "{count} inputs");
}

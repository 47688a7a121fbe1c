//! Ours beside the bare server: the same as `moorload compare`.
//!
//! Arguments after `--` go to it: `cargo bench --bench compare -- --rounds 5 --rows idle,forward`.

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let moorload = Path::new(env!("CARGO_BIN_EXE_moorload"));
    let moorline = moorload.with_file_name("moorline");
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut compare = Command::new(moorload);
    compare.arg("compare").arg("--quiet");
    if moorline.is_file() {
        compare.arg("--moorline").arg(moorline);
    } else {
        println!("no {}: the bare server alone; `cargo build --release` makes it", moorline.display());
        compare.arg("--bare-only");
    }
    let status = compare.args(arguments).status().expect("moorload was built for this");
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

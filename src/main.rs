//! The `moorline` program: hands over to [`moorline::cli`], which owns arguments and exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    moorline::cli::main()
}

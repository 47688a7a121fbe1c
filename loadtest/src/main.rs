//! moorload: see `moorload help`.

fn main() -> std::process::ExitCode {
    moorload::cli::main(std::env::args_os()).into()
}

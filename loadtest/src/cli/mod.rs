//! The arguments of `moorload`, from them a run, from it an exit code.

mod arguments;
mod compare;
mod doctor;
mod find;
mod launch;
mod scenarios;
mod size;

use crate::crowd;
use crate::exit::{Exit, Failure};
use crate::fleet::Stop;
use crate::terminal;
use arguments::{Cli, Command};
use clap::Parser as _;
use moorline_usage::notes;
use std::ffi::OsString;

/// Runs one command line; the program and its tests share it.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Pass };
        }
    };
    run(&cli).unwrap_or_else(|failure| {
        terminal::note(format!("moorload: {failure}"));
        notes::flush();
        failure.exit()
    })
}

fn run(cli: &Cli) -> Result<Exit, Failure> {
    let stop = Stop::on_signals()?;
    match &cli.command {
        Command::Doctor(args) => doctor::doctor(args),
        Command::Hold(args) => scenarios::hold(args, &stop),
        Command::Ping(args) => scenarios::ping(args, &stop),
        Command::Chat(args) => scenarios::chat(args, &stop),
        Command::Group(args) => scenarios::group(args, &stop),
        Command::Storm(args) => scenarios::storm(args, &stop),
        Command::Restart(args) => scenarios::restart(args, &stop),
        Command::Find(args) => scenarios::find(args, &stop),
        Command::Report(args) => doctor::report(args),
        Command::Worker => crowd::serve(&stop),
        Command::Compare(args) => compare::compare(args, &stop),
        Command::Bare(args) => compare::serve_bare(args, &stop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::Duration;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_ascii_whitespace())
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_ping_as_people_write_it() {
        let cli = parse("moorload ping -c 10k -r 200k/s -d 90s --src 127.0.0.1-40 127.0.0.1:7000").unwrap();
        let Command::Ping(args) = cli.command else { panic!("a ping") };
        assert_eq!(args.fleet.connections, Some(10_000));
        assert_eq!(args.traffic.rate, Some(200_000.0));
        assert_eq!(args.fleet.duration, Duration::from_secs(90));
        assert_eq!(args.fleet.src.unwrap().len(), 40);
    }

    #[test]
    fn usage_errors_exit_with_1() {
        for line in [
            "moorload",
            "moorload sing",
            "moorload ping",
            "moorload hold -c lots 127.0.0.1:1",
            "moorload ping -w 65 127.0.0.1:1",
            "moorload compare --rows speed",
            "moorload chat --expect deliver.p42<1ms 127.0.0.1:1",
            "moorload chat --abort lost>1 --no-out 127.0.0.1:1",
            "moorload group -c 100 127.0.0.1:1",
            "moorload group --members 1 127.0.0.1:1",
            "moorload restart 127.0.0.1:1",
            "moorload restart --command true --times 9 --no-out 127.0.0.1:1",
            "moorload storm --drop 130% 127.0.0.1:1",
            "moorload report",
            "moorload ping --procs 0 127.0.0.1:1",
            "moorload hold nowhere",
        ] {
            assert_eq!(main(line.split_ascii_whitespace().map(OsString::from)), Exit::Usage, "{line}");
        }
    }

    #[test]
    fn what_the_machine_or_the_rules_forbid_exits_with_2() {
        for line in [
            "moorload hold -c 2m 127.0.0.1:1",
            "moorload hold -c 900k --procs 2 127.0.0.1:1",
            "moorload hold -c 100 --ports 20000-20009 127.0.0.1:1",
            "moorload report /nowhere/at/all",
            "moorload hold 192.0.2.1:7000",
            "moorload bare --listen 0.0.0.0:0",
        ] {
            assert_eq!(main(line.split_ascii_whitespace().map(OsString::from)), Exit::Preflight, "{line}");
        }
    }
}

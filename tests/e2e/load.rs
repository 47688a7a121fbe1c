//! The load generator against the real gateway and backend: every scenario, small.
//!
//! What it finds in servers that do wrong is tested beside it, in `loadtest/tests`.

use crate::gateway::{Backend, Gateway};
use crate::process::is_alive;
use crate::series::Series;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// On a machine that runs tests, a late generator is not a fault of the gateway.
const SATURATED: i32 = 5;

/// The program beside the gateway's; built if this is the only test that was asked for.
fn moorload() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_moorline")).with_file_name("moorload");
    if !program.is_file() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "moorload"]);
        if program.components().any(|part| part.as_os_str() == "release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success());
    }
    program
}

/// Exit code and report of a run.
pub(crate) fn run(arguments: &str, more: &[&str], target: SocketAddr) -> (i32, serde_json::Value) {
    let output = Command::new(moorload())
        .args(arguments.split_ascii_whitespace())
        .args(more)
        .args(["--json", "-q", "--no-out", &target.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("moorload runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().expect("it ends by itself"), report)
}

/// Share of the processors' time in which others leave none for a test.
const BUSY: f64 = 0.9;

pub(crate) fn is_clean(code: i32, report: &serde_json::Value) -> bool {
    let integrity = report["integrity"].as_object().expect("a report");
    (matches!(code, 0 | SATURATED) || is_cut(report)) && integrity.values().all(|count| *count == 0)
}

/// True if the machine was so busy that a hot restart outlasted the run, and nothing else went wrong.
fn is_cut(report: &serde_json::Value) -> bool {
    let is_busy = report["generator"]["machine"]["busy"].as_f64().is_some_and(|busy| busy > BUSY);
    let notes = report["notes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_cut =
        |note: &serde_json::Value| note.as_str().is_some_and(|note| note.contains("did not end in time"));
    is_busy && !notes.is_empty() && notes.iter().all(is_cut)
}

#[test]
fn every_scenario_passes_on_the_real_thing() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    for line in [
        "hold -c 100 -d 500ms --heartbeat 200ms",
        "ping -c 100 -r 1k/s -d 500ms",
        "chat -c 100 -r 1k/s -d 500ms",
        "chat -c 100 -d 500ms",
        "chat -c 100 --procs 2 -r 1k/s -d 500ms",
        "group --groups 4 --members 25 -r 40/s -d 500ms",
        "group --groups 1 --members 50 -d 500ms",
        "storm -c 100 --drop 60% --calm 200ms -r 200/s -d 2s",
    ] {
        let (code, report) = run(&format!("{line} --warmup 200ms"), &[], gateway.listener);
        assert!(is_clean(code, &report), "{line}: exit {code}, {report}");
        assert_eq!(report["connections"]["held"], report["connections"]["asked"], "{line}: {report}");
        let done =
            report["done_per_s"].as_f64().expect("a rate") * report["seconds"].as_f64().expect("a time");
        assert!(done >= 10.0, "{line}: {report}");
    }
}

#[test]
fn messages_that_were_refused_are_not_told_as_lost() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["limits.user_rate=2"]);
    let (code, report) = run("chat -c 4 -r 200/s -d 500ms --warmup 100ms", &[], gateway.listener);
    let integrity = &report["integrity"];
    assert!(integrity["refused"].as_u64().is_some_and(|refused| refused > 10), "{report}");
    assert_eq!((code, integrity["lost"].as_u64()), (4, Some(0)), "{report}");
}

#[test]
fn a_restart_loses_connections_and_no_message() {
    let backend = Backend::start();
    // Was free a moment ago; the gateway has to come back to the same one.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
    let serve = format!(
        "{} run --set auth.mode=dev --set listener.address={free} --set admin.address=127.0.0.1:0 \
         --set log.level=error --set backend.unproven=loopback --set 'backend.endpoints=[\"{}\"]'",
        env!("CARGO_BIN_EXE_moorline"),
        backend.address
    );
    let line = "restart --signal kill -c 100 -r 300/s -d 3s --after 500ms --every 1s --times 2 --warmup 200ms --serve";
    let (code, report) = run(line, &[&serve], free);
    assert!(is_clean(code, &report), "exit {code}, {report}");
    // Who was not back yet had nothing to lose the second time.
    let dropped = report["connections"]["dropped"].as_u64().expect("a count");
    assert!((101..=200).contains(&dropped), "{report}");
    assert_eq!(
        report["markers"].as_array().map(Vec::len),
        Some(4),
        "two signals, two times up again: {report}"
    );
    let (hot, report) = run(&line.replace("--times 2", "--hot"), &[&serve], free);
    assert_eq!(hot, 4, "connections that must survive did not: {report}");
}

#[test]
fn the_process_that_serves_after_a_hot_restart_is_the_one_that_is_measured() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let (first, listener) = (series.pid(), series.gateway.listener);
    let upgrade = format!("{} upgrade --admin {}", env!("CARGO_BIN_EXE_moorline"), series.gateway.admin);
    // Time enough for a restart on a busy machine.
    let line = "restart --hot -c 20 -r 200/s -d 8s --after 300ms --times 1 --warmup 200ms";
    let file = series.pid_file.path().display().to_string();
    let (code, report) = run(line, &["--command", &upgrade, "--pid-file", &file], listener);
    assert!(is_clean(code, &report), "exit {code}, {report}");
    let server = &report["server"];
    assert!(server["cpu_s"].as_f64() > Some(0.0) && server["rss_after"].as_u64() > Some(0), "{report}");
    assert!(series.pid() != first && !is_alive(first));
}

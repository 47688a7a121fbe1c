//! Search of a command for its gateway, and the end of one by command.

use crate::gateway::{Backend, Gateway};
use crate::process::{is_alive, program, run};
use crate::raw::Client;
use crate::series::Series;
use nix::sys::signal::Signal;

#[test]
fn a_command_finds_its_gateway_by_a_name_a_pid_file_or_the_environment() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let port = series.gateway.admin.port();
    let pid_file = series.pid_file.path().display().to_string();
    let named = format!("localhost:{port}");
    for place in [["--admin", &named], ["--pid-file", &pid_file]] {
        for command in ["status", "reload", "upgrade"] {
            let (code, said, error) = run(&[&[command], &place[..]].concat());
            assert_eq!(code, Some(0), "{command} {place:?}: {said}{error}");
        }
    }
    for (name, value) in [
        ("MOORLINE__ADMIN__ADDRESS", series.gateway.admin.to_string()),
        ("MOORLINE__ADMIN__SOCKET", series.gateway.socket().display().to_string()),
        ("MOORLINE_ADMIN", named),
    ] {
        let output = program(&["status"]).env(name, &value).output().expect("it runs");
        assert!(output.status.success(), "{name}: {output:?}");
    }
    // The variables of a gateway whose socket is elsewhere, and its pid file.
    let mut command = program(&["status"]);
    command.env("MOORLINE__ADMIN__ADDRESS", "127.0.0.1:0").env("MOORLINE__HANDOVER__PID_FILE", &pid_file);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let (code, _, error) = run(&["status", "--admin", "moorline.invalid:7080"]);
    assert!(code == Some(1) && error.contains("cannot resolve `moorline.invalid:7080`"), "{error}");
    let (code, _, error) = run(&["status", "--admin", "nonsense"]);
    assert!(code == Some(2) && error.contains("expected host:port"), "{error}");
}

#[test]
fn stop_drains_the_gateway_and_returns_when_it_has_ended() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["drain.grace=1s"]);
    let client = Client::login(series.gateway.listener, "alice", "d");
    series.restart();
    let (pid, pid_file) = (series.pid(), series.pid_file.path().display().to_string());
    let (code, said, error) = run(&["stop", "--pid-file", &pid_file]);
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains(&format!("pid {pid}, ended after")), "{said}");
    assert!(error.contains("draining 1 connections"), "{error}");
    assert!(!is_alive(pid));
    drop(client);
    let (code, _, error) = run(&["stop", "--admin", &series.gateway.admin.to_string()]);
    assert!(code == Some(1) && error.contains("is the gateway running"), "{error}");
}

#[test]
fn stop_says_what_is_left_when_the_gateway_does_not_end_in_time() {
    let backend = Backend::start();
    let mut gateway = Gateway::start(&backend, &["drain.grace=1h"]);
    let _client = Client::login(gateway.listener, "alice", "d");
    let admin = gateway.admin.to_string();
    let (code, _, error) = run(&["stop", "--admin", &admin, "--timeout", "1s"]);
    assert!(code == Some(1) && error.contains("1 connections are left"), "{error}");
    // A second order does not cut the drain short.
    let (code, _, error) = run(&["stop", "--admin", &admin, "--timeout", "1s"]);
    assert!(code == Some(1) && error.contains("has not ended within"), "{error}");
    assert!(gateway.process.is_running());
    gateway.process.signal(Signal::SIGINT);
    assert_eq!(gateway.process.end().code(), Some(0));
}

//! Hot restarts and reloads with settings that name what cannot be used, and with memory that is used up: refused by name while
//! the old process serves, before anybody stands still.

use crate::exhaustion;
use crate::gateway::Backend;
use crate::process::{TempFile, become_pipe, run};
use crate::raw::Client;
use crate::series::Series;

/// Settings of a gateway in development, with more of them behind.
fn settings(file: &TempFile, backend: &Backend, more: &str) {
    let endpoint = backend.address;
    let text = format!(
        "[listener]\naddress = \"127.0.0.1:0\"\n[backend]\nendpoints = [\"{endpoint}\"]\nunproven = \"loopback\"\n[auth]\n\
         mode = \"dev\"\n{more}\n"
    );
    std::fs::write(file.path(), text).expect("our file");
}

#[test]
fn what_settings_name_and_nobody_can_use_is_refused_before_anybody_stands_still() {
    let backend = Backend::start();
    let file = TempFile::new("");
    settings(&file, &backend, "");
    let series = Series::start_file(file.path());
    let pid = series.pid();
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let folder = std::env::temp_dir().display().to_string();
    let wrong = [
        ("[audit]\nfile = \"/nosuch/audit\"", "audit.file"),
        (&format!("[audit]\nfile = \"{folder}\""), "audit.file"),
        ("[admin]\ngroup = \"no-such-group\"", "admin.group"),
        ("[admin]\nsocket = \"relative.sock\"", "admin.socket"),
        (&format!("[admin]\nsocket = \"{}\"", file.path().display()), "admin.socket"),
        ("[admin]\nsocket = \"/nosuch/folder/admin.sock\"", "admin.socket"),
    ];
    for (more, key) in wrong {
        settings(&file, &backend, more);
        for order in [&["--dry-run"][..], &[]] {
            let (code, restart) = series.upgrade(order);
            assert_eq!(code, Some(1), "{more}: {restart:?}");
            assert!(restart.problem.contains(key), "{more}: {}", restart.problem);
            assert!(restart.steps.iter().all(|step| step.name != "freeze"), "{more}: {restart:?}");
            assert!(restart.pause_seconds == 0.0, "{more}: nobody stood still");
        }
    }
    assert_eq!(series.pid(), pid, "the old process serves on");
    alice.beat(1);
    settings(&file, &backend, "");
    series.restart();
    alice.beat(2);
}

#[test]
fn a_settings_file_that_is_a_pipe_is_named_and_the_next_reload_is_done() {
    let backend = Backend::start();
    let file = TempFile::new("");
    settings(&file, &backend, "");
    let series = Series::start_file(file.path());
    let admin = series.gateway.admin.to_string();
    become_pipe(file.path());
    let (code, _, said) = run(&["reload", "--admin", &admin]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is a pipe") && said.contains(&file.path().display().to_string()), "{said}");
    std::fs::remove_file(file.path()).expect("ours");
    settings(&file, &backend, "[limits]\nuser_rate = 77");
    let (code, out, said) = run(&["reload", "--admin", &admin]);
    assert_eq!(code, Some(0), "{out} {said}");
    assert!(out.contains("limits.user_rate"), "{out}");
}

#[test]
fn memory_that_is_used_up_refuses_reloads_and_restarts_by_the_limit_and_ends_nobody() {
    let backend = Backend::start();
    let file = TempFile::new("");
    settings(&file, &backend, "");
    let series = Series::start_file(file.path());
    let (pid, admin) = (series.pid(), series.gateway.admin.to_string());
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    for (name, said) in [("as", "RLIMIT_AS"), ("data", "RLIMIT_DATA"), ("fsize", "RLIMIT_FSIZE")] {
        // Less than the process has: it gets nothing more.
        let soft = if name == "fsize" { "0:unlimited" } else { "1048576:unlimited" };
        let Some(()) = exhaustion::limit(pid, name, soft) else { return };
        if name != "fsize" {
            let (code, _, told) = run(&["reload", "--admin", &admin]);
            assert_eq!(code, Some(1), "{told}");
            assert!(told.contains(said) && told.contains("raise that limit"), "{told}");
        }
        let (code, restart) = series.upgrade(&[]);
        assert_eq!(code, Some(1), "{restart:?}");
        assert!(restart.problem.contains(said), "{name}: {}", restart.problem);
        alice.beat(1);
        exhaustion::limit(pid, name, "unlimited:unlimited").expect("it was there");
    }
    assert_eq!(series.pid(), pid, "the old process serves on");
    assert_eq!(run(&["reload", "--admin", &admin]).0, Some(0));
    series.restart();
    alice.beat(2);
}

//! `moorline demo` on real processes: its verdicts, and every way it can be cut short.

use moorline::sys::clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// For processes to be gone that were told to go.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Busy threads beside a demo.
const LOAD_THREADS: usize = 8;

/// A running demo that has told its processes.
struct Demo {
    child: Child,
    /// The report after the processes' lines.
    said: BufReader<ChildStderr>,
    gateway: i32,
    backend: i32,
    temp: PathBuf,
}

/// The program, with an empty temporary folder of its own.
fn command(name: &str, arguments: &[&str]) -> (Command, PathBuf) {
    // Not in the build folder: under umask 002 its group could write there, and a gateway runs no such file anew.
    let temp = std::env::temp_dir().join(format!("moorline-demo-test-{}-{name}", std::process::id()));
    fs::remove_dir_all(&temp).ok();
    fs::DirBuilder::new().mode(0o700).create(&temp).expect("a temporary folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorline"));
    command.arg("demo").args(arguments).env("TMPDIR", &temp).stdin(Stdio::null());
    (command, temp)
}

impl Demo {
    /// Starts one that would chat for a minute, and waits until it chats.
    fn chatting(name: &str) -> Self {
        let (mut command, temp) =
            command(name, &["--connections", "20", "--duration", "60s", "--rate", "50"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let (mut pids, mut line) = (None, String::new());
        while !line.starts_with("chat") {
            line.clear();
            assert!(said.read_line(&mut line).expect("text") > 0, "it ended before it chatted");
            pids = pids.or_else(|| pids_of(&line));
        }
        let (gateway, backend) = pids.expect("it says the processes before it chats");
        assert!(is_running(gateway) && is_running(backend));
        Self { child, said, gateway, backend, temp }
    }

    /// Waits for its end: exit code, what else it said, what it left in its temporary folder.
    fn end(mut self) -> (Option<i32>, String, Vec<PathBuf>) {
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("text");
        let status = self.child.wait().expect("it ends");
        assert_gone(&[self.gateway, self.backend]);
        (status.code(), said, left_in(&self.temp))
    }
}

/// Process ids of `gateway IP:PORT (pid 1)   backend pid 2   admin ...`.
fn pids_of(line: &str) -> Option<(i32, i32)> {
    let mut numbers = line.split("pid ").skip(1).map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??))
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

fn assert_gone(pids: &[i32]) {
    let until = clock::now() + GONE_WITHIN;
    while pids.iter().any(|pid| is_running(*pid)) {
        assert!(clock::now() < until, "{pids:?} still run");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let left =
        fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    fs::remove_dir(folder).ok(); // if nothing is left
    left
}

/// Removes a folder that a demo left, and the temporary folder around it.
fn remove_with(folder: &Path) {
    fs::remove_dir_all(folder.parent().expect("the temporary folder")).ok();
}

/// The JSON of a run that ended by itself. A busy machine may make it unjudged, but never a FAIL.
fn judged(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{said}", String::from_utf8_lossy(&output.stdout)));
    let judgement = match output.status.code() {
        Some(0) => "pass",
        Some(5) => "busy",
        other => panic!("exit code {other:?}\n{said}\n{report:#}"),
    };
    assert_eq!(report["judgement"], judgement, "{report:#}");
    assert_eq!(
        (&report["reasons"], &report["integrity"]["lost"]),
        (&Value::from(Vec::<Value>::new()), &0.into())
    );
    report
}

#[test]
fn a_small_one_passes_and_says_its_figures() {
    let arguments = ["--connections", "100", "--duration", "3s", "--rate", "200", "--seed", "7", "--json"];
    let (mut command, temp) = command("demo-pass", &arguments);
    // The settings of the user's own gateway are not those of the demo.
    let output = command.env("MOORLINE__LIMITS__CONNECTIONS_MAX", "1").output().expect("it runs");
    let report = judged(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    let (gateway, backend) = said.lines().find_map(pids_of).expect("it says its processes");
    assert_gone(&[gateway, backend]);
    assert_eq!((&report["seed"], &report["size"]["connections"]), (&7.into(), &100.into()));
    if report["judgement"] != "pass" {
        println!("too busy to judge: {report:#}");
        return;
    }

    assert_eq!(report["size"]["encrypted"], 100, "all of them over TLS, also after the restart: {report:#}");
    let number = |section: &str, name: &str| report[section][name].as_f64().expect("a number");
    let (sent, durable) = (number("messages", "sent"), number("messages", "durable"));
    assert!(sent >= 600.0 && sent.total_cmp(&durable).is_eq(), "more only if an act was late: {report:#}");
    assert!(number("messages", "deliveries") > sent, "groups and second devices count: {report:#}");
    for name in
        ["undelivered", "duplicated", "reordered", "corrupted", "unanswered", "failed", "answered_again"]
    {
        assert_eq!(report["integrity"][name], 0, "{name}");
    }
    for section in ["send_to_durable", "send_to_delivered"] {
        let (p50, max) = (number(section, "p50_ms"), number(section, "max_ms"));
        let is_timed = number(section, "count") > 0.0;
        assert!(p50 <= max && is_timed == (p50 > 0.0), "{report:#}");
    }
    // Times are taken until the backend is killed; how many deliveries come before depends on the machine.
    let (timed, all) = (number("send_to_delivered", "count"), number("messages", "deliveries"));
    assert!(timed < all, "{report:#}");
    assert!(number("kill", "silent_ms") > 0.0 && number("restart", "pause_ms") > 0.0, "{report:#}");
    for (section, name) in [
        ("gateway", "rss_idle_bytes"),
        ("gateway", "cpu_seconds_per_million_messages"),
        ("backend", "cpu_seconds_per_million_messages"),
    ] {
        assert!(number(section, name) > 0.0, "{section}.{name}: {report:#}");
    }
    assert_eq!(left_in(&temp), Vec::<PathBuf>::new());
}

/// Threads that use the processor until they are dropped.
struct Load {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn of(threads: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let spin = |_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..threads).map(spin).collect();
        Self { is_over, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

#[test]
fn beside_a_load_it_calibrates_its_rate_and_finds_no_fault() {
    let load = Load::of(LOAD_THREADS);
    let (mut command, temp) = command("demo-load", &["--connections", "60", "--duration", "3s", "--json"]);
    let output = command.output().expect("it runs");
    drop(load);
    left_in(&temp);
    let report = judged(&output);
    assert!(report["size"]["pace"]["calibrated"].as_u64().is_some(), "{report:#}");
    assert!(report["size"]["pace"]["rate"].as_u64().is_some_and(|rate| rate >= 10), "{report:#}");
}

#[test]
fn an_interrupt_ends_all_processes_and_leaves_nothing() {
    let demo = Demo::chatting("demo-interrupt");
    kill(Pid::from_raw(demo.child.id().cast_signed()), Signal::SIGINT).expect("it runs");
    let (code, said, left) = demo.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("interrupted"), "{said}");
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn a_server_that_dies_is_named_and_its_logs_stay() {
    let demo = Demo::chatting("demo-dead-backend");
    kill(Pid::from_raw(demo.backend), Signal::SIGKILL).expect("it runs");
    let (code, said, left) = demo.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("the backend failed: it ended by itself"), "{said}");
    let [folder] = &left[..] else { panic!("{left:?}") };
    assert!(said.contains(&folder.display().to_string()), "{said}");
    for log in ["gateway.log", "backend.log"] {
        assert!(folder.join(log).metadata().expect(log).len() > 0, "{log} says something");
    }
    remove_with(folder);
}

#[test]
fn even_a_killed_demo_leaves_no_process() {
    let mut demo = Demo::chatting("demo-killed");
    demo.child.kill().expect("it runs");
    let (code, _, left) = demo.end();
    assert_eq!(code, None);
    left.iter().for_each(|folder| remove_with(folder));
}

/// Starts nothing where PostgreSQL is missing; says so, and fails where nothing may be skipped.
fn has_postgresql(test: &str) -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if versions.map(|version| version.path().join("bin/initdb")).any(|initdb| initdb.exists()) {
        return true;
    }
    let is = |name, value| std::env::var(name).as_deref() == Ok(value);
    let may_skip = !is("MOORLINE_SKIPS", "fail") && !is("MOORLINE_POSTGRES", "require");
    assert!(may_skip, "{test} needs PostgreSQL (`initdb`)");
    println!("SKIPPED {test}: no /usr/lib/postgresql/*/bin/initdb; install the package `postgresql`");
    false
}

/// The demo of a cluster. Its database runs as another user than root, who has to reach the temporary folder.
fn cluster_command(name: &str, arguments: &[&str]) -> (Command, PathBuf) {
    let (mut command, temp) = command(name, &["--cluster"]);
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o711)).expect("our folder");
    command.args(arguments);
    (command, temp)
}

#[test]
fn a_cluster_loses_nothing_with_a_gateway_a_node_and_the_primary() {
    if !has_postgresql("a_cluster_loses_nothing_with_a_gateway_a_node_and_the_primary") {
        return;
    }
    let arguments = ["--connections", "30", "--duration", "3s", "--rate", "30", "--seed", "7", "--json"];
    let (mut command, temp) = cluster_command("demo-cluster", &arguments);
    let output = command.output().expect("it runs");
    let report = judged(&output);
    assert_eq!(left_in(&temp), Vec::<PathBuf>::new());
    let survived = report["survived"].as_array().expect("a list");
    let losses: Vec<_> = survived.iter().filter_map(|one| one["loss"].as_str()).collect();
    assert_eq!(losses, ["gateway", "node", "primary"], "{report:#}");
    if report["judgement"] != "pass" {
        println!("too busy to judge: {report:#}");
        return;
    }
    let waits: Vec<_> = survived.iter().filter_map(|one| one["longest_ms"].as_f64()).collect();
    assert!(waits.iter().all(|wait| *wait > 0.0), "{report:#}");
    // Each of three gateways has its share, and one of them is gone: all clients are with the others.
    assert_eq!((&report["cut_off"], &report["size"]["encrypted"]), (&10.into(), &30.into()), "{report:#}");
    assert!(report["messages"]["deliveries"].as_u64() > report["messages"]["sent"].as_u64(), "{report:#}");
}

#[test]
fn even_a_killed_demo_of_a_cluster_leaves_no_process() {
    if !has_postgresql("even_a_killed_demo_of_a_cluster_leaves_no_process") {
        return;
    }
    let arguments = ["--connections", "10", "--duration", "60s", "--rate", "10"];
    let (mut command, temp) = cluster_command("demo-cluster-killed", &arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut said =
        BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    let line = said.find(|line| line.starts_with("gateways pid")).expect("it says its processes");
    let mut pids: Vec<i32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(said.any(|line| line.starts_with("chat")), "it chats");
    for cell in fs::read_dir(&temp).expect("the folder").map(|entry| entry.expect("an entry").path()) {
        for number in 1..=3 {
            let file = fs::read_to_string(cell.join(format!("pg-{number}/data/postmaster.pid")));
            let pid = file.ok().and_then(|file| file.lines().next().and_then(|pid| pid.parse::<i32>().ok()));
            pids.extend(pid);
        }
    }
    assert!(pids.len() == 9 && pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert_gone(&pids);
    fs::remove_dir_all(&temp).ok();
}

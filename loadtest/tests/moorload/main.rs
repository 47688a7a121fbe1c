//! The program as people run it, against a small server that can misbehave.
#![allow(clippy::unwrap_used)]

mod carriers;
mod schema;
mod server;

use moorline_proto::error::CloseReason;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;
use server::Fault;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Exit code and report of one run.
fn moorload(arguments: &str, target: &str) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .args(arguments.split_ascii_whitespace())
        .args(["--json", "-q", "--no-out", target])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), report)
}

/// Nothing wrong with the messages. On a machine as busy as one that runs tests, an open loop may
/// rightly call itself saturated.
fn is_sound(code: i32, report: &Value) -> bool {
    let is_saturated = code == 5 && report["generator"]["lag"]["p99"].as_u64().unwrap() > 10_000_000;
    let is_clean = report["integrity"].as_object().unwrap().values().all(|count| *count == 0);
    is_clean && (code == 0 || is_saturated)
}

/// Time that a run waits for messages under way: where one never comes the run waits to the end, and
/// elsewhere a slow machine must not make what is late look lost.
fn drain(fault: Fault) -> &'static str {
    use Fault::{Drop, Lose, LosePush, Reorder, ReorderPush, StrayPush};
    let is_waited_for =
        matches!(fault, Lose(_) | LosePush(_) | StrayPush(_) | Drop(_) | Reorder(_) | ReorderPush(_));
    if is_waited_for { "500ms" } else { "30s" }
}

/// The generator was late, and says so: figures that depend on its pace are not judged.
fn is_saturated(code: i32) -> bool {
    code == 5
}

/// A latency, also of a run that is invalid.
fn latency<'a>(report: &'a Value, name: &str) -> &'a Value {
    let valid = &report["latencies"][name];
    if valid.is_null() { &report["invalid_latencies"][name] } else { valid }
}

fn ping(fault: Fault, arguments: &str) -> (i32, Value) {
    let target = server::start(fault).to_string();
    moorload(&format!("ping --warmup 100ms {arguments}"), &target)
}

/// A folder for a run, gone with the test.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moorload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs the program: exit code, standard output, standard error.
fn run(line: &str, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorload"));
    let output = command.args(line.split(' ')).args(more).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_sound_server_passes_closed_and_open() {
    for arguments in ["-c 20 -d 500ms", "-c 20 -w 8 -d 500ms", "-c 20 -r 2k/s -d 500ms"] {
        let (code, report) = ping(Fault::None, arguments);
        assert!(is_sound(code, &report), "{arguments}: {report}");
        assert_eq!(report["connections"]["held"], 20);
        assert!(latency(&report, "answer")["count"].as_u64().unwrap() >= 20, "{report}");
    }
}

#[test]
fn each_fault_of_the_answers_fails_the_run_under_its_name() {
    let cases = [
        (Fault::Lose(50), "lost"),
        (Fault::Duplicate(50), "duplicated"),
        (Fault::Reorder(50), "reordered"),
        (Fault::Refuse(50), "refused"),
        (Fault::Drop(50), "dropped"),
    ];
    for (fault, name) in cases {
        let (code, report) = ping(fault, &format!("-c 4 -r 1k/s -d 500ms --drain {}", drain(fault)));
        assert_eq!(code, 4, "{fault:?}: {report}");
        let integrity = report["integrity"].as_object().unwrap();
        assert!(integrity[name].as_u64().unwrap() > 0, "{fault:?}: {report}");
        // A dropped connection also loses what was under way; the last late answer has no successor.
        if !matches!(fault, Fault::Drop(_) | Fault::Reorder(_)) {
            let alone = integrity.iter().all(|(other, value)| other == name || *value == 0);
            assert!(alone, "{fault:?} counts as nothing else: {report}");
        }
    }
}

#[test]
fn each_fault_of_the_deliveries_fails_the_run_under_its_name() {
    let cases = [
        (Fault::None, ""),
        (Fault::LosePush(50), "lost"),
        (Fault::DuplicatePush(50), "duplicated"),
        (Fault::ReorderPush(50), "reordered"),
        (Fault::StrayPush(50), "duplicated"),
    ];
    for work in ["chat -c 4 -r 1k/s", "group --groups 2 --members 4 -r 400/s"] {
        for (fault, name) in cases {
            let target = server::start(fault).to_string();
            let line = format!("{work} -d 500ms --warmup 100ms --drain {}", drain(fault));
            let (code, report) = moorload(&line, &target);
            let integrity = report["integrity"].as_object().unwrap();
            if name.is_empty() {
                assert!(is_sound(code, &report), "{work}: {report}");
                assert!(latency(&report, "deliver")["count"].as_u64().unwrap() > 20, "{report}");
                continue;
            }
            assert_eq!(code, 4, "{work} {fault:?}: {report}");
            assert!(integrity[name].as_u64().unwrap() > 0, "{work} {fault:?}: {report}");
        }
    }
}

#[test]
fn members_pull_what_they_are_notified_of() {
    for every in [1, 3] {
        for load in ["-r 400/s", "-w 2"] {
            let target = server::start(Fault::NotifyPush(every)).to_string();
            let line = format!("group --groups 2 --members 4 {load} -d 500ms --warmup 100ms");
            let (code, report) = moorload(&line, &target);
            assert!(is_sound(code, &report), "{every} {load}: {} {report}", report["integrity"]);
            assert!(latency(&report, "deliver")["count"].as_u64().unwrap() > 20, "{report}");
        }
    }
}

#[test]
fn a_fleet_over_several_processes_is_one_run() {
    let target = server::start(Fault::None).to_string();
    for work in
        ["ping -c 30 -r 2k/s", "chat -c 30 -r 2k/s", "group --groups 5 --members 6 -r 200/s", "hold -c 30"]
    {
        let line =
            format!("{work} --procs 3 -d 600ms --warmup 200ms --heartbeat 200ms --uid-prefix {}", &work[..4]);
        let (code, report) = moorload(&line, &target);
        assert!(code == 0 || is_sound(code, &report), "{work}: {report}");
        assert_eq!(
            (&report["connections"]["held"], &report["processes"]),
            (&30.into(), &3.into()),
            "{report}"
        );
        if let Some(offered) = report["offered_per_s"].as_f64() {
            let wanted = if work.starts_with("group") { 200.0 } else { 2_000.0 };
            let is_shared = (offered / wanted - 1.0).abs() < 0.1;
            assert!(is_shared || is_saturated(code), "{work}: the parts share the rate: {report}");
        }
    }
}

#[test]
fn one_process_that_fails_ends_all() {
    let target = server::start(Fault::NoLogin(CloseReason::Internal)).to_string();
    assert_eq!(moorload("ping -c 10 --procs 2 -d 100ms", &target).0, 3);
}

#[test]
fn a_run_whose_logins_are_refused_says_which_option_is_missing_or_wrong() {
    let target = server::start(Fault::NoLogin(CloseReason::AuthFailed)).to_string();
    let folder = Folder::new("refused");
    let [key, tokens] = ["hs256.key", "tokens"].map(|name| folder.0.join(name).display().to_string());
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::write(&tokens, "alice one\n".repeat(20)).unwrap();
    let restart = "restart --command true --after 0s -d 1s -c 2";
    for work in ["hold -c 1", "chat -c 20", "chat -c 20 --procs 2", restart, "find chat -c 20"] {
        for (tokens, told) in [
            (
                String::new(),
                "it checks tokens, and this run has none; sign them with --key-file, or read them",
            ),
            (format!("--key-file {key} "), "it refuses tokens of --key-file"),
            (format!("--token-file {tokens} "), "it refuses tokens of --token-file"),
        ] {
            let line = format!("{work} {tokens}-q --no-out {target}");
            let (code, text, notes) = run(&line, &[]);
            let expected = format!("cannot log in at {target}: {told}");
            assert!(
                code == 1 && text.is_empty() && notes.contains(&expected),
                "{line}: {code} {text}{notes}"
            );
        }
    }
}

#[test]
fn a_generator_that_is_too_slow_says_so_and_shows_no_latencies() {
    let target = server::start(Fault::None).to_string();
    let arguments = "ping -c 2 -r 90m/s -d 500ms --warmup 100ms -q --no-out".split(' ');
    let output = Command::new(env!("CARGO_BIN_EXE_moorload")).args(arguments).arg(&target).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{text}");
    // Other tests may have the cores meanwhile.
    assert!(text.contains("INVALID generator saturated") || text.contains("INVALID machine busy"), "{text}");
    assert!(!text.contains("answer corrected"), "{text}");
}

#[test]
fn an_invalid_run_shows_no_latencies_anywhere() {
    let target = server::start(Fault::None).to_string();
    let folder = Folder::new("invalid");
    let arguments = "ping -c 2 -r 90m/s -d 500ms --warmup 100ms --expect answer.p99<10s -q -o";
    let output = run(arguments, &[folder.path(), &target]);
    assert_eq!(output.0, 5, "{}", output.1);
    assert!(output.1.contains("answer.p99<10s: not judged"), "{}", output.1);
    let summary: Value = serde_json::from_str(&folder.read("summary.json")).unwrap();
    assert_eq!(summary["latencies"], serde_json::json!({}));
    assert!(summary["invalid_latencies"]["login"]["count"].as_u64() > Some(0), "{summary}");
    let schema: Value = serde_json::from_str(include_str!("../../schema/summary.schema.json")).unwrap();
    assert_eq!(schema::faults(&schema, &summary), [""; 0]);
    let page = folder.read("report.html");
    assert!(page.contains("No latencies are shown") && !page.contains("<h2>Latencies</h2>"));
    assert!(!page.contains("id=\"latency\"") && !page.contains("id=\"percentiles\""));
    assert!(!std::fs::exists(folder.0.join("answer.hgrm")).unwrap());
    let (code, text, notes) = run("report", &[folder.path()]);
    assert_eq!(code, 0, "{text}{notes}");
    assert!(notes.is_empty(), "the histograms and the summary agree: {notes}");
    assert!(text.contains("not shown") && !text.contains("answer.p99"), "{text}");
}

#[test]
fn a_run_goes_on_when_nobody_reads_its_progress() {
    let target = server::start(Fault::None).to_string();
    let (_unread, full) = std::io::pipe().unwrap();
    let flags = |flag| _ = fcntl(&full, FcntlArg::F_SETFL(flag)).unwrap();
    flags(OFlag::O_NONBLOCK);
    while (&full).write(&[b'x'; 4096]).is_ok() {}
    flags(OFlag::empty());
    let arguments = "hold -c 5 -d 3s --warmup 100ms --no-out".split(' ');
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorload"));
    let child = command.args(arguments).arg(&target).stderr(full.try_clone().unwrap());
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    let mut report = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut text = String::new();
        report.read_to_string(&mut text).unwrap();
        ended.send(text).unwrap();
    });
    let text = end.recv_timeout(Duration::from_secs(60));
    child.kill().unwrap();
    let code = child.wait().unwrap().code();
    let text = text.expect("the run ends");
    assert!(text.contains("PASS"), "{code:?}: {text}");
}

#[test]
fn a_hold_run_is_reported_without_a_complaint() {
    let target = server::start(Fault::None).to_string();
    let folder = Folder::new("hold");
    let (code, text, _) = run("hold -c 20 -d 1s --warmup 100ms -q -o", &[folder.path(), &target]);
    assert_eq!(code, 0, "{text}");
    assert!(folder.read("latency.hlog").contains("Tag=login,"));
    let (code, text, notes) = run("report", &[folder.path()]);
    assert_eq!((code, notes.as_str()), (0, ""), "{text}");
    assert!(text.contains("login.p99"), "{text}");
}

#[test]
fn a_search_prints_its_table_once() {
    let target = server::start(Fault::None).to_string();
    let (_, text, notes) =
        run("find ping -c 4 --from 200/s --to 200/s -d 300ms --warmup 100ms --no-out", &[&target]);
    let lines = |of: &str| of.lines().filter(|line| line.contains("/s  done")).count();
    // A busy machine may need further tries at lower rates.
    let mut tries: Vec<_> = text.lines().filter(|line| line.contains("/s  done")).collect();
    tries.dedup();
    assert!(!tries.is_empty() && (lines(&text), lines(&notes)) == (tries.len(), 0), "{text}{notes}");
}

#[test]
fn tokens_come_from_a_file_and_a_bad_file_ends_the_run_before_it_begins() {
    let target = server::start(Fault::None).to_string();
    let folder = Folder::new("tokens");
    let file = folder.0.join("tokens");
    std::fs::write(&file, "alice one\nben two\n").unwrap();
    let file = file.display().to_string();
    let (code, text, notes) =
        run("ping -c 2 -d 300ms --warmup 100ms -q --no-out --token-file", &[&file, &target]);
    assert!(matches!(code, 0 | 5), "{text}{notes}");
    let (code, _, notes) = run("ping -c 3 -d 300ms -q --no-out --token-file", &[&file, &target]);
    assert!(code == 1 && notes.contains("2 tokens are fewer than 3 clients"), "{notes}");
    let (code, _, notes) = run("ping -c 2 -d 300ms -q --no-out --key-file", &["/nowhere", &target]);
    assert!(code == 1 && notes.contains("cannot read key file /nowhere"), "{notes}");
}

#[test]
fn a_process_that_is_not_the_gateway_is_told() {
    let target = server::start(Fault::None).to_string();
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let folder = Folder::new("pid");
    let file = folder.0.join("pid");
    let measure = |pid: u32| {
        std::fs::write(&file, format!("{pid}\n")).unwrap();
        let file = file.display().to_string();
        run("ping -c 2 -d 300ms --warmup 100ms -q --no-out --pid-file", &[&file, &target])
    };
    let (_, text, notes) = measure(other.id());
    let me = std::process::id();
    for told in [&text, &notes] {
        assert!(told.contains(&format!("process {me} does")), "{text}{notes}");
    }
    let (_, text, notes) = measure(me);
    assert!(!notes.contains("does not listen") && text.contains("server     rss"), "{text}{notes}");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn expectations_decide_and_an_abort_ends_early() {
    let target = server::start(Fault::None).to_string();
    let (code, report) = moorload("ping -c 4 -d 300ms --expect rate>1 --expect answer.p99<10s", &target);
    assert_eq!(code, 0, "{report}");
    let (code, report) = moorload("ping -c 4 -d 300ms --expect rate>1g/s --expect answer.p99<10s", &target);
    assert_eq!(code, 1, "1g is no number: {report}");
    let (code, report) = moorload("ping -c 4 -d 300ms --expect rate>90m/s --expect answer.p99<10s", &target);
    assert_eq!(code, 99, "{report}");
    let failed: Vec<bool> =
        report["expectations"].as_array().unwrap().iter().map(|it| !it["failed"].is_null()).collect();
    assert_eq!(failed, [true, false]);
    let (code, report) = moorload("ping -c 4 -d 10m --warmup 100ms --abort answer.p50>1us", &target);
    assert_eq!(code, 99, "{report}");
    assert!(report["seconds"].as_f64().unwrap() < 60.0, "{report}");
}

#[test]
fn a_storm_breaks_its_part_and_waits_until_all_are_back() {
    let target = server::start(Fault::None).to_string();
    let line = "storm -c 60 --drop 50% --calm 300ms -d 2s --warmup 100ms -r 500/s";
    let (code, report) = moorload(line, &target);
    assert!(is_sound(code, &report), "{report}");
    assert_eq!(latency(&report, "back")["count"], 30, "{report}");
    assert_eq!(report["connections"]["held"], 60, "{report}");
    let markers = report["markers"].to_string();
    assert!(markers.contains("storm: 30 connections are broken"), "{report}");
    assert!(is_saturated(code) || markers.contains("99% are back"), "{report}");
}

#[test]
fn a_restart_command_decides_and_does_not_outlive_the_run() {
    let target = server::start(Fault::None).to_string();
    for (command, expected) in [("true", 0), ("false", 99), ("sleep 600", 99)] {
        let arguments =
            "restart -c 4 -r 200/s -d 1s --after 100ms --warmup 100ms --json -q --no-out --command";
        let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
            .args(arguments.split(' '))
            .args([command, &target])
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let code = output.status.code().unwrap();
        assert!(
            code == expected || (expected == 0 && is_sound(code, &report)),
            "{command}: {code}, {report}"
        );
        if expected == 99 {
            assert_eq!(report["verdict"], "FAIL restart", "{report}");
            assert!(report["notes"].to_string().contains(command), "{report}");
        }
    }
}

#[test]
fn a_search_ends_at_a_rate_that_holds() {
    let target = server::start(Fault::None).to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .args("find ping -c 4 --from 200/s --to 400/s -d 300ms --warmup 100ms --json -q --no-out".split(' '))
        .arg(&target)
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(matches!(output.status.code(), Some(0 | 5)), "{found}");
    assert!(found["best"].as_f64().unwrap() >= 200.0, "{found}");
    assert!(!found["probes"].as_array().unwrap().is_empty());
}

#[test]
fn a_run_leaves_a_folder_that_keeps_its_schema_and_can_be_compared() {
    let target = server::start(Fault::None).to_string();
    let root = std::env::temp_dir().join(format!("moorload-test-{}", std::process::id()));
    let folders = ["one", "two"].map(|name| root.join(name));
    let mut codes = Vec::new();
    for folder in &folders {
        let status = Command::new(env!("CARGO_BIN_EXE_moorload"))
            .args("chat -c 8 -r 500/s -d 2s --warmup 100ms -q -o".split(' '))
            .args([folder.as_os_str(), target.as_ref()])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(matches!(status.code(), Some(0 | 5)), "{status}");
        codes.push(status.code());
    }
    let read = |name: &str| std::fs::read_to_string(folders[0].join(name)).unwrap();
    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    let schema: Value = serde_json::from_str(include_str!("../../schema/summary.schema.json")).unwrap();
    assert_eq!(schema::faults(&schema, &summary), [""; 0], "summary.json");
    let mut wrong = summary.clone();
    wrong["integrity"]["lost"] = "none".into();
    assert_eq!(schema::faults(&schema, &wrong).len(), 1, "the schema says something");
    let timeline = read("timeline.csv");
    let columns = timeline.lines().map(|line| line.split(',').count());
    assert!(columns.clone().all(|count| count == 14) && columns.count() >= 2, "{timeline}");
    // A generator that was late, since the machine was busy, shows no latencies.
    if codes[0] == Some(0) {
        assert!(read("deliver.hgrm").contains("1.000000000000"));
        assert!(read("latency.hlog").contains("Tag=deliver,"));
    }
    let page = read("report.html");
    assert!(page.contains("uPlot") && page.contains("\"at_s\"") && !page.contains("src=\"http"));
    let env: Value = serde_json::from_str(&read("env.json")).unwrap();
    assert!(env["arguments"].as_array().unwrap().iter().any(|it| it == "chat"), "{env}");

    let comparison = root.join("comparison.html");
    let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .arg("report")
        .args([&folders[0], &folders[1]])
        .arg("--compare")
        .arg(&folders[0])
        .arg("--html")
        .arg(&comparison)
        .output()
        .unwrap();
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if codes == [Some(0); 2] {
        assert_eq!(output.status.code(), Some(0), "{text}{notes}");
        assert!(text.contains("deliver.p99") && text.contains("+0.0%"), "{text}");
        assert!(notes.is_empty(), "the histograms and the summary agree: {notes}");
        assert!(std::fs::read_to_string(comparison).unwrap().contains("percentiles"));
    }
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_doctor_says_what_is_missing() {
    let target = server::start(Fault::None).to_string();
    let doctor = |connections: &str, target: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
            .args(["doctor", "-c", connections, "--json", target])
            .output()
            .unwrap();
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), rows)
    };
    let (code, rows) = doctor("10", &target);
    assert_eq!(code, 0, "{rows}");
    assert!(rows.as_array().unwrap().len() >= 4, "{rows}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, rows) = doctor("10", &closed);
    assert_eq!(code, 3, "{rows}");
    assert!(rows.to_string().contains("moorline run"), "{rows}");
    // A million and more sockets need more of something than any test machine has.
    let (code, rows) = doctor("4000m", &target);
    assert_eq!(code, 2, "{rows}");
    let missing = rows.as_array().unwrap().iter().filter(|row| row["state"] == "missing");
    assert!(missing.clone().count() > 0 && missing.clone().all(|row| row["fix"] != ""), "{rows}");
}

#[test]
fn a_stalled_server_shows_in_the_corrected_latency_and_not_in_the_raw_median() {
    let (code, report) = ping(Fault::Stall(100, 600), "-c 1 -w 1 -r 500/s -d 1500ms");
    assert!(is_sound(code, &report), "{report}");
    let (corrected, raw) = (latency(&report, "answer"), latency(&report, "answer_raw"));
    let millis = |value: &Value| value.as_u64().unwrap() / 1_000_000;
    assert!(millis(&corrected["p99"]) >= 300, "hundreds of messages waited: {report}");
    assert!(millis(&raw["p99"]) < 300 || is_saturated(code), "one message was slow: {report}");
    assert!(millis(&raw["max"]) >= 500, "{report}");
    assert_eq!(corrected["count"], raw["count"], "every message counts in both");
}

#[test]
fn an_idle_fleet_is_held_and_its_heartbeats_come_back() {
    let target = server::start(Fault::None).to_string();
    let (code, report) = moorload("hold -c 50 -R 500/s --heartbeat 200ms -d 1s --warmup 100ms", &target);
    assert!(is_sound(code, &report), "{report}");
    assert_eq!(report["connections"]["held"], 50);
    let beats = report["done_per_s"].as_f64().unwrap() * report["seconds"].as_f64().unwrap();
    assert!(beats >= 50.0, "each beats four or five times: {report}");
    let own = std::process::id();
    let with_pid = format!("hold -c 50 --heartbeat 200ms -d 300ms --warmup 100ms --pid {own}");
    let (code, report) = moorload(&with_pid, &target);
    assert_eq!(code, 0, "{report}");
    assert!(report["server"]["rss_before"].as_u64().unwrap() > 100_000, "{report}");
}

#[test]
fn a_heartbeat_that_does_not_come_back_is_lost() {
    let target = server::start(Fault::NoPong).to_string();
    let (code, report) =
        moorload("hold -c 5 --heartbeat 100ms -d 300ms --warmup 100ms --drain 200ms", &target);
    assert_eq!(code, 4, "{report}");
    assert!(report["integrity"]["lost"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn nobody_there_and_nobody_let_in_are_unreachable() {
    // A port that was just free and that nobody listens on.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_eq!(moorload("ping -c 10 -d 100ms", &closed).0, 3);
    let target = server::start(Fault::NoLogin(CloseReason::Internal)).to_string();
    assert_eq!(moorload("ping -c 10 -d 100ms", &target).0, 3);
}

#[test]
fn an_interrupt_still_gives_the_report() {
    let target = server::start(Fault::None).to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .args(["hold", "-c", "5", "-d", "10m", "--json", "--no-out", &target])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    // The first live line says that the loop runs.
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut line)
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "INTERRUPTED");
}

#[test]
fn the_bare_side_of_a_comparison_is_clean_in_every_figure() {
    let output = Command::new(env!("CARGO_BIN_EXE_moorload"))
        .args(["compare", "--bare-only", "--rounds", "1", "-c", "200", "--busy", "20", "--members", "50"])
        .args(["-d", "300ms", "--json", "-q"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let lines: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(lines.as_array().unwrap().len(), 23, "{lines}");
    for line in lines.as_array().unwrap() {
        let median = line["bare"]["median"].as_f64().unwrap();
        // A bar on a ratio judges nothing if the bare server's figure is missing.
        let is_time = line["unit"] == "ms";
        assert!(median.is_finite() && median >= 0.0 && (median > 0.0 || !is_time), "{line}");
    }
}

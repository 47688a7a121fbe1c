//! Admin endpoint: health, metrics and status for operators and their tools.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, TempFile, run};
use crate::raw::Client;
use crate::series::Series;
use crate::until;
use moorline::admin::{Phase, Varz};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn health_and_readiness_differ() {
    let gateway = Gateway::alone(&[]);
    assert_eq!(gateway.get("/healthz"), (200, "ok\n".to_owned()));
    let (code, text) = gateway.get("/readyz");
    assert!(code == 503 && text.contains("no link"), "{code} {text}");
    assert_eq!(gateway.varz().phase, Phase::NoBackend);
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    assert_eq!(gateway.get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(gateway.get("/nothing").0, 404);
}

/// A family as its comments describe it, and its samples.
#[derive(Default)]
struct Family {
    kind: String,
    has_help: bool,
    samples: Vec<(String, f64)>,
}

/// Reads a page strictly: each sample in its family's block, each family once, the end marked.
fn families(page: &str) -> BTreeMap<String, Family> {
    let body = page.strip_suffix("# EOF\n").expect("the page ends with # EOF");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut current, mut closed) = (String::new(), BTreeSet::new());
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let [what, name, text] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line:?} is no comment of a family")
            };
            if name != current {
                assert!(closed.insert(name.to_owned()), "{name} stands twice");
                name.clone_into(&mut current);
            }
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "{line:?} comes after a sample");
            match what {
                "HELP" => family.has_help = text.ends_with('.'),
                "TYPE" => text.clone_into(&mut family.kind),
                "UNIT" => assert!(name.ends_with(text), "{line:?}"),
                _ => panic!("{line:?}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} is no sample"));
        let value = value.parse().unwrap_or_else(|_| panic!("{line:?} has no number"));
        assert!(name.starts_with(&current), "{line:?} stands under {current}");
        families.get_mut(&current).expect("it began").samples.push((name[current.len()..].to_owned(), value));
    }
    families
}

#[test]
fn the_metrics_page_is_openmetrics() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    for number in 0..10u32 {
        alice.tell(number.into(), "bob", b"hi");
    }
    gateway.until_metric("sends_total", 10);
    let (code, page) = gateway.get("/metrics");
    assert_eq!(code, 200);
    let families = families(&page);
    assert!(families.len() > 50, "{} families", families.len());
    for (name, Family { kind, has_help, samples }) in &families {
        assert!(name.starts_with("moorline_") && *has_help && !samples.is_empty(), "{name}");
        let suffixes: BTreeSet<_> =
            samples.iter().map(|(rest, _)| rest.split('{').next().unwrap_or("")).collect();
        let expected: &[&str] = match &kind[..] {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            other => panic!("{name} is {other}"),
        };
        assert_eq!(suffixes, expected.iter().copied().collect(), "{name}");
        assert!(samples.iter().all(|(_, value)| value.is_finite() && *value >= 0.0), "{name}");
    }
    let histogram = &families["moorline_up_seconds"].samples;
    let buckets: Vec<_> = histogram.iter().filter(|(rest, _)| rest.starts_with("_bucket")).collect();
    assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "buckets are cumulative: {buckets:?}");
    assert_eq!(buckets.last().expect("some").0, "_bucket{le=\"+Inf\"}");
    assert!(histogram.iter().any(|(rest, count)| rest == "_count" && *count >= 10.0));
}

#[test]
fn status_shows_the_running_gateway() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["gateway.id=g7"]);
    let _people = ["alice", "bob"].map(|uid| Client::login(gateway.listener, uid, "d"));
    gateway.until_sessions(2);
    let admin = gateway.admin.to_string();
    let (code, out, err) = run(&["status", "--admin", &admin]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.starts_with("g7: ready\n") && out.contains("connections 2   sessions 2   links up 1"),
        "{out}"
    );
    let (code, out, _) = run(&["status", "--json", "--admin", &admin]);
    let varz: Varz = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, varz.pid, varz.listener), (Some(0), gateway.process.pid(), Some(gateway.listener)));
    assert_eq!((varz.reactors, varz.workers, varz.phase), (2, 1, Phase::Ready));
    let open = gateway.process.descriptors().len() as u64;
    assert!(
        varz.open_fds.is_some_and(|fds| fds.abs_diff(open) <= 3) && varz.resident_bytes > Some(1 << 20),
        "{varz:?}, {open} open"
    );
}

#[test]
fn settings_make_a_round_trip() {
    let (code, printed, err) = run(&["config", "default"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let file = TempFile::new(&printed);
    let path = file.path().display().to_string();
    let dev = ["--set", "auth.mode=dev"];
    let (code, out, _) = run(&[&["check", "-c", &path], &dev[..]].concat());
    assert_eq!((code, out), (Some(0), format!("{path}: valid\n")));
    let (code, effective, _) = run(&[&["config", "effective", "-c", &path], &dev[..]].concat());
    let again = TempFile::new(&effective);
    let (code_again, ..) = run(&["check", "-c", &again.path().display().to_string()]);
    assert_eq!((code, code_again), (Some(0), Some(0)), "what is in force is a settings file: {effective}");
}

#[test]
fn a_mistake_is_named_with_its_place() {
    // (line 3 of the file, words that must stand in the message)
    for (mistake, words) in [
        ("body_max = \"64 parsecs\"", &["limits.body_max", "64KiB"][..]),
        ("body_max = \"1B\"", &["limits.body_max", "out of range"]),
        ("queue_bytes = \"2KiB\"", &["limits.queue_bytes", "limits.body_max"]),
        ("boddy_max = 1", &["boddy_max", "body_max"]),
        ("body_max = ", &[]),
    ] {
        let file = TempFile::new(format!("[auth]\nmode = \"dev\"\n[limits]\n{mistake}\n"));
        let path = file.path().display().to_string();
        for command in ["check", "run"] {
            let (code, out, err) = run(&[command, "-c", &path]);
            assert_eq!((code, out.as_str()), (Some(2), ""), "{mistake}: {err}");
            assert!(err.contains(&format!("{path}:4")), "{mistake}: {err}");
            assert!(words.iter().all(|word| err.contains(word)), "{mistake}: {err}");
        }
    }
}

#[test]
fn an_address_in_use_is_code_one_with_its_key() {
    let gateway = Gateway::alone(&[]);
    let taken = format!("listener.address={}", gateway.listener);
    let (code, out, err) = run(&["run", "--set", "auth.mode=dev", "--set", &taken]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("listener.address") && err.contains(&gateway.listener.to_string()), "{err}");
}

/// Programs that sweep temporary files take the name away and leave the socket.
#[test]
fn an_admin_socket_whose_name_was_removed_has_it_again_after_a_hot_restart() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let path = series.gateway.socket();
    std::fs::remove_file(&path).expect("it is there");
    series.signal(Signal::SIGUSR2);
    until("the name is there again", || path.exists().then_some(()));
    until("the new process serves", || (series.restarts().generation == 1).then_some(()));
    series.restart();
}

/// Somebody removes the name, and another gateway is started with the same settings.
#[test]
fn a_gateway_that_ends_leaves_the_admin_socket_of_another_gateway() {
    let folder = StoreFolder::new();
    std::fs::create_dir(folder.path()).expect("made");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("ours");
    let path = folder.path().join("admin.sock");
    let set = format!("admin.socket={}", path.display());
    let pid_file = TempFile::new("");
    let of_first = format!("handover.pid_file={}", pid_file.path().display());
    let mut first = Gateway::start_as(&[&set, &of_first], |_| ());
    std::fs::remove_file(&path).expect("it is there");
    let mut second = Gateway::start_as(&[&set], |_| ());
    let is_written = || std::fs::read_to_string(pid_file.path()).is_ok_and(|text| !text.is_empty());
    until("the pid file is written", || is_written().then_some(()));
    // An order for the first is not given to the second.
    let (code, _, error) = run(&["stop", "--pid-file", &pid_file.path().display().to_string()]);
    let is_told = error.contains(&format!("process {} answers there", second.process.pid()));
    assert!(code == Some(1) && is_told, "{error}");
    assert!(second.process.is_running());
    first.process.signal(Signal::SIGTERM);
    assert_eq!(first.process.end().code(), Some(0));
    let (code, out, error) = run(&["status", "--json", "--admin", &path.display().to_string()]);
    assert_eq!(code, Some(0), "{error}");
    let varz: Varz = serde_json::from_str(&out).expect("JSON");
    assert_eq!(varz.pid, second.process.pid());
    second.process.signal(Signal::SIGTERM);
    assert_eq!(second.process.end().code(), Some(0));
    assert!(!path.exists(), "its own socket goes with it");
}

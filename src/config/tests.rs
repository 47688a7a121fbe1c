//! Settings from all sources, and what is said about wrong ones.

use super::*;
use std::io::Write as _;

fn load(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Loaded<Config>, String> {
    let file = TempFile::new(text);
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    let loaded = Config::load_with_origins(Some(&file.0), &sets, env);
    loaded.map_err(|error| error.to_string().replace(&file.0.display().to_string(), "m.toml"))
}

fn refusal(text: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
    load(text, env, sets).map(|_| ()).expect_err("must be refused")
}

const DEV: &str = "auth.mode=dev";

struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("moorline-config-{}-{number}.toml", std::process::id()));
        std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("temp file");
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[test]
fn the_printed_defaults_load_as_the_defaults() {
    let loaded = load(&SCHEMA.default_toml(), &[], &[DEV]).expect("valid");
    let expected =
        Config { auth: AuthConfig { mode: AuthMode::Dev, ..Config::default().auth }, ..Config::default() };
    assert_eq!(loaded.config, expected);
    assert_eq!(loaded.config.limits.body_max.as_u64(), 65_536);
    assert_eq!(loaded.config.heartbeat.max, Duration::from_secs(300));
}

#[test]
fn the_effective_settings_load_as_themselves_and_name_their_origins() {
    let text = "[reactor]\ncount = 3\n[drain]\ngrace = \"2m\"\n";
    let loaded = load(text, &[("MOORLINE__LOG__LEVEL", "debug")], &[DEV]).expect("valid");
    let printed = SCHEMA.effective_toml(&loaded);
    assert!(printed.contains("level = \"debug\" # environment variable MOORLINE__LOG__LEVEL\n"), "{printed}");
    assert!(printed.contains("mode = \"dev\" # --set auth.mode\n"), "{printed}");
    assert!(printed.contains(".toml:2\n") && printed.contains("grace = \"120s\""), "{printed}");
    assert!(printed.contains("backlog = 4096 # default\n"), "{printed}");
    assert_eq!(load(&printed, &[], &[]).expect("valid").config, loaded.config);
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let text = "[reactor]\ncount = 2\naccept_budget = 5\nread_budget = \"8KiB\"";
    let env = [("MOORLINE__REACTOR__COUNT", "3"), ("MOORLINE__REACTOR__ACCEPT_BUDGET", "6"), ("HOME", "/")];
    let config = load(text, &env, &[DEV, "reactor.count=4"]).expect("valid").config;
    let reactor = &config.reactor;
    assert_eq!((reactor.count, reactor.accept_budget, reactor.read_budget.as_u64()), (4, 6, 8192));
    assert_eq!(config.worker.queue_batches, 1024);
}

#[test]
fn lists_and_text_that_looks_like_a_number_are_taken_from_flags() {
    let sets = [DEV, "backend.endpoints=10.0.0.1:1, 10.0.0.2:2", "gateway.id=42"];
    let config = load("", &[], &sets).expect("valid").config;
    assert_eq!(config.backend.endpoints.len(), 2);
    assert_eq!(config.gateway_id(), "42");
    let config = load("", &[], &[DEV, r#"backend.endpoints=["[::1]:9"]"#]).expect("valid").config;
    assert_eq!(config.backend.endpoints, ["[::1]:9".parse().expect("address")]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases = [
        (
            "[listener]\n\nadress = \"x\"",
            "m.toml:3: unknown key `adress` in [listener]; did you mean `address`?",
        ),
        ("\n[lisener]", "m.toml:2: unknown section [lisener]; did you mean [listener]?"),
        ("listener = 3", "m.toml:1: listener: expected [listener] or [[listener]]"),
        (
            "[reactor]\ncount = \"four\"",
            "m.toml:2: reactor.count: `\"four\"` is not valid; expected whole number",
        ),
        ("[limits]\nbody_max = 65536", "m.toml:2: limits.body_max: `65536` is not a size: a number with B"),
        ("[limits]\nbody_max = \"64KB\"", "\"64KB\" is not a size: a number with B, KiB, MiB or GiB"),
        (
            "[auth]\nmode = \"none\"",
            "auth.mode: `\"none\"` is not valid; expected \"jwt\" or \"dev\" or \"backend\"",
        ),
        (
            "[listener]\naddress = \"localhost\"",
            "m.toml:2: listener.address: `\"localhost\"` is not valid; expected IP:port",
        ),
        ("[listener]\nbacklog = 1\nbacklog = 2", "m.toml:3: duplicate key"),
        ("[listener\n", "m.toml:1: "),
        ("[listener]\nbacklog = -1", "m.toml:2: listener.backlog: "),
    ];
    for (text, expected) in cases {
        let said = refusal(text, &[], &[]);
        assert!(said.contains(expected), "{text:?} gave {said:?}, expected {expected:?}");
    }
    let said = refusal("", &[("MOORLINE__DRAIN__GRACE", "ten")], &[]);
    assert!(
        said.starts_with("environment variable MOORLINE__DRAIN__GRACE: drain.grace: \"ten\" is not"),
        "{said}"
    );
    let said = refusal("", &[("MOORLINE__DRAINGRACE", "1s")], &[]);
    assert!(said.contains("MOORLINE__DRAINGRACE: unknown section [draingrace]"), "{said}");
    assert!(refusal("", &[], &["drain.grace"]).contains("expected section.key=value"));
    assert!(refusal("", &[], &["drain.grac=1s"]).contains("--set drain.grac: unknown key"));
    assert!(
        refusal("", &[], &["drain=1s"])
            .contains("--set drain: `drain` is a section; set one of its keys: grace")
    );
}

#[test]
fn rules_between_values_are_checked_all_at_once() {
    let said = refusal("[heartbeat]\nmin = \"400s\"", &[], &["limits.body_max=2MiB"]);
    for expected in [
        "default: auth.key_file: mode \"jwt\" needs a key file",
        "m.toml:2: heartbeat.min: 400s is more than heartbeat.max = 300s",
        "--set limits.body_max: 2MiB is out of range, expected 1KiB to 1MiB",
        "default: limits.queue_bytes: 512KiB is less than limits.body_max = 2MiB",
    ] {
        assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[test]
fn dev_mode_is_refused_off_loopback_and_loud_on_it() {
    let said = refusal("", &[], &[DEV, "listener.address=0.0.0.0:7000"]);
    assert!(said.contains("--set auth.mode: \"dev\" lets anybody in"), "{said}");
    let config = load("", &[], &[DEV]).expect("valid").config;
    assert!(config.warnings().iter().any(|warning| warning.contains("TOKENS ARE NOT VERIFIED")));
    let config = load("", &[], &["auth.key_file=k", "admin.address=0.0.0.0:1"]).expect("valid").config;
    assert_eq!(config.warnings().len(), 1);
}

#[test]
fn odd_values_are_refused() {
    for set in [
        "backend.endpoints=[]",
        "backend.endpoints=10.0.0.1:0",
        "backend.endpoints=10.0.0.1:1,10.0.0.1:1",
        "heartbeat.min=1500ms",
        "log.level=",
        "log.level=loud=very=",
        "reactor.count=257",
        "limits.queue_frames=8",
        "backend.reconnect_min=9s",
    ] {
        let said = refusal("", &[], &[DEV, set]);
        assert!(said.contains(set.split('=').next().expect("key")), "{set} gave {said}");
    }
    assert!(refusal("", &[], &[DEV, "backend.endpoints=[]"]).contains("expected 1 to 64"));
}

#[test]
fn a_retired_setting_is_refused_with_advice_unless_it_asks_for_nothing() {
    let said = refusal("", &[], &[DEV, "backend.embedded=true"]);
    assert!(said.contains("backend.embedded") && said.contains("moorline dev"), "{said}");
    let said = refusal("[backend]\nembedded = true\n", &[], &[DEV]);
    assert!(said.contains(":2: backend.embedded") && said.contains("moorline dev"), "{said}");
    assert!(load("[backend]\nembedded = false\n", &[], &[DEV, "backend.embedded=false"]).is_ok());
}

#[test]
fn a_missing_or_huge_file_says_so() {
    let missing = Config::load(Some(Path::new("/nonexistent/m.toml")), &[], []).expect_err("no file");
    assert!(missing.to_string().starts_with("cannot read settings file /nonexistent/m.toml: "), "{missing}");
    assert!(refusal(&"#".repeat(2 << 20), &[], &[]).contains("over 1 MiB"));
}

#[test]
fn the_reference_page_has_the_table_of_this_program() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).expect("page");
    let begin = page.find("### [gateway]").expect("the page has the tables");
    let tables = &page[begin..];
    let end = tables.find("\n## ").map_or(tables.len(), |end| end + 1);
    let expected = SCHEMA.reference_markdown();
    assert_eq!(tables[..end].trim(), expected.trim(), "paste the output of `moorline config doc`");
}

#[test]
fn thread_counts_are_never_zero() {
    let config = Config::default();
    assert!(config.reactors() >= 1 && config.workers() >= 1);
    assert!(!config.gateway_id().is_empty());
}

#[test]
fn several_listeners_are_a_list_and_one_may_stand_as_a_section() {
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\nname = \"near\"\n\
                [[listener]]\naddress = \"127.0.0.1:0\"\nbacklog = 7\n";
    let loaded = load(text, &[("MOORLINE__LISTENER__2__ACCEPT_RATE", "5")], &[DEV]).expect("valid");
    let listeners = &loaded.config.listeners;
    assert_eq!(listeners.len(), 2);
    assert_eq!((listeners[0].backlog, listeners[1].backlog), (4096, 7));
    assert_eq!((listeners[0].accept_rate, listeners[1].accept_rate), (0, 5));
    assert_eq!((loaded.config.listener_name(0), loaded.config.listener_name(1)), ("near".into(), "2".into()));
    let printed = SCHEMA.effective_toml(&loaded);
    assert_eq!(printed.matches("[[listener]]").count(), 2, "{printed}");
    assert!(printed.contains("backlog = 7 # ") && printed.contains(".toml:6\n"), "{printed}");
    assert_eq!(load(&printed, &[], &[]).expect("valid").config, loaded.config);
    let one =
        load("[listener]\nbacklog = 9\n", &[], &[DEV, "listener.1.accept_rate=3"]).expect("valid").config;
    assert_eq!((one.listeners.len(), one.listeners[0].backlog, one.listeners[0].accept_rate), (1, 9, 3));
}

#[test]
fn wrong_lists_of_listeners_are_refused_with_the_place() {
    let two = |first: &str, second: &str| format!("[[listener]]\n{first}\n[[listener]]\n{second}\n");
    let any = "address = \"127.0.0.1:0\"";
    let cases = [
        (two("", ""), "default: listener.2.address: two listeners have the address 127.0.0.1:7000"),
        (two(any, "address = \"0.0.0.0:1\""), "must be on loopback and not 0.0.0.0:1"),
        (two(any, "backlog = 0"), "m.toml:4: listener.2.backlog: 0 is out of range"),
        (two("name = \"a\"", "name = \"a\""), "m.toml:4: listener.2.name: expected at most 64"),
        (two(any, "uplink = \"strict\""), "m.toml:4: listener.2.uplink: all listeners must have the same"),
        (
            two(any, "kind = \"udp\""),
            "m.toml:4: listener.2.kind: `\"udp\"` is not valid; expected \"tcp\" or \"tls\" or \"ws\" or \"wss\"",
        ),
        ("listener = []".into(), "m.toml:1: listener: expected [listener] or [[listener]]"),
        ("[[drain]]".into(), "m.toml:1: drain: expected a section [drain]"),
    ];
    for (text, expected) in cases {
        let said = refusal(&text, &[], &[DEV]);
        assert!(said.contains(expected), "{text:?} gave {said:?}, expected {expected:?}");
    }
    let said = refusal("", &[], &[DEV, "listener.2.backlog=3"]);
    assert!(said.contains("the settings have 1 of [[listener]]; add one to the file"), "{said}");
}

//! Settings from all sources, and what is said about wrong ones.

use super::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    node: String,
    listener: Vec<Listener>,
    store: Store,
    log: Log,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: SocketAddr,
    backlog: u16,
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Window,
    Strict,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Store {
    #[serde(with = "units::bytes")]
    cache: usize,
    #[serde(with = "units::duration")]
    keep: Duration,
    hooks: BTreeMap<String, Hook>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Hook {
    url: String,
    #[serde(with = "units::optional_address")]
    through: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Log {
    levels: Vec<String>,
    weights: Vec<u32>,
    is_loud: bool,
}

const KEYS: &[Key] = &[
    key("", "node", Kind::Text, "\"n\"", "Name of the node."),
    key("listener[]", "address", Kind::Address, "\"127.0.0.1:7000\"", "Where clients connect."),
    key("listener[]", "backlog", Kind::Count, "128", "Connections that wait."),
    key("listener[]", "order", Kind::Choice(&["window", "strict"]), "\"window\"", "Order of SENDs."),
    key("store", "cache", Kind::Size, "\"1MiB\"", "Memory."),
    key("store", "keep", Kind::Duration, "\"7d\"", "Time."),
    key("store.hooks.*", "url", Kind::Text, "\"\"", "Where to."),
    key("store.hooks.*", "through", Kind::OptionalAddress, "\"\"", "A proxy."),
    key("log", "levels", Kind::Texts, "[]", "Levels."),
    key("log", "weights", Kind::Counts, "[]", "Weights."),
    key("log", "is_loud", Kind::Switch, "false", "Loud."),
];
const SCHEMA: Schema = Schema {
    keys: KEYS,
    renamed: &[
        Renamed { old: "store.memory", new: "store.cache" },
        Renamed { old: "logging", new: "log" },
        Renamed { old: "store.services", new: "store.hooks" },
    ],
    retired: &[Retired { key: "store.engine", harmless: "1", advice: "start `moorline dev`" }],
    env_prefix: "TEST__",
};

fn load(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Loaded<Settings>, Vec<String>> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    let check = |rules: &mut Rules<'_, Settings>| {
        let store = &rules.config().store;
        rules.require(store.keep > Duration::ZERO, "store.keep", || "must be longer than 0".into());
        rules.size("store.cache", units::ByteSize::new(store.cache as u64), 1 << 10..=1 << 30);
    };
    let loaded = SCHEMA.load_text(Path::new("s.toml"), text, &sets, env, check);
    loaded.map_err(|error| error.to_string().lines().map(str::to_owned).collect())
}

fn refusal(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Vec<String> {
    load(text, env, sets).expect_err("must be refused")
}

#[test]
fn defaults_are_printed_and_load_as_the_defaults() {
    let printed = SCHEMA.default_toml();
    assert!(printed.starts_with("# Name of the node.\nnode = \"n\"\n\n[listener]\n"), "{printed}");
    assert!(printed.contains("\n# [store.hooks.NAME]\n# Where to.\n# url = \"\"\n"), "{printed}");
    let loaded = load(&printed, &[], &[]).expect("valid").config;
    assert_eq!(loaded, SCHEMA.defaults());
    assert_eq!((loaded.listener.len(), loaded.store.keep), (1, Duration::from_secs(7 * 86_400)));
    assert_eq!(SCHEMA.defaults_of::<Hook>("store.hooks.*").url, "");
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let text = "node = 'file'\n[log]\nlevels = ['a']\nweights = [1, 2]\n";
    let env = [("TEST__NODE", "env"), ("TEST__LOG__LEVELS", "b, c"), ("HOME", "/")];
    let loaded = load(text, &env, &["node=flag", "log.is_loud=true"]).expect("valid");
    let Settings { node, log, .. } = &loaded.config;
    assert_eq!(
        (node.as_str(), &log.levels[..], &log.weights[..]),
        ("flag", &["b".into(), "c".into()][..], &[1, 2][..])
    );
    assert!(log.is_loud);
    let origins =
        ["node", "log.levels", "log.weights", "store.keep"].map(|key| loaded.origin(key).to_string());
    assert_eq!(origins, ["--set node", "environment variable TEST__LOG__LEVELS", "s.toml:4", "default"]);
}

#[test]
fn lists_and_named_tables_are_read_with_their_lines() {
    let text = "[[listener]]\naddress = '127.0.0.1:1'\n\n[[listener]]\norder = 'strict'\n\
                [store.hooks.\"shop.eu\"]\nurl = 'http://a'\n[store.hooks.desk]\n";
    let sets = ["listener.2.backlog=7", "listener.backlog=5", "store.hooks.shop.eu.through=127.0.0.1:9"];
    let loaded = load(text, &[("TEST__STORE__HOOKS__DESK__URL", "http://b")], &sets).expect("valid");
    let Settings { listener, store, .. } = &loaded.config;
    assert_eq!(
        listener.iter().map(|it| (it.backlog, it.order)).collect::<Vec<_>>(),
        [(5, Order::Window), (7, Order::Strict)]
    );
    assert_eq!(listener[0].address.port(), 1);
    assert_eq!(store.hooks["shop.eu"].through, Some("127.0.0.1:9".parse().expect("an address")));
    assert_eq!(store.hooks["desk"].url, "http://b");
    assert_eq!(loaded.origin("listener.2.order").to_string(), "s.toml:5");
    assert_eq!(loaded.origin("store.hooks.shop.eu.url").to_string(), "s.toml:7");
    let printed = SCHEMA.effective_toml(&loaded);
    assert!(printed.contains("[store.hooks.\"shop.eu\"]\nurl = \"http://a\" # s.toml:7\n"), "{printed}");
    assert!(printed.contains("backlog = 7 # --set listener.2.backlog\n"), "{printed}");
    assert_eq!(load(&printed, &[], &[]).expect("valid").config, loaded.config);
    // A single table is a list of one.
    let one = load("[listener]\nbacklog = 3\n", &[], &[]).expect("valid").config;
    assert_eq!((one.listener.len(), one.listener[0].backlog), (1, 3));
}

#[test]
fn every_fault_is_named_with_its_place_and_the_way_out() {
    let text = "nodde = 'x'\n[store]\nkeep = 'ten'\ncache = '1B'\nhook = 1\n[lisener]\nbacklog = 1\n\
                [[listener]]\nbacklog = -1\norder = 'none'\n[[listener]]\nbacklog = 70000\naddress = 'localhost'\n\
                [store.hooks]\ndesk = 3\n[log]\nlevels = [1]\nis_loud = 'yes'\n";
    let env = [("TEST__STORE__KEEP", "0s"), ("TEST__LOGLEVELS", "a")];
    assert_eq!(
        refusal(text, &env, &["store", "listener.5.backlog=1", "listener.0.backlog=1", "store=1"]),
        [
            "s.toml:1: unknown key `nodde` at the top of the file; did you mean `node`?",
            "s.toml:3: store.keep: \"ten\" is not a duration: a number with ns, us, ms, s, m, h or d, such as \"30s\"",
            "s.toml:5: unknown key `hook` in [store]; there are cache, keep",
            "s.toml:6: unknown section [lisener]; did you mean [listener]?",
            "s.toml:9: listener.backlog: `-1` is not valid; expected whole number",
            "s.toml:10: listener.order: `\"none\"` is not valid; expected \"window\" or \"strict\"",
            "s.toml:12: listener.2.backlog: `70000` is out of range; expected whole number",
            "s.toml:13: listener.2.address: `\"localhost\"` is not valid; expected IP:port, such as \"127.0.0.1:7000\"",
            "s.toml:15: store.hooks.desk: expected a table [store.hooks.desk]",
            "s.toml:17: log.levels: `[1]` is not valid; expected list of texts, such as [\"gw2.example:7000\"]",
            "s.toml:18: log.is_loud: `\"yes\"` is not valid; expected true or false",
            "environment variable TEST__LOGLEVELS: unknown key `loglevels` at the top of the file; there are node",
            "--set store: expected section.key=value",
            "--set listener.5.backlog: the settings have 2 of [[listener]]; add one to the file",
            "--set listener.0.backlog: unknown key `backlog` in [listener.0]; the tables of a list are numbered from 1",
            "--set store: `store` is a section; set one of its keys: cache, keep",
            "s.toml:4: store.cache: 1B is out of range, expected 1KiB to 1GiB",
        ]
    );
}

#[test]
fn faults_of_the_syntax_do_not_hide_the_others() {
    let faults = refusal("[log]\nlevels = \n[store]\nkeep = 'ten'\nkeep = '1s'\nhook = 1\n", &[], &[]);
    let places: Vec<_> = faults.iter().map(|fault| fault.split(": ").next().expect("a place")).collect();
    assert_eq!(places, ["s.toml:2", "s.toml:4", "s.toml:5", "s.toml:6"], "{faults:#?}");
    assert!(faults[2].contains("duplicate key") && faults[3].contains("unknown key `hook`"), "{faults:#?}");
    let faults = refusal("listener = 3\n[store\n", &[], &[]);
    assert!(faults[0].contains("s.toml:1: listener: expected [listener] or [[listener]]"), "{faults:#?}");
    assert!(faults.iter().any(|fault| fault.starts_with("s.toml:2: ")), "{faults:#?}");
}

#[test]
fn an_old_name_is_read_with_a_warning() {
    let text =
        "[logging]\nis_loud = true\n[store]\nmemory = '2MiB'\n[store.services.desk]\nurl = 'http://a'\n";
    let loaded = load(text, &[], &["store.memory=3MiB"]).expect("valid");
    assert!(loaded.config.log.is_loud && loaded.config.store.hooks.contains_key("desk"));
    assert_eq!(loaded.config.store.cache, 3 << 20);
    assert_eq!(
        loaded.warnings,
        [
            "s.toml:1: `logging` is now called `log`; the next release reads the new name only",
            "s.toml:4: `store.memory` is now called `store.cache`; the next release reads the new name only",
            "s.toml:5: `store.services` is now called `store.hooks`; the next release reads the new name only",
            "--set store.memory: `store.memory` is now called `store.cache`; the next release reads the new name only",
        ]
    );
    let both = refusal("[store]\ncache = '2MiB'\nmemory = '3MiB'\n", &[], &[]);
    assert_eq!(
        both,
        [
            "s.toml:3: `store.memory` is the old name of `store.cache`, and both are set; remove `store.memory`"
        ]
    );
    let both = refusal("[store]\nmemory = '3MiB'\ncache = '2MiB'\n", &[], &[]);
    assert_eq!(
        both,
        [
            "s.toml:2: `store.memory` is the old name of `store.cache`, and both are set; remove `store.memory`"
        ]
    );
}

#[test]
fn a_retired_setting_is_refused_with_advice_unless_it_asks_for_nothing() {
    assert!(load("[store]\nengine = 1\n", &[], &["store.engine=1"]).is_ok());
    let said = refusal("[store]\nengine = 2\n", &[], &["store.engine=x"]);
    let advice = "this setting is gone: start `moorline dev`";
    assert_eq!(said, [format!("s.toml:2: store.engine: {advice}"), format!("--set store.engine: {advice}")]);
}

#[test]
fn a_file_that_is_not_there_or_huge_is_named() {
    let load = |path: &Path| {
        let loaded: Result<Loaded<Settings>, _> = SCHEMA.load(Some(path), &[], [], |_| ());
        loaded.map(|_| ()).expect_err("refused").to_string()
    };
    assert!(
        load(Path::new("/nonexistent/s.toml")).starts_with("cannot read settings file /nonexistent/s.toml: ")
    );
    let huge = std::env::temp_dir().join(format!("moorline-settings-{}", std::process::id()));
    std::fs::write(&huge, "#".repeat(2 << 20)).expect("a temp file");
    let said = load(&huge);
    std::fs::remove_file(&huge).expect("ours");
    assert!(said.contains("over 1 MiB"), "{said}");
    let said = load(Path::new("/dev/zero"));
    assert!(said.contains("over 1 MiB"), "a device has no length: {said}");
}

#[test]
fn a_variable_of_another_program_that_does_nothing_is_told_with_the_name_that_was_meant() {
    const OTHER: Schema = Schema { keys: OTHER_KEYS, renamed: &[], retired: &[], env_prefix: "OTHER__" };
    const OTHER_KEYS: &[Key] = &[key("log", "level", Kind::Text, "\"info\"", "Level.")];
    let strays = |names: &[&str]| {
        let env = names.iter().map(|name| ((*name).to_owned(), "1".to_owned()));
        SCHEMA.strays(&OTHER, env)
    };
    assert!(strays(&["OTHER__LOG__LEVEL", "OTHER_PORT", "OTHER_SERVICE_HOST", "HOME"]).is_empty());
    let told = strays(&["OTHER__STORE__CACHE", "OTHER__STORE__HOOKS__A__URL", "OTHER__LOG__LEVL"]);
    let own = SCHEMA.env_prefix;
    assert_eq!(told.len(), 3);
    assert!(told[0].ends_with(&format!("does nothing here; write {own}STORE__CACHE")), "{told:?}");
    assert!(told[1].ends_with(&format!("write {own}STORE__HOOKS__A__URL")), "{told:?}");
    assert!(told[2].contains("OTHER__LOG__LEVL does nothing: unknown key `levl`"), "{told:?}");
}

#[test]
fn an_address_of_ipv6_needs_no_quotes() {
    let one = Kind::Endpoints.value_of("[::1]:7");
    assert_eq!((Kind::Endpoints.check(&one), one.to_string()), (Ok(()), "[\"[::1]:7\"]".to_owned()));
    let two = Kind::Addresses.value_of("[::1]:7,127.0.0.1:8");
    assert_eq!((Kind::Addresses.check(&two), two.as_array().map(Vec::len)), (Ok(()), Some(2)));
    let quoted = Kind::Addresses.value_of("[\"[::1]:7\"]");
    assert_eq!(quoted.as_array().map(Vec::len), Some(1));
}

//! Settings of a file, and what is said about wrong ones.

use super::*;

fn load(text: &str) -> Result<BackendConfig, String> {
    let loaded = SCHEMA.load_text(Path::new("b.toml"), text, &[], [], validate::check);
    loaded.map(|loaded| loaded.config).map_err(|error| error.to_string())
}

#[test]
fn a_file_overrides_defaults_and_units_are_read() {
    let text = "listen = '10.0.0.1:0'\nhandler = 'acker'\n[link]\ncredit = 7\nlease = '250ms'\n[im]\npayload_max = '1KiB'\n";
    let config = load(text).expect("valid");
    assert_eq!((config.handler, config.link.credit), (HandlerKind::Acker, 7));
    assert_eq!((config.link.lease, config.im.payload_max), (Duration::from_millis(250), 1024));
    assert_eq!(config.im.outstanding, ImConfig::default().outstanding);
    assert_eq!(load("").expect("valid"), BackendConfig::default());
}

#[test]
fn what_is_written_is_read_again() {
    let text = toml::to_string(&BackendConfig::default()).expect("serialises");
    assert!(text.contains("idempotency_window = \"7d\"") && text.contains("history_max = \"1GiB\""));
    assert_eq!(load(&text).expect("parses"), BackendConfig::default());
    assert_eq!(load(&SCHEMA.default_toml()).expect("parses"), BackendConfig::default());
}

#[test]
fn webhooks_are_read_under_their_old_name_with_a_warning() {
    let text = "[im.services.desk]\nurl = 'http://a/'\n";
    let loaded = SCHEMA.load_text(Path::new("b.toml"), text, &[], [], validate::check);
    let loaded: moorline_net::settings::Loaded<BackendConfig> = loaded.expect("valid");
    assert_eq!(loaded.config.im.webhooks["desk"].url, "http://a/");
    let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(warning.contains("`im.services` is now called `im.webhooks`"), "{warning}");
}

#[test]
fn every_fault_is_named_with_its_place() {
    for (text, expected) in [
        ("[link]\ncredits = 1", "b.toml:2: unknown key `credits` in [link]; did you mean `credit`?"),
        ("listen = '8.8.8.8:7100'", "b.toml:1: listen: 8.8.8.8:7100 is public"),
        ("[im]\noutstanding = 0", "b.toml:2: im.outstanding: 0 is out of range"),
        ("[im]\npayload_max = '2MiB'", "b.toml:2: im.payload_max: 2MiB is too large"),
        ("[im]\nhistory_max = '1KiB'", "b.toml:2: im.history_max: 1KiB is less than im.payload_max = 60KiB"),
        ("[link]\nlease = '5 parsecs'", "b.toml:2: link.lease: \"5 parsecs\" is not a duration"),
        ("[im]\npayload_max = 60000", "b.toml:2: im.payload_max: `60000` is not a size"),
        ("[link]\nsilence_timeout = '0s'", "b.toml:2: link.silence_timeout: 0s is out of range"),
        ("node_number = 1024", "b.toml:1: node_number: 1024 is out of range, expected 0 to 1023"),
        ("node_number = 70000", "b.toml:1: node_number: `70000` is out of range"),
        ("[im.webhooks]\n'../out'.url = 'http://a/'", "im.webhooks.../out: a webhook needs a name"),
        ("[im.webhooks]\ndesk.url = 'http://'", "b.toml:2: im.webhooks.desk.url: `http://` is not"),
        ("[im.webhooks]\ndesk.url = 'http://a b/'", "with a host"),
        ("[im.webhooks]\ndesk.url = 'http://a:99999/'", "with a host"),
        (
            "[im.webhooks.desk]\nurl = 'http://a/'\ntimeout = '0s'",
            "b.toml:3: im.webhooks.desk.timeout: must be above 0",
        ),
        ("[store]\ncells = ['nonsense']", "b.toml:2: store.cells: not a PostgreSQL connection string"),
        (
            "[store]\ncells = ['host=a password=b']",
            "b.toml:2: store.cells: a password in settings is printed",
        ),
        (
            "[store]\ncells = ['host=a']",
            "b.toml:2: store.cells: the connection to a would be plain; add `sslmode=verify-full",
        ),
        (
            "[store]\ncells = ['host=/run']\n[im]\nfolder = 'x'",
            "im.folder: a node of a cluster keeps nothing on its disk",
        ),
        (
            "listen = '0.0.0.0:1'\nlink.tls.ca_file='a'\nlink.tls.certificate_file='b'\nlink.tls.key_file='c'\n[store]\ncells = ['host=/run']",
            "store.address: other nodes cannot connect to 0.0.0.0:1",
        ),
        ("[api]\nlisten = '127.0.0.1:0'", "b.toml:2: api.listen: the API needs a token; set api.token_file"),
        ("[api]\nlisten = '8.8.8.8:1'\ntoken_file = 't'", "b.toml:2: api.listen: 8.8.8.8:1 is public"),
    ] {
        let said = load(text).expect_err(text);
        assert!(said.contains(expected) && said.lines().count() == 1, "{text}: {said}");
    }
}

#[test]
fn settings_of_a_program_are_checked_too() {
    let config = BackendConfig { node_number: 2000, ..BackendConfig::default() };
    let said = config.validate().expect_err("out of range").to_string();
    assert_eq!(said, "settings of the program: node_number: 2000 is out of range, expected 0 to 1023");
}

//! Accepted and refused command lines.

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace()).map(|arguments| arguments.command)
}

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn settings_may_be_set_again_and_again() {
    let parsed = parse("moorline run -c m.toml --set a.b=1 --set c.d=2").expect("valid");
    let Command::Run { settings: args, .. } = parsed else { panic!("{parsed:?} is not run") };
    assert_eq!((args.file, args.sets), (Some(PathBuf::from("m.toml")), vec!["a.b=1".into(), "c.d=2".into()]));
}

#[test]
fn wrong_usage_is_code_two() {
    for line in [
        "moorline fly",
        "moorline",
        "moorline token --uid a",
        "moorline status --admin localhost",
        "moorline token --key-file f --uid u --ttl 5",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(parse("moorline --version").expect_err("printed").exit_code(), 0);
}

#[test]
fn backend_flags_beat_its_file_and_are_named_when_wrong() {
    let load = |line: &str| {
        let parsed = parse(line).expect("valid usage");
        let Command::Backend(args) = parsed else { panic!("{parsed:?} is not backend") };
        backend::load(&args).map_err(|failure| match failure {
            Failure::Usage(said) => said,
            other => panic!("{other:?}"),
        })
    };
    let config =
        load("moorline backend --set listen=127.0.0.1:0 --set link.credit=7 --set im.payload_max=1KiB")
            .expect("valid");
    assert_eq!(
        (config.listen.ip().expect("an IP address").port(), config.link.credit, config.im.payload_max),
        (0, 7, 1024)
    );
    for (set, expected) in [
        ("lissen=1", "--set lissen: unknown key `lissen` at the top of the file; did you mean `listen`?"),
        ("link.credit=0", "--set link.credit: 0 is out of range, expected 1 to 4294967295"),
        ("listen", "--set listen: expected section.key=value"),
        (
            "listen.x=1",
            "--set listen.x: unknown section [listen]; there are login_hook, link, link.tls, im, im.quota, store, im.webhooks, api, audit",
        ),
    ] {
        assert_eq!(load(&format!("moorline backend --set {set}")).expect_err(set), expected);
    }
    let together = "moorline backend --set api.listen=127.0.0.1:0 --set api.token_file=t";
    assert!(load(together).is_ok(), "in whatever order");
    let said = load("moorline backend -c /nonexistent/b.toml").expect_err("no file");
    assert!(said.contains("/nonexistent/b.toml"), "{said}");
}

#[test]
fn the_manual_and_the_completions_name_every_subcommand() {
    let mut page = Vec::new();
    clap_mangen::Man::new(Arguments::command()).render(&mut page).expect("renders");
    let page = String::from_utf8(page).expect("text");
    for command in Arguments::command().get_subcommands() {
        assert!(page.contains(command.get_name()), "{}", command.get_name());
    }
}

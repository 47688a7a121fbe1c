//! The `moorline` program as people and scripts meet it: exit codes, streams, readiness, the end.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

fn moorline(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorline"));
    let inherited = std::env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("MOORLINE_")) {
        command.env_remove(name);
    }
    // The default addresses are those of a link over TCP, which needs secrets or this word.
    command.env("MOORLINE__BACKEND__UNPROVEN", "loopback");
    command.env("MOORLINE_BACKEND__LINK__UNPROVEN", "loopback");
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn output(line: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = moorline(line).output().expect("starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moorline-cli-{}-{name}", std::process::id()));
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            // Under umask 002 its group could write it, and no key is read from such a file.
            .and_then(|()| {
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            })
            .expect("temp file");
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// A child that is ended with the test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn wrong_settings_are_code_two_and_nothing_on_stdout() {
    let file = TempFile::new("wrong.toml", "[listener]\n\nadress = 1\n");
    let path = file.0.display();
    for command in ["run", "check", "config effective"] {
        let (code, out, err) = output(&format!("{command} -c {path}"));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{command}: {err}");
        assert!(err.contains(&format!("{path}:3: unknown key `adress`")), "{command}: {err}");
    }
    let (code, _, err) = output("run");
    assert!(code == Some(2) && err.contains("auth.key_file") && err.contains("moorline dev"), "{err}");
    let (code, _, err) = output("check --set auth.key_file=/nonexistent/key");
    assert!(code == Some(2) && err.contains("/nonexistent/key"), "{err}");
}

#[test]
fn the_printed_defaults_are_valid_settings() {
    let (code, printed, _) = output("config default");
    assert_eq!(code, Some(0));
    let file = TempFile::new("default.toml", &printed);
    let line = format!("check -c {} --set auth.mode=dev", file.0.display());
    let (code, out, err) = output(&line);
    assert!(
        code == Some(0) && out.ends_with(": valid\n") && err.contains("TOKENS ARE NOT VERIFIED"),
        "{out}{err}"
    );
}

#[test]
fn a_variable_is_a_setting() {
    let mut command = moorline("config effective --set auth.mode=dev");
    let printed = command.env("MOORLINE__DRAIN__GRACE", "7s").output().expect("starts").stdout;
    let printed = String::from_utf8(printed).expect("text");
    assert!(printed.contains("grace = \"7s\" # environment variable MOORLINE__DRAIN__GRACE\n"), "{printed}");
}

#[test]
fn a_backend_checks_and_prints_its_settings() {
    let (code, printed, _) = output("backend config default");
    assert_eq!(code, Some(0));
    let file = TempFile::new("backend.toml", &format!("{printed}[im.webhooks.desk]\nurl = \"http://a/\"\n"));
    let path = file.0.display();
    let (code, out, err) = output(&format!("backend check -c {path}"));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), &*format!("{path}: valid\n"), ""));
    let mut command = moorline(&format!("backend config effective -c {path} --set im.outstanding=7"));
    let printed = command.env("MOORLINE_BACKEND__LINK__LEASE", "1m").output().expect("starts").stdout;
    let printed = String::from_utf8(printed).expect("text");
    for line in [
        "lease = \"60s\" # environment variable MOORLINE_BACKEND__LINK__LEASE\n",
        "outstanding = 7 # --set im.outstanding\n",
        "[im.webhooks.desk]\nurl = \"http://a/\" # ",
        "batch_max = 64 # default\n",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
    let wrong = TempFile::new(
        "wrong-backend.toml",
        "listen = \"8.8.8.8:1\"\n[im]\nfoldr = \"x\"\npayload_max = \"2MiB\"\n",
    );
    let (code, out, err) = output(&format!("backend check -c {}", wrong.0.display()));
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(2), "", 3), "every fault at once: {err}");
    assert!(
        err.contains("wrong-backend.toml:1: listen: ")
            && err.contains("wrong-backend.toml:4: im.payload_max: "),
        "{err}"
    );
    assert!(
        err.contains("wrong-backend.toml:3: unknown key `foldr` in [im]; did you mean `folder`?"),
        "{err}"
    );
}

#[test]
fn a_token_is_one_line() {
    let key = TempFile::new("hs256.key", "0123456789abcdef0123456789abcdef");
    let (code, out, err) = output(&format!("token --key-file {} --uid alice --ttl 5m", key.0.display()));
    assert_eq!((code, out.lines().count(), out.split('.').count()), (Some(0), 1, 3), "{err}");
}

/// RFC 8032, 7.1, test 1.
#[test]
fn a_token_names_the_algorithm_of_the_key_file_and_the_key() {
    let der = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
    let key = TempFile::new(
        "ed25519.pem",
        &format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n"),
    );
    let command = format!("token --key-file {} --uid alice --kid 2026-06", key.0.display());
    let (code, out, err) = output(&command);
    let header = URL_SAFE_NO_PAD.decode(out.split('.').next().expect("a header")).expect("base64");
    let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
    let expected = serde_json::json!({ "typ": "JWT", "alg": "EdDSA", "kid": "2026-06" });
    assert_eq!((code, header), (Some(0), expected), "{err}");
    let (code, out, err) = output("token --key-file /nowhere/key --uid alice");
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("cannot sign with --key-file /nowhere/key: No such file"), "{err}");
}

/// The check has no input, and `--until-eof` must not end it before it has answered.
#[test]
fn one_that_is_only_asked_what_it_reads_always_answers() {
    for _ in 0..40 {
        let mut command = moorline("run --until-eof --set auth.mode=dev");
        let Output { status, stdout, .. } =
            command.env("MOORLINE_HANDOVER", "check").output().expect("starts");
        assert!(status.success() && stdout.starts_with(b"moorline-handover "), "{status}");
    }
}

#[test]
fn an_unreachable_admin_address_is_code_one() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("port");
    let (code, out, err) = output(&format!("status --admin {free}"));
    assert!(code == Some(1) && out.is_empty() && err.contains(&free.to_string()), "{err}");
}

#[test]
fn the_backend_says_that_it_is_ready_and_ends_on_term() {
    let mut command = moorline("backend --set listen=127.0.0.1:0");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut running = Running(child);
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let rest =
        line.strip_prefix("moorline backend ready link=127.0.0.1:").unwrap_or_else(|| panic!("{line:?}"));
    let (port, pid) = rest.trim_end().split_once(" pid=").expect("three fields");
    let pid = pid.strip_suffix(" store=memory").expect("where it stores");
    assert_ne!(port.parse::<u16>().expect("a port"), 0);
    assert_eq!(pid.parse::<u32>().expect("a pid"), running.0.id());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("ours");
    assert_eq!(running.0.wait().expect("ends").code(), Some(0));
}

//! Being able to reach a gateway grants nothing: who may give orders, and which program an order may run.

use crate::gateway::{Backend, Gateway};
use crate::process::{TempFile, binary, is_alive, run};
use crate::raw::Client;
use crate::series::Series;
use moorline::sys::clock;
use std::fs::{Permissions, create_dir, set_permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A private folder, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = TempFile::new("").path().with_extension("folder");
        create_dir(&path).expect("made");
        chmod(&path, 0o700);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn chmod(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

fn post(gateway: &Gateway, path: &str, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(gateway.admin).expect("it listens");
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn whoever_reaches_the_admin_address_gives_no_order_and_reads_no_status() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let pid = series.pid();
    let json = "content-type: application/json\r\n";
    let old = format!("moorline-order: upgrade\r\nmoorline-binary: {}\r\n", binary().display());
    for (path, head, body) in [
        ("/v1/upgrade", json, "{\"binary\": \"/bin/sh\"}"),
        ("/v1/upgrade", old.as_str(), ""),
        ("/v1/drain", json, "{\"redirect\": \"127.0.0.1:1\"}"),
        ("/v1/drain", "moorline-order: drain\r\nmoorline-redirect: 127.0.0.1:1\r\n", ""),
        ("/v1/undrain", json, ""),
    ] {
        let said = post(&series.gateway, path, head, body);
        assert!(said.starts_with("HTTP/1.1 403 "), "{path} {head}: {said}");
    }
    let mut stream = TcpStream::connect(series.gateway.admin).expect("it listens");
    stream.write_all(b"GET /v1/varz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it reads");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("it answers");
    assert!(said.starts_with("HTTP/1.1 403 ") && !said.contains("resident"), "{said}");
    assert_eq!((series.pid(), series.gateway.varz().phase.to_string().as_str()), (pid, "ready"));
    assert_eq!(series.restarts().restarts.len(), 0);
    alice.beat(30);
}

#[test]
fn the_admin_socket_is_for_its_owner_and_stays_through_restarts() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let socket = series.gateway.socket();
    let found = std::fs::symlink_metadata(&socket).expect("there");
    assert_eq!(found.mode() & 0o777, 0o600);
    let own = std::fs::metadata("/proc/self").expect("proc").uid();
    assert_eq!(found.uid(), own);
    series.restart();
    let again = std::fs::symlink_metadata(&socket).expect("there still");
    assert_eq!((again.ino(), again.mode() & 0o777), (found.ino(), 0o600), "the same socket");
    let (code, said, error) = run(&["status", "--admin", &socket.display().to_string()]);
    assert!(code == Some(0) && said.contains("generation 1"), "{said}{error}");
}

#[test]
fn a_killed_gateway_leaves_a_path_that_the_next_one_replaces() {
    let folder = Folder::new();
    let set = format!("admin.socket=\"{}\"", folder.0.join("run/admin.sock").display());
    let gateway = Gateway::alone(&[&set]);
    gateway.process.signal(nix::sys::signal::Signal::SIGKILL);
    let mut gateway = gateway;
    gateway.process.end();
    assert!(folder.0.join("run/admin.sock").exists());
    let mut gateway = Gateway::alone(&[&set]);
    let (code, said, error) =
        run(&["status", "--admin", &folder.0.join("run/admin.sock").display().to_string()]);
    assert!(code == Some(0), "{said}{error}");
    gateway.process.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(gateway.process.end().code(), Some(0));
    assert!(!folder.0.join("run/admin.sock").exists(), "it removes its socket");
}

#[test]
fn a_program_that_others_can_replace_or_that_is_no_gateway_is_not_run() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let pid = series.pid();
    let folder = Folder::new();
    let (open, ours) = (folder.0.join("open"), folder.0.join("ours"));
    for path in [&open, &ours] {
        create_dir(path).expect("made");
        chmod(path, 0o755);
        std::fs::copy(binary(), path.join("moorline")).expect("copied");
        chmod(&path.join("moorline"), 0o755);
    }
    chmod(&open, 0o777);
    symlink("open/moorline", folder.0.join("link")).expect("made");
    symlink(folder.0.join("ours/moorline"), open.join("flip")).expect("made");
    std::fs::copy(binary(), ours.join("group")).expect("copied");
    chmod(&ours.join("group"), 0o775);
    for (path, problem) in [
        (PathBuf::from("/bin/sh"), "is not a moorline"),
        (open.join("moorline"), "open can be written"),
        (open.join("flip"), "open can be written"),
        (ours.join("group"), "group can be written"),
        (ours.clone(), "not a regular file"),
    ] {
        // As any program may order it, without the command line's own look at the path.
        let order = format!("{{\"binary\": \"{}\"}}", path.display());
        let (verdict, said) = ordered(&series, &order);
        assert!(verdict == "rolled_back" && said.contains(problem), "{}: {said}", path.display());
        assert_eq!(series.pid(), pid);
    }
    // The command line resolves links, and the gateway follows them in folders that nobody else may write.
    let (code, restart) =
        series.upgrade(&["--dry-run", "--binary", &ours.join("moorline").display().to_string()]);
    assert_eq!((code, restart.verdict.as_str()), (Some(0), "dry_run"), "{restart:?}");
    alice.beat(30);
}

/// Orders at the socket; the verdict and the problem.
fn ordered(series: &Series, body: &str) -> (String, String) {
    let mut stream = std::os::unix::net::UnixStream::connect(series.gateway.socket()).expect("it listens");
    let length = body.len();
    let head = "POST /v1/upgrade HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {length}\r\n\r\n{body}").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let number: u64 = answer.lines().last().and_then(|line| line.parse().ok()).expect("a number");
    crate::until("the verdict", || {
        let shown = series.restarts();
        let restart = shown.restarts.into_iter().find(|restart| restart.number == number)?;
        Some((restart.verdict, restart.problem))
    })
}

/// A script that says it is a gateway and does `what` instead of the check.
fn impostor(folder: &Folder, name: &str, what: &str) -> String {
    let path = folder.0.join(name);
    let gateway = binary().display();
    let text = format!("#!/bin/bash\n# MOORLINE_HANDOVER\n{what}\nexec {gateway} \"$@\"\n");
    std::fs::write(&path, text).expect("written");
    chmod(&path, 0o755);
    path.display().to_string()
}

#[test]
fn a_check_that_floods_or_leaves_its_output_open_is_ended() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let folder = Folder::new();
    let started = clock::now();
    for (name, what, problem) in [
        ("flood", "exec yes", "writes more than 65536 bytes"),
        ("flood-errors", "exec yes >&2", "writes more than 65536 bytes"),
        ("silent", "exec sleep 1000", "did not end in time"),
        ("closed", "exec >&- 2>&-; exec sleep 1000", "did not end in time"),
        ("reason", "echo 'the settings are of tomorrow' >&2; exit 2", "the settings are of tomorrow"),
    ] {
        let program = impostor(&folder, name, what);
        let (code, restart) = series.upgrade(&["--timeout", "2s", "--binary", &program]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{name}");
        assert!(restart.problem.contains(problem), "{name}: {}", restart.problem);
        assert!(series.gateway.process.children().is_empty(), "{name}: no child is left");
    }
    // A grandchild that holds the output does not hold up the verdict, and ends with the check.
    let grandchild = folder.0.join("pid");
    let hold = format!("sleep 1000 & echo $! >{}", grandchild.display());
    let what = format!("if [ \"$MOORLINE_HANDOVER\" = check ]; then {hold}; fi");
    let program = impostor(&folder, "grandchild", &what);
    let (code, restart) = series.upgrade(&["--dry-run", "--timeout", "600s", "--binary", &program]);
    assert_eq!((code, restart.verdict.as_str()), (Some(0), "dry_run"), "{restart:?}");
    let took = clock::now().saturating_since(started);
    assert!(took < Duration::from_secs(300), "{took:?}");
    let text = std::fs::read_to_string(grandchild).expect("it wrote its pid");
    let pid = text.trim().parse().expect("a pid");
    crate::until("the grandchild is gone", || (!is_alive(pid)).then_some(()));
    alice.beat(30);
}

#[test]
fn what_a_backend_writes_is_for_its_user_alone_and_a_missing_disk_is_an_error() {
    let folder = Folder::new();
    let missing = folder.0.join("disk/store");
    let set = format!("im.folder=\"{}\"", missing.display());
    let (code, said, error) =
        run(&["backend", "--set", "listen=127.0.0.1:0", "--set", "link.unproven=loopback", "--set", &set]);
    assert!(code == Some(1) && error.contains("disk does not exist"), "{said}{error}");
    create_dir(folder.0.join("disk")).expect("made");
    let backend = Backend::start_with(&["listen=127.0.0.1:0", &set]);
    let gateway = Gateway::start(&backend, &[]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    assert_eq!(alice.tell(1, "alice", b"kept").code(), moorline_proto::message::client::Code::Ok);
    let mut open = vec![missing];
    let mut files = 0;
    while let Some(path) = open.pop() {
        let found = std::fs::symlink_metadata(&path).expect("there");
        assert_eq!(found.mode() & 0o077, 0, "{}", path.display());
        if found.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("ours").map(|entry| entry.expect("an entry").path()));
        } else {
            files += 1;
        }
    }
    assert!(files > 0);
}

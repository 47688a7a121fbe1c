//! Devices that return after much was said, and stores that are opened again after much was stored. The long form
//! (`MOORLINE_SOAK_SECONDS`) takes the counts of `docs/benchmarks.md` and prints the figures.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, TempFile, run};
use crate::raw::Client;
use crate::{PATIENCE, soak};
use moorline::sys::clock;
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{decode, encode};
use moorline_sdk::Platform;
use moorline_sdk::client::Client as Sdk;
use nix::sys::signal::Signal;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Processor time of a start, at most, with 20,000 messages; a debug build takes some 2 s.
const READY_CPU_MAX: Duration = Duration::from_secs(30);

/// Bytes of everything in a folder.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        // What is allocated: journals are longer than what is in them.
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[test]
fn a_device_that_returns_gets_everything_by_push_and_by_pull() {
    let messages: u32 = if soak::is_long() { 100_000 } else { 2_000 };
    let folder = StoreFolder::new();
    let mut export = String::new();
    for number in 0..messages {
        let text = format!("{number:0>100}");
        writeln!(
            export,
            r#"{{"message":{{"from":"ann","to":{{"user":"ben"}},"time_ms":{},"text":"{text}"}}}}"#,
            1_700_000_000_000 + u64::from(number)
        )
        .expect("writes to memory");
    }
    let export = TempFile::new(export);
    let inbox = "im.inbox_entries_max=1000000";
    let path = export.path().display().to_string();
    let (code, _, err) =
        run(&["backend", "import", &path, "--log-level", "error", "--set", &folder.set(), "--set", inbox]);
    assert_eq!(code, Some(0), "{err}");
    let backend = Backend::start_with(&["listen=127.0.0.1:0", &folder.set(), inbox]);
    let gateway = Gateway::start(&backend, &["limits.user_rate=0"]);

    let start = clock::now();
    let client =
        Sdk::builder(&format!("tcp://{}", gateway.listener)).user("ben").device("phone", Platform::Ios);
    let client = client.build().expect("starts");
    for number in 0..messages {
        let message = client.recv_timeout(PATIENCE).expect("comes");
        assert_eq!(
            (message.seq, &message.payload[..]),
            (u64::from(number) + 1, format!("{number:0>100}").as_bytes())
        );
    }
    let pushed = clock::now().saturating_since(start).as_secs_f64();
    drop(client);

    let start = clock::now();
    let mut client = Client::login(gateway.listener, "ann", "pad");
    let (mut from, mut id) = (1, 0);
    while from <= u64::from(messages) {
        id += 1;
        let request = PullRequest { conversation: "c2c:ann:ben".into(), from, ..PullRequest::default() };
        let page: PullResponse =
            decode(&client.request(id, "im.pull", encode(&request)).payload).expect("a page");
        assert!(page.messages.iter().zip(from..).all(|(push, seq)| push.seq == seq));
        from += page.messages.len() as u64;
        client.heard.responses.clear();
        client.heard.pushes.clear();
    }
    let pulled = clock::now().saturating_since(start).as_secs_f64();
    println!(
        "{messages} messages of 100 bytes: pushed in {pushed:.2} s, {:.0}/s; pulled in {pulled:.2} s, {:.0}/s",
        f64::from(messages) / pushed,
        f64::from(messages) / pulled
    );
}

#[test]
fn a_large_store_opens_again_after_a_kill() {
    let messages: u64 = if soak::is_long() { 10_000_000 } else { 20_000 };
    let folder = StoreFolder::new();
    let count = messages.to_string();
    let seed = [
        "backend",
        "seed",
        "--users",
        "10000",
        "--groups",
        "500",
        "--log-level",
        "error",
        "--messages",
        &count,
    ];
    let start = clock::now();
    let (code, out, err) = run(&[&seed[..], &["--set", &folder.set()]].concat());
    assert_eq!(code, Some(0), "{err}");
    let seeded = clock::now().saturating_since(start).as_secs_f64();
    let bytes = size_of(folder.path());
    let mut times = Vec::new();
    for round in 0..3u32 {
        let start = clock::now();
        let backend = Backend::start_with(&["listen=127.0.0.1:0", &folder.set()]);
        let (ready, cpu) = (clock::now().saturating_since(start), backend.process.cpu());
        let gateway = Gateway::start(&backend, &[]);
        let mut client = Client::login(gateway.listener, "user-1", "d");
        let first = client.tell(u128::from(round) + 1, "user-2", b"first");
        assert!(first.seq > 0, "{first:?}");
        times.push((ready, cpu, backend.process.resident_kib() / 1024));
        backend.process.signal(Signal::SIGKILL);
    }
    println!(
        "{out}{messages} messages seeded in {seeded:.1} s; {} MiB on disk, {} bytes each, with their inbox entries; \\
         ready after, with this processor time (and MiB resident): {times:?}",
        bytes >> 20,
        bytes / messages
    );
    if !soak::is_long() {
        assert!(times.iter().all(|(_, cpu, _)| *cpu < READY_CPU_MAX), "{times:?}, at most {READY_CPU_MAX:?}");
    }
}

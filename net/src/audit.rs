//! Audit log: who ordered what and how it ended, one JSON line each, in a file that cannot grow without bound.
//!
//! ```json
//! {"time_ms":1700000000000,"actor":"api:shop","peer":"10.0.0.7:4711","action":"POST /v1/kick","target":"ann","outcome":"200"}
//! ```
//!
//! Nobody who serves waits for the file: a thread writes it, from a queue of 1,024 lines. A file at its limit is
//! renamed to its name with `.1` behind it, over an older one. A line holds no token, no message and no secret.

use crate::clock::Clock;
use crate::log_rate::LogRate;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that wait for the thread.
const LINES_MAX: usize = 1024;
/// Bytes of one text of a line; a longer one is cut.
const TEXT_BYTES_MAX: usize = 256;
/// Longest wait of [`AuditLog::flush`].
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// One line.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Entry<'a> {
    /// Caller: the name of an API token, a user of the system, or a signal.
    pub actor: &'a str,
    /// Address or process of the caller; empty: this process itself.
    pub peer: &'a str,
    /// Order or request.
    pub action: &'a str,
    /// Object of the action; empty: it has none.
    pub target: &'a str,
    /// Result: a status, or a word.
    pub outcome: &'a str,
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    #[serde(flatten)]
    entry: Entry<'a>,
}

/// A handle to the log. Clones share the file; a default one writes nothing.
#[derive(Clone, Debug, Default)]
pub struct AuditLog {
    queue: Option<SyncSender<Order>>,
    dropped: Arc<AtomicU64>,
    clock: Clock,
}

#[derive(Debug)]
enum Order {
    Write(Vec<u8>),
    /// Open the file at its path again.
    Reopen,
    /// Answer when all lines before this order are written.
    Flush(SyncSender<()>),
}

impl AuditLog {
    /// Opens the file at `path`, for its owner only, and starts the thread. With its predecessor, it takes at most
    /// twice `bytes_max`.
    ///
    /// # Errors
    /// The file cannot be opened, it is a link, or there is no thread.
    pub fn start(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut writer = Writer { path: path.to_owned(), bytes_max, file: open(path)?, bytes: 0 };
        writer.bytes = writer.file.metadata()?.len();
        let (queue, orders) = sync_channel(LINES_MAX);
        let log = Self { queue: Some(queue), ..Self::default() };
        let dropped = Arc::clone(&log.dropped);
        crate::thread::spawn("audit", move || writer.run(&orders, &dropped))?;
        Ok(log)
    }

    /// Queues a line, or drops and counts it.
    pub fn note(&self, entry: &Entry<'_>) {
        let Some(queue) = &self.queue else { return };
        let entry = Entry {
            actor: cut(entry.actor),
            peer: cut(entry.peer),
            action: cut(entry.action),
            target: cut(entry.target),
            outcome: cut(entry.outcome),
        };
        let line = Line { time_ms: self.clock.unix_ms(), entry };
        let Ok(mut line) = serde_json::to_vec(&line) else { return };
        line.push(b'\n');
        if queue.try_send(Order::Write(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Number of lines that were dropped: the queue was full, or the file did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Opens the file at its path again, as after it was moved by a program that rotates logs.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.try_send(Order::Reopen).ok(); // a full queue comes to it with the next signal
        }
    }

    /// Waits at most 2 s until the lines of before are written: before the process ends.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, written) = sync_channel(1);
        if queue.try_send(Order::Flush(done)).is_ok() {
            written.recv_timeout(FLUSH_MAX).ok();
        }
    }
}

/// The beginning of a text.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe without a reader would be waited for without end.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENXIO) => io::Error::other("it is a pipe that nobody reads"),
        _ => error,
    })
}

struct Writer {
    path: PathBuf,
    bytes_max: u64,
    file: File,
    /// Bytes of the file.
    bytes: u64,
}

impl Writer {
    fn run(&mut self, orders: &Receiver<Order>, dropped: &AtomicU64) {
        let failures = LogRate::default();
        for order in orders {
            match order {
                Order::Write(line) => {
                    if let Err(error) = self.write(&line) {
                        dropped.fetch_add(1, Ordering::Relaxed);
                        if failures.try_pass().is_some() {
                            tracing::error!(path = %self.path.display(), %error, "cannot write the audit log");
                        }
                    }
                }
                Order::Reopen => {
                    if let Err(error) = self.reopen() {
                        let path = self.path.display();
                        tracing::error!(%path, %error, "cannot open the audit log again; the old file is written on");
                    }
                }
                Order::Flush(done) => _ = done.try_send(()),
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        (self.bytes, self.file) = (file.metadata()?.len(), file);
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            (self.file, self.bytes) = (open(&self.path)?, 0);
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn entry(target: &str) -> Entry<'_> {
        Entry { actor: "api:shop", peer: "", action: "POST /v1/kick", target, outcome: "200" }
    }

    #[test]
    fn lines_are_json_and_two_files_are_all_there_is() {
        let folder = std::env::temp_dir().join(format!("moorline-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (path, older) = (folder.join("audit.log"), folder.join("audit.log.1"));
        let log = AuditLog::start(&path, 1000).expect("opens");
        for number in 0..100 {
            log.note(&entry(&format!("user {number}\n\"{}", "x".repeat(1000))));
            log.flush();
        }
        let size = |path: &Path| std::fs::metadata(path).expect("there").len();
        assert!(size(&path) <= 1000 && size(&older) <= 1000, "{} {}", size(&path), size(&older));
        let text = std::fs::read_to_string(&path).expect("text");
        let last: serde_json::Value =
            serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        let target = last["target"].as_str().expect("text");
        assert!(target.starts_with("user 99\n\"xxx") && target.len() == TEXT_BYTES_MAX, "{target}");
        assert_eq!((&last["actor"], &last["outcome"]), (&"api:shop".into(), &"200".into()));
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let moved = folder.join("moved");
        std::fs::rename(&path, &moved).expect("moved");
        log.note(&entry("still in the old file"));
        log.reopen();
        log.note(&entry("in a new file"));
        log.flush();
        let last =
            |path: &Path| std::fs::read_to_string(path).expect("text").lines().next_back().map(str::to_owned);
        assert!(last(&moved).is_some_and(|line| line.contains("still in")));
        assert!(last(&path).is_some_and(|line| line.contains("in a new file")));
        let link = folder.join("link");
        std::os::unix::fs::symlink(&path, &link).expect("made");
        AuditLog::start(&link, 1000).expect_err("a link");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let refused = AuditLog::start(&pipe, 1000).expect_err("it is not waited for").to_string();
        assert!(refused.contains("a pipe that nobody reads"), "{refused}");
        std::fs::remove_dir_all(folder).expect("removed");
        AuditLog::default().note(&entry("nobody"));
        assert_eq!(log.dropped(), 0);
    }
}

//! `strace` at a process under test: it writes down the calls of all threads, or has the calls of some threads fail or wait.

use crate::process::TempFile;
use crate::until;
use moorline::sys::clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Time that `strace` has to let its threads go.
const LEAVING_MAX: Duration = Duration::from_secs(10);

/// True if `strace` is there and may trace. With `MOORLINE_STRACE=require` the test fails where not.
pub(crate) fn is_there() -> bool {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).stdin(Stdio::null()).output();
    let problem = match probe {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let is_required = std::env::var("MOORLINE_STRACE").is_ok_and(|value| value == "require");
    assert!(!is_required, "install strace, and let it trace: {problem}");
    crate::skipped(&format!("strace cannot trace here: {problem}"));
    false
}

/// Threads of a process, and their names without their numbers: `reactor-1` is a `reactor`.
pub(crate) fn threads(pid: u32) -> BTreeMap<u32, String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let name = |id: u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{id}/comm")).ok()?;
        Some((id, unnumbered(name.trim()).to_owned()))
    };
    ids.filter_map(name).collect()
}

/// Name of a thread without its number.
fn unnumbered(name: &str) -> &str {
    name.trim_end_matches(|last: char| last.is_ascii_digit()).trim_end_matches('-')
}

/// A `strace` that is attached to threads, and its output.
pub(crate) struct Tracer(Child, TempFile);

impl Tracer {
    /// Writes down every call of a process, also of threads that it starts. `None`: the process has ended.
    pub(crate) fn record(pid: u32) -> Option<Self> {
        Self::attach(&[pid], &["-f", "-y", "-Y", "-s", "256"])
    }

    /// Has each call of this name in these threads meet an effect. `follows`: also in threads that they start. `None`: they
    /// have ended.
    pub(crate) fn inject(threads: &[u32], follows: bool, call: &str, effect: &str) -> Option<Self> {
        let mut options = vec!["-e".to_owned(), format!("trace={call}")];
        for call in call.split(',') {
            // The system refuses memory there by naming the old end: 0 is below what was asked for, and no error.
            let effect =
                if call == "brk" { effect.replace("error=ENOMEM", "retval=0") } else { effect.into() };
            options.extend(["-e".to_owned(), format!("inject={call}:{effect}")]);
        }
        options.extend(follows.then(|| "-f".to_owned()));
        Self::attach(threads, &options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn attach(threads: &[u32], options: &[&str]) -> Option<Self> {
        let (mut command, written) = (Command::new("strace"), TempFile::new(""));
        command.arg("-o").arg(written.path()).args(options);
        threads.iter().for_each(|id| _ = command.args(["-p", &id.to_string()]));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("strace runs");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut told = lines.filter(|line| line.contains("attach"));
        // One line for each: it is attached, or it has ended.
        let attached = told.by_ref().take(threads.len()).filter(|line| line.contains(" attached")).count();
        std::thread::spawn(move || told.for_each(drop));
        let tracer = Self(child, written);
        (attached > 0).then_some(tracer)
    }

    /// Lets the threads go. Returns the output.
    ///
    /// `strace` that is told to leave while a traced process ends may wait for ever for a thread that it reaps no more: after
    /// a while it is killed, and the system lets the threads go.
    pub(crate) fn detach(mut self) -> String {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("our child");
        let told = clock::now();
        until("strace leaves", || {
            if clock::now().saturating_since(told) > LEAVING_MAX {
                self.0.kill().expect("our child");
            }
            self.0.try_wait().expect("our child")
        });
        std::fs::read_to_string(self.1.path()).expect("our file")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
        if std::thread::panicking() {
            println!("--- strace:\n{}", std::fs::read_to_string(self.1.path()).unwrap_or_default());
        }
    }
}

/// Number of calls that met an effect.
pub(crate) fn met(output: &str) -> usize {
    output.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count()
}

/// Calls in a record, with the unnumbered names of their threads. Reads of the file at `own`, which only a process under test
/// reads, are left out. Calls that only wake a thread are told apart: `futex wake`, `write wake`.
pub(crate) fn calls(record: &str, own: &str) -> BTreeSet<(String, String)> {
    let mut calls = BTreeSet::new();
    let mut inside = HashSet::new();
    for line in record.lines() {
        let Some((id, rest)) = line.split_once('<') else { continue };
        let Some((thread, rest)) = rest.split_once("> ") else { continue };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            continue; // the end of a call, of a thread, or a signal
        }
        if arguments.contains(own) {
            inside.insert(id);
        }
        if inside.contains(id) {
            if name == "close" {
                inside.remove(id);
            }
            continue;
        }
        let first = arguments.split(',').next().unwrap_or_default();
        let wakes = match name {
            "futex" => arguments.contains("WAKE"),
            "write" => first.contains("eventfd"),
            _ => false,
        };
        calls.insert((
            unnumbered(thread).to_owned(),
            if wakes { format!("{name} wake") } else { name.into() },
        ));
    }
    calls
}

#[test]
fn a_record_names_each_call_of_each_kind_of_thread_once() {
    let record = "\
        7<moorline> futex(0x7, FUTEX_WAKE_PRIVATE, 1) = 1\n\
        7<moorline> openat(AT_FDCWD, \"/tmp/own\", O_RDONLY) = 5\n\
        7<moorline> read(5, \"\", 10) = 0\n\
        7<moorline> close(5) = 0\n\
        7<moorline> write(6<anon_inode:[eventfd]>, \"\", 8) = 8\n\
        8<reactor-0> epoll_wait(3,  <unfinished ...>\n\
        9<reactor-1> epoll_wait(3, [], 1024, 0) = 0\n\
        8<reactor-0> <... epoll_wait resumed>[], 1024, 5) = 0\n\
        8<reactor-0> close(9) = -1 EIO (Input/output error) (INJECTED)\n\
        8<reactor-0> --- SIGSTOP {si_signo=SIGSTOP} ---\n\
        8<reactor-0> +++ exited with 0 +++\n";
    let calls = calls(record, "/tmp/own");
    let calls: Vec<_> = calls.iter().map(|(thread, name)| (thread.as_str(), name.as_str())).collect();
    let wanted = [
        ("futex wake", "moorline"),
        ("write wake", "moorline"),
        ("close", "reactor"),
        ("epoll_wait", "reactor"),
    ];
    assert_eq!(calls, wanted.map(|(name, thread)| (thread, name)));
    assert_eq!(met(record), 1);
}

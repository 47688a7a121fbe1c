//! The old process's side.

use super::super::assembly::Gateway;
use super::{CHECK, CHECK_ANSWER, COMMIT, RECLAIMED, TOUCHED, VARIABLE, record_of};
use crate::admin::{Restart, RestartOrder, Step};
use crate::failpoint;
use crate::freeze;
use crate::metrics::process::Figures;
use crate::snapshot::{GROWN, GatewayHead, Header, MAJOR_MIN, SectionKind, VERSION};
use crate::sys::child::{self, Inherited};
use crate::sys::{clock, limits, memory, sockets};
use moorline_proto::time::Instant;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// From the call to stand still until every thread does, and no message is under way.
const FREEZE_MAX: Duration = Duration::from_millis(500);
/// From the commit until the child has taken the sockets.
const TOUCHED_MAX: Duration = Duration::from_secs(2);
/// From then until it says that it runs: there is nothing to take back any more.
const RUNNING_MAX: Duration = Duration::from_secs(10);
/// Bytes of the answer to a check.
const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// Descriptors that a restart opens, with some to spare for who connects meanwhile.
const FILES_NEEDED: u64 = 32;
/// Memory that must be available, in parts of a hundred of what this process uses.
const MEMORY_PERCENT: u64 = 120;

/// Command line of the gateway, to start another process likewise.
pub(in crate::gateway) struct RunSettings {
    pub(in crate::gateway) arguments: Vec<OsString>,
    pub(in crate::gateway) binary: PathBuf,
    pub(in crate::gateway) timeout: Duration,
}

impl RunSettings {
    /// Returns the settings of this process.
    pub(in crate::gateway) fn of_this_process(timeout: Duration) -> Self {
        let binary = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        Self { arguments: std::env::args_os().skip(1).collect(), binary: undeleted(binary), timeout }
    }
}

/// Returns the path of a file that has been replaced meanwhile: the system adds a word to its name.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => text.into(),
        None => path,
    }
}

/// Outcome of a restart.
pub(in crate::gateway) enum Outcome {
    /// The child serves; this process must leave without touching a socket.
    Committed(u32),
    /// This process serves on.
    Serving,
    /// The child took over and died at once: nobody has the sockets any more.
    Torn(String),
}

/// Reason why a restart did not happen.
enum Failure {
    /// This process goes on.
    Back(String),
    /// This process cannot go on: the sockets are gone.
    Torn(String),
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Self::Back(problem)
    }
}

/// The steps as they happen.
struct Course {
    restart: Restart,
    began: Instant,
}

impl Course {
    fn step(&mut self, name: &str, detail: impl Into<String>) {
        let seconds = clock::machine_now().saturating_since(self.began).as_secs_f64();
        let detail = detail.into();
        tracing::info!(step = name, seconds, detail, "hot restart");
        self.restart.steps.push(Step { name: name.into(), seconds, detail });
        self.began = clock::machine_now();
    }
}

/// Hands everything over to a new process, or goes on as if nothing had happened.
pub(in crate::gateway) fn restart(
    gateway: &Gateway,
    settings: &RunSettings,
    order: &RestartOrder,
) -> Outcome {
    let restarts = &gateway.status.restarts;
    let number = restarts.begin();
    let shown = restarts.show();
    let binary = order.binary.clone().unwrap_or_else(|| settings.binary.clone());
    let restart = Restart {
        number,
        unix_ms: clock::unix_nanos() / 1_000_000,
        generation: shown.generation,
        from: format!("{} {}", env!("CARGO_PKG_VERSION"), settings.binary.display()),
        to: binary.display().to_string(),
        previous_binary: settings.binary.display().to_string(),
        ..Restart::default()
    };
    let mut course = Course { restart, began: clock::machine_now() };
    let timeout = order.timeout.unwrap_or(settings.timeout);
    let mut attempt = Attempt {
        gateway,
        arguments: &settings.arguments,
        binary: &binary,
        deadline: clock::machine_now() + timeout,
        is_dry_run: order.is_dry_run,
        history: shown.restarts,
        generation: shown.generation + 1,
        child: None,
        frozen_at: None,
        is_called: false,
    };
    match attempt.run(&mut course) {
        Ok(Some(pid)) => Outcome::Committed(pid),
        Ok(None) => {
            attempt.go_back();
            course.restart.verdict = "dry_run".into();
            restarts.end(course.restart);
            Outcome::Serving
        }
        Err(Failure::Torn(problem)) => Outcome::Torn(problem),
        Err(Failure::Back(problem)) => {
            attempt.go_back();
            if let Some((_, machine_nanos)) = attempt.frozen_at {
                course.restart.pause_seconds = super::seconds(clock::machine_nanos() - machine_nanos);
            }
            tracing::error!(problem, "hot restart rolled back; this process serves on");
            course.step("roll back", "this process serves on");
            (course.restart.verdict, course.restart.problem) = ("rolled_back".into(), problem);
            restarts.end(course.restart);
            Outcome::Serving
        }
    }
}

struct Attempt<'a> {
    gateway: &'a Gateway,
    arguments: &'a [OsString],
    binary: &'a Path,
    deadline: Instant,
    is_dry_run: bool,
    history: Vec<Restart>,
    generation: u64,
    child: Option<Child>,
    /// The gateway's time and the machine's, when everything stood still.
    frozen_at: Option<(Instant, u64)>,
    is_called: bool,
}

impl Attempt<'_> {
    /// The child's process id, or nothing after a dry run.
    fn run(&mut self, course: &mut Course) -> Result<Option<u32>, Failure> {
        if self.gateway.status.is_draining() {
            let problem = "check: the clients are asked to leave; let them come again first (undrain)";
            return Err(Failure::Back(problem.into()));
        }
        failpoint::reach("old.check");
        let version = self.check()?;
        course.restart.to = format!("{version} {}", self.binary.display());
        course.step("check", format!("{version}, settings valid"));
        let mut line = self.warm(course)?;
        if self.is_dry_run {
            return Ok(None);
        }
        self.freeze(&mut line, course)?;
        self.commit(&mut line).map(Some)
    }

    /// Starts the child, which watches all sockets while this process serves on.
    fn warm(&mut self, course: &mut Course) -> Result<Line, String> {
        failpoint::try_reach("old.memory").map_err(cannot("make a file in memory"))?;
        let (word, word_file) = memory::Word::create().map_err(cannot("share memory with a child"))?;
        let snapshot = memory::file("moorline-snapshot").map_err(cannot("make a file in memory"))?;
        let sockets = memory::file("moorline-sockets").map_err(cannot("make a file in memory"))?;
        // From now on closing a socket here may not close it.
        freeze::set_shared(true);
        let list = self.gateway.list_sockets(self.deadline)?.finish(Header::default());
        memory::write_sealed(&sockets, &list).map_err(cannot("write into memory"))?;
        let (ours, theirs) = UnixStream::pair().map_err(cannot("make a socket pair"))?;
        let files = [&word_file.as_fd(), &snapshot.as_fd(), &sockets.as_fd()];
        failpoint::reach("old.spawn");
        let pid = self.spawn(&theirs, files, ours.as_raw_fd())?;
        drop(theirs);
        failpoint::reach("old.spawned");
        let lines = BufReader::new(ours.try_clone().map_err(cannot("share a socket"))?);
        let mut line = Line { talk: Talk { ours, lines }, word, snapshot, pid };
        line.talk.expect("warm", self.deadline, || self.is_child_alive())?;
        course.step("warm", format!("pid {pid}"));
        failpoint::reach("old.warm");
        Ok(line)
    }

    /// Every thread stands still; the child reads where all of them are.
    fn freeze(&mut self, line: &mut Line, course: &mut Course) -> Result<(), String> {
        self.is_called = true;
        let freeze_deadline = self.deadline.min(clock::machine_now() + FREEZE_MAX);
        let machine_nanos = clock::machine_nanos();
        let (frozen_at, mut writer) = self.gateway.freeze(freeze_deadline, self.deadline)?;
        self.frozen_at = Some((frozen_at, machine_nanos));
        course.step("freeze", "every thread stands still");
        failpoint::reach("old.frozen");

        let mut head = GatewayHead {
            history: self.history.iter().map(record_of).collect(),
            restart_numbers: self.gateway.status.restarts.numbers(),
            ..GatewayHead::default()
        };
        head.history.push(record_of(&course.restart));
        let head = self.gateway.freeze_head(head).map_err(cannot("name the listening sockets"))?;
        writer.add(SectionKind::Gateway, 0, head);
        let header = Header {
            writer: env!("CARGO_PKG_VERSION").into(),
            generation: self.generation,
            frozen_at: frozen_at.as_nanos(),
            critical: if self.gateway.has_grown { GROWN } else { 0 },
            ..Header::default()
        };
        let mut parts = writer.finish(header);
        failpoint::damage("old.damage", &mut parts);
        let length = failpoint::try_reach("old.snapshot")
            .and_then(|()| memory::write_sealed(&line.snapshot, &parts))
            .map_err(cannot("write the snapshot into memory"))?;
        drop(parts);
        course.step("snapshot", format!("{length} bytes"));
        line.talk.say(&format!("snapshot {length} {machine_nanos}"))?;
        failpoint::reach("old.told");
        let ready = line.talk.expect("ready", self.deadline, || self.is_child_alive())?;
        course.step("adopt", format!("sockets {ready}"));
        failpoint::reach("old.ready");
        Ok(())
    }

    /// The word decides. Returns the child's process id.
    fn commit(&mut self, line: &mut Line) -> Result<u32, Failure> {
        assert!(line.word.swap(0, COMMIT), "the child writes it first only when this process is dead");
        failpoint::reach("old.committed");
        let said = line.talk.say("commit").and_then(|()| {
            line.talk.expect("running", clock::machine_now() + TOUCHED_MAX, || self.is_child_alive())
        });
        let said = said.or_else(|problem| match (line.word.get(), self.is_child_alive()) {
            (TOUCHED, Ok(())) => {
                line.talk.expect("running", clock::machine_now() + RUNNING_MAX, || self.is_child_alive())
            }
            _ => Err(problem),
        });
        if let Err(problem) = said {
            self.end_child();
            if line.word.swap(COMMIT, RECLAIMED) {
                return Err(Failure::Back(format!("after the commit: {problem}")));
            }
            return Err(Failure::Torn(format!("the new process took over and failed: {problem}")));
        }
        failpoint::reach("old.running");
        Ok(line.pid)
    }

    /// Asks the binary what it is, and looks whether there is room for a second process.
    fn check(&self) -> Result<String, String> {
        let metadata = std::fs::metadata(self.binary)
            .map_err(|error| format!("check: cannot look at {}: {error}", self.binary.display()))?;
        let own = nix::unistd::geteuid().as_raw();
        if (metadata.uid() != own && metadata.uid() != 0) || metadata.mode() & 0o002 != 0 {
            let binary = self.binary.display();
            return Err(format!(
                "check: {binary} belongs to another user, or anybody may write it; it is not run"
            ));
        }
        let free = limits::free_files().map_err(cannot("count the open descriptors"))?;
        if free < FILES_NEEDED {
            return Err(format!(
                "check: {FILES_NEEDED} descriptors are needed, {free} are free; raise the open-files limit"
            ));
        }
        let wanted = Figures::read().resident_bytes * MEMORY_PERCENT / 100;
        let room = failpoint::try_reach("old.room").map_or(Some(0), |()| available_memory());
        if let Some(available) = room
            && available < wanted
        {
            return Err(format!("check: {wanted} bytes of memory are needed, {available} are available"));
        }
        let mut child = Command::new(self.binary)
            .args(self.arguments)
            .env(VARIABLE, CHECK)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| format!("check: cannot run {}: {error}", self.binary.display()))?;
        while child.try_wait().map_err(|error| format!("check: {error}"))?.is_none() {
            if clock::machine_now() >= self.deadline {
                child.kill().ok();
                child.wait().ok();
                return Err("check: the binary did not end in time".into());
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let status = child.wait().map_err(|error| format!("check: {error}"))?;
        let mut answer = String::new();
        if let Some(output) = child.stdout.take() {
            output.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).ok();
        }
        let Some(line) = answer.lines().find_map(|line| line.strip_prefix(CHECK_ANSWER)) else {
            return Err(format!(
                "check: {} ended with {status} and did not answer as a moorline that can take over; are the \
                 settings valid for it?",
                self.binary.display()
            ));
        };
        let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let (version, reads) = (word("version=").unwrap_or("?"), word("reads=").unwrap_or("?"));
        let range = reads.split_once('-').and_then(|(a, b)| Some(a.parse::<u32>().ok()?..=b.parse().ok()?));
        if range.is_none_or(|range| !range.contains(&VERSION.0)) {
            return Err(format!(
                "check: {version} reads snapshots of versions {reads}, and {MAJOR_MIN} to {} are written here",
                VERSION.0
            ));
        }
        Ok(version.to_owned())
    }

    fn spawn(
        &mut self,
        theirs: &UnixStream,
        files: [&BorrowedFd<'_>; 3],
        ours: RawFd,
    ) -> Result<u32, String> {
        let kept = |fd| Inherited { fd, cookie: None };
        let mut inherited = vec![kept(theirs.as_raw_fd())];
        inherited.extend(files.map(|file| kept(file.as_raw_fd())));
        let value = inherited.iter().map(|one| one.fd.to_string()).collect::<Vec<_>>().join(",");
        let known = sockets::open_fds().map_err(cannot("list the open descriptors"))?;
        let others = known.into_iter().filter(|fd| *fd != ours && *fd != theirs.as_raw_fd());
        inherited
            .extend(others.filter_map(|fd| Some(Inherited { fd, cookie: Some(sockets::cookie_of(fd)?) })));
        let mut command = Command::new(self.binary);
        command.args(self.arguments).env(VARIABLE, value);
        child::inherit(&mut command, inherited);
        let child = command
            .spawn()
            .map_err(|error| format!("spawn: cannot run {}: {error}", self.binary.display()))?;
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    /// Fails with the status of a child that has ended.
    fn is_child_alive(&mut self) -> Result<(), String> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(format!("the new process ended with {status}")),
            _ => Ok(()),
        }
    }

    fn end_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        freeze::set_shared(false);
    }

    fn go_back(&mut self) {
        self.end_child();
        if self.is_called {
            self.gateway.resume_after_rollback(self.frozen_at.map(|(at, _)| at));
        }
    }
}

/// Connection of this process with its child.
struct Line {
    talk: Talk,
    word: memory::Word,
    snapshot: File,
    pid: u32,
}

/// The conversation with the child: lines both ways, descriptors one way.
struct Talk {
    ours: UnixStream,
    lines: BufReader<UnixStream>,
}

/// Looks for the status of a child that has closed its socket.
const LOOKS_AT_AN_END: usize = 200;
/// Between them: everything stands still meanwhile.
const LOOK_AT_AN_END: Duration = Duration::from_millis(1);
/// Between looks at whether the child lives.
const LOOK: Duration = Duration::from_millis(20);

impl Talk {
    fn say(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.ours, "{line}").map_err(|error| format!("the new process does not listen: {error}"))
    }

    /// Waits for a line that begins with `word`; returns what follows.
    fn expect(
        &mut self,
        word: &str,
        deadline: Instant,
        mut check: impl FnMut() -> Result<(), String>,
    ) -> Result<String, String> {
        let mut line = String::new();
        loop {
            self.ours.set_read_timeout(Some(LOOK)).map_err(cannot("set a timeout"))?;
            match self.lines.read_line(&mut line) {
                Ok(0) => {
                    // If it ended, its status says more; that comes a moment later.
                    for _ in 0..LOOKS_AT_AN_END {
                        check()?;
                        std::thread::park_timeout(LOOK_AT_AN_END);
                    }
                    return Err(format!("the new process closed its socket before it was {word}"));
                }
                Ok(_) if line.ends_with('\n') => {
                    let said = line.trim_end();
                    if let Some(fd) = said.strip_prefix("want ").and_then(|fd| fd.parse().ok()) {
                        sockets::send_fds(&self.ours, &[fd]).map_err(cannot("send a socket"))?;
                    } else if let Some(rest) = said.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    } else {
                        return Err(format!("the new process says: {said}"));
                    }
                    line.clear();
                    continue;
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(format!("the new process does not speak: {error}")),
            }
            check()?;
            if clock::machine_now() >= deadline {
                return Err(format!("the new process was not {word} in time"));
            }
        }
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

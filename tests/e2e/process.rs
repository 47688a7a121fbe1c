//! A child of the test: started, watched, and ended with the test.

use crate::postgres::scratch;
use crate::until;
use moorline::sys::executable::Executable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::Duration;

/// Longest wait for a process to be ready. It ends a hang, and says nothing about the time that is normal.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// The program under test. A gateway runs no file anew that its group may write, and under umask 002 the build folder
/// is so: then a copy elsewhere is used.
pub(crate) fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_moorline"));
        if Executable::open(built).is_ok() {
            return built.to_owned();
        }
        let user = nix::unistd::geteuid();
        let folder = std::env::temp_dir().join(format!("moorline-e2e-program-{user}"));
        std::fs::create_dir(&folder).ok(); // the one of an earlier run is used again
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("our folder");
        let copy = folder.join("moorline");
        let new = folder.join(format!("new-{}", std::process::id()));
        std::fs::copy(built, &new).expect("the temp folder takes files");
        std::fs::set_permissions(&new, Permissions::from_mode(0o700)).expect("our file");
        std::fs::rename(new, &copy).expect("one folder");
        copy
    });
    &BINARY
}

/// The program with `arguments` and without the settings of whoever runs the tests.
pub(crate) fn program<S: AsRef<str>>(arguments: &[S]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MOORLINE__")
            || name.to_string_lossy().starts_with("MOORLINE_BACKEND__")
        {
            command.env_remove(name);
        }
    }
    // Gateway and backend of a test find each other on this machine without a secret, unless the test says otherwise.
    command.env("MOORLINE__BACKEND__UNPROVEN", "loopback");
    command.env("MOORLINE_BACKEND__LINK__UNPROVEN", "loopback");
    command.args(arguments.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub(crate) fn run<S: AsRef<str>>(arguments: &[S]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = program(arguments).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// Puts a pipe in the place of a file.
pub(crate) fn become_pipe(path: &Path) {
    std::fs::remove_file(path).expect("ours");
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
}

/// A running child. Its log is shown when the test fails.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts the program and waits for its ready line, which is also returned.
    pub(crate) fn start(name: &'static str, arguments: &[String]) -> (Self, String) {
        Self::start_command(name, program(arguments))
    }

    /// Starts a command that the test made itself.
    pub(crate) fn start_command(name: &'static str, command: Command) -> (Self, String) {
        Self::start_logging(name, command, Stdio::piped())
    }

    /// Starts such a command with another standard error than a pipe that this test reads.
    pub(crate) fn start_logging(name: &'static str, mut command: Command, log: Stdio) -> (Self, String) {
        let mut process = Self::of_child(name, command.stdout(Stdio::piped()).stderr(log));
        let (found, ready) = mpsc::channel();
        let stdout = BufReader::new(process.child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let is_ready = |line: &String| line.contains(" ready ");
            let mut lines = stdout.lines().map_while(Result::ok);
            lines.find(is_ready).map(|line| found.send(line));
            lines.for_each(drop);
        });
        let line = ready.recv_timeout(READY_WITHIN);
        let line = line.unwrap_or_else(|_| panic!("{name} is not ready:\n{}", process.log()));
        (process, line)
    }

    /// Starts the program with this standard output, and waits for nothing.
    pub(crate) fn spawn(name: &'static str, mut command: Command, output: Stdio) -> Self {
        Self::of_child(name, command.stdout(output).stderr(Stdio::piped()))
    }

    fn of_child(name: &'static str, command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let copy = Arc::clone(&log);
            std::thread::spawn(move || keep(stderr, &copy));
        }
        Self { child, name, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("its writer does not panic").clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it is our child and was not waited for");
    }

    /// `kill -9`, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Waits for it to end by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        until("the process ends", || self.child.try_wait().expect("it is our child"))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Memory in use, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        moorline_usage::quick_resident_bytes(self.pid()).expect("it runs") >> 10
    }

    /// Numbers of its open descriptors.
    pub(crate) fn descriptors(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        entries
            .filter_map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse().ok())
            .collect()
    }

    /// Processor time used.
    pub(crate) fn cpu(&self) -> Duration {
        moorline_usage::cpu_time(self.pid()).expect("it runs")
    }

    /// Running processes that it has started, and those that they have started.
    pub(crate) fn children(&self) -> Vec<u32> {
        family(self.pid()).into_iter().filter(|pid| *pid != self.pid()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            println!("--- {} {}:\n{}", self.name, self.pid(), self.log());
        }
    }
}

/// Copies the last part of a child's log.
fn keep(mut from: impl Read, to: &Mutex<String>) {
    const KEPT_BYTES: usize = 64 << 10;
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut block) {
        let mut log = to.lock().expect("nobody panics with it");
        log.push_str(&String::from_utf8_lossy(&block[..count]));
        if log.len() > 2 * KEPT_BYTES {
            let cut = (log.len() - KEPT_BYTES..log.len()).find(|at| log.is_char_boundary(*at));
            log.drain(..cut.unwrap_or(0));
        }
    }
}

/// Every process of this machine and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let entries = std::fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let parent = |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?))
    };
    pids.filter_map(parent).collect()
}

/// True if a process with this id runs (a zombie does not).
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// A process of this test that SIGSTOP has stopped. It goes on by [`Self::go_on`]; a test that fails before ends it, though
/// nobody else knows its number.
pub(crate) struct Stopped(Pid);

impl Stopped {
    /// Stops the process, and waits until it stands still.
    pub(crate) fn stop(pid: u32) -> Self {
        let stopped = Self::of(pid);
        kill(stopped.0, Signal::SIGSTOP).expect("it runs");
        until("it stops", || is_stopped(pid).then_some(()));
        stopped
    }

    /// Guards a process that has stopped itself, or soon does.
    pub(crate) fn of(pid: u32) -> Self {
        Self(Pid::from_raw(i32::try_from(pid).expect("a pid")))
    }

    /// Lets the process go on. It may have been ended meanwhile.
    pub(crate) fn go_on(self) {
        kill(self.0, Signal::SIGCONT).ok();
        std::mem::forget(self);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for signal in [Signal::SIGKILL, Signal::SIGCONT] {
            kill(self.0, signal).ok(); // it may be gone already
        }
    }
}

/// True if a signal has stopped the process.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// The parent of a process.
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub(crate) fn parent(pid: u32) -> Option<u32> {
    parents().get(&pid).copied()
}

/// A process, its children and theirs that run.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let parents = parents();
    let is_of = |one: u32| {
        let up = std::iter::successors(Some(one), |one| parents.get(one).copied());
        up.take(8).any(|ancestor| ancestor == pid)
    };
    parents.keys().copied().filter(|one| is_of(*one) && is_alive(*one)).collect()
}

/// A file for a child to read, gone with the test.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(content: impl AsRef<[u8]>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("moorline-e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).expect("the temp folder takes files");
        // Under umask 002 its group could write it, and no secret is read from such a file.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("our file");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// A folder for a store, gone with the test.
pub(crate) struct StoreFolder(PathBuf);

impl StoreFolder {
    pub(crate) fn new() -> Self {
        Self(scratch::path("e2e-store"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The setting that has a backend store there.
    pub(crate) fn set(&self) -> String {
        format!("im.folder=\"{}\"", self.0.display())
    }
}

impl Drop for StoreFolder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

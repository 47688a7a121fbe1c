//! The backend as a process of its own beside the gateway (`backend.embedded = true`).
//!
//! Started before the gateway, on a free port; started again on the same port when it dies; ended when
//! the gateway ends, even by `kill -9`: then the pipe that is its standard input ends. Whoever needs more
//! runs `moorline backend` under a real supervisor.

use super::GatewayError;
use crate::config::Config;
use crate::snapshot::EmbeddedRecord;
use crate::sys::sockets;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pause before a backend that died is started again.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// Where it listens at first: any free port of this machine.
const ANY_PORT: &str = "127.0.0.1:0";
/// What its readiness line holds before its address.
const READY: &str = "link=";

/// The running backend and the thread that watches it.
pub(super) struct Backend {
    state: Arc<Mutex<State>>,
    watcher: Option<JoinHandle<()>>,
}

struct State {
    pid: Option<u32>,
    /// Its standard input and output, on this side.
    pipes: (RawFd, RawFd),
    is_ending: bool,
}

/// The backend's process.
enum Process {
    /// Started here.
    Own(Child),
    /// Started by a gateway before this one: it ends with this pipe, but cannot be waited for.
    Adopted { input: File },
}

impl Process {
    fn pipes(&self, output: &Output) -> (RawFd, RawFd) {
        let input = match self {
            Self::Own(child) => child.stdin.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            Self::Adopted { input } => input.as_raw_fd(),
        };
        (input, output.fd)
    }
}

impl Backend {
    /// Starts it and puts its address into `config.backend.endpoints`.
    pub(super) fn start(config: &mut Config) -> Result<Self, GatewayError> {
        let binary = std::env::current_exe().map_err(GatewayError::system("find the own executable"))?;
        let (child, output, address) = spawn(&binary, ANY_PORT)?;
        tracing::info!(pid = child.id(), %address, "embedded backend started");
        let pid = child.id();
        Self::watch(config, binary, address, pid, Process::Own(child), output)
    }

    /// Goes on with the one that a gateway before this one has started.
    pub(super) fn adopt(config: &mut Config, record: &EmbeddedRecord) -> Result<Self, GatewayError> {
        let binary = std::env::current_exe().map_err(GatewayError::system("find the own executable"))?;
        let failed = || GatewayError::system("take over the embedded backend");
        let address =
            record.address.parse().map_err(|_| io::ErrorKind::InvalidData.into()).map_err(failed())?;
        let input = File::from(sockets::take(record.input_fd).map_err(failed())?);
        let output = File::from(sockets::take(record.output_fd).map_err(failed())?);
        let output = Output::over(output);
        Self::watch(config, binary, address, record.pid, Process::Adopted { input }, output)
    }

    /// As the next gateway needs it; `None`: it is being started again.
    pub(super) fn freeze(&self, config: &Config) -> Option<EmbeddedRecord> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (input_fd, output_fd) = state.pipes;
        let address = config.backend.endpoints.first()?.to_string();
        Some(EmbeddedRecord { pid: state.pid?, address, input_fd, output_fd })
    }

    fn watch(
        config: &mut Config,
        binary: PathBuf,
        address: SocketAddr,
        pid: u32,
        process: Process,
        output: Output,
    ) -> Result<Self, GatewayError> {
        config.backend.endpoints = vec![address];
        let pipes = process.pipes(&output);
        let state = Arc::new(Mutex::new(State { pid: Some(pid), pipes, is_ending: false }));
        let watched = Arc::clone(&state);
        let watch = move || watch(&binary, address, process, output, &watched);
        let watcher = std::thread::Builder::new().name("backend-watch".into()).spawn(watch);
        let watcher = watcher.map_err(GatewayError::system("start the backend's watcher"))?;
        Ok(Self { state, watcher: Some(watcher) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_ending = true;
        if let Some(pid) = state.pid.and_then(|pid| i32::try_from(pid).ok()) {
            // The watcher reaps it; it cannot have been reaped while `pid` stands.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        drop(state);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            watcher.join().ok();
        }
    }
}

/// Waits for the child's end, and starts another until the gateway ends.
fn watch(binary: &Path, address: SocketAddr, mut process: Process, mut output: Output, state: &Mutex<State>) {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // Its output ends when it ends; reading it keeps the pipe from filling.
        output.lines.by_ref().for_each(drop);
        let mut current = lock();
        current.pid = None;
        let status = match &mut process {
            Process::Own(child) => child.wait().ok(),
            Process::Adopted { .. } => None,
        };
        if current.is_ending {
            return;
        }
        drop(current);
        tracing::error!(?status, "embedded backend ended; starting it again");
        loop {
            std::thread::park_timeout(RESTART_AFTER);
            if lock().is_ending {
                return;
            }
            match spawn(binary, &address.to_string()) {
                Ok((mut child, lines, _)) => {
                    output = lines;
                    let mut current = lock();
                    if current.is_ending {
                        // Nobody else knows of this one.
                        child.kill().ok();
                        child.wait().ok();
                        return;
                    }
                    current.pid = Some(child.id());
                    process = Process::Own(child);
                    current.pipes = process.pipes(&output);
                    break;
                }
                Err(error) => tracing::error!(%error, "embedded backend not started"),
            }
        }
    }
}

/// What the backend says, line by line.
struct Output {
    fd: RawFd,
    lines: std::io::Lines<BufReader<File>>,
}

impl Output {
    fn over(pipe: File) -> Self {
        Self { fd: pipe.as_raw_fd(), lines: BufReader::new(pipe).lines() }
    }
}

fn spawn(binary: &Path, listen: &str) -> Result<(Child, Output, SocketAddr), GatewayError> {
    let failed = |problem: String| GatewayError::Backend { binary: binary.to_path_buf(), problem };
    let mut child = Command::new(binary)
        .args(["backend", "--until-eof", "--set", &format!("listen={listen}")])
        .env_remove(super::handover::VARIABLE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut output = Output::over(OwnedFd::from(child.stdout.take().expect("piped")).into());
    let address = output.lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once(READY)?;
        rest.split_whitespace().next()?.parse().ok()
    });
    if let Some(address) = address {
        return Ok((child, output, address));
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(failed(format!("it ended with {status} before it was ready")))
}

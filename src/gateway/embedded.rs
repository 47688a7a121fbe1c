//! The backend as a process of its own beside the gateway (`backend.embedded = true`).
//!
//! Started before the gateway, on a free port; started again on the same port when it dies; ended when
//! the gateway ends, even by `kill -9`: then the pipe that is its standard input ends. Whoever needs more
//! runs `moorline backend` under a real supervisor.

use super::GatewayError;
use crate::config::Config;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
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
    is_ending: bool,
}

impl Backend {
    /// Starts it and puts its address into `config.backend.endpoints`.
    pub(super) fn start(config: &mut Config) -> Result<Self, GatewayError> {
        let binary = std::env::current_exe().map_err(GatewayError::system("find the own executable"))?;
        let (child, output, address) = spawn(&binary, ANY_PORT)?;
        tracing::info!(pid = child.id(), %address, "embedded backend started");
        config.backend.endpoints = vec![address];
        let state = Arc::new(Mutex::new(State { pid: Some(child.id()), is_ending: false }));
        let watched = Arc::clone(&state);
        let watch = move || watch(&binary, address, child, output, &watched);
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
fn watch(binary: &Path, address: SocketAddr, mut child: Child, mut output: Lines, state: &Mutex<State>) {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // Its output ends when it ends; reading it keeps the pipe from filling.
        output.by_ref().for_each(drop);
        let mut current = lock();
        current.pid = None;
        let status = child.wait();
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
                Ok((again, lines, _)) => {
                    (child, output) = (again, lines);
                    let mut current = lock();
                    if current.is_ending {
                        // Nobody else knows of this one.
                        child.kill().ok();
                        child.wait().ok();
                        return;
                    }
                    current.pid = Some(child.id());
                    break;
                }
                Err(error) => tracing::error!(%error, "embedded backend not started"),
            }
        }
    }
}

type Lines = std::io::Lines<BufReader<ChildStdout>>;

fn spawn(binary: &Path, listen: &str) -> Result<(Child, Lines, SocketAddr), GatewayError> {
    let failed = |problem: String| GatewayError::Backend { binary: binary.to_path_buf(), problem };
    let mut child = Command::new(binary)
        .args(["backend", "--until-eof", "--set", &format!("listen={listen}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once(READY)?;
        rest.split_whitespace().next()?.parse().ok()
    });
    if let Some(address) = address {
        return Ok((child, lines, address));
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(failed(format!("it ended with {status} before it was ready")))
}

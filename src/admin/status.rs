//! Status of the process as a whole.

use super::drains::DrainControl;
use super::reloads::ReloadControl;
use super::restarts::RestartControl;
use crate::config::Config;
use crate::metrics::process::Figures;
use crate::metrics::{Registry, names};
use moorline_net::audit::{AuditLog, Entry};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Facts of this process, and the one flag that moves. Made by the assembly, read by the responder.
#[derive(Debug)]
pub struct Status {
    /// Name toward backends.
    pub gateway: String,
    /// Listeners, with their actual ports.
    pub listeners: Vec<ListenerStatus>,
    /// Host names of the admin address.
    pub names: Vec<String>,
    /// Other gateways (`gateway.alternates`): a drain may send clients there and nowhere else.
    pub alternates: Vec<String>,
    /// Reactor threads.
    pub reactors: usize,
    /// Worker threads.
    pub workers: usize,
    /// Hot restarts.
    pub restarts: RestartControl,
    /// The gateway drains.
    pub drains: DrainControl,
    /// Settings are read again.
    pub reloads: ReloadControl,
    /// The audit log; unset until the process serves.
    pub audit: OnceLock<AuditLog>,
    is_draining: AtomicBool,
    problems: OnceLock<Problems>,
    /// Milliseconds that clients have to leave when the gateway ends (`drain.grace`).
    grace_ms: AtomicU64,
    end: OnceLock<fn() -> Result<(), String>>,
}

/// Source of sentences about backends that an operator has to look after.
pub struct Problems(Box<dyn Fn() -> Vec<String> + Send + Sync>);

impl Problems {
    /// Takes a function that lists them as of now.
    pub fn new(list: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self(Box::new(list))
    }
}

impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Problems")
    }
}

impl Status {
    /// Status of a serving process with these settings.
    pub fn new(config: &Config, gateway: &str) -> Self {
        Self {
            gateway: gateway.to_owned(),
            listeners: Vec::new(),
            names: config.admin.names.clone(),
            alternates: config.gateway.alternates.clone(),
            reactors: config.reactors(),
            workers: config.workers(),
            restarts: RestartControl::default(),
            drains: DrainControl::default(),
            reloads: ReloadControl::default(),
            audit: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            problems: OnceLock::new(),
            grace_ms: AtomicU64::new(millis(config)),
            end: OnceLock::new(),
        }
    }

    /// Takes the settings that a reload changed.
    pub fn set_grace(&self, config: &Config) {
        self.grace_ms.store(millis(config), Ordering::Relaxed);
    }

    /// Sets the function that ends the process as TERM does.
    pub fn end_by(&self, end: fn() -> Result<(), String>) {
        self.end.set(end).ok();
    }

    /// Has the process end as TERM does, unless it ends already. Returns the time that clients have to leave, in
    /// milliseconds.
    pub(super) fn stop(&self) -> Result<u64, String> {
        if !self.restarts.is_closed() {
            self.end.get().ok_or("this process does not serve yet")?()?;
        }
        Ok(self.grace_ms.load(Ordering::Relaxed))
    }

    /// Shows the problems of this source from now on.
    pub fn watch_backends(&self, problems: Problems) {
        self.problems.set(problems).ok();
    }

    /// Returns a sentence for each fault of backends, as of now.
    pub fn problems(&self) -> Vec<String> {
        self.problems.get().map(|problems| (problems.0)()).unwrap_or_default()
    }

    /// Sets the listeners that were really bound, by name: settings may ask for port 0.
    #[must_use]
    pub fn listening_at(mut self, listeners: impl IntoIterator<Item = (String, SocketAddr)>) -> Self {
        let status = |(name, address)| ListenerStatus { name, address };
        self.listeners = listeners.into_iter().map(status).collect();
        self
    }

    /// Notes in the audit log that a process gave an order, and the status of the answer.
    pub(super) fn note_order(&self, peer: &str, path: &str, outcome: &str) {
        let entry = Entry { actor: "admin socket", peer, action: path, target: "", outcome };
        self.audit.get().into_iter().for_each(|audit| audit.note(&entry));
    }

    /// While it is, `/readyz` refuses, so that no new client is sent here.
    pub fn set_draining(&self, is_draining: bool) {
        self.is_draining.store(is_draining, Ordering::Relaxed);
    }

    /// True if clients are asked to leave.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// True if new clients should come, as `/readyz` says.
    pub fn phase(&self, registry: &Registry) -> Phase {
        if self.is_draining() {
            Phase::Draining
        } else if registry.sum(names::LINKS_UP) == 0 {
            Phase::NoBackend
        } else {
            Phase::Ready
        }
    }
}

fn millis(config: &Config) -> u64 {
    u64::try_from(config.drain.grace.as_millis()).unwrap_or(u64::MAX)
}

/// True if new clients should come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The gateway is ready.
    Ready,
    /// No: no link to a backend is up.
    NoBackend,
    /// No: they are asked to leave.
    Draining,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::NoBackend => "not ready: no link to a backend is up",
            Self::Draining => "not ready: draining",
        })
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ListenerStatus {
    /// Name in the settings, or the number from 1.
    pub name: String,
    /// Bound address.
    pub address: SocketAddr,
}

/// The answer of `/v1/varz`, and what `moorline status` shows.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Varz {
    /// Version of the program.
    pub version: String,
    /// Name toward backends.
    pub gateway: String,
    /// Process id.
    pub pid: u32,
    /// Generation: number of this process in a series of hot restarts; 0: the first.
    pub generation: u64,
    /// Since this process started; `None`: it cannot be read, as the others that may be absent.
    pub uptime_seconds: Option<f64>,
    /// True if new clients should come.
    pub phase: Phase,
    /// Address of the first listener; `None`: nothing is bound.
    pub listener: Option<SocketAddr>,
    /// All listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// Reactor threads.
    pub reactors: usize,
    /// Worker threads.
    pub workers: usize,
    /// Open client connections.
    pub connections: u64,
    /// Logged-in sessions.
    pub sessions: u64,
    /// Links to backends that are up.
    pub links_up: u64,
    /// Faults of backends, for people.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Memory in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
    /// Processor time used.
    pub cpu_seconds: Option<f64>,
}

impl Varz {
    /// Returns a line for each fault of backends.
    pub fn warnings(problems: &[String]) -> String {
        problems.iter().fold(String::new(), |lines, problem| lines + "warning: " + problem + "\n")
    }

    /// Reads the figures now.
    pub fn read(status: &Status, registry: &Registry) -> Self {
        let figures = Figures::read();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gateway: status.gateway.clone(),
            pid: std::process::id(),
            generation: status.restarts.show().generation,
            uptime_seconds: figures.uptime_seconds,
            phase: status.phase(registry),
            listener: status.listeners.first().map(|listener| listener.address),
            listeners: status.listeners.clone(),
            reactors: status.reactors,
            workers: status.workers,
            connections: registry.sum(names::CONNECTIONS),
            sessions: registry.sum(names::SESSIONS),
            links_up: registry.sum(names::LINKS_UP),
            problems: status.problems(),
            resident_bytes: figures.resident_bytes,
            open_fds: figures.open_fds,
            threads: figures.threads,
            cpu_seconds: figures.cpu_seconds,
        }
    }
}

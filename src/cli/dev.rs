//! `moorline dev`: a gateway and a backend for development, looked after by a third process.
//!
//! The process that was started only supervises: it starts the backend, then the gateway, says how to connect,
//! passes signals on and ends both. It restarts nothing: when one of them ends, it says which and why, ends
//! the other and fails. All addresses are of this machine.
//!
//! ```text
//! dev (pid 10) ─┬─ moorline run --supervise (pid 12) ── gateway (pid 13); after a hot restart another one
//!               └─ moorline backend (pid 11)
//! ```
//!
//! Both end with this process, even by `kill -9`: then their standard input ends (`--until-eof`).

use super::dev_certificate::Certificate;
use super::settings::SettingsArgs;
use super::{Failure, backend, note, supervise};
use crate::sys::clock;
use crate::sys::signals::listened;
use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use moorline_proto::link::LinkAddress;
use moorline_proto::time::Instant;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// Patience with a start, and with the orderly end of the backend.
const READY_WITHIN: Duration = Duration::from_secs(60);
const BACKEND_ENDS_WITHIN: Duration = Duration::from_secs(30);
/// Patience with the gateway's end beyond its `drain.grace`.
const GATEWAY_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Signals and lines that wait to be handled.
const NEWS_MAX: usize = 64;

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Settings file of the gateway; without it auth.mode is dev
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Let clients connect over TLS only, by a certificate that is made now and removed at the end
    #[arg(long, conflicts_with = "file")]
    tls: bool,
    /// Override one setting of the gateway, as often as needed
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    /// Settings file of the backend; without it the defaults apply, and messages are kept in memory
    #[arg(long, value_name = "FILE")]
    backend_config: Option<PathBuf>,
    /// Override one setting of the backend, as often as needed: --backend-set im.folder=store
    #[arg(long = "backend-set", value_name = "[SECTION.]KEY=VALUE")]
    backend_sets: Vec<String>,
}

/// One thing that happened.
enum News {
    Signal(i32),
    /// A readiness line of a child.
    Ready(&'static str, String),
}

/// End of the wait for a readiness line.
enum Start {
    Ready(String),
    /// A signal to end both.
    Stopped(Signal),
}

/// Starts both, and stays until both have ended.
pub(super) fn run(args: &DevArgs) -> Result<(), Failure> {
    let certificate = if args.tls { Some(Certificate::make()?) } else { None };
    let own_sets = own_sets(args, certificate.as_ref());
    let Checked { grace, is_link_bare } = check_loopback(args, &own_sets)?;
    let (gateway_arguments, backend_arguments) =
        (gateway_arguments(args, &own_sets, is_link_bare), backend_arguments(args, is_link_bare));
    let (sender, news) = bounded(NEWS_MAX);
    listen(&sender)?;
    let backend = Server::start("backend", &backend_arguments, &sender)?;
    let mut both = Both { backend, gateway: None, news, grace };
    let outcome = both.serve(&gateway_arguments, certificate.as_ref(), &sender);
    if let Err(Failure::Failed(why)) = &outcome {
        note(&format!("moorline dev: {why}; ending the other one"));
    }
    both.end(*outcome.as_ref().unwrap_or(&Signal::SIGTERM));
    outcome.map(drop)
}

/// Settings that this process needs itself.
struct Checked {
    /// Time that the gateway gives its clients to leave.
    grace: Duration,
    /// Gateway and backend have no means to prove who they are: for development they need none.
    is_link_bare: bool,
}

/// Refuses settings that listen elsewhere than on this machine.
fn check_loopback(args: &DevArgs, own_sets: &[String]) -> Result<Checked, Failure> {
    let mut sets = own_sets.to_vec();
    sets.extend(args.sets.iter().cloned());
    let config = SettingsArgs { file: args.file.clone(), sets }.load()?.config;
    let backend = backend::settings(args.backend_config.clone(), args.backend_sets.clone())?;
    let mut addresses = vec![("listen", backend.listen.ip()), ("api.listen", backend.api.listen)];
    addresses.extend(config.listeners.iter().map(|listener| ("listener.address", Some(listener.address))));
    if config.admin.enabled {
        addresses.push(("admin.address", Some(config.admin.address)));
    }
    for (key, address) in addresses {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            return Err(Failure::Usage(format!(
                "cannot use {key} = \"{address}\" with `moorline dev`: it listens on this machine only; for other \
                 machines start `moorline run` and `moorline backend`"
            )));
        }
    }
    let is_link_bare = backend.listen.ip().is_some() && backend.link.secrets_file.as_os_str().is_empty();
    Ok(Checked { grace: config.drain.grace, is_link_bare })
}

/// Settings of this command, which come before the user's.
fn own_sets(args: &DevArgs, certificate: Option<&Certificate>) -> Vec<String> {
    let mut sets = if args.file.is_some() { Vec::new() } else { vec!["auth.mode=dev".to_owned()] };
    sets.extend(certificate.into_iter().flat_map(Certificate::sets));
    sets
}

fn backend_arguments(args: &DevArgs, is_link_bare: bool) -> Vec<String> {
    let mut arguments = vec!["backend".to_owned(), "--until-eof".to_owned()];
    match &args.backend_config {
        Some(file) => arguments.extend(["--config".to_owned(), file.display().to_string()]),
        None => arguments.extend(["--set".to_owned(), "listen=127.0.0.1:0".to_owned()]),
    }
    if is_link_bare {
        arguments.extend(["--set".to_owned(), "link.unproven=loopback".to_owned()]);
    }
    arguments.extend(args.backend_sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    arguments
}

fn gateway_arguments(args: &DevArgs, own_sets: &[String], is_link_bare: bool) -> Vec<String> {
    let mut arguments = vec!["run".to_owned(), supervise::FLAG.to_owned(), "--until-eof".to_owned()];
    if let Some(file) = &args.file {
        arguments.extend(["--config".to_owned(), file.display().to_string()]);
    }
    if is_link_bare {
        arguments.extend(["--set".to_owned(), "backend.unproven=loopback".to_owned()]);
    }
    let sets = own_sets.iter().chain(&args.sets);
    arguments.extend(sets.flat_map(|set| ["--set".to_owned(), set.clone()]));
    arguments
}

/// Sends this process's signals into the channel.
fn listen(sender: &Sender<News>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot listen for signals: {error}"));
    let mut signals = Signals::new(listened().chain([SIGCHLD])).map_err(failed)?;
    let sender = sender.clone();
    let forward = move || {
        for signal in signals.forever() {
            if sender.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(forward).map(drop).map_err(failed)
}

/// The two servers.
struct Both {
    backend: Server,
    gateway: Option<Server>,
    news: Receiver<News>,
    /// Time that the gateway gives its clients to leave.
    grace: Duration,
}

impl Both {
    /// Starts the gateway, and waits for a signal to end both, which is returned.
    ///
    /// # Errors
    /// One of both ended by itself, or did not start.
    fn serve(
        &mut self,
        gateway_arguments: &[String],
        certificate: Option<&Certificate>,
        sender: &Sender<News>,
    ) -> Result<Signal, Failure> {
        let backend = match self.wait_ready("backend")? {
            Start::Ready(line) => line,
            Start::Stopped(signal) => return Ok(signal),
        };
        let link: LinkAddress = address(&backend, "link")?;
        let mut arguments = gateway_arguments.to_vec();
        arguments.extend(["--set".to_owned(), format!("backend.endpoints=[\"{link}\"]")]);
        self.gateway = Some(Server::start("gateway", &arguments, sender)?);
        let gateway = match self.wait_ready("gateway")? {
            Start::Ready(line) => line,
            Start::Stopped(signal) => return Ok(signal),
        };
        announce(&backend, &gateway, certificate)?;
        loop {
            match self.next(None)? {
                Some(News::Ready(name, line)) => note(&format!("moorline dev: {name}: {line}")),
                Some(News::Signal(SIGINT)) => return Ok(Signal::SIGINT),
                Some(News::Signal(SIGTERM | SIGQUIT)) => return Ok(Signal::SIGTERM),
                Some(News::Signal(_)) | None => {}
            }
        }
    }

    /// Waits for a server's readiness line.
    fn wait_ready(&mut self, wanted: &'static str) -> Result<Start, Failure> {
        let until = clock::machine_now() + READY_WITHIN;
        loop {
            match self.next(Some(until))? {
                Some(News::Ready(name, line)) if name == wanted => return Ok(Start::Ready(line)),
                Some(News::Signal(SIGINT)) => return Ok(Start::Stopped(Signal::SIGINT)),
                Some(News::Signal(SIGTERM | SIGQUIT)) => return Ok(Start::Stopped(Signal::SIGTERM)),
                Some(_) => {}
                None => {
                    let seconds = READY_WITHIN.as_secs();
                    return Err(Failure::Failed(format!("the {wanted} was not ready within {seconds} s")));
                }
            }
        }
    }

    /// The next news, after passing on a signal that is the gateway's; `None`: `until` has come.
    ///
    /// # Errors
    /// One of both ended by itself.
    fn next(&mut self, until: Option<Instant>) -> Result<Option<News>, Failure> {
        let news = match until {
            None => self.news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.news.recv_timeout(clock::until(until)),
        };
        match news {
            Ok(News::Signal(SIGCHLD)) => {
                for server in [Some(&mut self.backend), self.gateway.as_mut()].into_iter().flatten() {
                    server.check()?;
                }
                Ok(Some(News::Signal(SIGCHLD)))
            }
            Ok(News::Signal(signal)) if !matches!(signal, SIGINT | SIGTERM | SIGQUIT) => {
                if let (Some(gateway), Ok(signal)) = (&self.gateway, Signal::try_from(signal)) {
                    gateway.signal(signal);
                }
                Ok(Some(News::Signal(signal)))
            }
            Ok(news) => Ok(Some(news)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Failed("the signals ended".into())),
        }
    }

    /// Ends the gateway first and then the backend, which may still have to answer it.
    fn end(&mut self, signal: Signal) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.end(signal, self.grace + GATEWAY_ENDS_WITHIN, &self.news);
        }
        self.backend.end(signal, BACKEND_ENDS_WITHIN, &self.news);
    }
}

/// A child process. Its standard input ends with this process.
struct Server {
    name: &'static str,
    child: Child,
    /// Exit status; `None`: the process runs.
    ended: Option<ExitStatus>,
}

impl Server {
    fn start(name: &'static str, arguments: &[String], sender: &Sender<News>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::Failed(format!("cannot start the {name}: {error}"));
        let binary = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A Ctrl-C at the terminal is for this process, which ends both in order.
        command.process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let sender = sender.clone();
        let read = move || {
            for line in output.lines().map_while(Result::ok) {
                if line.contains(" ready ") && sender.send(News::Ready(name, line)).is_err() {
                    return;
                }
            }
        };
        let server = Self { name, child, ended: None };
        // On a failure the process ends with the pipe that is dropped here.
        std::thread::Builder::new().name(format!("{name} output")).spawn(read).map_err(failed)?;
        Ok(server)
    }

    /// Fails if the process has ended.
    fn check(&mut self) -> Result<(), Failure> {
        if self.is_running() {
            return Ok(());
        }
        let status = self.ended.map_or_else(|| "an unknown status".to_owned(), |status| status.to_string());
        Err(Failure::Failed(format!(
            "the {} ended by itself ({status}), its last lines above say why",
            self.name
        )))
    }

    fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    fn signal(&self, signal: Signal) {
        if let (None, Ok(pid)) = (self.ended, i32::try_from(self.child.id())) {
            kill(Pid::from_raw(pid), signal).ok(); // not reaped, so the number is still the child's
        }
    }

    /// Ends the process: `signal`, INT at a further signal to this process, KILL after `patience`.
    fn end(&mut self, signal: Signal, patience: Duration, news: &Receiver<News>) {
        self.signal(signal);
        let until = clock::machine_now() + patience;
        while self.is_running() {
            match news.recv_timeout(clock::until(until)) {
                Ok(News::Signal(SIGINT | SIGTERM | SIGQUIT)) => self.signal(Signal::SIGINT),
                Ok(_) => {}
                Err(_) => {
                    note(&format!("moorline dev: the {} does not end; killing it", self.name));
                    drop(self.child.stdin.take()); // for the processes behind it
                    self.child.kill().ok();
                    self.ended = self.child.wait().ok();
                    return;
                }
            }
        }
    }
}

/// An address of a readiness line.
fn address<A: FromStr>(line: &str, field: &str) -> Result<A, Failure> {
    let address = value(line, field).and_then(|value| value.parse().ok());
    address
        .ok_or_else(|| Failure::Failed(format!("a readiness line without an address in {field}: {line:?}")))
}

fn value<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace().filter_map(|word| word.split_once('='));
    words.find(|(name, _)| *name == field).map(|(_, value)| value)
}

/// Prints the addresses, for scripts and for people.
fn announce(backend: &str, gateway: &str, certificate: Option<&Certificate>) -> Result<(), Failure> {
    let listener: SocketAddr = address(gateway, "listener")?;
    let link: LinkAddress = address(backend, "link")?;
    let field = |line, name| value(line, name).unwrap_or("?");
    let admin = field(gateway, "admin");
    let socket = Some(field(gateway, "socket")).filter(|socket| *socket != "off").unwrap_or(admin);
    let api = value(backend, "api").map(|api| format!(" api={api}")).unwrap_or_default();
    let (gateway_pid, backend_pid) = (field(gateway, "pid"), field(backend, "pid"));
    let store = field(backend, "store");
    let (server, other) = match certificate {
        Some(certificate) => (
            format!("tls://{listener} --ca {}", certificate.path().display()),
            "without TLS: moorline dev; its clients take the address without tls:// and without --ca",
        ),
        None => {
            (listener.to_string(), "with TLS: moorline dev --tls, which makes a certificate for this machine")
        }
    };
    let text = format!(
        "moorline dev ready listener={listener} admin={admin} socket={socket} link={link}{api} gateway_pid={gateway_pid} \
         backend_pid={backend_pid} store={store}\n\
         connect   clients to {listener}, as any user; two people: in the repository run\n\
        \u{20}         cargo run -p moorline-sdk --example chat -- --server {server} --me alice --to bob\n\
        \u{20}         cargo run -p moorline-sdk --example chat -- --server {server} --me bob --to alice\n\
        \u{20}         {other}\n\
         status    moorline status --admin {socket}\n\
         restart   moorline upgrade --admin {socket}   (the gateway; no client notices)\n\
         end       Ctrl-C\n"
    );
    // A standard output that is gone or stuck holds up nothing.
    moorline_net::log::announce(&text);
    Ok(())
}

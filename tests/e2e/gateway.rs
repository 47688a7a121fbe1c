//! The two kinds of process under test, with their addresses and what the admin address says.

use crate::process::{Process, program};
use crate::until;
use moorline::admin::Varz;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket,
};
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A running `moorline backend`.
pub(crate) struct Backend {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Backend {
    pub(crate) fn start() -> Self {
        Self::start_with(&["listen=127.0.0.1:0"])
    }

    pub(crate) fn start_with(sets: &[&str]) -> Self {
        Self::start_saying(sets).0
    }

    /// With its readiness line.
    pub(crate) fn start_saying(sets: &[&str]) -> (Self, String) {
        Self::of_command(program(&arguments("backend", sets)))
    }

    /// Made by hand.
    pub(crate) fn of_command(command: Command) -> (Self, String) {
        let (process, line) = Process::start_command("backend", command);
        let address = field(&line, "link=");
        (Self { process, address }, line)
    }

    /// Made by hand, with another standard error.
    pub(crate) fn of_command_logging(command: Command, log: Stdio) -> (Self, String) {
        let (process, line) = Process::start_logging("backend", command, log);
        let address = field(&line, "link=");
        (Self { process, address }, line)
    }

    /// Kills it; returns its place for one that follows it.
    pub(crate) fn kill(mut self) -> KeptPort {
        self.process.kill();
        KeptPort::keep(self.address)
    }

    /// Starts a backend at the place of an earlier one.
    pub(crate) fn start_at(place: &KeptPort) -> Self {
        Self::start_with(&[&format!("listen={place}")])
    }
}

/// A running `moorline run`: development logins, two reactors, one worker unless told otherwise.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    /// The first listener.
    pub(crate) listener: SocketAddr,
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
    /// The address of a backend that is not there.
    _nobody: Option<KeptPort>,
}

/// Answers may be late because the machine is busy: logins are shed for slow backends, not for that.
const DEFAULTS: &[&str] = &[
    "auth.mode=dev",
    "reactor.count=2",
    "worker.count=1",
    "backend.reconnect_max=500ms",
    "log.level=debug",
    "overload.latency=60s",
];

impl Gateway {
    /// Linked to `backend`.
    pub(crate) fn start(backend: &Backend, sets: &[&str]) -> Self {
        let gateway =
            Self::start_bare(&[sets, &[&format!("backend.endpoints={}", backend.address)]].concat());
        gateway.until_ready();
        gateway
    }

    /// With no backend to be reached.
    pub(crate) fn alone(sets: &[&str]) -> Self {
        let nobody = KeptPort::any();
        let endpoint = format!("backend.endpoints={}", nobody.address);
        Self { _nobody: Some(nobody), ..Self::start_bare(&[sets, &[&endpoint]].concat()) }
    }

    /// With exactly these settings beside the defaults; does not wait for a link.
    pub(crate) fn start_bare(sets: &[&str]) -> Self {
        Self::start_as(sets, |_| ())
    }

    /// Starts a gateway whose command is changed by `change`.
    pub(crate) fn start_as(sets: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Self::command(sets);
        change(&mut command);
        Self::of_command(command)
    }

    /// The command of such a gateway.
    pub(crate) fn command(sets: &[&str]) -> Command {
        let free = ["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0"];
        program(&arguments("run", &[&free, DEFAULTS, sets].concat()))
    }

    /// Made by hand.
    pub(crate) fn of_command(command: Command) -> Self {
        let is_supervised = command.get_args().any(|argument| argument == "--supervise");
        let (process, line) = Process::start_command("gateway", command);
        assert!(is_supervised || field::<u32>(&line, "pid=") == process.pid());
        Self::of(process, &line)
    }

    /// Made by hand, with another standard error.
    pub(crate) fn of_command_logging(command: Command, log: Stdio) -> Self {
        let (process, line) = Process::start_logging("gateway", command, log);
        Self::of_process(process, field(&line, "listener="), field(&line, "admin="))
    }

    /// A process that is there already.
    pub(crate) fn of_process(process: Process, listener: SocketAddr, admin: SocketAddr) -> Self {
        Self { process, listener, listeners: vec![listener], admin, _nobody: None }
    }

    /// Under a process that stays while others serve.
    pub(crate) fn supervised(sets: &[&str]) -> Self {
        let free = ["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0"];
        let mut arguments = arguments("run", &[&free, DEFAULTS, sets].concat());
        arguments.push("--supervise".to_owned());
        let (process, line) = Process::start("supervisor", &arguments);
        assert_ne!(field::<u32>(&line, "pid="), process.pid());
        Self::of(process, &line)
    }

    fn of(process: Process, line: &str) -> Self {
        let all: String = field(line, "listener=");
        let listeners: Vec<SocketAddr> =
            all.split(',').map(|address| address.parse().expect("an address")).collect();
        Self { listener: listeners[0], listeners, admin: field(line, "admin="), process, _nobody: None }
    }

    /// The gateway of a `moorline dev`, and the readiness line; the process is the supervising one.
    pub(crate) fn in_dev() -> (Self, String) {
        let free = ["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0", "drain.grace=1s"];
        let (process, line) = Process::start("dev", &arguments("dev", &[&free, DEFAULTS].concat()));
        (Self::of(process, &line), line)
    }

    /// Asks the admin address: status code and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let answer = self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.unwrap_or_else(|| panic!("no status: {head:?}")), body.to_owned())
    }

    /// Asks the admin address, or the admin socket for what only that has.
    pub(crate) fn try_get(&self, path: &str) -> std::io::Result<String> {
        let patience = Some(Duration::from_secs(10));
        if path.starts_with("/v1/") {
            let stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(patience)?;
            return ask(stream, path);
        }
        let stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(patience)?;
        ask(stream, path)
    }

    /// Path of the admin socket, unless the settings say another one.
    pub(crate) fn socket(&self) -> PathBuf {
        moorline::admin::default_socket(self.admin)
    }

    pub(crate) fn varz(&self) -> Varz {
        serde_json::from_str(&self.get("/v1/varz").1).expect("JSON of this version")
    }

    /// Every sample of the metrics page, by its name with labels, without the prefix.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (_, page) = self.get("/metrics");
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            let name = name.strip_prefix("moorline_").expect("the prefix");
            (name.to_owned(), value.parse().expect("a number"))
        };
        samples.map(sample).collect()
    }

    /// One sample. Panics if there is none of this name. A thread publishes its numbers after its turn: whoever expects
    /// a number that an answer has just caused waits for it by [`Gateway::until_metric`].
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // counts
    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.metrics().get(name).map_or_else(|| panic!("no {name}"), |value| *value as u64)
    }

    /// Connections that ended for a reason.
    pub(crate) fn closed(&self, reason: &str) -> u64 {
        self.metric(&closed(reason))
    }

    /// Waits until a sample has this value: a thread publishes its numbers after it has answered.
    pub(crate) fn until_metric(&self, name: &str, value: u64) {
        until(&format!("{name} is {value}, last {}", self.metric(name)), || {
            (self.metric(name) == value).then_some(())
        });
    }

    /// Waits until a counter has at least this value.
    pub(crate) fn until_at_least(&self, name: &str, value: u64) {
        until(&format!("{name} is at least {value}, last {}", self.metric(name)), || {
            (self.metric(name) >= value).then_some(())
        });
    }

    /// Waits until this many connections have ended for a reason.
    pub(crate) fn until_closed(&self, reason: &str, connections: u64) {
        self.until_metric(&closed(reason), connections);
    }

    /// Waits until this many logins are live.
    pub(crate) fn until_sessions(&self, sessions: u64) {
        self.until_metric("sessions", sessions);
    }

    pub(crate) fn until_ready(&self) {
        until("/readyz says 200", || (self.get("/readyz").0 == 200).then_some(()));
    }
}

fn ask(mut stream: impl Read + Write, path: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn closed(reason: &str) -> String {
    format!("closed_total{{reason=\"{reason}\"}}")
}

fn arguments(command: &str, sets: &[&str]) -> Vec<String> {
    let sets = sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]);
    std::iter::once(command.to_owned()).chain(sets).collect()
}

/// The value behind `key` in a ready line.
pub(crate) fn field<T: std::str::FromStr>(line: &str, key: &str) -> T {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line:?}"))
}

/// A port that is taken, and where nobody listens: connecting is refused, and no other test gets it.
///
/// Whoever sets SO_REUSEADDR, as each listener does, may listen there while this holds it. The port of a process that
/// has ended would else go to the next process that asks for any port, and peers that come back would meet a stranger.
pub(crate) struct KeptPort {
    pub(crate) address: SocketAddr,
    _socket: OwnedFd,
}

impl KeptPort {
    /// Any free port.
    pub(crate) fn any() -> Self {
        Self::keep(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// The port of a process that has just ended.
    pub(crate) fn keep(address: SocketAddr) -> Self {
        let fd =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&fd, ReuseAddr, &true).expect("a socket has it");
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, address.port())).expect("a free port");
        let bound: SockaddrIn = getsockname(fd.as_raw_fd()).expect("bound");
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())), _socket: fd }
    }
}

impl Display for KeptPort {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(formatter)
    }
}

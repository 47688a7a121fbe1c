//! Search for the admin socket of a running gateway: by `--admin`, by its pid file, by its settings.
//!
//! Example: `moorline status --admin localhost:7080` resolves the name to `[::1]:7080` and `127.0.0.1:7080`, and takes the first
//! one that has an admin socket in the usual folders. `moorline stop -c moorline.toml` takes `admin.socket`, else the socket of
//! `admin.address`, else the one of the process in `handover.pid_file`.

use super::admin::Running;
use super::{Failure, settings};
use crate::admin::{Varz, likely_sockets};
use crate::config::{Config, SCHEMA};
use crate::sys::clock;
use clap::Args;
use crossbeam_channel::bounded;
use moorline_net::http::{self, Address, Answer, Question, StatusCode};
use moorline_net::unix_socket;
use moorline_proto::link::HostPort;
use std::fmt;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The gateway's default of `admin.address`.
pub(super) const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7080);
/// Longest wait for the addresses of a name.
const RESOLVED_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a connection to one of several addresses.
const CONNECTED_MAX: Duration = Duration::from_secs(1);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Longest wait for the answer of one of several sockets.
const CANDIDATE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the pid file of a process that has taken over.
const WRITTEN_MAX: Duration = Duration::from_secs(2);
/// Between two looks at it.
const WRITTEN_LOOK: Duration = Duration::from_millis(50);
/// Sockets of one process that are asked.
const CANDIDATES_MAX: usize = 16;
/// Bytes of a pid file that are read.
const PID_FILE_BYTES_MAX: usize = 64;

/// The gateway that is asked.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct AdminArgs {
    /// The gateway's admin socket, or its admin address: the socket is then looked for in the usual folders
    #[arg(long, env = "MOORLINE_ADMIN", value_name = "PATH|HOST:PORT")]
    pub(super) admin: Option<Place>,
    /// File with the process id of the gateway (handover.pid_file)
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    pub(super) pid_file: Option<PathBuf>,
    /// The gateway's settings file, which names the socket; without it, --pid-file and --admin: the variables MOORLINE__ADMIN__SOCKET, MOORLINE__ADMIN__ADDRESS and MOORLINE__HANDOVER__PID_FILE, else 127.0.0.1:7080
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with_all = ["admin", "pid_file"])]
    pub(super) file: Option<PathBuf>,
}

/// Value of `--admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An address, or the path of a socket.
    Address(Address),
    /// A name with a port.
    Name(HostPort),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, rest)) = text.split_once("://") {
            let place = rest.split('/').next().unwrap_or(rest);
            return Err(format!("expected host:port or the path of a Unix socket, not a URL; write {place}"));
        }
        let wrong = |_| "expected host:port, or the path of a Unix socket with a slash in it".to_owned();
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name).map_err(wrong),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl AdminArgs {
    /// Finds the gateway's socket.
    ///
    /// # Errors
    /// The settings, the pid file or the name cannot be read.
    pub(super) fn find(&self) -> Result<Running, Failure> {
        if let Some(file) = &self.pid_file {
            return of_pid_file(file).map_err(Failure::Failed);
        }
        match (&self.admin, &self.file) {
            (Some(Place::Address(Address::Unix(path))), _) => Ok(Running::at(path.clone().into())),
            (Some(Place::Address(Address::Tcp(address))), _) => Ok(of_addresses(&[*address])),
            (Some(Place::Name(name)), _) => Ok(of_addresses(&resolve(name).map_err(Failure::Failed)?)),
            (None, Some(file)) => {
                let loaded = Config::load(Some(file), &[], settings::variables()).map_err(Failure::usage)?;
                if !loaded.admin.enabled {
                    return Err(Failure::Usage(
                        "admin.enabled is false: a gateway with these settings takes no questions and orders; name one that still \
                         runs with other settings by --pid-file or --admin"
                            .into(),
                    ));
                }
                let wanted = Wanted {
                    socket: loaded.admin.socket.clone(),
                    address: loaded.admin.address,
                    pid_file: loaded.handover.pid_file.clone().into(),
                };
                wanted.find()
            }
            (None, None) => Wanted::of_environment()?.find(),
        }
    }
}

/// Settings of a gateway that say where its socket is.
struct Wanted {
    /// `admin.socket`; empty: the default of the address.
    socket: PathBuf,
    /// `admin.address`.
    address: SocketAddr,
    /// `handover.pid_file`; empty: none.
    pid_file: PathBuf,
}

impl Wanted {
    /// Reads the variables by which the gateway may have got its settings.
    ///
    /// # Errors
    /// A variable that is misspelt does nothing, or `admin.address` cannot be read.
    fn of_environment() -> Result<Self, Failure> {
        settings::refuse_strays(&SCHEMA.strays(&SCHEMA, settings::variables()))?;
        let path = |name| std::env::var_os(name).map(PathBuf::from).unwrap_or_default();
        let wrong =
            |text: &str| Failure::Usage(format!("MOORLINE__ADMIN__ADDRESS: expected IP:port, not {text:?}"));
        let address = match std::env::var("MOORLINE__ADMIN__ADDRESS") {
            Ok(text) => text.parse().map_err(|_| wrong(&text))?,
            Err(_) => DEFAULT,
        };
        let (socket, pid_file) = (path("MOORLINE__ADMIN__SOCKET"), path("MOORLINE__HANDOVER__PID_FILE"));
        Ok(Self { socket, address, pid_file })
    }

    fn find(&self) -> Result<Running, Failure> {
        if !self.socket.as_os_str().is_empty() {
            return Ok(Running::at(self.socket.clone().into()));
        }
        let has_pid_file = !self.pid_file.as_os_str().is_empty();
        if self.address.port() != 0 {
            let socket = socket_of(self.address);
            if let Some(socket) = socket.map(Running::at) {
                return Ok(socket);
            }
        } else if !has_pid_file {
            let problem =
                "admin.address has port 0; name the socket by --admin, the ready line has it (socket=)";
            return Err(Failure::Usage(problem.into()));
        }
        if has_pid_file {
            // The process of an earlier start may have left the file.
            match of_pid_file(&self.pid_file) {
                Err(problem) if self.address.port() == 0 => return Err(Failure::Failed(problem)),
                Err(_) => {}
                found => return found.map_err(Failure::Failed),
            }
        }
        Ok(Running::at(self.address.into()))
    }
}

/// Returns the socket of a gateway with this admin address that listens; `None`: there is none in the usual folders.
fn socket_of(address: SocketAddr) -> Option<Address> {
    let listens = |path: &PathBuf| match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied, // the question tells so
    };
    likely_sockets(address).into_iter().find(listens).map(Address::Unix)
}

/// Finds the gateway at one of these addresses: one with a socket, else one that is listened at, else the first.
fn of_addresses(addresses: &[SocketAddr]) -> Running {
    if let Some(socket) = addresses.iter().find_map(|address| socket_of(*address)) {
        return Running::at(socket);
    }
    let answers = |address: &&SocketAddr| TcpStream::connect_timeout(address, CONNECTED_MAX).is_ok();
    let first = addresses.first().copied().unwrap_or(DEFAULT);
    let found = if addresses.len() > 1 { addresses.iter().find(answers).copied() } else { None };
    Running::at(found.unwrap_or(first).into())
}

/// Looks a name up, for at most 5 s.
fn resolve(name: &HostPort) -> Result<Vec<SocketAddr>, String> {
    let cannot = |problem: &dyn fmt::Display| format!("cannot resolve `{name}`: {problem}; check --admin");
    let (sender, found) = bounded(1);
    let asked = name.clone();
    // The system's look-up has no deadline: the thread ends with this process.
    let look_up =
        move || sender.send((asked.host(), asked.port()).to_socket_addrs().map(Vec::from_iter)).ok();
    let named = std::thread::Builder::new().name("resolve".into());
    named.spawn(look_up).map_err(|error| cannot(&error))?;
    let found = found.recv_timeout(RESOLVED_MAX).map_err(|_| cannot(&"no name server answers within 5 s"))?;
    let mut found = found.map_err(|error| cannot(&error))?;
    found.truncate(ADDRESSES_MAX);
    if found.is_empty() { Err(cannot(&"the name has no address")) } else { Ok(found) }
}

/// Finds the socket of the process that a pid file names, and at which that process answers.
fn of_pid_file(file: &Path) -> Result<Running, String> {
    let cannot = |problem: &dyn fmt::Display| {
        format!("cannot find the gateway by its pid file {}: {problem}", file.display())
    };
    let until = clock::machine_now() + WRITTEN_MAX;
    loop {
        let pid = pid_in(file).map_err(|problem| cannot(&problem))?;
        let sockets = unix_socket::listened_by(pid).map_err(|error| {
            cannot(&format!("process {pid}: {error}; does the gateway run, and as which user?"))
        })?;
        let socket = choose(pid, sockets, look_at).map_err(|problem| cannot(&problem))?;
        let gateway = Running::at(socket.into());
        // Without the right to ask, an order is refused anyway.
        let answers = gateway.ask(&Question::get("/v1/varz")).ok();
        let varz: Option<Varz> = answers.and_then(|body| serde_json::from_str(&body).ok());
        match varz.map(|varz| varz.pid) {
            Some(other) if !numbers_of(pid).contains(&other) => {
                if clock::machine_now() >= until {
                    return Err(cannot(&format!(
                        "process {pid} listens at {gateway}, and process {other} answers there: another gateway has this \
                         admin.socket, too; end process {pid} by a signal, or give it another socket"
                    )));
                }
                std::thread::park_timeout(WRITTEN_LOOK); // a process that took over writes it within a moment
            }
            _ => return Ok(gateway),
        }
    }
}

/// Returns the numbers of a process, in this namespace of processes and in those inside of it.
fn numbers_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).chain([pid]).collect()
}

/// Reads a pid file.
fn pid_in(file: &Path) -> Result<u32, String> {
    let mut text = String::new();
    // A pipe in its place would be waited for without end.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file);
    opened
        .and_then(|opened| opened.take(PID_FILE_BYTES_MAX as u64 + 2).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    let text = text.trim();
    let pid = text.parse::<u32>().ok().filter(|pid| *pid > 0 && text.len() <= PID_FILE_BYTES_MAX);
    pid.ok_or_else(|| "it holds no process id".to_owned())
}

/// Purpose of a socket at which a gateway listens.
enum Seen {
    /// Answers as the admin socket.
    Serves,
    /// The settings have given it up; the answer says which one they have now.
    GivenUp(String),
    /// No answer, or none of a gateway.
    Silent,
}

/// Asks for a page that everybody may read.
fn look_at(socket: &Path) -> Seen {
    match http::ask(&socket.to_path_buf().into(), &Question::get("/"), CANDIDATE_MAX) {
        Ok(Answer { status: StatusCode::GONE, body }) => Seen::GivenUp(body.trim().to_owned()),
        Ok(Answer { status: StatusCode::OK, .. }) => Seen::Serves,
        Ok(_) | Err(_) => Seen::Silent,
    }
}

/// Chooses the admin socket among those at which a process listens: for some seconds after a hot restart it also listens at those
/// that the settings have given up.
fn choose(pid: u32, sockets: Vec<PathBuf>, look_at: impl Fn(&Path) -> Seen) -> Result<PathBuf, String> {
    if sockets.is_empty() {
        return Err(format!("process {pid} listens at no Unix socket; is it a gateway?"));
    }
    let (mut serving, mut silent, mut given_up) = (Vec::new(), Vec::new(), String::new());
    for socket in sockets.into_iter().take(CANDIDATES_MAX) {
        match look_at(&socket) {
            Seen::Serves => serving.push(socket),
            Seen::GivenUp(answer) => given_up = answer,
            Seen::Silent => silent.push(socket),
        }
    }
    let mut likely = if serving.is_empty() { silent } else { serving };
    match likely.len() {
        0 => Err(format!(
            "process {pid} listens only where its settings had the admin socket before: {given_up}"
        )),
        1 => Ok(likely.swap_remove(0)), // of a silent one the question tells more
        _ => {
            let names: Vec<_> = likely.iter().map(|socket| socket.display().to_string()).collect();
            let names = names.join(", ");
            Err(format!("process {pid} listens at several Unix sockets; name one by --admin: {names}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_admin_place_is_an_address_a_path_or_a_name() {
        for text in ["127.0.0.1:7080", "[::1]:7080", "/run/moorline/admin.sock", "localhost:7080"] {
            assert_eq!(text.parse::<Place>().map(|place| place.to_string()).as_deref(), Ok(text));
        }
        let said = "http://127.0.0.1:7080/v1".parse::<Place>().expect_err("a URL");
        assert!(said.ends_with("write 127.0.0.1:7080"), "{said}");
        for text in ["localhost", "7080", "localhost:", "10.0.0:7080", ""] {
            let said = text.parse::<Place>().expect_err("no place");
            assert!(said.contains("expected host:port"), "{said}");
        }
    }

    #[test]
    fn a_name_stands_for_its_addresses_and_one_without_any_is_told() {
        let found = resolve(&"localhost:7080".parse().expect("a name")).expect("every system knows it");
        assert!(
            found.iter().all(|address| address.ip().is_loopback() && address.port() == 7080),
            "{found:?}"
        );
        let said = resolve(&"moorline.invalid:1".parse().expect("a name")).expect_err("reserved");
        assert!(said.contains("cannot resolve `moorline.invalid:1`") && said.contains("--admin"), "{said}");
    }

    #[test]
    fn of_several_sockets_the_one_that_is_not_given_up_is_the_gateways_and_else_all_are_named() {
        let sockets = || ["/a", "/b", "/c"].map(PathBuf::from).to_vec();
        let given_up = || Seen::GivenUp("the admin socket is /z now".to_owned());
        let only = |name: &'static str| {
            move |path: &Path| if path == Path::new(name) { Seen::Serves } else { given_up() }
        };
        assert_eq!(choose(7, sockets(), only("/b")), Ok("/b".into()));
        let silent = |path: &Path| if path == Path::new("/c") { Seen::Silent } else { given_up() };
        assert_eq!(choose(7, sockets(), silent), Ok("/c".into()), "the question tells why");
        let said = choose(7, sockets(), |_| given_up()).expect_err("none");
        assert!(said.contains("process 7") && said.ends_with("/z now"), "{said}");
        for seen in [|| Seen::Serves, || Seen::Silent] {
            let said = choose(7, sockets(), |_| seen()).expect_err("three");
            assert!(said.ends_with("name one by --admin: /a, /b, /c"), "{said}");
        }
        assert!(choose(7, Vec::new(), |_| Seen::Serves).expect_err("none").contains("is it a gateway?"));
    }

    #[test]
    fn a_pid_file_leads_to_the_socket_of_its_process() {
        let folder = std::env::temp_dir().join(format!("moorline-find-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("made");
        let (file, path) = (folder.join("pid"), folder.join("admin.sock"));
        std::fs::remove_file(&path).ok();
        std::fs::write(&file, "none\n").expect("written");
        assert!(of_pid_file(&file).expect_err("no number").contains("holds no process id"));
        std::fs::write(&file, format!("{}\n", u32::MAX >> 1)).expect("written");
        assert!(of_pid_file(&file).expect_err("nobody").contains("does the gateway run"));
        let listener = UnixListener::bind(&path).expect("bound");
        // Other tests of this process listen at sockets of their own.
        let sockets = unix_socket::listened_by(std::process::id()).expect("our own");
        assert!(sockets.contains(&path), "{sockets:?}");
        drop(listener);
        std::fs::remove_dir_all(&folder).ok();
        assert!(of_pid_file(&file).expect_err("gone").contains("No such file"));
    }
}

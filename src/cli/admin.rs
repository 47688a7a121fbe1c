//! Asks a running gateway: finds its admin socket, or the admin address of a gateway of version 0.1.

use super::{Failure, settings};
use crate::admin::likely_sockets;
use crate::config::Config;
use clap::Args;
use moorline_net::http::{self, Address, Answer, Question, StatusCode};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The gateway's default of `admin.address`.
const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7080);

/// The gateway that is asked.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The gateway's admin socket, or its admin address: the socket is then looked for in the usual folders
    #[arg(long, env = "MOORLINE_ADMIN", value_name = "PATH|IP:PORT")]
    pub(super) admin: Option<Address>,
    /// The gateway's settings file, which names the socket; without it and --admin: 127.0.0.1:7080
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with = "admin")]
    pub(super) file: Option<PathBuf>,
}

/// A running gateway.
#[derive(Clone, Debug)]
pub(super) struct Running(Address);

impl AdminArgs {
    /// Finds the gateway's socket.
    pub(super) fn find(&self) -> Result<Running, Failure> {
        let named = match (&self.admin, &self.file) {
            (Some(address), _) => address.clone(),
            (None, Some(file)) => {
                let loaded = Config::load(Some(file), &[], settings::variables()).map_err(Failure::usage)?;
                of_settings(&loaded)?
            }
            (None, None) => of_environment()?,
        };
        let Address::Tcp(tcp) = named else { return Ok(Running(named)) };
        let listens = |path: &PathBuf| match UnixStream::connect(path) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied, // the question tells so
        };
        let socket = likely_sockets(tcp).into_iter().find(listens);
        Ok(Running(socket.map_or(named, Address::Unix)))
    }
}

fn of_settings(config: &Config) -> Result<Address, Failure> {
    if !config.admin.enabled {
        return Err(Failure::Usage(
            "admin.enabled is false: this gateway takes no questions and orders".into(),
        ));
    }
    if !config.admin.socket.as_os_str().is_empty() {
        return Ok(Address::Unix(config.admin.socket.clone()));
    }
    if config.admin.address.port() == 0 {
        let problem = "admin.address has port 0; name the socket by --admin, the ready line has it (socket=)";
        return Err(Failure::Usage(problem.into()));
    }
    Ok(Address::Tcp(config.admin.address))
}

/// Reads the variables by which the gateway may have got its settings.
fn of_environment() -> Result<Address, Failure> {
    if let Some(path) = std::env::var_os("MOORLINE__ADMIN__SOCKET").filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(path.into()));
    }
    let Ok(text) = std::env::var("MOORLINE__ADMIN__ADDRESS") else { return Ok(DEFAULT.into()) };
    let wrong = |_| Failure::Usage(format!("MOORLINE__ADMIN__ADDRESS: expected IP:PORT, not {text:?}"));
    text.parse::<SocketAddr>().map(Address::Tcp).map_err(wrong)
}

impl Running {
    /// Returns the body of the answer.
    pub(super) fn ask(&self, question: &Question<'_>) -> io::Result<String> {
        let Answer { status, body } = http::ask(&self.0, question, PATIENCE)?;
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(body),
            _ => Err(io::Error::other(format!("it says {:?}", format!("{status} {body}").trim()))),
        }
    }

    /// Makes the failure of a question into a message with the cause and what to look at.
    pub(super) fn cannot(&self, operation: &str, error: &io::Error) -> Failure {
        let advice = match (error.kind(), &self.0) {
            (io::ErrorKind::PermissionDenied, _) => {
                "; run this as root, as the gateway's user, or as a member of admin.group"
            }
            (io::ErrorKind::Other, _) => "",
            (_, Address::Unix(_)) => "; is the gateway running, and is this its admin socket (--admin)?",
            (_, Address::Tcp(_)) => {
                "; is the gateway running, and is this its admin address (--admin)? No admin socket was found for it; \
                 its ready line names it (socket=)"
            }
        };
        Failure::Failed(format!("cannot {operation} {self}: {error}{advice}"))
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

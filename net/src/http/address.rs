//! Addresses of servers and of their visitors: a TCP port, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Address of an HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// IP address and port; `None`: a Unix socket.
    pub const fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Reads `IP:PORT`, or a path: whatever has a slash.
impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let wrong = |_| "expected IP:PORT, or the path of a Unix socket with a slash in it".to_owned();
        text.parse().map(Self::Tcp).map_err(wrong)
    }
}

/// Visitor of a server, as the system names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// At a TCP port.
    Address(SocketAddr),
    /// At a Unix socket: who connected (`SO_PEERCRED`).
    User {
        /// User of the process that connected.
        uid: u32,
        /// Group id of that process.
        gid: u32,
        /// Process id; `None`: the process is in another pid namespace.
        pid: Option<i32>,
    },
    /// The system does not tell.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::User { uid, pid: Some(pid), .. } => write!(f, "uid {uid}, pid {pid}"),
            Self::User { uid, .. } => write!(f, "uid {uid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

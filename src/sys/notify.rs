//! Messages to a supervisor, as sd_notify(3) has them: lines of text in one datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! By hand, because the known library knows no abstract sockets and waits without end for a supervisor that does not read.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Variable with the path of the socket; a leading `@` is an abstract name.
pub const VARIABLE: &str = "NOTIFY_SOCKET";
/// Longest wait for a supervisor that does not read.
const WRITE_MAX: Duration = Duration::from_secs(1);

/// Sends lines such as `READY=1`; without a supervisor it does nothing.
///
/// # Errors
/// The system's: no such socket, or a supervisor that has not read for 1 s.
pub fn notify(lines: &str) -> io::Result<()> {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return Ok(()) };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(WRITE_MAX))?;
    socket.send_to_addr(lines.as_bytes(), &address).map(drop)
}

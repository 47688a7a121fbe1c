//! Checks this machine and the safety rules before the first connect.

use crate::exit::Failure;
use crate::units;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::{SocketAddr, ToSocketAddrs};

/// Descriptors a process needs besides its connections: standard streams, epoll, timer, listener, links, files.
pub const DESCRIPTORS_RESERVED: u32 = 200;
/// No run is larger, in connections.
pub const CLIENTS_MAX: u32 = 1 << 20;
/// No phase of a run is longer, in seconds.
pub const PHASE_SECONDS_MAX: u64 = 24 * 3_600;

/// Number of connections that one process may hold, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Number of connections.
    pub connections: u32,
    /// For the report: "fd limit 20,000 less 200 reserved".
    pub why: String,
}

/// Raises the soft descriptor limit to the hard one and says what fits.
pub fn room() -> Result<Room, Failure> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| Failure::io("read the descriptor limit")(errno.into()))?;
    if soft < hard {
        // Keeps the old limit if the system says no: the size below follows what holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(now, _)| now);
    Ok(room_under(limit))
}

fn room_under(limit: u64) -> Room {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let connections = limit.saturating_sub(DESCRIPTORS_RESERVED).min(CLIENTS_MAX);
    let why = format!(
        "fd limit {} less {DESCRIPTORS_RESERVED} reserved; the server needs as many again in its own process",
        units::count(u64::from(limit))
    );
    Room { connections, why }
}

/// The number of clients to run: what was asked if it fits, else an error that names the fix.
pub fn clients(asked: Option<u32>, default: u32, room: &Room) -> Result<u32, Failure> {
    match asked {
        None => Ok(default.min(room.connections)),
        Some(asked) if asked <= room.connections => Ok(asked),
        Some(asked) => Err(Failure::Preflight(format!(
            "{} connections do not fit in one process: {}. Ask for at most {}, or raise `ulimit -n` to {}",
            units::count(u64::from(asked)),
            room.why,
            units::count(u64::from(room.connections)),
            u64::from(asked) + u64::from(DESCRIPTORS_RESERVED),
        ))),
    }
}

/// True if a target outside this machine is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only 127.0.0.0/8 and ::1.
    Loopback,
    /// `--allow-remote` was given.
    Anywhere,
}

/// Resolves "host:port" or "tcp://host:port".
pub fn resolve(target: &str, reach: Reach) -> Result<SocketAddr, Failure> {
    let host_port = target.strip_prefix("tcp://").unwrap_or(target);
    let address = host_port
        .to_socket_addrs()
        .map_err(|error| Failure::Usage(format!("{target:?} is not HOST:PORT: {error}")))?
        .next()
        .ok_or_else(|| Failure::Usage(format!("{target:?} has no address")))?;
    if reach == Reach::Loopback && !address.ip().is_loopback() {
        return Err(Failure::Preflight(format!(
            "{address} is not this machine: load on other people's servers needs --allow-remote"
        )));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_descriptor_limit() {
        let room = room_under(20_000);
        assert_eq!(room.connections, 19_800);
        assert!(room.why.contains("20,000"), "{}", room.why);
        assert_eq!(clients(None, 10_000, &room).unwrap(), 10_000);
        assert_eq!(clients(None, 50_000, &room).unwrap(), 19_800);
        assert_eq!(clients(Some(19_800), 1, &room).unwrap(), 19_800);
        let refused = clients(Some(30_000), 1, &room).unwrap_err();
        assert!(refused.to_string().contains("ulimit -n` to 30200"), "{refused}");
    }

    #[test]
    fn other_machines_need_a_word() {
        assert!(resolve("127.0.0.1:7000", Reach::Loopback).is_ok());
        assert!(resolve("tcp://[::1]:7000", Reach::Loopback).is_ok());
        let refused = resolve("192.0.2.1:7000", Reach::Loopback).unwrap_err();
        assert_eq!(refused.exit(), crate::exit::Exit::Preflight);
        assert!(resolve("192.0.2.1:7000", Reach::Anywhere).is_ok());
        assert!(matches!(resolve("nowhere", Reach::Anywhere), Err(Failure::Usage(_))));
    }
}

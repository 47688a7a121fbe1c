//! Source addresses, and connects that do not block.

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Connections from one source address to one target before another address is taken: a kernel has
/// 28,232 ports by default and searches longer the fewer are free.
pub const CONNECTIONS_PER_SOURCE: u32 = 10_000;
/// Most source addresses.
pub const SOURCES_MAX: usize = 256;

/// The addresses that connections come from, in turn; none: the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(Vec<IpAddr>);

impl Sources {
    /// Reads "127.0.0.1", "127.0.0.1-40" or a list of those with commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            parse_range(part.trim(), &mut addresses)?;
        }
        if addresses.len() > SOURCES_MAX {
            return Err(format!("{text:?} names more than {SOURCES_MAX} addresses"));
        }
        Ok(Self(addresses))
    }

    /// Enough loopback addresses for `clients` connections to `target`; none if one suffices.
    pub fn for_target(target: SocketAddr, clients: u32) -> Self {
        let wanted = clients.div_ceil(CONNECTIONS_PER_SOURCE).min(250);
        if wanted <= 1 || !target.ip().is_loopback() || !target.is_ipv4() {
            return Self::default();
        }
        let last_bytes = 1..=u8::try_from(wanted).expect("at most 250");
        Self(last_bytes.map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))).collect())
    }

    /// The source of client number `index`.
    pub fn of(&self, index: u32) -> Option<IpAddr> {
        if self.0.is_empty() { None } else { Some(self.0[index as usize % self.0.len()]) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the kernel chooses.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn parse_range(part: &str, into: &mut Vec<IpAddr>) -> Result<(), String> {
    let refuse = || format!("{part:?} is no address or range: write 127.0.0.1 or 127.0.0.1-40");
    let Some((first, last)) = part.split_once('-') else {
        into.push(part.parse().map_err(|_| refuse())?);
        return Ok(());
    };
    let first: Ipv4Addr = first.parse().map_err(|_| refuse())?;
    let last: u8 = last.parse().map_err(|_| refuse())?;
    let [a, b, c, from] = first.octets();
    if last < from {
        return Err(refuse());
    }
    into.extend((from..=last).map(|d| IpAddr::V4(Ipv4Addr::new(a, b, c, d))));
    Ok(())
}

/// Begins a connect; the stream becomes writable when it is done or has failed.
pub fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // The port is chosen at connect, when the whole four-tuple is known: else ports run out early.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_sources() {
        let sources = Sources::parse("127.0.0.1-40").unwrap();
        assert_eq!(sources.len(), 40);
        assert_eq!(sources.of(0), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(sources.of(41), Some("127.0.0.2".parse().unwrap()));
        assert_eq!(Sources::parse("127.0.0.1,10.0.0.7-9").unwrap().len(), 4);
        for bad in ["", "localhost", "127.0.0.9-1", "127.0.0.1-300", "1-2"] {
            assert!(Sources::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn many_clients_spread_over_loopback_by_themselves() {
        let target = "127.0.0.1:1".parse().unwrap();
        assert!(Sources::for_target(target, 10_000).is_empty());
        assert_eq!(Sources::for_target(target, 35_000).len(), 4);
        assert!(Sources::for_target("192.0.2.1:1".parse().unwrap(), 35_000).is_empty());
    }
}

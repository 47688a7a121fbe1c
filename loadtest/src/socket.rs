//! Source addresses, and connects that do not block.

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Connections from one source address to one target before another address is taken: a kernel has
/// 28,232 ports by default and searches longer the fewer are free.
pub const CONNECTIONS_PER_SOURCE: u32 = 10_000;
/// Most source addresses.
pub const SOURCES_MAX: usize = 256;

/// Lowest port that connections are bound to when ports are chosen here: below are the well-known ones.
const PORT_MIN: u16 = 1_024;

/// The addresses that connections come from, in turn; none: the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    addresses: Vec<IpAddr>,
    /// Lowest and highest port to bind, in turn per address; `None`: the kernel chooses at connect.
    ports: Option<(u16, u16)>,
}

/// Source of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    address: Option<IpAddr>,
    port: u16,
}

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
        Ok(Self { addresses, ports: None })
    }

    /// Enough loopback addresses for `clients` connections to `target`; none if one suffices.
    pub fn for_target(target: SocketAddr, clients: u32) -> Self {
        let wanted = clients.div_ceil(CONNECTIONS_PER_SOURCE).min(250);
        if wanted <= 1 || !target.ip().is_loopback() || !target.is_ipv4() {
            return Self::default();
        }
        let last_bytes = 1..=u8::try_from(wanted).expect("at most 250");
        let addresses = last_bytes.map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))).collect();
        Self { addresses, ports: None }
    }

    /// The requested sources, or those that suit `clients` connections to `target`.
    pub fn chosen(asked: Option<&Self>, ports: Option<(u16, u16)>, target: SocketAddr, clients: u32) -> Self {
        let sources = asked.cloned().unwrap_or_else(|| Self::for_target(target, clients));
        Self { ports, ..sources }
    }

    /// Reads "20000-29999": ports to bind deliberately, instead of letting the kernel search for a free one.
    pub fn parse_ports(text: &str) -> Result<(u16, u16), String> {
        let refuse = || format!("{text:?} is no range of ports: write 20000-29999, from {PORT_MIN} up");
        let (first, last) = text.split_once('-').ok_or_else(refuse)?;
        let (first, last): (u16, u16) =
            (first.parse().map_err(|_| refuse())?, last.parse().map_err(|_| refuse())?);
        if first < PORT_MIN || last < first { Err(refuse()) } else { Ok((first, last)) }
    }

    /// Number of connections to one target that fit, where that is known.
    pub fn capacity(&self) -> Option<u64> {
        let (first, last) = self.ports?;
        Some(self.addresses.len().max(1) as u64 * (u64::from(last - first) + 1))
    }

    /// The source of client number `index`. Each address is used once before any is used twice.
    pub fn of(&self, index: u32) -> Source {
        let count = u32::try_from(self.addresses.len().max(1)).expect("at most 256");
        let address = self.addresses.get((index % count) as usize).copied();
        let port = self.ports.map_or(0, |(first, last)| {
            let place = index / count % (u32::from(last - first) + 1);
            first + u16::try_from(place).expect("below the range's length")
        });
        Source { address, port }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// True if the kernel chooses.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
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
pub fn connect(target: SocketAddr, source: Source) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    match source {
        Source { address: None, port: 0 } => {}
        Source { address: Some(address), port: 0 } => {
            // The port is chosen at connect, when the whole four-tuple is known: else ports run out early.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(address, 0).into())?;
        }
        Source { address, port } => {
            socket.set_reuse_address(true)?; // a port that waits out its last connection is as good as free
            let any =
                if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            socket.bind(&SocketAddr::new(address.unwrap_or(any), port).into())?;
        }
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
        assert_eq!(sources.of(0).address, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(sources.of(41).address, Some("127.0.0.2".parse().unwrap()));
        assert_eq!(sources.of(41).port, 0, "the kernel chooses");
        assert_eq!(Sources::parse("127.0.0.1,10.0.0.7-9").unwrap().len(), 4);
        for bad in ["", "localhost", "127.0.0.9-1", "127.0.0.1-300", "1-2"] {
            assert!(Sources::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_are_spread_deliberately() {
        let ports = Sources::parse_ports("20000-20009").unwrap();
        let addresses = Sources::parse("127.0.0.1-2").unwrap();
        let target = "127.0.0.1:1".parse().unwrap();
        let sources = Sources::chosen(Some(&addresses), Some(ports), target, 20);
        let mut seen: Vec<Source> = (0..20).map(|index| sources.of(index)).collect();
        seen.sort_by_key(|source| (source.address, source.port));
        seen.dedup();
        assert_eq!((seen.len(), sources.capacity()), (20, Some(20)));
        assert_eq!(sources.of(20), sources.of(0), "and begin anew");
        for bad in ["", "20000", "80-90", "30000-20000", "20000-70000"] {
            assert!(Sources::parse_ports(bad).is_err(), "{bad:?}");
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

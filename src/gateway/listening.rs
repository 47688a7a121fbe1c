//! The gateway's listening sockets: bound, inherited, given up, and opened again after a drain.
//!
//! Run-through: the settings have two listeners, `near` at 127.0.0.1:0 and `far` at 10.0.0.1:7000. The gateway
//! binds both; port 0 becomes 127.0.0.1:40001. Then `near` is taken out of the settings, `new` at 10.0.0.1:7001
//! is added, and the gateway is upgraded: the new process takes over the socket of `far`, whose address is still
//! wanted, binds 10.0.0.1:7001, lets in those who wait in the queue of `near`, and closes that socket.

use super::GatewayError;
use crate::config::Config;
use crate::reactor::ListenerLimits;
use moorline_net::layer::OpeningKind;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsFd;

/// A listening socket, which all reactors share: one queue, which a reactor that is busy or gone cannot hold
/// back (docs/adr/0002).
#[derive(Debug)]
pub(super) struct ListeningSocket {
    /// Name in the settings, or the number from 1.
    pub(super) name: String,
    pub(super) socket: TcpListener,
    /// Bound address, with the actual port.
    pub(super) address: SocketAddr,
    /// Length of the system's queue of newcomers, by the settings.
    pub(super) backlog: i32,
    /// Exchange before the first frame.
    pub(super) kind: OpeningKind,
}

/// A listening socket of the process before this one.
#[derive(Debug)]
pub(super) struct InheritedListener {
    pub(super) name: String,
    pub(super) socket: TcpListener,
    /// Time up to which its accept rate is used, in nanoseconds.
    pub(super) accepted_until: u64,
    /// Exchange before the first frame, by the settings of that process.
    pub(super) kind: OpeningKind,
}

/// The listening sockets of a process that takes over.
#[derive(Debug)]
pub(super) struct Matched {
    /// By number in the settings.
    pub(super) sockets: Vec<ListeningSocket>,
    /// Time up to which each accept rate is used, in nanoseconds.
    pub(super) accepted: Vec<u64>,
    /// InheritedListener sockets that the settings do not name any more.
    pub(super) retired: Vec<(TcpListener, OpeningKind)>,
    /// Listeners that have another kind now.
    pub(super) changed: Vec<ChangedListener>,
}

/// A listener of another kind than in the process before. Clients in its queue came to the old kind.
#[derive(Debug)]
pub(super) struct ChangedListener {
    /// Number in the settings, from 0.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) socket: TcpListener,
    /// Exchange before the first frame in the process before.
    pub(super) before: OpeningKind,
    /// True if this process can still serve that kind.
    pub(super) is_served: bool,
}

/// Binds all listeners of the settings.
pub(super) fn bind_all(config: &Config) -> Result<Vec<ListeningSocket>, GatewayError> {
    (0..config.listeners.len()).map(|index| bind(config, index)).collect()
}

/// Bytes that the system takes from the gateway for one client before it has sent the earlier ones. More wait in the
/// gateway, where they are counted.
const UNSENT_MAX: u32 = 64 << 10;

/// Bounds the bytes that the system keeps unsent for each accepted socket (`TCP_NOTSENT_LOWAT`).
fn bound_unsent(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_MAX)
}

/// Binds one listener. Accepted sockets inherit `TCP_NODELAY` and `TCP_NOTSENT_LOWAT`.
fn bind(config: &Config, index: usize) -> Result<ListeningSocket, GatewayError> {
    let listener = &config.listeners[index];
    let address = listener.address;
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        bound_unsent(&socket)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(backlog_of(config, index))?;
        let socket = TcpListener::from(socket);
        let address = socket.local_addr()?;
        let (backlog, kind) = (backlog_of(config, index), kind_of(config, index));
        Ok(ListeningSocket { name: config.listener_name(index), socket, address, backlog, kind })
    };
    let key = if index == 0 { "listener.address".into() } else { format!("listener.{}.address", index + 1) };
    bind().map_err(|source| GatewayError::Bind { key, address, source })
}

/// Gives each listener of the settings its inherited socket, and binds those that are new.
pub(super) fn inherit(
    config: &Config,
    mut inherited: Vec<InheritedListener>,
) -> Result<Matched, GatewayError> {
    let named =
        |socket: &TcpListener| socket.local_addr().map_err(GatewayError::system("name a listening socket"));
    let mut bound = inherited.iter().map(|old| named(&old.socket)).collect::<Result<Vec<_>, _>>()?;
    let mut found: Vec<Option<(InheritedListener, SocketAddr)>> =
        config.listeners.iter().map(|_| None).collect();
    // Exact addresses first; port 0 is any port of that IP address, by name if both have one.
    for pass in [Pass::Address, Pass::Name, Pass::Any] {
        for (index, place) in found.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
            let (wanted, name) = (config.listeners[index].address, config.listener_name(index));
            let fits = |(old, bound): (&InheritedListener, &SocketAddr)| {
                let is_any_port = wanted.port() == 0 && wanted.ip() == bound.ip();
                match pass {
                    Pass::Address => wanted == *bound,
                    Pass::Name => is_any_port && old.name == name,
                    Pass::Any => is_any_port && !(is_named(&old.name) && is_named(&name)),
                }
            };
            if let Some(at) = inherited.iter().zip(&bound).position(fits) {
                *place = Some((inherited.remove(at), bound.remove(at)));
            }
        }
    }
    let mut matched =
        Matched { sockets: Vec::new(), accepted: Vec::new(), retired: Vec::new(), changed: Vec::new() };
    let has_tls = config.listeners.iter().any(|listener| listener.kind.has_tls());
    for (index, place) in found.into_iter().enumerate() {
        let (socket, accepted) = if let Some((old, address)) = place {
            let InheritedListener { socket, accepted_until, kind: before, .. } = old;
            bound_unsent(&socket)
                .map_err(GatewayError::system("bound the unsent bytes of a listening socket"))?;
            let (backlog, kind) = (backlog_of(config, index), kind_of(config, index));
            let name = config.listener_name(index);
            if before != kind {
                let socket = socket.try_clone().map_err(GatewayError::system("copy a listening socket"))?;
                // Without keys there is no TLS, and without trusted proxies anybody could name an address.
                let is_served = (has_tls || !before.has_tls) && (kind.is_proxied || !before.is_proxied);
                matched.changed.push(ChangedListener {
                    index,
                    name: name.clone(),
                    socket,
                    before,
                    is_served,
                });
            }
            (ListeningSocket { name, socket, address, backlog, kind }, accepted_until)
        } else {
            let socket = bind(config, index)?;
            tracing::info!(name = socket.name, address = %socket.address, "new listener");
            (socket, 0)
        };
        matched.sockets.push(socket);
        matched.accepted.push(accepted);
    }
    for (InheritedListener { name, socket, kind, .. }, address) in inherited.into_iter().zip(bound) {
        tracing::warn!(name, %address, "listener closed: the settings do not have its address any more");
        matched.retired.push((socket, kind));
    }
    Ok(matched)
}

/// Rule by which an inherited socket fits a listener.
#[derive(Clone, Copy)]
enum Pass {
    /// The wanted address is the bound one.
    Address,
    /// Any port is wanted at that IP address, and the names are equal.
    Name,
    /// Any port is wanted at that IP address, and one of both has no name.
    Any,
}

/// Returns whether a listener has a name of its own, and not just its number.
fn is_named(name: &str) -> bool {
    !name.is_empty() && name.parse::<usize>().is_err()
}

fn backlog_of(config: &Config, index: usize) -> i32 {
    i32::try_from(config.listeners[index].backlog).unwrap_or(i32::MAX)
}

/// Returns what comes before the first frame at a listener of the settings.
pub(super) fn kind_of(config: &Config, index: usize) -> OpeningKind {
    let listener = &config.listeners[index];
    OpeningKind {
        is_proxied: !listener.proxy_trusted.is_empty(),
        has_tls: listener.kind.has_tls(),
        has_websocket: listener.kind.has_websocket(),
    }
}

impl ListeningSocket {
    /// Gives an inherited socket, which listens, the queue that the settings want.
    pub(super) fn set_backlog(&self) {
        if let Err(error) = SockRef::from(&self.socket).listen(self.backlog) {
            let address = self.address;
            tracing::warn!(%error, %address, "cannot change the backlog of a listening socket");
        }
    }

    /// Listens again after a drain.
    ///
    /// # Errors
    /// Another process listens there now.
    fn reopen(&self, backlog: u32) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        // A port that the system chose went back to it when the socket stopped to listen.
        match socket.bind(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINVAL) => return Err(error),
            Ok(()) | Err(_) => {} // EINVAL: the socket is bound still
        }
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))
    }
}

/// Listens again at all addresses, or at none.
///
/// # Errors
/// The address where another process listens now.
pub(super) fn reopen_all(
    sockets: &[ListeningSocket],
    config: &Config,
) -> Result<(), (SocketAddr, io::Error)> {
    for (index, (socket, listener)) in sockets.iter().zip(&config.listeners).enumerate() {
        if let Err(error) = socket.reopen(listener.backlog) {
            for reopened in &sockets[..index] {
                // Fails only if the socket does not listen.
                SockRef::from(&reopened.socket).shutdown(Shutdown::Both).ok();
            }
            return Err((socket.address, error));
        }
    }
    Ok(())
}

/// Returns all names and addresses.
pub(super) fn named(sockets: &[ListeningSocket]) -> impl Iterator<Item = (String, SocketAddr)> {
    sockets.iter().map(|socket| (socket.name.clone(), socket.address))
}

/// Returns all addresses, separated by commas.
pub(super) fn addresses(sockets: &[ListeningSocket]) -> String {
    sockets.iter().map(|socket| socket.address.to_string()).collect::<Vec<_>>().join(",")
}

/// Returns the admission limits of all listeners, by number.
pub(super) fn limits(config: &Config) -> impl Iterator<Item = ListenerLimits> {
    config.listeners.iter().map(|listener| ListenerLimits {
        accept_rate: listener.accept_rate,
        handshakes_max: listener.handshakes_max,
        address_handshakes: listener.address_handshakes,
        address_connections: listener.address_connections,
        address_rate: listener.address_rate,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listeners: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        let one = config.listeners.remove(0);
        for (name, address) in listeners {
            let address = address.parse().expect("an address");
            config.listeners.push(crate::config::ListenerConfig {
                address,
                name: (*name).into(),
                ..one.clone()
            });
        }
        config
    }

    fn inherited(sockets: Vec<ListeningSocket>) -> Vec<InheritedListener> {
        let old = |ListeningSocket { name, socket, kind, .. }| InheritedListener {
            name,
            socket,
            accepted_until: 7,
            kind,
        };
        sockets.into_iter().map(old).collect()
    }

    #[test]
    fn listeners_keep_their_sockets_in_any_order_and_new_ones_are_bound() {
        let any = "127.0.0.1:0";
        let old = bind_all(&config(&[("a", any), ("b", any), ("c", any)])).expect("free ports");
        let [a, b, c] = [0, 1, 2].map(|number: usize| old[number].address);
        // `b` by its exact address, `c` by its name; `a` is given up, because `d` has another address.
        let exact = b.to_string();
        let wanted = config(&[("c", any), ("d", "127.0.0.2:0"), ("renamed", &exact)]);
        let matched = inherit(&wanted, inherited(old)).expect("free ports");
        let addresses: Vec<_> = matched.sockets.iter().map(|socket| socket.address).collect();
        assert_eq!((addresses[0], addresses[2]), (c, b));
        assert_eq!(addresses[1].ip(), wanted.listeners[1].address.ip());
        assert_eq!(matched.accepted, [7, 0, 7]);
        assert_eq!(matched.sockets[2].name, "renamed");
        let retired: Vec<_> =
            matched.retired.iter().map(|(socket, _)| socket.local_addr().expect("bound")).collect();
        assert_eq!(retired, [a]);
    }

    #[test]
    fn the_one_listener_of_an_older_snapshot_has_no_name_and_keeps_its_port() {
        let old = bind_all(&config(&[("", "127.0.0.1:0")])).expect("a free port");
        let address = old[0].address;
        let mut unnamed = inherited(old);
        unnamed[0].name = String::new();
        let matched = inherit(&config(&[("first", "127.0.0.1:0")]), unnamed).expect("taken over");
        assert_eq!((matched.sockets[0].address, matched.retired.len()), (address, 0));
    }

    #[test]
    fn after_a_drain_all_listen_again_or_none() {
        let config = config(&[("a", "127.0.0.1:0"), ("b", "127.0.0.1:0")]);
        let sockets = bind_all(&config).expect("free ports");
        for socket in &sockets {
            SockRef::from(&socket.socket).shutdown(Shutdown::Both).expect("it listened");
        }
        let thief = TcpListener::bind(sockets[1].address).expect("nobody listens there");
        let (address, _) = reopen_all(&sockets, &config).expect_err("somebody else listens there");
        assert_eq!(address, sockets[1].address);
        assert!(std::net::TcpStream::connect(sockets[0].address).is_err(), "it does not listen either");
        drop(thief);
        reopen_all(&sockets, &config).expect("free again");
        assert!(sockets.iter().all(|socket| std::net::TcpStream::connect(socket.address).is_ok()));
    }
}

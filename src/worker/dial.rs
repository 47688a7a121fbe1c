//! The way of a link to its endpoint: the addresses of a name, one after the other.
//!
//! Example: `backend.internal:7100` has the addresses A and B, and nobody listens at A. The router orders one connection. A
//! refuses, so B is tried at once, and the router hears of the connection to B. It hears of a failure when all addresses have
//! failed. Links begin at different addresses, and the next attempt begins where this one ended.

use super::Worker;
use super::socket::Socket;
use super::token::Source;
use crate::router::{Failure, LinkIndex, RouterSettings};
use moorline_net::resolve::Known;
use moorline_proto::link::{Endpoint, HostPort, LinkAddress};
use std::net::SocketAddr;

/// State of one link's attempts.
#[derive(Debug, Default)]
pub(super) struct Dial {
    /// Name of the endpoint; `None`: it is an address.
    name: Option<HostPort>,
    /// Host of the endpoint; `None`: it is a Unix socket.
    host: Option<String>,
    /// A connection to an address of the name is made, waited for, or open.
    is_active: bool,
    /// Place of the current address among those of the name.
    place: usize,
    /// Addresses that this attempt may try after the current one; `None`: no address is known yet.
    left: Option<usize>,
}

impl Dial {
    /// Returns the state of each link of a worker. The links of a gateway begin at different places, so that they are spread
    /// over the addresses of a name.
    pub(super) fn all_of(settings: &RouterSettings) -> Vec<Self> {
        let each = settings.links_per_endpoint;
        let names = settings
            .endpoints
            .iter()
            .flat_map(|it| std::iter::repeat_n((it.name().cloned(), it.host()), each));
        let first = usize::from(settings.number);
        let dial = |(place, (name, host))| Self { name, host, place, ..Self::default() };
        (first..).zip(names).map(dial).collect()
    }

    /// Host of the endpoint, a name or an IP address; `None`: it is a Unix socket.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Takes the next address of this attempt; `None`: all were tried.
    fn next(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        match &mut self.left {
            None => self.left = Some(addresses.len().saturating_sub(1)),
            Some(0) => return None,
            Some(left) => {
                *left -= 1;
                self.place += 1;
            }
        }
        self.place = self.place.checked_rem(addresses.len())?;
        addresses.get(self.place).copied()
    }
}

impl Worker {
    /// Begins to connect to an endpoint.
    pub(super) fn connect(&mut self, link: LinkIndex, endpoint: &Endpoint) {
        match endpoint {
            Endpoint::Address(address) => {
                self.dials[link.index()].host = endpoint.host(); // a node of a cluster may have moved
                if let Err(failure) = self.try_connect(link, address) {
                    self.lose(link, &failure);
                }
            }
            Endpoint::Name(_) => {
                let dial = &mut self.dials[link.index()];
                (dial.is_active, dial.left) = (true, None);
                self.dial(link, None);
            }
        }
    }

    /// Connects to the next address of the name of a link. `last`: reason why the address before failed.
    fn dial(&mut self, link: LinkIndex, mut last: Option<Failure>) {
        let Some(name) = self.dials[link.index()].name.clone() else { return };
        let addresses = match self.resolver.look_up(&name) {
            Known::Addresses(addresses) => addresses,
            Known::Pending => return self.has_pending_names = true,
            Known::Failed(problem) => return self.lose(link, &Failure::Unresolved(problem)),
        };
        // At most once for each address.
        while let Some(address) = self.dials[link.index()].next(&addresses) {
            match self.try_connect(link, &address.into()) {
                Ok(()) => return,
                Err(failure) => last = Some(failure),
            }
        }
        self.lose(link, &last.unwrap_or(Failure::ConnectTimeout));
    }

    fn try_connect(&mut self, link: LinkIndex, address: &LinkAddress) -> Result<(), Failure> {
        let socket = Socket::connect(address, &self.epoll, Source::Link(link).into())?;
        self.sockets[link.index()] = Some(socket);
        Ok(())
    }

    /// Goes on after a connection that could not be made: another address, or the router is told.
    pub(super) fn fail_connect(&mut self, link: LinkIndex, failure: Failure) {
        if !self.dials[link.index()].is_active {
            return self.lose(link, &failure);
        }
        self.sockets[link.index()] = None;
        self.dial(link, Some(failure));
    }

    /// Goes on with links that wait for the addresses of their name.
    pub(super) fn dial_pending(&mut self) {
        if !std::mem::take(&mut self.has_pending_names) {
            return;
        }
        for link in self.router.links() {
            let dial = &self.dials[link.index()];
            if dial.is_active && dial.left.is_none() {
                self.dial(link, None);
            }
        }
    }

    /// Ends the connection of a link, or the attempt. The addresses of a name are looked up again, and the next attempt begins
    /// at another one.
    pub(super) fn hang_up(&mut self, link: LinkIndex) {
        if let Some(mut socket) = self.sockets[link.index()].take() {
            socket.shut();
        }
        let dial = &mut self.dials[link.index()];
        if !std::mem::take(&mut dial.is_active) {
            return;
        }
        if dial.left.take().is_some() {
            dial.place += 1;
        }
        dial.name.iter().for_each(|name| self.resolver.refresh(name));
    }

    /// Notes that the connection of a link was taken over from another process.
    pub(super) fn note_adopted(&mut self, link: LinkIndex) {
        let dial = &mut self.dials[link.index()];
        dial.is_active = dial.name.is_some();
        dial.left = dial.is_active.then_some(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_tries_each_address_once_from_its_own_place() {
        let addresses: Vec<SocketAddr> =
            (1..=3).map(|number| SocketAddr::from(([10, 0, 0, number], 7100))).collect();
        let mut dial = Dial { place: 5, ..Dial::default() };
        let tried: Vec<_> = std::iter::from_fn(|| dial.next(&addresses)).collect();
        assert_eq!(tried.len(), 3);
        assert!(addresses.iter().all(|address| tried.contains(address)), "{tried:?}");
        dial.left = None;
        assert_eq!(dial.next(&addresses[..1]), Some(addresses[0]));
        assert_eq!(dial.next(&addresses[..1]), None);
        assert_eq!(Dial::default().next(&[]), None);
    }
}

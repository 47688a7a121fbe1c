//! Address of a gateway as the application writes it: `tls://host:port`, the scheme by default, or `tcp://host:port`.

use std::net::IpAddr;

const TLS: &str = "tls://";
const TCP: &str = "tcp://";

/// Address of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) is_tls: bool,
    /// `host:port`.
    pub(super) place: String,
}

impl Endpoint {
    /// Reads an address; `None`: it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (is_tls, place) = match (text.strip_prefix(TLS), text.strip_prefix(TCP)) {
            (Some(place), _) => (true, place),
            (None, Some(place)) => (false, place),
            (None, None) => (true, text),
        };
        let (host, port) = place.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        is_host.then(|| Self { is_tls, place: place.to_owned() })
    }

    pub(super) fn host(&self) -> &str {
        host_of(&self.place)
    }

    /// True if the host is this machine, whatever a name server says.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// Host of `host:port`, without the brackets of an IPv6 address.
pub(super) fn host_of(place: &str) -> &str {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_the_scheme_that_nobody_needs_to_write() {
        let parsed =
            |text: &str| Endpoint::parse(text).map(|it| (it.is_tls, it.host().to_owned(), it.is_loopback()));
        let some = |is_tls, host: &str, is_loopback| Some((is_tls, host.to_owned(), is_loopback));
        assert_eq!(parsed("gw.example:7443"), some(true, "gw.example", false));
        assert_eq!(parsed("tls://gw.example:7443"), some(true, "gw.example", false));
        assert_eq!(parsed("tcp://127.0.0.1:7000"), some(false, "127.0.0.1", true));
        assert_eq!(parsed("tcp://[::1]:7000"), some(false, "::1", true));
        assert_eq!(parsed("tcp://Localhost:7000"), some(false, "Localhost", true));
        assert_eq!(parsed("tcp://localhost.evil.example:7000"), some(false, "localhost.evil.example", false));
        for text in
            ["", "host", "tls://host", "http://host:80", "tls://:1", "h:99999", "tls://a@b:1", "a b:1"]
        {
            assert_eq!(Endpoint::parse(text), None, "{text:?}");
        }
    }
}

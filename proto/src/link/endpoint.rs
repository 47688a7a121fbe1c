//! Place where a gateway looks for a backend: an address, or a name that stands for addresses.
//!
//! Example: `backend.internal:7100` is a [`HostPort`]. Its addresses are looked up by whoever connects; this module only reads
//! and writes the text.

use super::address::LinkAddress;
use alloc::string::{String, ToString as _};
use core::fmt;
use core::net::SocketAddr;
use core::str::FromStr;

/// Longest host name in bytes, and longest part between two dots (RFC 1035).
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Place where a gateway looks for a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An address: `127.0.0.1:7100`, or `unix:/run/moorline/link.sock`.
    Address(LinkAddress),
    /// A name, which may have several addresses: `backend.internal:7100`.
    Name(HostPort),
}

/// Host name and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Reason why a text is not an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointError;

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected IP:port, a host name with a port such as backend.internal:7100, or unix: and an absolute path",
        )
    }
}

impl core::error::Error for EndpointError {}

impl Endpoint {
    /// Returns the port; `None`: the endpoint is a Unix socket.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Address(LinkAddress::Ip(address)) => Some(address.port()),
            Self::Address(LinkAddress::Unix(_)) => None,
            Self::Name(name) => Some(name.port),
        }
    }

    /// Returns the host, a name or an IP address; `None`: the endpoint is a Unix socket.
    pub fn host(&self) -> Option<String> {
        match self {
            Self::Address(LinkAddress::Ip(address)) => Some(address.ip().to_canonical().to_string()),
            Self::Address(LinkAddress::Unix(_)) => None,
            Self::Name(name) => Some(name.host.clone()),
        }
    }

    /// Returns the name; `None`: the endpoint is an address.
    pub const fn name(&self) -> Option<&HostPort> {
        match self {
            Self::Address(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl HostPort {
    /// Host name, in lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port of the host; 0: not a valid place.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address.into())
    }
}

impl From<LinkAddress> for Endpoint {
    fn from(address: LinkAddress) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl FromStr for HostPort {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !is_host(host) {
            return Err(EndpointError);
        }
        let port = port.parse().map_err(|_| EndpointError)?;
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// Returns whether a text is a host name. A text whose last part is a number is a mistyped IP address.
fn is_host(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    labels.len() <= HOST_BYTES_MAX
        && labels.split('.').all(is_label)
        && !labels.rsplit('.').next().is_none_or(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn addresses_and_names_are_read_and_written() {
        for text in [
            "127.0.0.1:7100",
            "[::1]:7100",
            "unix:/run/moorline/link.sock",
            "localhost:7100",
            "backend_1.prod-2.internal.:1",
        ] {
            let read = text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
            assert_eq!(read.as_deref(), Ok(text));
        }
        let name = "Backend.Internal:7100".parse::<Endpoint>().expect("a name");
        assert_eq!(name.name().map(|name| (name.host(), name.port())), Some(("backend.internal", 7100)));
        assert_eq!("unix:/a".parse::<Endpoint>().map(|endpoint| endpoint.port()), Ok(None));
    }

    #[test]
    fn mistyped_addresses_and_names_are_refused() {
        let (label, host) = ("x".repeat(64), format!("{}a", "x.".repeat(126) + "xx."));
        for text in [
            "",
            ":",
            "backend",
            "backend:",
            ":7100",
            "backend:x",
            "backend:65536",
            "backend:+1",
            "a b:1",
            "-a:1",
            "a-:1",
            "a..b:1",
            ".:1",
            "10.0.0:7100",
            "10.0.0.256:7100",
            "::1:7100",
            "unix:link.sock",
            "tcp://a:1",
            "a/b:1",
            &format!("{label}:1"),
            &format!("{host}:1"),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError), "{text:?}");
        }
    }
}

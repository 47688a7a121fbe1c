//! Address where a backend listens for links: an IP address with a port, or the path of a Unix socket.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;
use core::str::FromStr;

/// First characters of the text of a Unix socket's address.
const UNIX: &str = "unix:";
/// Longest path of a Unix socket, in bytes (unix(7), without the final zero).
const PATH_BYTES_MAX: usize = 107;

/// Address of a link port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LinkAddress {
    /// An IP address and a port: `127.0.0.1:7100`.
    Ip(SocketAddr),
    /// The absolute path of a Unix socket: `unix:/run/moorline/link.sock`.
    Unix(String),
}

/// Reason why a text is not a [`LinkAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressError;

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected IP:port, or unix: and an absolute path of at most {PATH_BYTES_MAX} bytes")
    }
}

impl core::error::Error for AddressError {}

impl LinkAddress {
    /// Returns the address on an IP network; `None`: it is a Unix socket.
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for LinkAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{path}"),
        }
    }
}

impl FromStr for LinkAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Ip).map_err(|_| AddressError);
        };
        let is_path = path.len() > 1
            && path.len() <= PATH_BYTES_MAX
            && path.starts_with('/')
            && !path.ends_with('/')
            && !path.contains(|letter: char| letter.is_control() || letter.is_whitespace());
        if is_path { Ok(Self::Unix(path.to_owned())) } else { Err(AddressError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString as _;

    #[test]
    fn texts_are_read_and_written() {
        for text in ["127.0.0.1:7100", "[::1]:7100", "unix:/run/moorline/link.sock"] {
            assert_eq!(text.parse::<LinkAddress>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        let long = format!("unix:/{}", "x".repeat(PATH_BYTES_MAX));
        for text in
            ["", "unix:", "unix:/", "unix:link.sock", "unix:/a b", "unix:/a/", "/run/x", "host:7100", &long]
        {
            assert_eq!(text.parse::<LinkAddress>(), Err(AddressError), "{text:?}");
        }
    }
}

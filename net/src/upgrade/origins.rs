//! Origins whose pages may connect.

use std::net::IpAddr;

/// Origins in one list.
pub const ORIGINS_MAX: usize = 256;

const ANY: &str = "*";
const HTTPS: &str = "https://";
const HTTP: &str = "http://";

/// Origins whose pages may connect; an empty list: no page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    is_any: bool,
    /// In lower case, without the port of the scheme, as browsers write them.
    listed: Vec<String>,
}

/// Reason why a text is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Not `https://host` or `https://host:port`.
    #[error(
        "{text:?} is not an origin; write https://chat.example or https://chat.example:8443, without a path, or * for \
         every page"
    )]
    Form {
        /// The rejected text.
        text: String,
    },
    /// A page without TLS from another machine can be changed by anybody on the way.
    #[error(
        "{text:?} is a page without TLS; write https://, or http:// with localhost or a loopback address"
    )]
    Plain {
        /// The rejected text.
        text: String,
    },
    /// A list that is too long.
    #[error("{count} origins, limit {ORIGINS_MAX}")]
    TooMany {
        /// Origins in the list.
        count: usize,
    },
}

impl Origins {
    /// Reads origins: `https://host[:port]`, `http://` on loopback, or `*`.
    ///
    /// # Errors
    /// The first text that is not an origin, or more than [`ORIGINS_MAX`] texts.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, OriginError> {
        if texts.len() > ORIGINS_MAX {
            return Err(OriginError::TooMany { count: texts.len() });
        }
        let mut origins = Self::default();
        for text in texts.iter().map(AsRef::as_ref) {
            if text == ANY {
                origins.is_any = true;
            } else {
                origins.listed.push(normal(text)?);
            }
        }
        Ok(origins)
    }

    /// Returns whether pages of this origin, as the browser writes it, may connect.
    pub fn contains(&self, origin: &[u8]) -> bool {
        self.is_any || self.listed.iter().any(|listed| listed.as_bytes().eq_ignore_ascii_case(origin))
    }
}

/// The origin as browsers write it.
fn normal(text: &str) -> Result<String, OriginError> {
    let form = || OriginError::Form { text: text.to_owned() };
    let lower = text.to_ascii_lowercase();
    let (scheme, port, place) = if let Some(place) = lower.strip_prefix(HTTPS) {
        (HTTPS, ":443", place)
    } else if let Some(place) = lower.strip_prefix(HTTP) {
        (HTTP, ":80", place)
    } else {
        return Err(form());
    };
    let place = place.strip_suffix(port).unwrap_or(place);
    let host = host_of(place).ok_or_else(form)?;
    let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if scheme == HTTP && !is_loopback {
        return Err(OriginError::Plain { text: text.to_owned() });
    }
    Ok(format!("{scheme}{place}"))
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host_of(place: &str) -> Option<&str> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        ip.parse::<std::net::Ipv6Addr>().ok()?;
        (ip, port)
    } else {
        let (host, port) = place.find(':').map_or((place, ""), |at| place.split_at(at));
        let is_host = host.parse::<IpAddr>().is_ok() || crate::http::is_host_name(host);
        (is_host.then_some(host)?, port)
    };
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && digits.parse::<u16>().is_ok_and(|port| port > 0)
        });
    is_port.then_some(host)
}

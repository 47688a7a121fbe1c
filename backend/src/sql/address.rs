//! Address of a cell: a PostgreSQL connection string.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

/// Longest wait for a connection to one server of a cell; a later part of the string may set another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that sent bytes stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);

/// Address of a cell: `host=a,b,c dbname=moorline user=moorline` or `postgresql://moorline@a,b,c/moorline`. Of several hosts the
/// one that takes writes is used: the primary.
#[derive(Clone, PartialEq, Eq)]
pub struct CellAddress {
    pub(super) config: Config,
}

/// The text does not name a cell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellAddressError {
    /// The text is not a connection string.
    #[error(
        "not a PostgreSQL connection string: {0}; write for example `host=a,b,c user=moorline dbname=moorline`"
    )]
    Syntax(String),
    /// No host.
    #[error("the connection string names no host; add `host=`")]
    NoHost,
    /// The password is in the text.
    #[error("a password in settings is printed with them; write it into the file of store.password_file")]
    Password,
    /// TLS is asked for.
    #[error("TLS to cells is not built; set `sslmode=disable` and use a private network or a tunnel")]
    Tls,
}

impl FromStr for CellAddress {
    type Err = CellAddressError;

    fn from_str(text: &str) -> Result<Self, CellAddressError> {
        let cause = |error: tokio_postgres::Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            CellAddressError::Syntax(source.unwrap_or_else(|| error.to_string()))
        };
        let mut config: Config = text.parse().map_err(cause)?;
        if config.get_hosts().is_empty() {
            return Err(CellAddressError::NoHost);
        }
        if config.get_password().is_some() {
            return Err(CellAddressError::Password);
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(CellAddressError::Tls);
        }
        config.ssl_mode(SslMode::Disable);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.connect_timeout(config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT));
        config.tcp_user_timeout(config.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT));
        config.application_name("moorline");
        Ok(Self { config })
    }
}

impl CellAddress {
    /// Gives the address the password of its user.
    #[must_use]
    pub fn with_password(mut self, password: &[u8]) -> Self {
        self.config.password(password);
        self
    }
}

/// Hosts, ports, database and user, never the password.
impl fmt::Display for CellAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let port =
                self.config.get_ports().get(index).or(self.config.get_ports().first()).unwrap_or(&5432);
            let comma = if index == 0 { "" } else { "," };
            match host {
                tokio_postgres::config::Host::Tcp(name) => write!(f, "{comma}{name}:{port}")?,
                tokio_postgres::config::Host::Unix(folder) => {
                    write!(f, "{comma}{}:{port}", folder.display())?;
                }
            }
        }
        let user = self.config.get_user().unwrap_or("");
        write!(f, "/{}", self.config.get_dbname().unwrap_or(user))
    }
}

impl fmt::Debug for CellAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let address: CellAddress = "host=a,b port=5433 user=moorline dbname=chat".parse().unwrap();
        let address = address.with_password(b"secret");
        assert_eq!(address.to_string(), "a:5433,b:5433/chat");
        assert_eq!(format!("{address:?}"), "a:5433,b:5433/chat");
        let url: CellAddress = "postgresql://moorline@10.0.0.1:6000/chat".parse().unwrap();
        assert_eq!(url.to_string(), "10.0.0.1:6000/chat");
        let socket: CellAddress = "host=/run/postgresql user=moorline".parse().unwrap();
        assert_eq!(socket.to_string(), "/run/postgresql:5432/moorline");
    }

    #[test]
    fn what_is_no_address_says_why() {
        let cause = |text: &str| text.parse::<CellAddress>().unwrap_err().to_string();
        assert!(cause("host=a port=x").contains("port"), "{}", cause("host=a port=x"));
        assert!(cause("nonsense").starts_with("not a PostgreSQL connection string"));
        assert_eq!("user=a".parse::<CellAddress>(), Err(CellAddressError::NoHost));
        assert_eq!("host=a password=b".parse::<CellAddress>(), Err(CellAddressError::Password));
        assert_eq!("host=a sslmode=require".parse::<CellAddress>(), Err(CellAddressError::Tls));
    }
}

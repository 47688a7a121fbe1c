//! Address of a cell: a PostgreSQL connection string, with the files of TLS in it.
//!
//! | in the string | the connection |
//! |---|---|
//! | `sslmode=verify-full sslrootcert=FILE` | TLS; the server shows a certificate of this CA for the host that is dialled |
//! | `sslmode=require sslrootcert=FILE` | the same: whoever is not verified could be anybody |
//! | `sslmode=disable` | plain |
//! | no `sslmode` | plain, to this machine only |
//!
//! `sslcert` and `sslkey` are a certificate that the client shows, `sslcrl` lists of revoked ones.

use super::tls::{CellTls, CellTlsError};
use moorline_net::tls::MutualFiles;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// Longest wait for a connection to one server of a cell; a later part of the string may set another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that sent bytes stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);

/// Address of a cell: `host=a,b,c dbname=moorline user=moorline` or `postgresql://moorline@a,b,c/moorline`. Of several hosts the
/// one that takes writes is used: the primary.
#[derive(Clone, PartialEq, Eq)]
pub struct CellAddress {
    pub(super) config: Config,
    /// Files of TLS; `None`: the connection is plain.
    tls: Option<MutualFiles>,
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
    /// Anybody between here and there could read and change everything.
    #[error(
        "the connection to {0} would be plain; add `sslmode=verify-full sslrootcert=FILE`, or `sslmode=disable` if nobody is \
         between"
    )]
    Plain(String),
    /// The mode decides on the wire, or verifies less than the whole.
    #[error("sslmode={0} is not known; write verify-full, or disable")]
    Mode(String),
    /// A part of what TLS needs is missing, or does not fit.
    #[error("{0}")]
    Tls(&'static str),
}

impl FromStr for CellAddress {
    type Err = CellAddressError;

    fn from_str(text: &str) -> Result<Self, CellAddressError> {
        let cause = |error: tokio_postgres::Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            CellAddressError::Syntax(source.unwrap_or_else(|| error.to_string()))
        };
        let (rest, tls) = take_tls(text)?;
        let mut config: Config = rest.parse().map_err(cause)?;
        if config.get_hosts().is_empty() {
            return Err(CellAddressError::NoHost);
        }
        if config.get_password().is_some() {
            return Err(CellAddressError::Password);
        }
        let tls = judge(&config, tls)?;
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.connect_timeout(config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT));
        config.tcp_user_timeout(config.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT));
        config.application_name("moorline");
        Ok(Self { config, tls })
    }
}

/// Parts of a connection string that are about TLS.
#[derive(Debug, Default)]
struct TlsWords {
    mode: Option<String>,
    files: MutualFiles,
}

impl TlsWords {
    /// Takes a word. False: it is about something else.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let file = match key {
            "sslmode" => {
                self.mode = Some(value.to_owned());
                return true;
            }
            "sslrootcert" => &mut self.files.ca,
            "sslcert" => &mut self.files.certificate,
            "sslkey" => &mut self.files.key,
            "sslcrl" => &mut self.files.crl,
            _ => return false,
        };
        *file = PathBuf::from(value);
        true
    }
}

/// Takes out what the library does not know. The rest is as it was.
fn take_tls(text: &str) -> Result<(String, TlsWords), CellAddressError> {
    let mut words = TlsWords::default();
    if text.starts_with("postgresql://") || text.starts_with("postgres://") {
        let Some((place, query)) = text.split_once('?') else { return Ok((text.to_owned(), words)) };
        let mut rest = Vec::new();
        for word in query.split('&') {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if !words.take(key, &decoded(value)?) {
                rest.push(word);
            }
        }
        let mark = if rest.is_empty() { "" } else { "?" };
        return Ok((format!("{place}{mark}{}", rest.join("&")), words));
    }
    let (mut rest, mut left) = (String::new(), text.trim_start());
    while !left.is_empty() {
        let Some((key, behind)) = left.split_once('=') else {
            rest.push_str(left); // the library says what is wrong
            break;
        };
        let behind = behind.trim_start();
        let (value, length) = value_of(behind);
        if !words.take(key.trim(), &value) {
            rest.push_str(&left[..left.len() - behind.len() + length]);
            rest.push(' ');
        }
        left = behind[length..].trim_start();
    }
    Ok((rest, words))
}

/// Reads the value at the beginning of `text`, in quotes or up to a space. Returns the value, and its length as it is written.
fn value_of(text: &str) -> (String, usize) {
    let is_quoted = text.starts_with('\'');
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, letter) in text.char_indices().skip(usize::from(is_quoted)) {
        match letter {
            _ if is_escaped => {
                value.push(letter);
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            '\'' if is_quoted => return (value, at + 1),
            letter if letter.is_whitespace() && !is_quoted => return (value, at),
            letter => value.push(letter),
        }
    }
    (value, text.len())
}

/// Replaces `%2F` and the like.
fn decoded(text: &str) -> Result<String, CellAddressError> {
    let mut bytes = Vec::new();
    let mut left = text.as_bytes();
    while let [byte, rest @ ..] = left {
        left = rest;
        bytes.push(match (byte, rest) {
            (b'%', [_, _, behind @ ..]) => {
                left = behind;
                let digits = str::from_utf8(&rest[..2]).unwrap_or("");
                u8::from_str_radix(digits, 16)
                    .map_err(|_| CellAddressError::Syntax(format!("`{text}` has a bad % sign")))?
            }
            _ => *byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| CellAddressError::Syntax(format!("`{text}` is not UTF-8")))
}

/// Returns the files of TLS, if the connection has it.
fn judge(config: &Config, words: TlsWords) -> Result<Option<MutualFiles>, CellAddressError> {
    let TlsWords { mode, files } = words;
    let has_tls = match mode.as_deref() {
        Some("verify-full" | "require") => true,
        Some("disable") if !files.is_empty() => {
            return Err(CellAddressError::Tls(
                "sslmode=disable needs no files; remove sslrootcert, sslcert, sslkey and sslcrl",
            ));
        }
        Some("disable") => return Ok(None),
        Some(other) => return Err(CellAddressError::Mode(other.to_owned())),
        None => !files.is_empty(),
    };
    if !has_tls {
        return match config
            .get_hosts()
            .iter()
            .enumerate()
            .find(|(index, host)| !is_here(config, *index, host))
        {
            Some((_, Host::Tcp(name))) => Err(CellAddressError::Plain(name.clone())),
            _ => Ok(None),
        };
    }
    if config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_))) {
        return Err(CellAddressError::Tls("a Unix socket has no TLS; use a host, or sslmode=disable"));
    }
    if files.ca.as_os_str().is_empty() {
        return Err(CellAddressError::Tls(
            "without `sslrootcert` the server could be anybody; name the file with the certificate of its CA",
        ));
    }
    if files.certificate.as_os_str().is_empty() != files.key.as_os_str().is_empty() {
        return Err(CellAddressError::Tls("`sslcert` and `sslkey` belong together; name both, or none"));
    }
    Ok(Some(files))
}

/// Returns whether what is sent to a host stays on this machine.
fn is_here(config: &Config, index: usize, host: &Host) -> bool {
    match (config.get_hostaddrs().get(index), host) {
        (_, Host::Unix(_)) => true,
        (Some(address), _) => address.is_loopback(),
        (None, Host::Tcp(name)) => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

impl CellAddress {
    /// Gives the address the password of its user.
    #[must_use]
    pub fn with_password(mut self, password: &[u8]) -> Self {
        self.config.password(password);
        self
    }

    /// Reads the files of TLS; `None`: the connection is plain.
    ///
    /// # Errors
    /// [`CellTlsError`]: a file is missing or not valid.
    pub fn tls(&self) -> Result<Option<CellTls>, CellTlsError> {
        self.tls.as_ref().map(CellTls::read).transpose()
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
                Host::Tcp(name) => write!(f, "{comma}{name}:{port}")?,
                Host::Unix(folder) => {
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
        let address: CellAddress =
            "host=a,b port=5433 user=moorline dbname=chat sslmode=disable".parse().unwrap();
        let address = address.with_password(b"secret");
        assert_eq!(address.to_string(), "a:5433,b:5433/chat");
        assert_eq!(format!("{address:?}"), "a:5433,b:5433/chat");
        let url: CellAddress = "postgresql://moorline@10.0.0.1:6000/chat?sslmode=disable".parse().unwrap();
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
        let plain = |text: &str| matches!(text.parse::<CellAddress>(), Err(CellAddressError::Plain(_)));
        assert!(plain("host=a") && plain("host=localhost,10.0.0.1") && plain("host=a hostaddr=10.0.0.1"));
        assert!(
            !plain("host=a hostaddr=127.0.0.1")
                && !plain("host=::1")
                && !plain("host=/run")
                && !plain("host=a sslmode=disable")
        );
        for mode in ["prefer", "allow", "verify-ca", "none"] {
            assert!(cause(&format!("host=a sslmode={mode}")).contains("write verify-full"), "{mode}");
        }
        assert!(cause("host=a sslmode=require").contains("`sslrootcert`"));
        assert!(cause("host=a sslrootcert=ca sslcert=c").contains("belong together"));
        assert!(cause("host=/run sslmode=verify-full sslrootcert=ca").contains("Unix socket"));
        assert!(cause("host=a sslmode=disable sslcrl=x").contains("remove"));
        assert!(cause("postgresql://a/b?sslmode=verify-full&sslrootcert=%zz").contains("% sign"));
    }

    #[test]
    fn files_of_tls_are_taken_out_of_both_forms() {
        let files = |text: &str| text.parse::<CellAddress>().unwrap().tls.unwrap();
        let expected = MutualFiles {
            ca: "/etc/my ca.pem".into(),
            certificate: "/c".into(),
            key: "/k".into(),
            crl: PathBuf::new(),
        };
        for text in [
            r"host=a,b sslmode=verify-full sslrootcert='/etc/my ca.pem' sslcert=/c sslkey = /k user=u",
            r"sslrootcert=/etc/my\ ca.pem sslkey='/k' host = a sslcert = '/c'",
            "postgresql://u@a,b/c?sslmode=require&sslrootcert=%2Fetc%2Fmy%20ca.pem&sslcert=/c&connect_timeout=3&sslkey=/k",
        ] {
            assert_eq!(files(text), expected, "{text}");
        }
        let text = "host=a password='' user='o\\'neil' sslmode=disable";
        let error = text.parse::<CellAddress>().unwrap_err();
        assert_eq!(error, CellAddressError::Password, "what is not about TLS goes on as it was");
    }
}

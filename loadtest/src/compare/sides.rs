//! The two sides: which processes to start, and whose CPU time counts.

use crate::child::Server;
use crate::dialect::token::TokenMint;
use crate::exit::Failure;
use crate::process::Watched;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Side that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The gateway of Moorline.
    Ours,
    /// The bare server.
    Bare,
}

impl Side {
    /// The word in the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Bare => "bare",
        }
    }
}

/// Authentication mode of our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all: dev mode.
    Dev,
    /// HS256 tokens with a secret made for the run.
    Jwt,
}

/// Folder of the servers' programs, and arguments of ours.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `moorline` binary; without it only the bare side is measured.
    pub moorline: Option<PathBuf>,
    /// A binary that takes `bare ...` arguments.
    pub bare: PathBuf,
    /// Authentication mode of our side.
    pub auth: Auth,
    /// Further `--set` of `moorline run`.
    pub settings: Vec<String>,
    /// Certificate of both sides; `None`: plain TCP.
    pub tls: Option<TlsFiles>,
}

/// Files with a certificate, with absolute paths.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Chain of certificates in PEM.
    pub certificates: PathBuf,
    /// Private key of the first one in PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Settings of a gateway that has one listener.
    fn settings(&self) -> [String; 4] {
        let (certificates, key) = (self.certificates.display(), self.key.display());
        [
            "listener.kind=tls".to_owned(),
            format!("tls.certificates=[\"{certificates}\"]"),
            format!("tls.keys=[\"{key}\"]"),
            format!("tls.default={certificates}"),
        ]
    }
}

/// Backend behind the front server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// A backend that answers everything.
    Acker,
    /// The IM backend with its memory store.
    Im,
}

/// Processes whose CPU time a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// The front server alone: ours is the gateway.
    Front,
    /// Front and backend together.
    All,
}

/// The running processes of one side; dropping them ends them, the front first.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) front: Server,
    behind: Server,
    pub(super) key: Option<Key>,
}

/// Returns whether the gateway is of a version whose links need proofs, or the word that they need none.
fn knows_proofs(moorline: &std::path::Path) -> bool {
    let settings = std::process::Command::new(moorline).args(["config", "default"]).output();
    settings.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("unproven"))
}

impl Servers {
    pub(super) fn start(side: Side, behind: Behind, programs: &Programs) -> Result<Self, Failure> {
        match (side, &programs.moorline) {
            (Side::Ours, Some(moorline)) => Self::start_ours(moorline, behind, programs),
            _ => Self::start_bare(programs),
        }
    }

    fn start_ours(moorline: &std::path::Path, behind: Behind, programs: &Programs) -> Result<Self, Failure> {
        let handler = match behind {
            Behind::Acker => "handler=acker",
            Behind::Im => "handler=im",
        };
        // A group of the fan-out holds the whole fleet.
        let mut arguments =
            settings("backend", ["listen=127.0.0.1:0", handler, "im.group_members_max=1000000"]);
        arguments.extend(["--log-level".to_owned(), "error".to_owned()]);
        // A build from before the proofs of links does not know the setting, and needs none.
        let has_proofs = knows_proofs(moorline);
        if has_proofs {
            arguments.extend(["--set".to_owned(), "link.unproven=loopback".to_owned()]);
        }
        let backend = Server::start(moorline, &arguments)?;
        let endpoints = format!("backend.endpoints=[\"{}\"]", backend.address());
        let key = match programs.auth {
            Auth::Dev => None,
            Auth::Jwt => Some(Key::make()?),
        };
        let auth = match &key {
            None => vec!["auth.mode=dev".to_owned()],
            Some(key) => vec![
                "auth.mode=jwt".to_owned(),
                "auth.algorithm=HS256".to_owned(),
                format!("auth.key_file={}", key.path.display()),
            ],
        };
        let fixed =
            ["listener.address=127.0.0.1:0", "admin.address=127.0.0.1:0", "log.level=error", &endpoints];
        let all = fixed.into_iter().chain(auth.iter().map(String::as_str));
        let all = all.chain(has_proofs.then_some("backend.unproven=loopback"));
        let tls = programs.tls.as_ref().map(TlsFiles::settings);
        let all = all.chain(tls.iter().flatten().map(String::as_str));
        let all = all.chain(programs.settings.iter().map(String::as_str));
        let front = Server::start(moorline, &settings("run", all))?;
        Ok(Self { front, behind: backend, key })
    }

    /// Starts the load generator's own servers.
    fn start_bare(programs: &Programs) -> Result<Self, Failure> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let acker = Server::start(&programs.bare, &words(&["bare", "--acker"]))?;
        let address = acker.address().to_string();
        let mut arguments = words(&["bare", "--backend", &address]);
        if let Some(TlsFiles { certificates, key }) = &programs.tls {
            let (certificates, key) = (certificates.display().to_string(), key.display().to_string());
            arguments.extend(words(&["--tls-cert", &certificates, "--tls-key", &key]));
        }
        let front = Server::start(&programs.bare, &arguments)?;
        Ok(Self { front, behind: acker, key: None })
    }

    pub(super) fn watched(&self, counted: Counted) -> Watched {
        match counted {
            Counted::Front => Watched::new([self.front.pid()]),
            Counted::All => Watched::new([self.front.pid(), self.behind.pid()]),
        }
    }
}

fn settings<'a>(verb: &str, pairs: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut arguments = vec![verb.to_owned()];
    for pair in pairs {
        arguments.extend(["--set".to_owned(), pair.to_owned()]);
    }
    arguments
}

/// A secret in a file of its own, removed with it.
#[derive(Debug)]
pub(super) struct Key {
    path: PathBuf,
    secret: Vec<u8>,
}

impl Key {
    fn make() -> Result<Self, Failure> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = || getrandom::u64().expect("the kernel has random bytes");
        let secret = format!("{:016x}{:016x}{:016x}", number(), number(), number());
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("moorload-{}-{number}.key", std::process::id()));
        write_private(&path, secret.as_bytes()).map_err(Failure::io("write a key file"))?;
        Ok(Self { path, secret: secret.into_bytes() })
    }

    pub(super) fn mint(&self) -> TokenMint {
        TokenMint::new(&self.secret, None)
    }
}

fn write_private(path: &std::path::Path, secret: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(secret)
}

impl Drop for Key {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

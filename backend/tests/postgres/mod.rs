//! A PostgreSQL server of the installed distribution package, for one test: in its own folder, on a Unix socket only unless a
//! test sets `listen_addresses`.
//!
//! PostgreSQL refuses root, so root starts it as `postgres` or `nobody`. It ends with its [`Postgres`], and after
//! [`LIFE_SECONDS`] in any case.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// Longest life of a server, if the test that started it was killed.
const LIFE_SECONDS: &str = "1800";
/// Between two looks at a server that starts, and their number: four minutes.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS_MAX: u32 = 4800;

#[allow(dead_code)] // The tests of stores use the rest of it.
#[path = "../../src/im/store/disk/scratch.rs"]
pub(crate) mod scratch;

/// See the module.
pub(crate) struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    account: Option<(u32, u32)>,
    port: u16,
    server: Child,
    #[allow(dead_code)] // kept
    new: Arc<New>,
}

/// The folder of a server that never ran. To make one costs more than to run most tests, so tests copy it.
struct New(PathBuf);

impl New {
    /// The one of this program, made if no test has it.
    fn shared(programs: &Path, account: Option<(u32, u32)>) -> Arc<Self> {
        static SHARED: Mutex<Weak<New>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self(new_folder(account)));
            let made = command(programs, &new.0, account, PORT, "initdb")
                .args(["-A", "trust", "-U", "moorline", "--no-sync", "-E", "UTF8", "--locale=C", "-D"])
                .arg(new.0.join("data"))
                .stdout(Stdio::null())
                .status();
            assert!(made.expect("initdb runs").success(), "initdb");
            *shared = Arc::downgrade(&new);
            new
        })
    }
}

impl Drop for New {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// The folder of the newest PostgreSQL that is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
    let number = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    versions.filter(|path| path.join("initdb").exists()).max_by_key(number)
}

/// The account that a server of root's runs under. `None`: this is not root.
fn account() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").expect("the own status");
    let is_root =
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    is_root.then(|| find("postgres").or_else(|| find("nobody")).unwrap_or((65_534, 65_534)))
}

/// Says that PostgreSQL is missing; fails where nothing may be skipped.
pub(crate) fn skip(test: &str) {
    let is = |name, value| std::env::var(name).as_deref() == Ok(value);
    let may_skip = !is("MOORLINE_SKIPS", "fail") && !is("MOORLINE_POSTGRES", "require");
    assert!(may_skip, "{test} needs PostgreSQL (`initdb`)");
    println!("SKIPPED {test}: no /usr/lib/postgresql/*/bin/initdb; install the package `postgresql`");
}

impl Postgres {
    /// Starts a server with these settings, beside those that a test needs. `None`: PostgreSQL is not installed.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let port = settings.iter().find(|(key, _)| *key == "port");
        let port = port.map_or(PORT, |(_, port)| port.parse().expect("a port"));
        let programs = programs()?;
        let account = account();
        let folder = new_folder(account);
        let new = New::shared(&programs, account);
        let copied = Command::new("cp").arg("-a").arg(new.0.join("data")).arg(&folder).status();
        assert!(copied.expect("cp runs").success(), "cp");
        let mut lines = String::from(
            "max_connections = 60\nshared_buffers = 32MB\ndynamic_shared_memory_type = mmap\nlisten_addresses = ''\n",
        );
        for (key, value) in settings {
            _ = writeln!(lines, "{key} = {value}");
        }
        let configuration = folder.join("data/postgresql.conf");
        let own = fs::read_to_string(&configuration).expect("settings");
        fs::write(&configuration, own + &lines).expect("settings");
        let server = launch(&programs, &folder, account);
        let mut postgres = Self { programs, folder, account, port, server, new };
        postgres.wait();
        Some(postgres)
    }

    /// Starts a standby of this server, which has to have `synchronous_standby_names`.
    #[allow(dead_code)] // not in each program of tests
    pub(crate) fn standby(&self) -> Self {
        let (programs, account) = (self.programs.clone(), self.account);
        let folder = new_folder(account);
        let copied = command(&programs, &folder, account, self.port, "pg_basebackup")
            .args(["-U", "moorline", "-X", "stream", "-c", "fast", "--no-sync", "-R", "-h"])
            .arg(&self.folder)
            .arg("-D")
            .arg(folder.join("data"))
            .status();
        assert!(copied.expect("pg_basebackup runs").success(), "pg_basebackup");
        let server = launch(&programs, &folder, account);
        let port = self.port;
        let mut standby = Self { programs, folder, account, port, server, new: self.new.clone() };
        standby.wait();
        standby
    }

    /// Kills the server as a machine that loses its power does.
    #[allow(dead_code)]
    pub(crate) fn kill(&mut self) {
        let lines = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("the pid of a server");
        let pid = lines.lines().next().expect("a pid").trim();
        let killed = Command::new("kill").args(["-KILL", pid]).status();
        assert!(killed.expect("kill runs").success(), "the server runs");
        _ = self.server.wait();
    }

    /// Makes a standby the primary.
    #[allow(dead_code)]
    pub(crate) fn promote(&self) {
        let done = command(&self.programs, &self.folder, self.account, self.port, "pg_ctl")
            .args(["promote", "-s", "-w", "-D"])
            .arg(self.folder.join("data"))
            .status();
        assert!(done.expect("pg_ctl runs").success(), "pg_ctl promote");
    }

    /// Runs a statement as `psql` does. Returns its value.
    #[allow(dead_code)]
    pub(crate) fn sql(&self, database: &str, text: &str) -> String {
        let done = command(&self.programs, &self.folder, self.account, self.port, "psql")
            .args(["-U", "moorline", "-At", "-h"])
            .arg(&self.folder)
            .args(["-d", database, "-c", text])
            .stderr(Stdio::inherit())
            .output()
            .expect("psql runs");
        assert!(done.status.success(), "{text}");
        String::from_utf8(done.stdout).expect("text").trim().to_owned()
    }

    /// Writes a file that only the server reads. Returns its path.
    #[allow(dead_code)]
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join("data").join(name);
        fs::write(&path, text).expect("a file of the server");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its rights");
        if let Some((user, group)) = self.account {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).expect("its owner");
        }
        path
    }

    /// Folder of the server's socket: the host of a connection string.
    #[allow(dead_code)]
    pub(crate) fn host(&self) -> String {
        self.folder.display().to_string()
    }

    /// Makes an empty database, and returns the connection string.
    pub(crate) fn database(&self, name: &str) -> String {
        let made = command(&self.programs, &self.folder, self.account, self.port, "createdb")
            .args(["-U", "moorline", "-h"])
            .arg(&self.folder)
            .arg(name)
            .status();
        assert!(made.expect("createdb runs").success(), "createdb {name}");
        format!("host={} port={} user=moorline dbname={name}", self.folder.display(), self.port)
    }

    fn wait(&mut self) {
        for _ in 0..LOOKS_MAX {
            let ready = command(&self.programs, &self.folder, self.account, self.port, "pg_isready")
                .args(["-q", "-h"])
                .arg(&self.folder)
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            let ended = self.server.try_wait().expect("a child");
            assert!(ended.is_none(), "PostgreSQL does not start: {}", self.log());
            thread::park_timeout(LOOK);
        }
        panic!("PostgreSQL does not answer: {}", self.log());
    }

    fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(self.folder.join("log")) {
            let from = file.metadata().map_or(0, |data| data.len().saturating_sub(2000));
            _ = file.seek(std::io::SeekFrom::Start(from));
            _ = file.read_to_string(&mut text);
        }
        text
    }
}

/// Makes an empty folder of an account.
fn new_folder(account: Option<(u32, u32)>) -> PathBuf {
    let folder = scratch::path("pg");
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    if let Some((user, group)) = account {
        std::os::unix::fs::chown(&folder, Some(user), Some(group)).expect("the folder of another account");
    }
    folder
}

/// Port of a server, which names its socket, too.
const PORT: u16 = 5432;

fn command(programs: &Path, folder: &Path, account: Option<(u32, u32)>, port: u16, program: &str) -> Command {
    let mut command = Command::new(programs.join(program));
    command.env("PGPORT", port.to_string());
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    command.env("HOME", folder).current_dir(folder).stdin(Stdio::null());
    command
}

fn launch(programs: &Path, folder: &Path, account: Option<(u32, u32)>) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
    let mut command = Command::new("timeout");
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    let copy = log.try_clone().expect("a descriptor");
    command
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(copy)
        .args(["--signal=INT", "--kill-after=10", LIFE_SECONDS])
        .arg(programs.join("postgres"))
        .arg("-k")
        .arg(folder)
        .arg("-D")
        .arg(folder.join("data"));
    command.spawn().expect("PostgreSQL starts")
}

impl Drop for Postgres {
    fn drop(&mut self) {
        _ = command(&self.programs, &self.folder, self.account, self.port, "pg_ctl")
            .args(["stop", "-s", "-m", "immediate", "-D"])
            .arg(self.folder.join("data"))
            .status();
        _ = self.server.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}

//! The database of a small cluster: a primary and two standbys of the installed PostgreSQL, which the demo starts, kills and
//! promotes itself.
//!
//! Example: the primary is killed. The standby that has more of its log is promoted, the other one is told to follow it, and
//! then a commit is on two servers again.
//!
//! PostgreSQL refuses root, so root runs the servers as `postgres` or `nobody`. They listen on Unix sockets only, in a folder that
//! nobody else may enter.

use crate::DemoError;
use crate::clock;
use crate::stop::Stop;
use moorline_proto::time::Duration;
use nix::unistd::{User, geteuid};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Servers: the primary comes first.
const SERVERS: usize = 3;
/// From a start to the first answer, and from a promotion to the first write.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// From the order to end to the end.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Length of one look.
const LOOK: Duration = Duration::from_millis(50);
/// Longest path of a socket that Linux takes, in bytes, with its end.
const SOCKET_PATH_MAX: usize = 107;
const SOCKET: &str = ".s.PGSQL.5432";
/// Oldest version that a node works with.
const VERSION_MIN: u32 = 15;
const USER: &str = "moorline";
const DATABASE: &str = "demo";
/// Folder of the distribution package: a folder for each version.
const INSTALLED: &str = "/usr/lib/postgresql";
/// Runs a server, and ends it when the standard input ends: no server outlives the demo.
const GUARD: &str =
    r#""$@" </dev/null & server=$!; read -r _; kill -QUIT "$server" 2>/dev/null; wait "$server""#;
/// Settings of each server. Shared memory is in files of the folder, so that a killed server leaves none.
const SETTINGS: &str = "
listen_addresses = ''
max_connections = 100
shared_buffers = 32MB
dynamic_shared_memory_type = mmap
hot_standby = on
synchronous_commit = on
synchronous_standby_names = 'ANY 1 (*)'
";

/// A primary and its standbys.
#[derive(Debug)]
pub(crate) struct Cell {
    programs: Programs,
    servers: Vec<Database>,
    folder: CellFolder,
}

/// Folder of the servers, which belongs to their account. Dropping it removes it.
#[derive(Debug)]
struct CellFolder(PathBuf);

impl Drop for CellFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok(); // nobody is left to tell
    }
}

/// The programs of PostgreSQL, and the account that they run under.
#[derive(Clone, Debug)]
struct Programs {
    folder: PathBuf,
    /// User and group; `None`: those of the demo.
    account: Option<(u32, u32)>,
}

/// One server. Dropping it ends it.
#[derive(Debug)]
struct Database {
    folder: PathBuf,
    guard: Child,
}

/// The servers that are left when the primary is dead, on their way to another primary.
#[derive(Debug)]
pub(crate) struct Succession {
    programs: Programs,
    standbys: Vec<PathBuf>,
}

impl Cell {
    /// Makes and starts the servers, each with a folder in a new one beside `beside`, and a database on them.
    pub(crate) fn start(beside: &Path, log: &File, stop: &Stop) -> Result<Self, DemoError> {
        let programs = Programs::find(Path::new(INSTALLED))?;
        let folder = programs.make_folder(beside)?;
        let mut cell = Self { programs, servers: Vec::new(), folder };
        let primary = cell.place(0);
        let copied = ["-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync", "-D"];
        cell.programs.run(&cell.folder.0, "initdb", &copied, &[&primary.join("data")])?;
        let file = primary.join("data/postgresql.conf");
        let own = fs::read_to_string(&file).map_err(crate::system("read the settings of PostgreSQL"))?;
        fs::write(&file, own + SETTINGS).map_err(crate::system("write the settings of PostgreSQL"))?;
        cell.launch(0, log, stop)?;
        for number in 1..SERVERS {
            let place = cell.place(number);
            let copied = ["-U", USER, "-X", "stream", "-c", "fast", "--no-sync", "-R", "-h"];
            cell.programs.run(
                &cell.folder.0,
                "pg_basebackup",
                &copied,
                &[&primary, Path::new("-D"), &place.join("data")],
            )?;
            cell.launch(number, log, stop)?;
        }
        let create = ["-U", USER, DATABASE, "-h"];
        cell.programs.run(&cell.folder.0, "createdb", &create, &[&primary])?;
        Ok(cell)
    }

    /// The connection string of the nodes.
    pub(crate) fn address(&self) -> String {
        let hosts: Vec<_> = (0..SERVERS).map(|number| self.place(number).display().to_string()).collect();
        format!("host={} user={USER} dbname={DATABASE}", hosts.join(","))
    }

    /// `kill -9` of the primary and all that it has started. What comes back is to be carried out by [`Succession::run`].
    pub(crate) fn kill_primary(&mut self) -> Result<Succession, DemoError> {
        let primary = self.servers.remove(0);
        let pid_file = primary.folder.join("data/postmaster.pid");
        let lines = fs::read_to_string(pid_file).map_err(crate::system("read the pid of PostgreSQL"))?;
        let mut lines = lines.lines();
        let pid = lines.next().unwrap_or_default().trim();
        self.programs.run_any(&self.folder.0, Path::new("kill"), &["-KILL".as_ref(), pid.as_ref()])?;
        // A killed server leaves a segment of shared memory, which its seventh line names.
        if let Some(segment) = lines.nth(5).and_then(|line| line.split_whitespace().nth(1)) {
            self.programs
                .run_any(&self.folder.0, Path::new("ipcrm"), &["-m".as_ref(), segment.as_ref()])
                .ok();
        }
        drop(primary);
        let standbys = self.servers.iter().map(|server| server.folder.clone()).collect();
        Ok(Succession { programs: self.programs.clone(), standbys })
    }

    /// Fails if a server is gone that was not killed.
    pub(crate) fn check(&mut self) -> Result<(), DemoError> {
        for server in &mut self.servers {
            if !server.folder.join("data/postmaster.pid").exists() {
                let problem = format!("PostgreSQL in {} ended by itself", server.folder.display());
                return Err(DemoError::Server { name: "database", problem });
            }
        }
        Ok(())
    }

    fn place(&self, number: usize) -> PathBuf {
        self.folder.0.join(format!("pg-{}", number + 1))
    }

    fn launch(&mut self, number: usize, log: &File, stop: &Stop) -> Result<(), DemoError> {
        let place = self.place(number);
        let mut command = self.programs.command(&self.folder.0, Path::new("/bin/sh"));
        let log = || log.try_clone().map_err(crate::system("share a log"));
        command.args(["-c", GUARD, "guard"]).arg(self.programs.folder.join("postgres"));
        command.arg("-k").arg(&place).arg("-D").arg(place.join("data"));
        // A Ctrl-C at the terminal is for the demo, which ends its servers in order.
        command.stdin(Stdio::piped()).stdout(log()?).stderr(log()?).process_group(0);
        let guard = command.spawn().map_err(crate::system("start PostgreSQL"))?;
        self.servers.push(Database { folder: place.clone(), guard });
        let until = clock::now() + READY_WITHIN;
        while self.programs.run(&self.folder.0, "pg_isready", &["-q", "-h"], &[&place]).is_err() {
            stop.check()?;
            if clock::now() >= until {
                let what = format!("PostgreSQL was not ready within {} s", READY_WITHIN.as_secs());
                return Err(DemoError::TooBusy(what));
            }
            std::thread::park_timeout(LOOK);
        }
        Ok(())
    }
}

impl Succession {
    /// Makes the standby that has more the primary, and has the other one follow it. May take seconds.
    pub(crate) fn run(self) -> Result<(), DemoError> {
        let mut standbys = Vec::new();
        for place in self.standbys {
            let position = "select (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::int8";
            standbys.push((self.programs.sql(&place, position)?.parse::<u64>().unwrap_or(0), place));
        }
        standbys.sort();
        let Some((_, primary)) = standbys.pop() else { return Ok(()) };
        let folder = primary.join("data");
        self.programs.run(&primary, "pg_ctl", &["promote", "-s", "-w", "-D"], &[&folder])?;
        for (_, standby) in standbys {
            let follow =
                format!("alter system set primary_conninfo = 'host={} user={USER}'", primary.display());
            self.programs.sql(&standby, &follow)?;
            self.programs.sql(&standby, "select pg_reload_conf()")?;
        }
        Ok(())
    }
}

impl Programs {
    fn find(installed: &Path) -> Result<Self, DemoError> {
        let missing = || {
            let what = format!("PostgreSQL {VERSION_MIN} or later ({}/*/bin/initdb)", installed.display());
            DemoError::Missing(format!("{what}; install it: apt-get install postgresql"))
        };
        let version = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
        let versions = fs::read_dir(installed).map_err(|_| missing())?.flatten();
        let found = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
        let newest = found.filter(|bin| version(bin) >= Some(VERSION_MIN)).max_by_key(version);
        let account =
            |name| User::from_name(name).ok().flatten().map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        let account = geteuid().is_root().then(|| account("postgres").or_else(|| account("nobody")));
        let nobody = || {
            DemoError::Missing(
                "a user `postgres` or `nobody`: PostgreSQL refuses root; run the demo as another user"
                    .to_owned(),
            )
        };
        let account = account.map(|found| found.ok_or_else(nobody)).transpose()?;
        Ok(Self { folder: newest.ok_or_else(missing)?, account })
    }

    /// Makes the folder of the servers beside the demo's own one, which their account may not enter.
    fn make_folder(&self, beside: &Path) -> Result<CellFolder, DemoError> {
        let mut name = beside.file_name().unwrap_or_default().to_owned();
        name.push("-cell");
        let folder = beside.with_file_name(name);
        let longest = folder.join("pg-1").join(SOCKET);
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            let source = io::Error::other(format!(
                "a socket there would have a path of more than {SOCKET_PATH_MAX} bytes; set TMPDIR to a shorter one"
            ));
            return Err(DemoError::System { operation: "make the folder of PostgreSQL", source });
        }
        if self.account.is_some() {
            is_open_to_others(&folder)?;
        }
        let made = || {
            DirBuilder::new().mode(0o700).create(&folder)?;
            let guard = CellFolder(folder.clone());
            let places = (1..=SERVERS).map(|number| folder.join(format!("pg-{number}"))).collect::<Vec<_>>();
            for place in &places {
                DirBuilder::new().mode(0o700).create(place)?;
            }
            if let Some((user, group)) = self.account {
                for place in places.iter().chain([&folder]) {
                    chown(place, Some(user), Some(group))?;
                }
            }
            Ok(guard)
        };
        made().map_err(crate::system("make the folder of PostgreSQL"))
    }

    /// A command with a home of its own, as the account of the servers.
    fn command(&self, home: &Path, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command.env("HOME", home).current_dir(home).stdin(Stdio::null());
        command
    }

    fn run(
        &self,
        home: &Path,
        program: &str,
        arguments: &[&str],
        paths: &[&Path],
    ) -> Result<String, DemoError> {
        let arguments = arguments.iter().map(AsRef::as_ref).chain(paths.iter().map(|path| path.as_os_str()));
        self.run_any(home, &self.folder.join(program), &arguments.collect::<Vec<_>>())
    }

    /// Runs a program to its end, and returns what it said.
    fn run_any(
        &self,
        home: &Path,
        program: &Path,
        arguments: &[&std::ffi::OsStr],
    ) -> Result<String, DemoError> {
        let done = self.command(home, program).args(arguments).output();
        let done = done.map_err(crate::system("run a program of PostgreSQL"))?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
        }
        let words = String::from_utf8_lossy(&done.stderr);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(DemoError::Server { name: "database", problem: format!("{} said: {words}", program.display()) })
    }

    fn sql(&self, place: &Path, text: &str) -> Result<String, DemoError> {
        self.run(place, "psql", &["-U", USER, "-At", "-d", "postgres", "-c", text, "-h"], &[place])
    }
}

/// Fails if another user than root cannot reach a folder.
fn is_open_to_others(folder: &Path) -> Result<(), DemoError> {
    for above in folder.ancestors().skip(1) {
        let mode =
            fs::metadata(above).map_err(crate::system("look at the folder for temporary files"))?.mode();
        if mode & 0o001 == 0 {
            let source = io::Error::other(format!(
                "PostgreSQL refuses root, and no other user may enter {}; set TMPDIR to another folder, or run the demo as another user",
                above.display()
            ));
            return Err(DemoError::System { operation: "make the folder of PostgreSQL", source });
        }
    }
    Ok(())
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let until = clock::now() + END_WITHIN;
        while clock::now() < until {
            if let Ok(Some(_)) = self.guard.try_wait() {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
        self.guard.kill().ok();
        self.guard.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::RunFolder;

    #[test]
    fn a_machine_without_postgresql_or_with_an_old_one_is_told_what_to_install() {
        let folder = RunFolder::create().expect("a folder");
        let told = |installed: &Path| Programs::find(installed).expect_err("not there").to_string();
        let expected = "apt-get install postgresql";
        assert!(told(&folder.path().join("nothing")).contains(expected));
        let old = folder.path().join("9/bin");
        fs::create_dir_all(&old).expect("made");
        fs::write(old.join("initdb"), "").expect("written");
        let told = told(folder.path());
        assert!(told.contains(expected) && told.contains("15 or later"), "{told}");
    }

    #[test]
    fn a_folder_that_only_root_may_enter_is_refused_by_its_name() {
        let folder = RunFolder::create().expect("a folder");
        let refused = is_open_to_others(&folder.path().join("cell")).expect_err("closed").to_string();
        assert!(
            refused.contains(&folder.path().display().to_string()) && refused.contains("TMPDIR"),
            "{refused}"
        );
    }
}

//! Hot restart and the program that it starts: known by its file, and not by its path.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, binary, run};
use crate::raw::Client;
use crate::series::Series;
use moorline::admin::Restart;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that only this user can write, with copies of the program.
struct Programs(StoreFolder);

impl Programs {
    fn new() -> Self {
        let folder = StoreFolder::new();
        std::fs::create_dir(folder.path()).expect("made");
        set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("ours");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy whose file differs in the bytes behind the program.
    fn copy(&self, name: &str, mark: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path("new"));
        let mut bytes = std::fs::read(binary()).expect("the program");
        bytes.extend_from_slice(mark.as_bytes());
        std::fs::write(&new, bytes).expect("written");
        set_permissions(&new, Permissions::from_mode(0o700)).expect("ours");
        // As a package manager does: the file that runs keeps its bytes.
        std::fs::rename(new, &path).expect("one folder");
        path
    }
}

fn start(backend: &Backend, path: &Path) -> Series {
    Series::start_by(backend, &[], |command| {
        let mut own = Command::new(path);
        own.args(command.get_args()).stdin(std::process::Stdio::null());
        own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Gateway::of_command(own)
    })
}

/// The SHA-256 in a program's name in a verdict.
fn hash(name: &str) -> &str {
    name.rsplit_once("sha256:").unwrap_or_else(|| panic!("no hash in {name}")).1
}

fn roll_back(series: &Series) -> Restart {
    let (code, said, error) = run(&["rollback", "--json", "--admin", &series.gateway.admin.to_string()]);
    assert_eq!(code, Some(0), "{said} {error}");
    serde_json::from_str(&said).expect("JSON")
}

fn running(series: &Series) -> u64 {
    std::fs::metadata(format!("/proc/{}/exe", series.pid())).expect("it runs").ino()
}

#[test]
fn after_a_replacement_in_place_rollback_runs_the_file_that_served() {
    let (backend, programs) = (Backend::start(), Programs::new());
    let path = programs.copy("moorline", "first");
    let series = start(&backend, &path);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let first = running(&series);
    programs.copy("moorline", "second");
    let up = series.restart();
    let second = running(&series);
    assert_ne!(first, second, "{up:?}");
    assert_ne!(hash(&up.from), hash(&up.to));
    assert!(up.from.contains(path.to_str().expect("text")) && up.to.contains(path.to_str().expect("text")));
    assert_eq!(up.pid, series.pid());
    // The settings are read again: that changes nothing about what served before.
    series.restart();
    let back = roll_back(&series);
    assert_eq!(running(&series), first, "{back:?}");
    assert_eq!((hash(&back.from), hash(&back.to)), (hash(&up.to), hash(&up.from)));
    client.beat(30);
    // From there `upgrade` runs what lies at the path now.
    series.restart();
    assert_eq!(running(&series), second);
    client.beat(30);
}

#[test]
fn a_link_is_followed_anew_at_each_upgrade() {
    let (backend, programs) = (Backend::start(), Programs::new());
    let (first, second) = (programs.copy("one", "first"), programs.copy("two", "second"));
    let current = programs.path("current");
    symlink(&first, &current).expect("made");
    let series = start(&backend, &current);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let ino = |path: &Path| std::fs::metadata(path).expect("there").ino();
    assert_eq!(running(&series), ino(&first));
    let link_to = |to: &Path| {
        symlink(to, programs.path("next")).expect("made");
        std::fs::rename(programs.path("next"), &current).expect("one folder");
    };
    link_to(&second);
    let up = series.restart();
    assert_eq!(running(&series), ino(&second), "{up:?}");
    link_to(&first);
    series.restart();
    assert_eq!(running(&series), ino(&first));
    // A binary that is named by a link is followed anew, too.
    let named = programs.path("named");
    symlink(&second, &named).expect("made");
    let (code, restart) = series.upgrade(&["--binary", named.to_str().expect("text")]);
    assert_eq!((code, running(&series)), (Some(0), ino(&second)), "{restart:?}");
    std::fs::remove_file(&named).expect("ours");
    symlink(&first, &named).expect("made");
    series.restart();
    assert_eq!(running(&series), ino(&first));
    client.beat(30);
}

#[test]
fn without_another_program_rollback_says_so_or_runs_the_same_file() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let (code, _, said) = run(&["rollback", "--admin", &series.gateway.admin.to_string()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing to go back to"), "{said}");
    series.restart();
    let back = roll_back(&series);
    assert_eq!(hash(&back.from), hash(&back.to));
}

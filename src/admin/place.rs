//! Path of the Unix socket for orders, if the settings do not say. The gateway and the command line agree on it by the
//! admin address alone.
//!
//! For example, a gateway of root with `admin.address = "127.0.0.1:7080"` listens at `/run/moorline/admin-127.0.0.1-7080.sock`,
//! and `moorline status --admin 127.0.0.1:7080` looks there.

use nix::unistd::geteuid;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Folder that systemd makes for a service (`RuntimeDirectory=`); several are separated by colons.
const OF_SERVICE: &str = "RUNTIME_DIRECTORY";
/// Folder of a user's login session.
const OF_SESSION: &str = "XDG_RUNTIME_DIR";
const OF_ROOT: &str = "/run/moorline";

/// Returns the path of the socket of a gateway with this admin address, for this user and environment.
pub fn default_socket(admin: SocketAddr) -> PathBuf {
    folders(|name| std::env::var_os(name), geteuid().as_raw()).swap_remove(0).join(name(admin))
}

/// Returns all paths where a gateway with this admin address may have its socket, the likeliest first.
pub fn likely_sockets(admin: SocketAddr) -> Vec<PathBuf> {
    let mut folders = folders(|name| std::env::var_os(name), geteuid().as_raw());
    folders.push(OF_ROOT.into()); // of a service that belongs to another user
    folders.iter().map(|folder| folder.join(name(admin))).collect()
}

fn name(admin: SocketAddr) -> String {
    format!("admin-{}-{}.sock", admin.ip(), admin.port())
}

/// Returns the folders where this user's gateways make their sockets. The first is in force.
fn folders(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Vec<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let mut folders = Vec::new();
    if let Some(list) = variable(OF_SERVICE) {
        folders.extend(std::env::split_paths(&list).next().and_then(absolute));
    }
    if uid == 0 {
        folders.push(OF_ROOT.into());
        return folders;
    }
    let of_session = variable(OF_SESSION).and_then(|path| absolute(path.into()));
    folders.extend(of_session.map(|path| path.join("moorline")));
    folders.push(std::env::temp_dir().join(format!("moorline-{uid}")));
    folders
}

/// Longest path of a Unix socket in bytes: `sun_path` of unix(7), less its end.
const PATH_BYTES_MAX: usize = 107;

/// Refuses a path that the system would not take.
pub(crate) fn judge(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(format!("the path has {length} bytes, and the system takes {PATH_BYTES_MAX}"));
    }
    if !path.is_absolute() {
        return Err("the path must be absolute".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_services_then_roots_then_the_sessions_then_a_temporary_one() {
        let set = |wanted: &'static [(&str, &str)]| {
            move |name: &str| wanted.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        };
        let both = set(&[(OF_SERVICE, "/run/a:/run/b"), (OF_SESSION, "/run/user/7")]);
        let temporary = std::env::temp_dir().join("moorline-7");
        assert_eq!(folders(both, 0), ["/run/a", "/run/moorline"].map(PathBuf::from));
        let all = [PathBuf::from("/run/a"), "/run/user/7/moorline".into(), temporary.clone()];
        assert_eq!(folders(both, 7), all);
        assert_eq!(folders(set(&[]), 7), std::slice::from_ref(&temporary));
        assert_eq!(folders(set(&[(OF_SERVICE, ""), (OF_SESSION, "here")]), 7), [temporary]);
    }

    #[test]
    fn two_addresses_have_two_sockets() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(name(address("127.0.0.1:7080")), "admin-127.0.0.1-7080.sock");
        assert_eq!(name(address("[::1]:7080")), "admin-::1-7080.sock");
    }

    #[test]
    fn paths_that_the_system_would_cut_are_refused() {
        assert!(judge(Path::new("/run/moorline/a.sock")).is_ok());
        assert!(judge(Path::new("run/a.sock")).is_err());
        assert!(judge(&PathBuf::from(format!("/{}", "x".repeat(107)))).is_err());
    }
}

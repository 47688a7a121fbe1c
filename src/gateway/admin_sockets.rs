//! The sockets of the administration: bound, inherited, and removed.
//!
//! Run-through: a gateway of root starts with the default settings, makes `/run/moorline` with mode 0700 and listens at
//! `/run/moorline/admin-127.0.0.1-7080.sock` with mode 0600. A hot restart hands both sockets over. The last process of the
//! series removes the path when it ends. Have the settings another path, the one of before still answers for some seconds, so
//! that who ordered the restart there reads its verdict. Was it killed, the next start finds a path where nobody listens, and removes it.

use super::GatewayError;
use super::retired_sockets::{RetiredPlace, RetiredSockets};
use crate::admin::{self, Status};
use crate::config::Config;
use crate::metrics::Registry;
use crate::sys::clock;
use moorline_net::unix_socket::{self, FileId};
use moorline_proto::time::Instant;
use nix::unistd::{Gid, Group, chown, geteuid};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries of the folder that one start looks at.
const SWEPT_MAX: usize = 1024;
/// Age in seconds from which a socket that refuses is removed.
const SWEPT_AGE_S: i64 = 60;

/// Sockets of the administration.
#[derive(Debug, Default)]
pub(super) struct AdminSockets {
    /// `None`: `admin.enabled` is false.
    pub(super) address: Option<TcpListener>,
    /// `None`: not enabled, or the default path could not be used.
    pub(super) socket: Option<AdminSocket>,
    /// Sockets of the process before this one that the settings do not want any more, or did not even then.
    retired: Vec<RetiredPlace>,
}

/// An admin socket of the process before.
#[derive(Debug)]
pub(super) struct InheritedSocket {
    pub(super) listener: UnixListener,
    /// End of its time, if the settings of that process had given it up; `None`: it was the admin socket.
    pub(super) until: Option<Instant>,
    /// The file that it was bound to; `None`: that process did not tell it, or its path has another file.
    pub(super) file: Option<FileId>,
}

/// The Unix socket for orders.
#[derive(Debug)]
pub(super) struct AdminSocket {
    pub(super) listener: UnixListener,
    group: Option<Gid>,
    path: PathBuf,
    /// The file that the socket was bound to.
    file: FileId,
    /// True if this process removes the file when it ends.
    is_own: bool,
}

impl AdminSockets {
    /// Binds what the settings want.
    pub(super) fn bind(config: &Config) -> Result<Self, GatewayError> {
        Self::inherit(config, None, Vec::new())
    }

    /// Takes over the sockets of another process, and binds what is missing. The other process can still serve on.
    pub(super) fn inherit(
        config: &Config,
        address: Option<TcpListener>,
        sockets: Vec<InheritedSocket>,
    ) -> Result<Self, GatewayError> {
        let mut old: Vec<_> = sockets.into_iter().filter_map(|socket| retired(config, socket)).collect();
        if !config.admin.enabled {
            return Ok(Self { retired: old, ..Self::default() });
        }
        let wanted = config.admin.address;
        let fits =
            |inherited: &TcpListener| inherited.local_addr().is_ok_and(|bound| is_wanted(wanted, bound));
        let address = if let Some(inherited) = address.filter(fits) {
            inherited
        } else {
            let failed = |source| GatewayError::Bind { key: "admin.address".into(), address: wanted, source };
            TcpListener::bind(wanted).map_err(failed)?
        };
        let socket = AdminSocket::of(config, &address, &mut old)?;
        old.retain(|old| socket.as_ref().is_none_or(|socket| socket.path != old.path));
        Ok(Self { address: Some(address), socket, retired: old })
    }

    /// Copies the descriptors, for the threads that serve them; `None`: nothing is served.
    pub(super) fn share(&self) -> io::Result<Option<admin::Listeners>> {
        let Some(address) = &self.address else { return Ok(None) };
        let share = |socket: &AdminSocket| Ok::<_, io::Error>((socket.listener.try_clone()?, socket.group));
        let socket = self.socket.as_ref().map(share).transpose()?;
        Ok(Some(admin::Listeners { address: address.try_clone()?, socket }))
    }

    /// Starts the servers of the sockets that are given up, paused.
    ///
    /// # Errors
    /// The system's: no poll, no thread.
    pub(super) fn retire(
        &mut self,
        status: &Arc<Status>,
        metrics: &Arc<Registry>,
    ) -> io::Result<RetiredSockets> {
        let now = self.socket.as_ref().map(|socket| socket.path.as_path());
        RetiredSockets::start(std::mem::take(&mut self.retired), now, status, metrics)
    }

    /// Notes that this process serves, and that the path is its own.
    pub(super) fn own(&mut self) {
        self.socket.iter_mut().for_each(|socket| socket.is_own = true);
    }
}

/// Makes the place of an inherited socket as if it were given up; `None`: it has no path.
fn retired(
    config: &Config,
    InheritedSocket { listener, until, file }: InheritedSocket,
) -> Option<RetiredPlace> {
    let path = path_of(&listener)?;
    // A process of an earlier version does not tell the file.
    let is_untold = file.is_none() && until.is_none() && is_socket(&path);
    let file = if is_untold { FileId::of(&path).ok() } else { file };
    // A group that does not exist any more gets nothing; the socket that is served is judged apart.
    let group = group(&config.admin.group).unwrap_or_default();
    Some(RetiredPlace { listener, group, path, file, until })
}

impl AdminSocket {
    /// Takes the socket that the settings want out of the inherited ones, or binds another one.
    fn of(
        config: &Config,
        address: &TcpListener,
        inherited: &mut Vec<RetiredPlace>,
    ) -> Result<Option<Self>, GatewayError> {
        let group = group(&config.admin.group)?;
        let is_default = config.admin.socket.as_os_str().is_empty();
        let path = if is_default {
            let address = address.local_addr().map_err(GatewayError::system("name the admin address"))?;
            admin::default_socket(address)
        } else {
            config.admin.socket.clone()
        };
        // Somebody who sweeps temporary files may have removed the socket's own file: then nobody finds the inherited one, and
        // another process may listen at the path.
        let found = inherited.iter().position(|old| old.path == path && old.is_found());
        let result =
            match found.map(|number| inherited.swap_remove(number)) {
                Some(RetiredPlace { listener, file: Some(file), .. }) => permit(&path, group)
                    .map(|()| Self { listener, group, path: path.clone(), file, is_own: false }),
                _ => Self::bind(path.clone(), group),
            };
        match result {
            Ok(socket) => Ok(Some(socket)),
            Err(problem) if is_default => {
                tracing::warn!(
                    path = %path.display(),
                    problem,
                    "no admin socket: status and orders are off, signals work; name a path with admin.socket"
                );
                Ok(None)
            }
            Err(problem) => Err(GatewayError::AdminSocket { path, problem }),
        }
    }

    fn bind(path: PathBuf, group: Option<Gid>) -> Result<Self, String> {
        admin::judge_socket(&path)?;
        let folder = path.parent().ok_or("the path has no folder")?;
        prepare(folder, group)?;
        sweep(folder);
        unix_socket::remove_abandoned(&path).map_err(|error| error.to_string())?;
        let listener = UnixListener::bind(&path).map_err(|error| error.to_string())?;
        let file = FileId::of(&path).map_err(|error| format!("cannot look at the new socket: {error}"))?;
        permit(&path, group)?;
        Ok(Self { listener, group, path, file, is_own: true })
    }

    /// The file that the socket was bound to.
    pub(super) const fn file(&self) -> FileId {
        self.file
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if self.is_own {
            self.file.remove(&self.path);
        }
    }
}

/// Returns whether a socket at `bound` is the one that the settings want; port 0 is any port.
fn is_wanted(wanted: SocketAddr, bound: SocketAddr) -> bool {
    wanted == bound || (wanted.port() == 0 && wanted.ip() == bound.ip())
}

/// Returns whether a socket has this name.
fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(Path::to_path_buf)
}

/// Finds the group by its name or number; `None`: the name is empty.
pub(super) fn group(name: &str) -> Result<Option<Gid>, GatewayError> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = match name.parse::<u32>() {
        Ok(number) => Some(Gid::from_raw(number)),
        Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid),
    };
    found.map(Some).ok_or_else(|| GatewayError::AdminGroup(name.into()))
}

/// Makes the folder if it is missing, and refuses one in which others could replace the socket.
fn prepare(folder: &Path, group: Option<Gid>) -> Result<(), String> {
    let failed = |what: &str, error: &dyn ToString| {
        format!("cannot {what} the folder {}: {}", folder.display(), error.to_string())
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            if group.is_some() {
                chown(folder, None, group).map_err(|error| failed("give the group", &error))?;
                let mode = Permissions::from_mode(0o750);
                fs::set_permissions(folder, mode).map_err(|error| failed("open to the group", &error))?;
            }
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make", &error)),
    }
    let found = fs::symlink_metadata(folder).map_err(|error| failed("look at", &error))?;
    let is_sticky = found.uid() == 0 && found.mode() & 0o1000 != 0;
    if !found.is_dir() || (found.uid() != 0 && found.uid() != geteuid().as_raw()) {
        return Err(format!("{} is not a folder of this user or of root", folder.display()));
    }
    if found.mode() & 0o022 != 0 && !is_sticky {
        return Err(format!("others may write in {}; take that away (chmod go-w)", folder.display()));
    }
    Ok(())
}

/// Removes sockets of other gateways that were killed: their ports, and so their names, may never come again.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let now = i64::try_from(clock::unix_nanos() / 1_000_000_000).unwrap_or(0);
    for entry in entries.take(SWEPT_MAX).flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with("admin-"));
        // A socket refuses for a moment between its bind and its listen.
        let made = entry.metadata().map_or(i64::MAX, |found| found.mtime());
        if is_ours && made.saturating_add(SWEPT_AGE_S) < now {
            unix_socket::remove_abandoned(&entry.path()).ok();
        }
    }
}

/// Sets owner and mode: 0600, or 0660 for the group.
fn permit(path: &Path, group: Option<Gid>) -> Result<(), String> {
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    if group.is_some() {
        chown(path, None, group)
            .map_err(|error| format!("cannot give the socket to admin.group: {error}"))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| format!("cannot set the mode of the socket: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("moorline-{name}-{}", std::process::id()));
            fs::remove_dir_all(&path).ok();
            DirBuilder::new().mode(0o700).create(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn config(socket: PathBuf) -> Config {
        let mut config = Config::default();
        config.admin.address = ([127, 0, 0, 1], 0).into();
        config.admin.socket = socket;
        config
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn the_socket_and_its_folder_are_for_this_user_only_and_go_with_the_process() {
        let folder = Folder::new("admin-modes");
        let path = folder.0.join("run/a.sock");
        let sockets = AdminSockets::bind(&config(path.clone())).expect("bound");
        assert_eq!((mode(&path), mode(&folder.0.join("run"))), (0o600, 0o700));
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_where_somebody_listens_is_refused_and_a_stale_one_is_replaced() {
        let folder = Folder::new("admin-stale");
        let path = folder.0.join("a.sock");
        let first = UnixListener::bind(&path).expect("bound");
        let said = AdminSockets::bind(&config(path.clone())).expect_err("in use").to_string();
        assert!(said.contains("a.sock") && said.contains("another process listens there"), "{said}");
        drop(first); // as after a kill: the path stays
        assert!(path.exists());
        AdminSockets::bind(&config(path.clone())).expect("bound");
        fs::write(&path, "mine").expect("written");
        AdminSockets::bind(&config(path.clone())).expect_err("not a socket");
        assert_eq!(fs::read(&path).expect("still there"), b"mine");
    }

    #[test]
    fn the_socket_of_another_process_at_the_path_is_left_and_a_process_that_takes_over_does_not_use_it() {
        let folder = Folder::new("admin-foreign");
        let path = folder.0.join("a.sock");
        let sockets = AdminSockets::bind(&config(path.clone())).expect("bound");
        let socket = sockets.socket.as_ref().expect("there");
        let inherited = InheritedSocket {
            listener: socket.listener.try_clone().expect("a descriptor"),
            until: None,
            file: Some(socket.file()),
        };
        fs::remove_file(&path).expect("as a sweeper does");
        let other = UnixListener::bind(&path).expect("another process");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("its own");
        let said = AdminSockets::inherit(&config(path.clone()), None, vec![inherited])
            .expect_err("in use")
            .to_string();
        assert!(said.contains("another process listens there"), "{said}");
        assert_eq!(mode(&path), 0o640, "its mode is its own");
        drop(sockets);
        assert!(path.exists(), "the other process still listens there");
        drop(other);
    }

    #[test]
    fn a_folder_where_others_may_write_is_refused() {
        let folder = Folder::new("admin-open");
        fs::set_permissions(&folder.0, Permissions::from_mode(0o770)).expect("set");
        let said = AdminSockets::bind(&config(folder.0.join("a.sock"))).expect_err("refused").to_string();
        assert!(said.contains("others may write") && said.contains("chmod go-w"), "{said}");
        let link = folder.0.join("link");
        std::os::unix::fs::symlink("/tmp", &link).expect("made");
        AdminSockets::bind(&config(link.join("a.sock"))).expect_err("a link is not a folder");
    }

    #[test]
    fn another_admin_address_in_the_settings_replaces_the_inherited_one() {
        let folder = Folder::new("admin-address");
        let old = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let bound = old.local_addr().expect("bound");
        let mut config = config(folder.0.join("a.sock"));
        let address = |config: &Config| {
            let clone = old.try_clone().expect("a descriptor");
            let sockets = AdminSockets::inherit(config, Some(clone), Vec::new()).expect("bound");
            sockets.address.as_ref().expect("enabled").local_addr().expect("bound")
        };
        assert_eq!(address(&config), bound, "port 0 is any port");
        config.admin.address = bound;
        assert_eq!(address(&config), bound);
        config.admin.address = ([127, 0, 0, 2], 0).into();
        assert_eq!(address(&config).ip(), config.admin.address.ip());
    }

    #[test]
    fn an_inherited_socket_is_kept_and_another_path_replaces_it() {
        let folder = Folder::new("admin-inherit");
        let (a, b) = (folder.0.join("a.sock"), folder.0.join("b.sock"));
        let old = UnixListener::bind(&a).expect("bound");
        let inherited = |until: Option<Instant>| {
            let listener = old.try_clone().expect("a descriptor");
            let file = until.and_then(|_| FileId::of(&a).ok()); // an earlier version does not tell that of its socket
            vec![InheritedSocket { listener, until, file }]
        };
        let kept = AdminSockets::inherit(&config(a.clone()), None, inherited(None)).expect("kept");
        assert!(!kept.socket.as_ref().expect("there").is_own, "the old process may serve on");
        drop(kept);
        assert!(a.exists());
        drop(AdminSockets::inherit(&config(b.clone()), None, inherited(None)).expect("bound"));
        assert_eq!((a.exists(), b.exists()), (true, false), "it did not take over");
        let mut moved = AdminSockets::inherit(&config(b.clone()), None, inherited(None)).expect("bound");
        moved.own();
        assert_eq!((&moved.retired[0].path, moved.retired[0].until, b.exists()), (&a, None, true));
        drop(moved);
        // Given up before, and wanted again.
        let until = Some(Instant::from_nanos(7));
        let back = AdminSockets::inherit(&config(a.clone()), None, inherited(until)).expect("kept");
        assert_eq!((back.retired.len(), a.exists()), (0, true));
        drop(back);
        let further = AdminSockets::inherit(&config(b.clone()), None, inherited(until)).expect("bound");
        assert_eq!(
            (&further.retired[0].path, further.retired[0].until),
            (&a, until),
            "with the time that is left"
        );
    }
}

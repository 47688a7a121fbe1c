//! Unix-domain sockets with a path: bound without leaving an old file in the way, and the user id at their other end.

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Mode of a socket's file that its owner alone may connect to.
pub const OWNER_ONLY: u32 = 0o600;
/// Mode of a socket's file that everybody may connect to: its listener looks at user ids.
pub const EVERYBODY: u32 = 0o666;
/// Flag of a listening socket in `/proc/net/unix` (`__SO_ACCEPTCON`).
const ACCEPTS: u32 = 1 << 16;

/// File of a listening socket. Removed when dropped, if it is still the same file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Identity of a socket's file. As long as a socket that was bound to the file is open, no other file gets the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// Device of the file.
    pub device: u64,
    /// Number of the file on its device (inode).
    pub number: u64,
}

impl FileId {
    /// Returns the identity of the file at `path`; a link is not followed.
    ///
    /// # Errors
    /// The system's: there is none.
    pub fn of(path: &Path) -> io::Result<Self> {
        path.symlink_metadata().map(|about| Self::from(&about))
    }

    /// Returns whether this file is the one at `path`.
    pub fn is_at(self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|found| found == self)
    }

    /// Removes the file at `path`, unless it is another one: somebody may have removed this one, and another process may listen
    /// there. Call it while the socket is open.
    pub fn remove(self, path: &Path) {
        if self.is_at(path) {
            // A file that is left is replaced by the next listener.
            std::fs::remove_file(path).ok();
        }
    }
}

impl From<&Metadata> for FileId {
    fn from(about: &Metadata) -> Self {
        Self { device: about.dev(), number: about.ino() }
    }
}

/// Listens at `path`. The file of a socket that nobody listens at is replaced. `mode`: the file's permissions.
///
/// # Errors
/// `AddrInUse`: another process listens there, or the path is another kind of file. Others: the system's.
pub fn listen(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    remove_abandoned(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    let id = FileId::of(path)?;
    Ok((listener, SocketFile { path: path.to_owned(), id }))
}

/// Removes the file of a socket that nobody listens at, as a process that was killed leaves it. No file is fine.
///
/// # Errors
/// `AddrInUse`: another process listens there, or the path is another kind of file. Others: the system's.
pub fn remove_abandoned(path: &Path) -> io::Result<()> {
    let in_use = |reason| Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(about) if !about.file_type().is_socket() => in_use("the path exists and is not a socket"),
        Ok(_) if !is_abandoned(path) => in_use("another process listens there"),
        // Another process that starts may have replaced it meanwhile.
        Ok(about) if !FileId::from(&about).is_at(path) => in_use("another process listens there"),
        Ok(_) => std::fs::remove_file(path),
    }
}

/// Asks without waiting: the queue of a process that listens there may be full.
fn is_abandoned(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Returns the paths of the Unix sockets at which a process listens, as that process sees them.
///
/// # Errors
/// The process does not exist, or this user may not look at it.
pub fn listened_by(pid: u32) -> io::Result<Vec<PathBuf>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may have been closed meanwhile.
        if let Ok(target) = std::fs::read_link(entry?.path()) {
            let inode = target.to_str().and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']'));
            inodes.extend(inode.map(str::to_owned));
        }
    }
    let table = std::fs::read(format!("/proc/{pid}/net/unix"))?;
    let table = String::from_utf8_lossy(&table);
    let mut paths: Vec<_> = table.lines().filter_map(|line| listening(line, &inodes)).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// Path of a line of `/proc/net/unix`, if it is a listening socket with one of these inodes and a path.
fn listening(line: &str, inodes: &HashSet<String>) -> Option<PathBuf> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
    let (inode, path) = (fields.nth(2)?, fields.next()?);
    let is_wanted = flags & ACCEPTS != 0 && path.starts_with('/') && inodes.contains(inode);
    is_wanted.then(|| path.into())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The socket is closed by now. The system may give the number of a removed file to the next one, so whether somebody
        // listens is asked too.
        if self.id.is_at(&self.path) && is_abandoned(&self.path) {
            self.id.remove(&self.path);
        }
    }
}

/// Returns the user id of the process at the other end of a Unix-domain socket: the one that connected, or the one
/// that listened, at the time when it did so (`SO_PEERCRED`).
///
/// # Errors
/// The system's: the socket is of another kind.
pub fn peer_uid(socket: &impl AsFd) -> io::Result<u32> {
    Ok(getsockopt(socket, sockopt::PeerCredentials)?.uid())
}

/// Returns the user id of this process.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_with_a_full_queue_is_in_use_and_nobody_waits_for_it() {
        let path = std::env::temp_dir().join(format!("moorline-full-socket-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.bind(&SockAddr::unix(&path).expect("a path")).expect("bound");
        socket.listen(0).expect("listens");
        let _waits = UnixStream::connect(&path).expect("the queue has one place");
        let said = remove_abandoned(&path).expect_err("somebody listens");
        assert_eq!(said.kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).expect("ours");
    }

    #[test]
    fn an_old_file_is_replaced_and_a_living_socket_is_not() {
        let path = std::env::temp_dir().join(format!("moorline-unix-socket-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        drop(UnixListener::bind(&path).expect("bound")); // its file stays
        let (listener, file) = listen(&path, OWNER_ONLY).expect("nobody listens");
        assert_eq!(path.metadata().expect("there").mode() & 0o777, OWNER_ONLY);
        let in_use = listen(&path, OWNER_ONLY).expect_err("somebody listens");
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        let client = UnixStream::connect(&path).expect("it listens");
        assert_eq!(peer_uid(&client).expect("a Unix socket"), own_uid());
        drop(listener);
        let (second, second_file) = listen(&path, EVERYBODY).expect("nobody listens any more");
        drop(file);
        assert!(path.exists(), "the file of another listener stays");
        drop((second, second_file));
        assert!(!path.exists());
        std::fs::write(&path, "text").expect("written");
        assert!(listen(&path, OWNER_ONLY).is_err(), "not a socket");
        assert_eq!(std::fs::read(&path).expect("there"), b"text");
        std::fs::remove_file(&path).expect("ours");
    }
}

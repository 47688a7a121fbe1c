//! A program that is opened once, judged by its descriptor, and run by that descriptor.
//!
//! A check by name says nothing about the file that a later start by name runs: whoever can write in one folder of the path
//! replaces it in between. So the path is walked from `/`, component by component and by descriptors, and every folder on the
//! way is judged, those of symbolic links too. What is run in the end is the file that was judged, whatever the path names by
//! then.
//!
//! For example, `/opt/moorline/current/moorline` with `current -> v2` opens `/`, `opt`, `moorline`, reads the link `current` in a
//! folder that nobody else may write, and opens `v2` and `moorline`.

use super::child::{self, Inherited};
use aws_lc_rs::digest::{Context, SHA256};
use memchr::memmem;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, Uid, faccessat, geteuid};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The file that this process runs.
const RUNNING: &str = "/proc/self/exe";
/// Symbolic links on the way to a program.
const LINKS_MAX: usize = 40;
/// Components on the way to a program, with those of links.
const COMPONENTS_MAX: usize = 512;
/// Bytes read at once in the search for a mark.
const CHUNK_BYTES: usize = 64 << 10;

/// Reason why a program is not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecutableError {
    /// The path is not absolute.
    #[error("{} is not an absolute path", .0.display())]
    NotAbsolute(PathBuf),
    /// The system refused an operation.
    #[error("cannot open {}: {source}", path.display())]
    System {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// More than 40 links or 512 components.
    #[error("{} has too many links or folders on its way", .0.display())]
    TooLong(PathBuf),
    /// Not a file that can be run.
    #[error("{} is not a regular file that this user may run", .0.display())]
    NotAProgram(PathBuf),
    /// Somebody else could replace it.
    #[error(
        "{} belongs to uid {owner}, who is neither root nor this user; give it to this user or root (chown), or use another file",
        path.display()
    )]
    Owner {
        /// File, folder or link.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
    },
    /// Somebody else may write it.
    #[error("{} can be written by its group or by others; take that away (chmod go-w {})", .0.display(), .0.display())]
    Writable(PathBuf),
}

/// A program that was judged.
#[derive(Debug)]
pub struct Executable {
    fd: OwnedFd,
    path: PathBuf,
    /// Result of [`Self::digest`].
    digest: OnceLock<String>,
}

/// Returns the path by which this process was started: an upgrade that resolves it anew follows a link that was moved
/// meanwhile. It is the path of the running file if the name of the process leads to another one. `is_named`: whoever
/// started this process named it by the path.
pub fn started_by(is_named: bool) -> PathBuf {
    let running = std::env::current_exe().map_or_else(|_| RUNNING.into(), undeleted);
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let Some(name) = std::env::args_os().next().map(PathBuf::from) else { return running };
    if is_named && name.is_absolute() {
        return name;
    }
    let found = if name.components().count() > 1 {
        std::path::absolute(&name).ok()
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders)
            .map(|folder| folder.join(&name))
            .find(|path| path.is_absolute() && path.is_file())
    };
    let is_running =
        |path: &PathBuf| identity(path).is_some() && identity(path) == identity(RUNNING.as_ref());
    found.filter(is_running).unwrap_or(running)
}

/// Removes the word that the system adds to the path of a running file that has been replaced.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => text.into(),
        None => path,
    }
}

impl Executable {
    /// Opens the program at this absolute path.
    ///
    /// # Errors
    /// [`ExecutableError`]: the first thing on the way that somebody else than root and this user can change, or that does not
    /// exist.
    pub fn open(path: &Path) -> Result<Self, ExecutableError> {
        Walk::begin().open(path)
    }

    /// Opens the file that this process runs, whatever its path names by now. `path`: its name in messages.
    ///
    /// # Errors
    /// The system's.
    pub fn running(path: PathBuf) -> io::Result<Self> {
        let fd = open(RUNNING, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self::of(fd, path))
    }

    /// Takes a descriptor of a program that served before.
    pub const fn of(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path, digest: OnceLock::new() }
    }

    /// Judges a program by its descriptor alone: nobody finds it by a path.
    ///
    /// # Errors
    /// [`ExecutableError`].
    pub fn judge(&self) -> Result<(), ExecutableError> {
        let walk = Walk { way: self.path.clone(), ..Walk::begin() };
        let found = fstat(&self.fd).map_err(|error| walk.system(error))?;
        walk.judge_file(&self.fd, &found)
    }

    /// Copies the descriptor.
    ///
    /// # Errors
    /// There is none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone(), digest: self.digest.clone() })
    }

    /// Returns whether both are the same file.
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |one: &Self| fstat(&one.fd).ok().map(|found| (found.st_dev, found.st_ino));
        identity(self).is_some() && identity(self) == identity(other)
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a command that runs this very file, under the name of its path. Run it before the executable is dropped.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(self.fd_path());
        command.arg0(&self.path);
        let mut begin = [0; 2];
        let read = std::fs::File::open(self.fd_path())?.read(&mut begin)?;
        if begin[..read] == *b"#!" {
            // The interpreter opens the script by the number of the descriptor.
            child::inherit(&mut command, vec![Inherited { fd: self.fd.as_raw_fd(), cookie: None }]);
        }
        Ok(command)
    }

    fn fd_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// Returns true if the file contains these bytes; reads up to them.
    ///
    /// # Errors
    /// The system's.
    pub fn contains(&self, mark: &[u8]) -> io::Result<bool> {
        let mut file = std::fs::File::open(self.fd_path())?;
        let mut window = Vec::with_capacity(CHUNK_BYTES + mark.len());
        let finder = memmem::Finder::new(mark);
        loop {
            let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut window)?;
            if finder.find(&window).is_some() {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            // The mark may begin in this chunk and end in the next one.
            window.drain(..window.len().saturating_sub(mark.len()));
        }
    }

    /// Takes over the digest of `running` if that is the same file: nobody can write to a file while a process runs it.
    pub fn share_digest(&mut self, running: &Self) {
        if self.is_same(running) {
            self.digest = running.digest.clone();
        }
    }

    /// Returns the SHA-256 of the file in hexadecimal, as `sha256sum` prints it; reads all of the file once.
    ///
    /// # Errors
    /// The system's.
    pub fn digest(&self) -> io::Result<&str> {
        if let Some(known) = self.digest.get() {
            return Ok(known);
        }
        let mut file = std::fs::File::open(self.fd_path())?;
        let (mut context, mut chunk) = (Context::new(&SHA256), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                read => context.update(&chunk[..read]),
            }
        }
        let mut text = String::new();
        for byte in context.finish().as_ref() {
            write!(text, "{byte:02x}").expect("a string takes text");
        }
        Ok(self.digest.get_or_init(|| text))
    }
}

/// Way through the folders.
struct Walk {
    own: Uid,
    /// Path so far, for messages.
    way: PathBuf,
    links: usize,
    components: usize,
}

impl Walk {
    fn begin() -> Self {
        Self { own: geteuid(), way: PathBuf::from("/"), links: 0, components: 0 }
    }

    fn open(mut self, path: &Path) -> Result<Executable, ExecutableError> {
        if !path.is_absolute() {
            return Err(ExecutableError::NotAbsolute(path.into()));
        }
        let mut folder = self.root()?;
        let mut rest = components(path);
        while let Some(name) = rest.pop_front() {
            self.components += 1;
            if self.components > COMPONENTS_MAX {
                return Err(ExecutableError::TooLong(path.into()));
            }
            if name == ".." {
                self.way.pop();
            } else {
                self.way.push(&name);
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(&folder, name.as_os_str(), flags, Mode::empty())
                .map_err(|error| self.system(error))?;
            let found = fstat(&fd).map_err(|error| self.system(error))?;
            match kind(&found) {
                SFlag::S_IFLNK => {
                    self.judge_owner(&found)?;
                    self.links += 1;
                    if self.links > LINKS_MAX {
                        return Err(ExecutableError::TooLong(path.into()));
                    }
                    let target = readlinkat(&fd, "").map_err(|error| self.system(error))?;
                    self.way.pop();
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        folder = self.root()?;
                    }
                    for name in components(target).into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                SFlag::S_IFDIR => {
                    self.judge_folder(&found)?;
                    folder = fd;
                }
                SFlag::S_IFREG if rest.is_empty() => {
                    self.judge_file(&fd, &found)?;
                    return Ok(Executable::of(fd, path.into()));
                }
                _ => return Err(ExecutableError::NotAProgram(self.way)),
            }
        }
        Err(ExecutableError::NotAProgram(self.way))
    }

    /// Begins at the root, which is judged like any folder.
    fn root(&mut self) -> Result<OwnedFd, ExecutableError> {
        self.way = PathBuf::from("/");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open("/", flags, Mode::empty()).map_err(|error| self.system(error))?;
        self.judge_folder(&fstat(fd.as_fd()).map_err(|error| self.system(error))?)?;
        Ok(fd)
    }

    fn judge_folder(&self, found: &FileStat) -> Result<(), ExecutableError> {
        self.judge_owner(found)?;
        // In a folder of root with the sticky bit, such as /tmp, nobody can replace what belongs to another user.
        let is_sticky = found.st_uid == 0 && found.st_mode & 0o1000 != 0;
        if found.st_mode & 0o022 != 0 && !is_sticky {
            return Err(ExecutableError::Writable(self.way.clone()));
        }
        Ok(())
    }

    fn judge_file(&self, fd: &OwnedFd, found: &FileStat) -> Result<(), ExecutableError> {
        if kind(found) != SFlag::S_IFREG {
            return Err(ExecutableError::NotAProgram(self.way.clone()));
        }
        self.judge_owner(found)?;
        if found.st_mode & 0o022 != 0 {
            return Err(ExecutableError::Writable(self.way.clone()));
        }
        // The kernel would say so only after the fork.
        faccessat(fd, "", AccessFlags::X_OK, AtFlags::AT_EACCESS | AtFlags::AT_EMPTY_PATH)
            .map_err(|_| ExecutableError::NotAProgram(self.way.clone()))
    }

    fn judge_owner(&self, found: &FileStat) -> Result<(), ExecutableError> {
        if found.st_uid == 0 || found.st_uid == self.own.as_raw() {
            return Ok(());
        }
        Err(ExecutableError::Owner { path: self.way.clone(), owner: found.st_uid })
    }

    fn system(&self, error: Errno) -> ExecutableError {
        ExecutableError::System { path: self.way.clone(), source: error.into() }
    }
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

/// Returns the names on a way, without its root and without those that stay where they are.
fn components(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Stdio;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("moorline-executable-{}-{number}", std::process::id()));
            fs::create_dir(&path).expect("made");
            chmod(&path, 0o700);
            Self(path)
        }

        /// A file that could be run.
        fn program(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, "x").expect("written");
            chmod(&path, 0o755);
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
    }

    /// Runs it and returns what it prints. A test beside this one may just have forked, and its child has the file open for
    /// writing until it runs another program.
    fn run(executable: &Executable, argument: &str) -> String {
        loop {
            let mut command = executable.command().expect("readable");
            match command.arg(argument).stdout(Stdio::piped()).output() {
                Ok(output) => return String::from_utf8(output.stdout).expect("text"),
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                Err(error) => panic!("it does not run: {error}"),
            }
        }
    }

    fn refused(path: &Path) -> String {
        Executable::open(path).expect_err("refused").to_string()
    }

    #[test]
    fn the_file_that_was_judged_is_run_whatever_its_path_names_by_then() {
        let folder = Folder::new();
        let path = folder.0.join("new");
        fs::copy(std::env::current_exe().expect("this test"), &path).expect("copied");
        chmod(&path, 0o755);
        let executable = Executable::open(&path).expect("ours");
        fs::remove_file(&path).expect("ours");
        folder.program("new");
        let said = run(&executable, "--list");
        assert!(said.contains("the_file_that_was_judged_is_run"), "{said}");
        Command::new(&path).output().expect_err("the path names another file");
    }

    #[test]
    fn a_script_is_run_by_its_descriptor_too() {
        let folder = Folder::new();
        let path = folder.0.join("script");
        fs::write(&path, "#!/bin/sh\necho judged \"$1\"\n").expect("written");
        chmod(&path, 0o755);
        let executable = Executable::open(&path).expect("ours");
        fs::write(folder.0.join("other"), "#!/bin/sh\necho replaced\n").expect("written");
        fs::rename(folder.0.join("other"), &path).expect("ours");
        assert_eq!(run(&executable, "x"), "judged x\n");
    }

    #[test]
    fn a_link_is_followed_inside_of_judged_folders_and_never_without_end() {
        let folder = Folder::new();
        fs::create_dir(folder.0.join("v2")).expect("made");
        chmod(&folder.0.join("v2"), 0o755);
        let path = folder.program("v2/moorline");
        symlink("v2", folder.0.join("current")).expect("made");
        symlink(&path, folder.0.join("absolute")).expect("made");
        symlink("../current/./moorline", folder.0.join("v2/up")).expect("made");
        for way in ["current/moorline", "absolute", "v2/up", "current/../v2/moorline"] {
            Executable::open(&folder.0.join(way)).unwrap_or_else(|error| panic!("{way}: {error}"));
        }
        symlink("round", folder.0.join("round")).expect("made");
        assert!(refused(&folder.0.join("round")).contains("too many links"));
        symlink("nowhere", folder.0.join("broken")).expect("made");
        assert!(refused(&folder.0.join("broken")).contains("nowhere"));
    }

    #[test]
    fn what_others_may_write_is_refused_by_name_also_behind_a_link() {
        let folder = Folder::new();
        let open = folder.0.join("open");
        fs::create_dir(&open).expect("made");
        chmod(&open, 0o755);
        let path = folder.program("open/moorline");
        symlink("open/moorline", folder.0.join("link")).expect("made");
        for mode in [0o775, 0o757, 0o1777 & !0o1000] {
            chmod(&open, mode);
            for path in [&path, &folder.0.join("link")] {
                let said = refused(path);
                assert!(said.contains("chmod go-w") && said.contains("/open can be"), "{mode:o}: {said}");
            }
        }
        chmod(&open, 0o755);
        for mode in [0o775, 0o757] {
            chmod(&path, mode);
            assert!(refused(&path).contains("moorline"), "{mode:o}");
        }
        chmod(&path, 0o755);
        Executable::open(&path).expect("ours again");
    }

    #[test]
    fn only_regular_files_that_can_be_run_are_programs() {
        let folder = Folder::new();
        let path = folder.program("moorline");
        chmod(&path, 0o644);
        assert!(refused(&path).contains("not a regular file that this user may run"));
        assert!(refused(&folder.0).contains("not a regular file"));
        assert!(refused(Path::new("/dev/null")).contains("not a regular file"));
        assert!(refused(Path::new("moorline")).contains("absolute"));
        assert!(refused(&folder.0.join("none")).contains("No such file"));
        assert!(refused(&path.join("below")).contains("not a regular file"));
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        let folder = Folder::new();
        let path = folder.program("moorline");
        let other = Walk { own: Uid::from_raw(4711), ..Walk::begin() };
        // For root itself everything of root is its own.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(4712), None).expect("root may");
        }
        let said = other.open(&path).expect_err("not theirs").to_string();
        assert!(said.contains("belongs to uid"), "{said}");
    }

    #[test]
    fn a_program_is_known_by_its_file_and_not_by_its_path() {
        let folder = Folder::new();
        let path = folder.program("moorline");
        let first = Executable::open(&path).expect("ours");
        // The SHA-256 of "x", as sha256sum prints it.
        let x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        assert_eq!(first.digest().expect("readable"), x);
        fs::write(folder.0.join("new"), "y").expect("written");
        chmod(&folder.0.join("new"), 0o755);
        fs::rename(folder.0.join("new"), &path).expect("one folder");
        let mut second = Executable::open(&path).expect("ours");
        second.share_digest(&first);
        assert!(!second.is_same(&first) && first.is_same(&first.try_clone().expect("a descriptor")));
        assert_eq!(first.digest().expect("readable"), x, "the file that was opened");
        assert_ne!(second.digest().expect("readable"), x);
        let mut third = Executable::open(&path).expect("ours");
        third.share_digest(&second);
        assert_eq!(third.digest.get(), second.digest.get(), "it is not read again");
        first.judge().expect("ours, and nobody else can write it");
        chmod(&path, 0o757);
        assert!(second.judge().expect_err("others can write it").to_string().contains("chmod go-w"));
        let running = Executable::running("test".into()).expect("this test");
        assert!(running.is_same(&Executable::of(
            open(&started_by(false), OFlag::O_PATH, Mode::empty()).expect("this test"),
            PathBuf::new()
        )));
    }

    #[test]
    fn a_mark_is_found_across_chunks() {
        let folder = Folder::new();
        let path = folder.0.join("file");
        let mark = b"moorline-mark";
        for at in [0, CHUNK_BYTES - 5, 3 * CHUNK_BYTES - 1] {
            let mut bytes = vec![b'x'; 4 * CHUNK_BYTES];
            bytes[at..at + mark.len()].copy_from_slice(mark);
            fs::write(&path, bytes).expect("written");
            chmod(&path, 0o700);
            assert!(Executable::open(&path).expect("ours").contains(mark).expect("read"), "{at}");
        }
        assert!(
            !Executable::open(Path::new("/bin/sh")).map_or(Ok(false), |sh| sh.contains(mark)).expect("read")
        );
    }
}

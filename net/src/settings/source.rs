//! The text of a settings file, which may be a pipe: read within a deadline.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Longest settings file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest wait for each part of a pipe, in milliseconds.
const PIPE_WAIT_MS: u16 = 5000;
/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// Reads a file, or a pipe such as that of `-c <(program)`, to its end.
///
/// # Errors
/// The system's; `TimedOut`: it is a pipe, and nobody writes; others: it is a folder, or over 1 MiB.
pub(super) fn read(path: &Path) -> io::Result<String> {
    read_within(path, PIPE_WAIT_MS)
}

fn read_within(path: &Path, wait_ms: u16) -> io::Result<String> {
    // The opening of a pipe would wait until somebody writes.
    let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    let mut block = vec![0; READ_BYTES];
    // A pipe that nobody has opened for writing looks like one at its end.
    if !file.metadata()?.is_file() {
        wait(&file, wait_ms)?;
    }
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&file, wait_ms)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other("it is over 1 MiB, which no settings file is"));
        }
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text in UTF-8"))
}

fn wait(file: &File, wait_ms: u16) -> io::Result<()> {
    let mut watched = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    match poll(&mut watched, PollTimeout::from(wait_ms)) {
        Ok(0) => {
            let problem = format!("it is a pipe or a device, and nothing came for {wait_ms} ms; name a file");
            Err(io::Error::new(io::ErrorKind::TimedOut, problem))
        }
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("moorline-source-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn a_pipe_that_nobody_writes_is_refused_and_one_that_is_written_is_read() {
        let folder = folder("pipe");
        let pipe = folder.join("settings");
        mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
        let refused = read_within(&pipe, 50).expect_err("nobody writes");
        assert!(
            refused.kind() == io::ErrorKind::TimedOut && refused.to_string().contains("a pipe"),
            "{refused}"
        );
        let to = pipe.clone();
        let writer = std::thread::spawn(move || std::fs::write(to, "[log]\nlevel = \"info\"\n".repeat(2000)));
        assert_eq!(read(&pipe).expect("written").len(), 2000 * 21);
        writer.join().expect("it ends").expect("it is read");
        std::fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn a_folder_a_long_file_and_bytes_that_are_no_text_are_refused() {
        let folder = folder("kinds");
        assert!(read(&folder).is_err());
        let long = folder.join("long");
        std::fs::write(&long, vec![b'#'; (1 << 20) + 1]).expect("written");
        assert!(read(&long).expect_err("too long").to_string().contains("1 MiB"));
        std::fs::write(&long, [0xFF, 0xFE]).expect("written");
        assert!(read(&long).expect_err("no text").to_string().contains("UTF-8"));
        std::fs::remove_dir_all(folder).ok();
    }
}

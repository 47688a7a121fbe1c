//! Notifications to a supervisor: systemd's notify socket, and a pid file.

use crate::config::Config;
use crate::sys::clock;
use crate::sys::notify::notify;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Announces that this process serves. `is_main`: the process before this one has ended without having named it.
pub(in crate::gateway) fn notify_ready(is_main: bool) {
    if is_main {
        notify_main_pid(std::process::id());
    }
    tell("READY=1");
}

/// Announces that another process serves. The old process sends this: systemd trusts only the main process
/// (`NotifyAccess=main`).
pub(in crate::gateway) fn notify_main_pid(pid: u32) {
    tell(&format!("MAINPID={pid}"));
}

/// Announces that this process ends.
pub(in crate::gateway) fn notify_stopping() {
    tell("STOPPING=1");
}

/// Announces that this process reads its settings again; [`notify_ready`] tells the end.
pub(in crate::gateway) fn notify_reloading() {
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::machine_nanos() / 1000));
}

fn tell(line: &str) {
    if let Err(error) = notify(line) {
        tracing::warn!(%error, line, "cannot notify the supervisor");
    }
}

/// The pid file (`handover.pid_file`). The process that serves writes it.
#[derive(Debug)]
pub(in crate::gateway) struct PidFile {
    /// `None`: the settings want none.
    path: Option<PathBuf>,
}

impl PidFile {
    /// Returns the file that the settings want.
    pub(in crate::gateway) fn of(config: &Config) -> Self {
        let name = &config.handover.pid_file;
        Self { path: (!name.is_empty()).then(|| name.into()) }
    }

    /// Tries whether the file could be replaced, and changes nothing.
    ///
    /// # Errors
    /// The cause, for people.
    pub(in crate::gateway) fn try_out(&self) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        if path.is_dir() {
            return Err(format!("cannot write handover.pid_file = \"{}\": it is a folder", path.display()));
        }
        let new = new_name(path);
        let tried = create(&new).and_then(|_| std::fs::remove_file(&new));
        tried.map_err(|error| format!("cannot write handover.pid_file = \"{}\": {error}", path.display()))
    }

    /// Replaces the file in one step, so that a reader never sees half of a number.
    pub(in crate::gateway) fn write(&self, pid: u32) {
        let Some(path) = &self.path else { return };
        let new = new_name(path);
        let write = || -> io::Result<()> {
            create(&new)?.write_all(format!("{pid}\n").as_bytes())?;
            std::fs::rename(&new, path)
        };
        if let Err(error) = write() {
            std::fs::remove_file(&new).ok();
            tracing::warn!(%error, pid_file = %path.display(), "cannot write the pid file (handover.pid_file)");
        }
    }
}

/// Returns the name of a new file of this process, in the same folder.
fn new_name(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.new", std::process::id()))
}

/// Makes a new file: a link that somebody put there is not followed.
fn create(new: &Path) -> io::Result<File> {
    std::fs::remove_file(new).ok(); // of a process with this number that was killed
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_tried_out_without_a_trace_and_then_replaced() {
        let folder = std::env::temp_dir().join(format!("moorline-pid-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("made");
        let pid_file = PidFile { path: Some(folder.join("pid")) };
        pid_file.try_out().expect("the folder takes files");
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 0);
        pid_file.write(7);
        assert_eq!(std::fs::read_to_string(folder.join("pid")).expect("written"), "7\n");
        pid_file.write(8);
        assert_eq!(std::fs::read_to_string(folder.join("pid")).expect("written"), "8\n");
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 1);
        std::fs::remove_file(folder.join("pid")).expect("ours");
        std::fs::create_dir(folder.join("pid")).expect("a folder that no file replaces");
        pid_file.write(9);
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 1, "nothing half done is left");
        std::fs::remove_dir_all(&folder).expect("ours");
        let said = PidFile { path: Some(std::env::temp_dir()) }.try_out().expect_err("no file");
        assert!(said.contains("it is a folder"), "{said}");
        let said = pid_file.try_out().expect_err("the folder is gone");
        assert!(said.contains("handover.pid_file") && said.contains("No such file"), "{said}");
        PidFile { path: None }.try_out().expect("none is wanted");
    }
}

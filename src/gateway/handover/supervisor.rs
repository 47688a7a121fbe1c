//! Notifications to a supervisor: systemd's notify socket, and a pid file.

use crate::config::Config;
use crate::sys::notify::notify;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Announces that this process serves.
pub(in crate::gateway) fn tell_ready(config: &Config) {
    tell("READY=1");
    write_pid(config, std::process::id());
}

/// Announces that another process serves. The old process sends this: systemd trusts only the main process
/// (`NotifyAccess=main`).
pub(in crate::gateway) fn tell_main_pid(config: &Config, pid: u32) {
    tell(&format!("MAINPID={pid}"));
    write_pid(config, pid);
}

fn tell(line: &str) {
    if let Err(error) = notify(line) {
        tracing::warn!(%error, line, "cannot notify the supervisor");
    }
}

/// Replaces the pid file in one step, so that a reader never sees half of a number.
fn write_pid(config: &Config, pid: u32) {
    let name = &config.handover.pid_file;
    if name.is_empty() {
        return;
    }
    let write = || -> io::Result<()> {
        let path = Path::new(name);
        // The old and the new process may write at the same time.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::remove_file(&new).ok(); // of a process with this number that was killed
        // A new file: a link that somebody put there is not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(format!("{pid}\n").as_bytes())?;
        std::fs::rename(&new, path)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, pid_file = name, "cannot write the pid file (handover.pid_file)");
    }
}

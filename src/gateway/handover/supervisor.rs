//! Notifications to a supervisor: systemd's notify socket, and a pid file.

use crate::config::Config;
use sd_notify::NotifyState;
use std::io;
use std::path::Path;

/// Announces that this process serves.
pub(in crate::gateway) fn tell_ready(config: &Config) {
    notify(&[NotifyState::Ready]);
    write_pid(config, std::process::id());
}

/// Announces that another process serves. The old process sends this: systemd trusts only the main process
/// (`NotifyAccess=main`).
pub(in crate::gateway) fn tell_main_pid(config: &Config, pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
    write_pid(config, pid);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the supervisor");
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
        std::fs::write(&new, format!("{pid}\n"))?;
        std::fs::rename(&new, path)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, pid_file = name, "cannot write the pid file (handover.pid_file)");
    }
}

//! Notifications to a supervisor: systemd's notify socket, and a pid file.

use crate::config::Config;
use sd_notify::NotifyState;
use std::io;
use std::path::Path;

/// This process serves.
pub(in crate::gateway) fn tell_ready(config: &Config) {
    notify(&[NotifyState::Ready]);
    write_pid(config, std::process::id());
}

/// Another process serves from now on. The old one says so: only it is trusted (`NotifyAccess=main`).
pub(in crate::gateway) fn tell_main_pid(config: &Config, pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
    write_pid(config, pid);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}

/// Whoever reads it finds the old number or the new one, never half of one.
fn write_pid(config: &Config, pid: u32) {
    let name = &config.handover.pid_file;
    if name.is_empty() {
        return;
    }
    let write = || -> io::Result<()> {
        let path = Path::new(name);
        // Old and new process write it, perhaps at once.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&new, format!("{pid}\n"))?;
        std::fs::rename(&new, path)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, pid_file = name, "cannot write the pid file (handover.pid_file)");
    }
}

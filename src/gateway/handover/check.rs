//! The check before a hot restart: owner of the binary, room for a second process, versions of snapshots.
//!
//! For example, `MOORLINE_HANDOVER=check ./new run -c gateway.toml` prints
//! `moorline-handover version=0.2.0 reads=1-1 writes=1.1`, and a process that writes version 1 accepts the binary.

use super::{CHECK, VARIABLE};
use crate::failpoint;
use crate::metrics::process::Figures;
use crate::snapshot::{MAJOR_MIN, VERSION};
use crate::sys::{clock, limits};
use moorline_proto::time::Instant;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// First word of the line that answers the check.
const ANSWER: &str = "moorline-handover";
/// Bytes of the answer; the rest is ignored.
const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// Descriptors that must be free: those that a restart opens, and some for clients that connect meanwhile.
const FILES_NEEDED: u64 = 32;
/// Memory that must be available, in percent of the resident size of this process.
const MEMORY_PERCENT: u64 = 120;
/// Interval at which the end of the checked binary is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// Returns the answer to the check: the versions of snapshots that this build reads and writes.
pub(in crate::gateway) fn check_line() -> String {
    let (major, minor) = VERSION;
    format!("{ANSWER} version={} reads={MAJOR_MIN}-{major} writes={major}.{minor}", env!("CARGO_PKG_VERSION"))
}

/// Checks a binary until `deadline`, and returns its version.
///
/// # Errors
/// The cause, for people.
pub(super) fn check(binary: &Path, arguments: &[OsString], deadline: Instant) -> Result<String, String> {
    check_owner(binary)?;
    check_room()?;
    let answer = ask(binary, arguments, deadline)?;
    version_of(&answer)
}

/// Refuses a file that somebody else can change.
fn check_owner(binary: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(binary)
        .map_err(|error| format!("check: cannot read the attributes of {}: {error}", binary.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    if (metadata.uid() != own && metadata.uid() != 0) || metadata.mode() & 0o002 != 0 {
        return Err(format!(
            "check: cannot run {}: it belongs to another user, or every user may write it; give it to this user or \
             root, and take the permission away (chmod o-w)",
            binary.display()
        ));
    }
    Ok(())
}

/// Refuses a restart for which descriptors or memory would not suffice.
fn check_room() -> Result<(), String> {
    let free =
        limits::free_files().map_err(|error| format!("check: cannot count the open descriptors: {error}"))?;
    if free < FILES_NEEDED {
        return Err(format!(
            "check: {FILES_NEEDED} descriptors are needed, {free} are free; raise the open-files limit"
        ));
    }
    let wanted = Figures::read().resident_bytes * MEMORY_PERCENT / 100;
    let available = failpoint::try_reach("old.room").map_or(Some(0), |()| available_memory());
    match available {
        Some(available) if available < wanted => {
            Err(format!("check: {wanted} bytes of memory are needed, {available} are available"))
        }
        _ => Ok(()),
    }
}

/// Runs the binary, and returns the line that answers the check.
fn ask(binary: &Path, arguments: &[OsString], deadline: Instant) -> Result<String, String> {
    let path = binary.display();
    let failed = |error: std::io::Error| format!("check: cannot wait for {path}: {error}");
    let mut child = Command::new(binary)
        .args(arguments)
        .env(VARIABLE, CHECK)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("check: cannot run {path}: {error}"))?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if clock::machine_now() >= deadline {
            child.kill().ok();
            child.wait().ok();
            return Err("check: the binary did not end in time".into());
        }
        std::thread::park_timeout(LOOK);
    };
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut output).ok();
    }
    let answer = output.lines().find_map(|line| line.strip_prefix(ANSWER));
    answer.map(str::to_owned).ok_or_else(|| {
        format!(
            "check: {path} ended with {status} and did not answer as a moorline that can take over; check that the \
             settings are valid for it"
        )
    })
}

/// Returns the version in an answer, if that version reads the snapshots of this build.
fn version_of(answer: &str) -> Result<String, String> {
    let value = |name: &str| answer.split_whitespace().find_map(|word| word.strip_prefix(name));
    let (version, reads) = (value("version=").unwrap_or("?"), value("reads=").unwrap_or("?"));
    let range = reads.split_once('-').and_then(|(a, b)| Some(a.parse::<u32>().ok()?..=b.parse().ok()?));
    if range.is_none_or(|range| !range.contains(&VERSION.0)) {
        return Err(format!(
            "check: {version} reads snapshots of versions {reads}, and this process writes version {}",
            VERSION.0
        ));
    }
    Ok(version.to_owned())
}

/// Reads `MemAvailable` of /proc/meminfo, in bytes; `None`: the system does not have it.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_answer_is_accepted_and_another_range_is_not() {
        let line = check_line();
        let answer = line.strip_prefix(ANSWER).expect("begins so");
        assert_eq!(version_of(answer).as_deref(), Ok(env!("CARGO_PKG_VERSION")));
        for answer in [" version=9.0 reads=900-901 writes=901.0", " version=9.0", " reads=x-y", ""] {
            assert!(version_of(answer).is_err(), "{answer:?}");
        }
    }
}

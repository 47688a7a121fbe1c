//! Failpoints: places at which a test makes a process end or hang, or makes an operation fail.
//!
//! Compiled in debug builds and with the feature `failpoints` only. The environment variable `MOORLINE_FAILPOINTS`
//! names a file with one place and action in each line, which is read again at each place:
//!
//! ```text
//! old.frozen kill
//! new.warm sleep:300
//! old.snapshot ENOSPC
//! ```
//!
//! | action | effect |
//! |---|---|
//! | `kill`, `crash` | the process ends by SIGKILL, SIGABRT |
//! | `kill-parent` | the old process, or its parent, ends by SIGKILL |
//! | `exit:N` | the process ends with this code |
//! | `stop` | the process stops (SIGSTOP) until it gets SIGCONT |
//! | `hang`, `sleep:MS` | this thread waits for a minute, or for MS milliseconds |
//! | `wait` | this thread waits until the file does not name the place any more, for at most a minute |
//! | `EAGAIN`, `EIO`, `EMFILE`, `ENOMEM`, `ENOSPC`, `EPIPE` | [`try_reach`] fails |
//! | `cut`, `flip` | [`damage`] removes the last byte, or changes one bit |

/// Environment variable that names the file.
pub const VARIABLE: &str = "MOORLINE_FAILPOINTS";

/// Performs the action of a place where no operation can fail.
pub fn reach(place: &str) {
    try_reach(place).ok();
}

/// Performs the action of a place where an operation can fail.
///
/// # Errors
/// Error that the file names.
#[cfg(not(any(feature = "failpoints", debug_assertions)))]
#[inline]
pub const fn try_reach(_place: &str) -> std::io::Result<()> {
    Ok(())
}

/// Damages bytes before another process reads them, if the file says so.
#[cfg(not(any(feature = "failpoints", debug_assertions)))]
#[inline]
pub const fn damage(_place: &str, _parts: &mut [Vec<u8>]) {}

#[cfg(any(feature = "failpoints", debug_assertions))]
pub use armed::{damage, try_reach};

#[cfg(any(feature = "failpoints", debug_assertions))]
mod armed {
    use crate::failpoint::VARIABLE;
    use crate::sys::clock;
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill, raise};
    use nix::unistd::{Pid, getppid};
    use std::io;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    /// Duration of `hang`.
    const HANG: Duration = Duration::from_secs(60);

    /// Interval at which `wait` looks at the file.
    const LOOK: Duration = Duration::from_millis(10);

    /// The action that the file names for a place.
    fn named(place: &str) -> Option<String> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let file = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_ref()?;
        let text = std::fs::read_to_string(file).ok()?;
        let action = text.lines().find_map(|line| line.strip_prefix(place)?.strip_prefix(' '))?;
        Some(action.trim().to_owned())
    }

    fn action_at(place: &str) -> Option<String> {
        let action = named(place)?;
        tracing::warn!(place, action, "failpoint");
        Some(action)
    }

    /// Performs the action of a place where an operation can fail.
    ///
    /// # Errors
    /// Error that the file names.
    pub fn try_reach(place: &str) -> io::Result<()> {
        let Some(action) = action_at(place) else { return Ok(()) };
        let (name, value) = action.split_once(':').unwrap_or((&action, ""));
        match name {
            "kill" => raise(Signal::SIGKILL)?,
            "crash" => std::process::abort(),
            "stop" => raise(Signal::SIGSTOP)?,
            "kill-parent" => kill(parent(), Signal::SIGKILL)?,
            "exit" => std::process::exit(value.parse().unwrap_or(1)),
            "hang" => wait(HANG),
            "wait" => {
                let until = clock::machine_now() + HANG;
                while named(place).is_some() && clock::machine_now() < until {
                    wait(LOOK);
                }
            }
            "sleep" => wait(Duration::from_millis(value.parse().unwrap_or(0))),
            "EAGAIN" => return Err(Errno::EAGAIN.into()),
            "EIO" => return Err(Errno::EIO.into()),
            "EPIPE" => return Err(Errno::EPIPE.into()),
            "EMFILE" => return Err(Errno::EMFILE.into()),
            "ENOMEM" => return Err(Errno::ENOMEM.into()),
            "ENOSPC" => return Err(Errno::ENOSPC.into()),
            _ => tracing::error!(place, action, "unknown failpoint action"),
        }
        Ok(())
    }

    /// The old process of a hot restart, or the parent.
    fn parent() -> Pid {
        let told = std::env::var("MOORLINE_HANDOVER_OLD").unwrap_or_default();
        let old = told.split(' ').nth(1).and_then(|old| old.parse().ok());
        old.map_or_else(getppid, Pid::from_raw)
    }

    fn wait(time: Duration) {
        let until = clock::machine_now() + time;
        while clock::machine_now() < until {
            std::thread::park_timeout(until.saturating_since(clock::machine_now()));
        }
    }

    /// Damages bytes before another process reads them, if the file says so.
    pub fn damage(place: &str, parts: &mut [Vec<u8>]) {
        let Some(action) = action_at(place) else { return };
        let Some(last) = parts.iter_mut().rev().find(|part| !part.is_empty()) else { return };
        match action.as_str() {
            "cut" => _ = last.pop(),
            "flip" => last[0] ^= 1,
            _ => tracing::error!(place, action, "unknown failpoint damage"),
        }
    }
}

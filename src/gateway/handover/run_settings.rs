//! Command line of this process, and the programs that an order can mean.
//!
//! For example, the gateway was started by `/opt/current/moorline`, and `current` is moved to another version: an order without
//! a binary opens that path anew, and an order to go back opens the descriptor of the program that served before.

use super::{VARIABLE, check};
use crate::admin::Target;
use crate::config::{Config, HandoverConfig};
use crate::sys::executable::{self, Executable};
use std::ffi::OsString;
use std::path::PathBuf;

/// Command line of the gateway, to start another process likewise.
pub(in crate::gateway) struct RunSettings {
    /// Arguments of the process, without its name.
    pub(in crate::gateway) arguments: Vec<OsString>,
    /// Path by which this process was started.
    pub(super) path: PathBuf,
    /// The file that this process runs; `None`: the system does not tell.
    pub(super) own: Option<Executable>,
    /// The last program of this series that was another one; `None`: there was none.
    previous: Option<Executable>,
    /// Times of a restart.
    pub(super) times: HandoverConfig,
}

impl RunSettings {
    /// Returns the settings of this process. `previous`: the last program of this series that was another one.
    pub(in crate::gateway) fn of_this_process(config: &Config, previous: Option<Executable>) -> Self {
        let path = executable::started_by(std::env::var_os(VARIABLE).is_some());
        let own = Executable::running(path.clone());
        let own =
            own.inspect_err(|error| tracing::warn!(%error, "cannot open the file of this program")).ok();
        let (arguments, times) = (std::env::args_os().skip(1).collect(), config.handover.clone());
        Self { arguments, path, own, previous, times }
    }

    /// Opens and judges the program of an order.
    pub(super) fn open(&self, target: &Target) -> Result<Executable, String> {
        let path = match target {
            Target::Again => &self.path,
            Target::File(path) => path,
            Target::Previous => {
                let none = "check: the program that served before is not known; name one with `moorline upgrade --binary`";
                let previous = self.go_back().ok_or(none)?;
                previous.judge().map_err(|error| format!("check: {error}"))?;
                return previous.try_clone().map_err(|error| format!("cannot copy a descriptor: {error}"));
            }
        };
        check::open(path)
    }

    /// Returns the program that an order to go back means: the last other one, or this one if it served before, too.
    fn go_back(&self) -> Option<&Executable> {
        self.previous.as_ref().or(self.own.as_ref())
    }

    /// Returns the program to which a process that runs `target` can go back.
    pub(super) fn previous_of(&self, target: &Executable) -> Option<&Executable> {
        self.own.as_ref().filter(|own| !own.is_same(target)).or(self.previous.as_ref())
    }

    /// Path of the program of an order, for people.
    pub(super) fn path_of(&self, target: &Target) -> PathBuf {
        match target {
            Target::Again => self.path.clone(),
            Target::File(path) => path.clone(),
            Target::Previous => self.go_back().map_or_else(|| "?".into(), |previous| previous.path().into()),
        }
    }
}

/// Returns version, path and hash of a program, for people.
pub(super) fn named(version: &str, program: &Executable) -> String {
    let digest = program.digest().unwrap_or("unreadable");
    format!("{version} {} sha256:{digest}", program.path().display())
}

//! CPU time and memory of other processes, in units that repeat.

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Duration;

/// Clock ticks per second of `/proc/PID/stat`: fixed by the kernel's ABI.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes that one figure is about: a gateway, or a gateway and its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched(Vec<i32>);

/// Usage of the watched processes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time of all threads, also of those that ended.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
}

impl Watched {
    /// Watches these processes.
    pub fn new(pids: impl IntoIterator<Item = i32>) -> Self {
        Self(pids.into_iter().collect())
    }

    /// True if no process is watched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Like [`Watched::usage`], with the kernel's quick estimate of memory, which does not walk the pages.
    pub fn quick_usage(&self) -> Option<Usage> {
        if self.0.is_empty() {
            return None;
        }
        let mut sum = Usage::default();
        for pid in &self.0 {
            sum.cpu += cpu_time(*pid)?;
            sum.rss_bytes += parse_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")?;
        }
        Some(sum)
    }

    /// The sum over all of them; `None` if one is gone or nobody is watched.
    pub fn usage(&self) -> Option<Usage> {
        if self.0.is_empty() {
            return None;
        }
        let mut sum = Usage::default();
        for pid in &self.0 {
            sum.cpu += cpu_time(*pid)?;
            sum.rss_bytes += rss_bytes(*pid)?;
        }
        Some(sum)
    }
}

/// User and system time of a process. Its CPU clock counts nanoseconds; `/proc/PID/stat` shows the
/// same sum in ticks of 10 ms and is the fallback.
fn cpu_time(pid: i32) -> Option<Duration> {
    let clock: Option<ClockId> = clock_getcpuclockid(Pid::from_raw(pid)).ok();
    match clock.and_then(|clock| clock_gettime(clock).ok()) {
        Some(time) => Some(Duration::from(time)),
        None => parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?),
    }
}

fn parse_stat(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// Resident bytes. `smaps_rollup` walks the pages; `VmRSS` of `status` is a per-CPU estimate that
/// may be off by hundreds of KiB, and is the fallback.
fn rss_bytes(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    parse_kib(&rollup, "Rss:")
        .or_else(|| parse_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:"))
}

fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 99 0 0";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(2)));
    }

    #[test]
    fn memory_lines() {
        assert_eq!(parse_kib("Name: x\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12_288));
        assert_eq!(parse_kib("nothing", "Rss:"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = Watched::new([i32::try_from(std::process::id()).unwrap()]);
        let before = me.usage().unwrap();
        assert!(before.rss_bytes > 100_000);
        // Tests beside this one give memory back meanwhile, so no difference is looked at.
        let filled = vec![1_u8; 128 << 20];
        assert!(me.usage().unwrap().rss_bytes >= 128 << 20, "{}", filled.len());
        assert!(Watched::new([i32::MAX]).usage().is_none());
    }
}

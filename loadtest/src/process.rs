//! CPU time and memory of the processes that a figure is about.

use moorline_usage::{cpu_time, quick_resident_bytes, resident_bytes};
use serde::{Deserialize, Serialize};
use std::time::Duration;

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
        self.sum(quick_resident_bytes)
    }

    /// The sum over all of them; `None` if one is gone or nobody is watched.
    pub fn usage(&self) -> Option<Usage> {
        self.sum(resident_bytes)
    }

    fn sum(&self, memory: impl Fn(u32) -> Option<u64>) -> Option<Usage> {
        if self.0.is_empty() {
            return None;
        }
        let mut sum = Usage::default();
        for pid in &self.0 {
            let pid = u32::try_from(*pid).ok()?;
            sum.cpu += cpu_time(pid)?;
            sum.rss_bytes += memory(pid)?;
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

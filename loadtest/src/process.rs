//! CPU time and memory of the processes that a figure is about.

use moorline_usage::{cpu_time, quick_resident_bytes, resident_bytes};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// State of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

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

    /// The first of the processes; `None`: no process is watched.
    pub fn first(&self) -> Option<i32> {
        self.0.first().copied()
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

/// Returns whether a process listens at the port of this address of this machine; `None`: this user may not look at it.
pub fn listens(pid: i32, target: SocketAddr) -> Option<bool> {
    let sockets = sockets_of(pid)?;
    Some(listening(target).iter().any(|inode| sockets.contains(inode)))
}

/// Returns a process that listens at the port of this address of this machine; `None`: no process that this user may look at.
pub fn listener_at(target: SocketAddr) -> Option<i32> {
    let inodes = listening(target);
    if inodes.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut listeners =
        pids.filter(|pid| sockets_of(*pid).is_some_and(|it| inodes.iter().any(|inode| it.contains(inode))));
    listeners.next()
}

/// Numbers of the sockets that listen at this port.
fn listening(target: SocketAddr) -> Vec<String> {
    let port = format!(":{:04X}", target.port());
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let of_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let inode = fields.nth(5)?;
        (state == LISTENS && local.ends_with(&port)).then(|| inode.to_owned())
    };
    tables.iter().flat_map(|table| table.lines().skip(1).filter_map(of_line)).collect()
}

/// Numbers of the sockets that a process has open.
fn sockets_of(pid: i32) -> Option<HashSet<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode = |link: std::path::PathBuf| {
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    Some(links.filter_map(inode).collect())
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

    #[test]
    fn the_process_that_listens_is_known_from_one_that_does_not() {
        let me = i32::try_from(std::process::id()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        assert_eq!(listens(me, target), Some(true));
        assert_eq!(listener_at(target), Some(me));
        let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert_eq!(listens(i32::try_from(other.id()).unwrap(), target), Some(false));
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(listens(i32::MAX, target), None);
    }
}

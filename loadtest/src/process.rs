//! CPU time and memory of the processes that a figure is about.

use moorline_usage::{cpu_time, quick_resident_bytes, resident_bytes};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// State of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// A process may end at any time: at most so much of its CPU time, for each core, is not counted.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The processes that one figure is about: a gateway, or a gateway and its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pids: Vec<i32>,
    /// File that names the process; read again while a run goes on. `None`: the processes stay the same.
    file: Option<PathBuf>,
}

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
        Self { pids: pids.into_iter().collect(), file: None }
    }

    /// Watches the process that a file names, and the next one when the file names another.
    ///
    /// # Errors
    /// Reason why the file names no process.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let pid = pid_in(path)?;
        Ok(Self { pids: vec![pid], file: Some(path.to_owned()) })
    }

    /// The first of the processes; `None`: no process is watched.
    pub fn first(&self) -> Option<i32> {
        self.pids.first().copied()
    }

    /// True if no process is watched.
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty()
    }
}

fn pid_in(path: &Path) -> Result<i32, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| "it holds no process id".to_owned())
}

/// A process, and the CPU time that it had used when somebody last looked.
#[derive(Clone, Copy, Debug)]
struct Seen {
    pid: i32,
    cpu: Duration,
}

impl Seen {
    /// The usage of a process so far; what is not known yet is 0.
    fn new(pid: i32) -> Self {
        let cpu = u32::try_from(pid).ok().and_then(cpu_time).unwrap_or_default();
        Self { pid, cpu }
    }

    /// True if the process is still there. A process that has used less than before is another one of this number.
    fn look(&mut self) -> bool {
        let now = u32::try_from(self.pid).ok().and_then(cpu_time).filter(|now| *now >= self.cpu);
        self.cpu = now.unwrap_or(self.cpu);
        now.is_some()
    }
}

/// Looks at processes while a run goes on.
///
/// After a hot restart another process serves, and the file names it. Example: the gateway 70 has used 3 s when 71 takes
/// over, which uses 2 s: the CPU time is 5 s, and the memory is that of 71. A process may use some CPU time between the
/// last look and its end; that is not counted.
#[derive(Debug)]
pub struct Watch {
    processes: Vec<Seen>,
    file: Option<PathBuf>,
    /// The process that served before, until it ends.
    leaving: Option<Seen>,
    /// CPU time of processes that ended.
    ended: Duration,
}

impl Watch {
    /// Begins to watch.
    pub fn new(watched: &Watched) -> Self {
        let processes = watched.pids.iter().copied().map(Seen::new).collect();
        Self { processes, file: watched.file.clone(), leaving: None, ended: Duration::ZERO }
    }

    /// Interval of the looks between those at which somebody asks; `None`: the processes stay the same.
    pub fn interval(&self) -> Option<Duration> {
        self.file.as_ref().map(|_| LOOK_INTERVAL)
    }

    /// Notes what the processes have used, and which one serves.
    pub fn look(&mut self) {
        let (Some(file), [serving]) = (&self.file, &mut self.processes[..]) else { return };
        if let Some(leaving) = self.leaving.take_if(|leaving| !leaving.look()) {
            self.ended += leaving.cpu;
        }
        let is_there = serving.look();
        // A file that cannot be read, or that is being written, names no other process.
        let named = pid_in(file).unwrap_or(serving.pid);
        if named != serving.pid {
            let before = std::mem::replace(serving, Seen::new(named));
            self.ended += self.leaving.replace(before).map_or(Duration::ZERO, |earlier| earlier.cpu);
        } else if !is_there {
            // It has ended, and a new one may have its number.
            let before = std::mem::replace(serving, Seen::new(named));
            self.ended += before.cpu;
        }
    }

    /// Like [`Watch::usage`], with the kernel's quick estimate of memory, which does not walk the pages.
    pub fn quick_usage(&mut self) -> Option<Usage> {
        self.sum(quick_resident_bytes)
    }

    /// The sum over all of them; `None` if one is gone or nobody is watched.
    pub fn usage(&mut self) -> Option<Usage> {
        self.sum(resident_bytes)
    }

    fn sum(&mut self, memory: impl Fn(u32) -> Option<u64>) -> Option<Usage> {
        if self.processes.is_empty() {
            return None;
        }
        self.look();
        let left = self.leaving.map_or(Duration::ZERO, |leaving| leaving.cpu);
        let mut sum = Usage { cpu: self.ended + left, rss_bytes: 0 };
        for process in &self.processes {
            let pid = u32::try_from(process.pid).ok()?;
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
        let mut me = Watch::new(&Watched::new([i32::try_from(std::process::id()).unwrap()]));
        let before = me.usage().unwrap();
        assert!(before.rss_bytes > 100_000);
        // Tests beside this one give memory back meanwhile, so no difference is looked at.
        let filled = vec![1_u8; 128 << 20];
        assert!(me.usage().unwrap().rss_bytes >= 128 << 20, "{}", filled.len());
        assert!(Watch::new(&Watched::new([i32::MAX])).usage().is_none());
    }

    /// A process that has used at least 10 ms of CPU time, and does nothing more.
    fn busy_process() -> std::process::Child {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; exec sleep 600";
        let mut command = std::process::Command::new("sh");
        let mut child = command.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        child
    }

    #[test]
    fn the_process_that_the_file_names_is_measured_and_cpu_time_adds_up() {
        let file = std::env::temp_dir().join(format!("moorload-pid-{}", std::process::id()));
        let name = |pid: u32| fs::write(&file, format!("{pid}\n")).unwrap();
        let mut generations: Vec<_> = std::iter::repeat_with(busy_process).take(3).collect();
        let [first, second, third] = [0, 1, 2].map(|at: usize| generations[at].id());
        let used = |pid| cpu_time(pid).unwrap();
        name(first);
        let watched = Watched::of_file(&file).unwrap();
        let mut watch = Watch::new(&watched);
        assert!(watch.usage().unwrap().cpu >= Duration::from_millis(10));
        // The next one serves before the first has ended.
        let of_first = used(first);
        name(second);
        assert!(watch.usage().unwrap().cpu >= of_first + used(second));
        generations[0].kill().unwrap();
        generations[0].wait().unwrap();
        let of_both = of_first + used(second);
        assert!(watch.usage().unwrap().cpu >= of_both);
        // And the one after that is named when the second has ended.
        generations[1].kill().unwrap();
        generations[1].wait().unwrap();
        assert!(watch.usage().is_none(), "nobody serves");
        for unread in ["", "none\n", "0\n"] {
            fs::write(&file, unread).unwrap();
            watch.look();
        }
        name(third);
        let usage = watch.usage().unwrap();
        assert!(usage.cpu >= of_both + used(third) && usage.rss_bytes > 0, "{usage:?}");
        assert!(usage.cpu <= of_both + used(third) + Duration::from_secs(1), "counted once: {usage:?}");
        generations[2].kill().unwrap();
        generations[2].wait().unwrap();
        fs::remove_file(&file).unwrap();
        watch.look();
        assert!(watch.usage().is_none());
        assert!(Watched::of_file(&file).unwrap_err().contains("No such file"));
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

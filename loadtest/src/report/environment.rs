//! Environment of a run, so that its figures can be read later.

use serde::Serialize;
use std::fs;

/// env.json.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// "moorload 0.1.0".
    pub program: String,
    /// The command line.
    pub arguments: Vec<String>,
    /// Start of the run, RFC 3339 in UTC.
    pub began: String,
    /// The kernel's version.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that may be used.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Load average of the last minute when the run began: what else the machine did.
    pub load_average: Option<f64>,
    /// Open files allowed: soft and hard.
    pub open_files: (u64, u64),
    /// Settings of the kernel that bound connections.
    pub sysctls: Vec<(&'static str, String)>,
}

/// Settings that bound how many connections fit and how fast they come.
const SYSCTLS: [&str; 8] = [
    "fs.file-max",
    "fs.nr_open",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

impl Environment {
    /// Reads the environment of this machine.
    pub fn now() -> Self {
        let word = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let limits = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        Self {
            program: concat!("moorload ", env!("CARGO_PKG_VERSION")).to_owned(),
            arguments: std::env::args().collect(),
            began: crate::clock::utc(),
            kernel: word("/proc/sys/kernel/osrelease"),
            processor: field(&word("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: field(&word("/proc/meminfo"), "MemTotal").and_then(|kib| kib_to_bytes(&kib)),
            load_average: word("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
            open_files: limits.unwrap_or((0, 0)),
            sysctls: SYSCTLS.iter().map(|name| (*name, sysctl(name).unwrap_or_default())).collect(),
        }
    }
}

/// A kernel setting by its dotted name; `None` where this kernel, or this container, has none such.
pub(crate) fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// The value of a line "name : value" of a file in /proc.
pub(crate) fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// "123 kB" of /proc/meminfo.
pub(crate) fn kib_to_bytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let here = Environment::now();
        assert!(here.cores > 0 && !here.kernel.is_empty() && here.memory.unwrap() > 1 << 20);
        assert!(here.began.ends_with('Z'), "{}", here.began);
        assert_eq!(field("a : 1\nb\t: two words\n", "b").as_deref(), Some("two words"));
        assert_eq!(kib_to_bytes("12 kB"), Some(12_288));
    }
}

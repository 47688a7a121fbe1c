//! Needs of a run, resources of this machine, and the command that closes each gap.

use crate::cores::Cores;
use crate::memory;
use crate::preflight::DESCRIPTORS_RESERVED;
use crate::report::environment::sysctl;
use crate::socket::{SOURCES_MAX, Sources};
use crate::units;
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Kernel memory of one end of an idle connection, in bytes, measured here (docs/benchmarks.md).
const KERNEL_BYTES_PER_END: u64 = 4_096;
/// Bytes that a client costs this program, with room for a scenario's part.
const CLIENT_BYTES: u64 = 200;
/// Bytes that TLS costs this program for each client: the library's connection, and a ticket.
const CLIENT_TLS_BYTES: u64 = 12 << 10;
/// Most bytes that an idle connection costs a Moorline gateway.
const GATEWAY_BYTES: u64 = 256;
/// A backlog that takes the connects of a moment, where the kernel allows it.
const BACKLOG_WANTED: u64 = 4_096;
/// A target that does not answer within this is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Time for which the machine is looked at before a run.
const LOOK: Duration = Duration::from_millis(500);
/// Part of all cores that others may use beside a run.
const BUSY_MAX: f64 = 0.25;

/// State of a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The need is met.
    Ok,
    /// A run works, and something may be slow.
    Warning,
    /// A run of this size does not work.
    Missing,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The need, in words.
    pub name: &'static str,
    /// The needed amount, in words.
    pub needed: String,
    /// The available amount.
    pub found: String,
    /// State of the need.
    pub state: State,
    /// Command that helps; empty: none is needed.
    pub fix: String,
}

/// Size of the run.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of connections.
    pub connections: u32,
    /// True if the server runs on this machine, too.
    pub is_local: bool,
    /// True if the clients use TLS.
    pub has_tls: bool,
}

/// Resources of this machine. `None`: unknown here, for example in a container.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Open files of this process: soft and hard.
    pub open_files: (u64, u64),
    /// Open files of the server, if its pid was given.
    pub server_files: Option<u64>,
    /// fs.nr_open: what the hard limit can be raised to.
    pub nr_open: Option<u64>,
    /// fs.file-max: of all processes.
    pub file_max: Option<u64>,
    /// Ports that the kernel hands out.
    pub port_range: Option<(u64, u64)>,
    /// Source addresses, and how many connections they take if ports are bound deliberately.
    pub sources: (u64, Option<u64>),
    /// Bytes of memory that can be had, by the machine and by the control groups.
    pub memory: Option<u64>,
    /// Pages that TCP may use before it drops what comes.
    pub tcp_pages: Option<u64>,
    /// net.core.somaxconn.
    pub backlog: Option<u64>,
    /// net.netfilter.nf_conntrack_max, where connections are tracked.
    pub conntrack: Option<u64>,
    /// Load of the machine before the run; `None`: unknown.
    pub load: Option<Load>,
}

/// Load of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Part of the time of all cores that is used or taken by other machines, from 0 to 1.
    pub busy: f64,
    /// Processes that ran or waited to run in the last minute.
    pub average: f64,
    /// Number of cores.
    pub cores: usize,
}

impl Load {
    /// Looks for a moment; `None`: the system does not tell.
    pub fn here() -> Option<Self> {
        let before = Cores::now()?;
        std::thread::park_timeout(LOOK);
        let share = Cores::now()?.since(&before)?;
        let text = fs::read_to_string("/proc/loadavg").ok()?;
        let average = text.split(' ').next()?.parse().ok()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Some(Self { busy: share.busy + share.steal, average, cores })
    }
}

impl Facts {
    /// Reads the resources of this machine.
    pub fn here(sources: &Sources, server: Option<i32>) -> Self {
        let number = |name: &str| -> Option<u64> { sysctl(name)?.parse().ok() };
        let numbers = |name: &str| -> Option<Vec<u64>> {
            sysctl(name)?.split(' ').map(|word| word.parse().ok()).collect()
        };
        Self {
            open_files: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0)),
            server_files: server.and_then(open_files_of),
            nr_open: number("fs.nr_open"),
            file_max: number("fs.file-max"),
            port_range: numbers("net.ipv4.ip_local_port_range")
                .and_then(|it| Some((*it.first()?, *it.get(1)?))),
            sources: (sources.len().max(1) as u64, sources.capacity()),
            memory: memory::available(),
            tcp_pages: numbers("net.ipv4.tcp_mem").and_then(|it| it.get(2).copied()),
            backlog: number("net.core.somaxconn"),
            // A table that nobody is in belongs to a kernel that tracks nothing.
            conntrack: number("net.netfilter.nf_conntrack_count")
                .filter(|count| *count > 0)
                .and(number("net.netfilter.nf_conntrack_max")),
            load: Load::here(),
        }
    }
}

fn open_files_of(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line["Max open files".len()..].split_ascii_whitespace().next()?.parse().ok()
}

/// All rows of a size.
pub fn needs(size: Size, facts: &Facts) -> Vec<Need> {
    let rows = [
        Some(generator_files(size, facts)),
        server_files(size, facts),
        system_files(size, facts),
        Some(ports(size, facts)),
        memory_row(size, facts),
        tcp_pages(size, facts),
        backlog(size, facts),
        conntrack(size, facts),
        machine(facts),
    ];
    rows.into_iter().flatten().collect()
}

/// The row about memory, as of now; `None`: the system does not tell.
pub fn memory(size: Size) -> Option<Need> {
    memory_row(size, &Facts { memory: memory::available(), ..Facts::default() })
}

/// A row about one number that has to reach another.
fn number(name: &'static str, needed: u64, found: u64, short: State, fix: String) -> Need {
    let state = if found >= needed { State::Ok } else { short };
    let fix = if state == State::Ok { String::new() } else { fix };
    Need { name, needed: units::count(needed), found: units::count(found), state, fix }
}

fn with_reserve(connections: u32) -> u64 {
    u64::from(connections) + u64::from(DESCRIPTORS_RESERVED)
}

fn raise_files(needed: u64, hard: u64, nr_open: Option<u64>) -> String {
    if needed <= hard {
        return format!("ulimit -n {needed}");
    }
    let sysctl = nr_open.filter(|max| *max < needed).map(|_| format!("sysctl -w fs.nr_open={needed} && "));
    format!(
        "as root: {}ulimit -Hn {needed} && ulimit -n {needed} (to stay: LimitNOFILE={needed} of the unit, or nofile in /etc/security/limits.conf)",
        sysctl.unwrap_or_default()
    )
}

/// Several processes may share the load, so this is never missing while one holds any.
fn generator_files(size: Size, facts: &Facts) -> Need {
    let (needed, (_, hard)) = (with_reserve(size.connections), facts.open_files);
    let each = hard.saturating_sub(DESCRIPTORS_RESERVED.into());
    let mut row = number("generator's open files", needed, hard, State::Warning, String::new());
    if row.state != State::Ok {
        if each == 0 {
            row.state = State::Missing;
            row.fix = raise_files(needed, hard, facts.nr_open);
        } else {
            let processes = u64::from(size.connections).div_ceil(each);
            row.fix = format!("nothing: --procs auto takes {processes} processes");
        }
    }
    row
}

fn server_files(size: Size, facts: &Facts) -> Option<Need> {
    if !size.is_local && facts.server_files.is_none() {
        return None;
    }
    let needed = with_reserve(size.connections);
    let found = facts.server_files.unwrap_or(facts.open_files.1);
    let fix = format!("before the server starts: {}", raise_files(needed, found, facts.nr_open));
    let name = if facts.server_files.is_some() {
        "server's open files"
    } else {
        "server's open files, if like here"
    };
    Some(number(name, needed, found, State::Missing, fix))
}

fn system_files(size: Size, facts: &Facts) -> Option<Need> {
    let ends = if size.is_local { 2 } else { 1 };
    let needed = with_reserve(size.connections) * ends;
    Some(number(
        "fs.file-max",
        needed,
        facts.file_max?,
        State::Missing,
        format!("sysctl -w fs.file-max={needed}"),
    ))
}

fn ports(size: Size, facts: &Facts) -> Need {
    let needed = u64::from(size.connections);
    let (addresses, bound) = facts.sources;
    let (first, last) = facts.port_range.unwrap_or((32_768, 60_999));
    let each = last.saturating_sub(first) + 1;
    let found = bound.unwrap_or(addresses * each);
    let wanted = needed.div_ceil(each);
    let fix = if !size.is_local {
        format!(
            "give this machine {wanted} addresses and name them with --src, or: sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\""
        )
    } else if wanted <= 250 {
        format!("--src 127.0.0.1-{wanted}")
    } else {
        format!(
            "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", then --src 127.0.0.1-{}",
            needed.div_ceil(64_512).min(SOURCES_MAX as u64)
        )
    };
    number("source ports", needed, found, State::Missing, fix)
}

fn memory_row(size: Size, facts: &Facts) -> Option<Need> {
    let ends = if size.is_local { 2 * KERNEL_BYTES_PER_END + GATEWAY_BYTES } else { KERNEL_BYTES_PER_END };
    let client = CLIENT_BYTES + if size.has_tls { CLIENT_TLS_BYTES } else { 0 };
    let needed = u64::from(size.connections) * (ends + client);
    let found = facts.memory?;
    let state = if found >= needed { State::Ok } else { State::Missing };
    let fits = found / (ends + client);
    let fix = if state == State::Ok {
        String::new()
    } else {
        format!("-c {fits} fits; or more memory: a larger machine, or a higher limit of the control group")
    };
    Some(Need { name: "memory", needed: units::bytes(needed), found: units::bytes(found), state, fix })
}

/// An idle connection has no buffers; this is for a moment in which each of them holds something.
fn tcp_pages(size: Size, facts: &Facts) -> Option<Need> {
    let needed = u64::from(size.connections) * if size.is_local { 2 } else { 1 };
    let fix = format!("sysctl -w net.ipv4.tcp_mem=\"{needed} {needed} {}\"", needed * 2);
    Some(number("net.ipv4.tcp_mem, pages", needed, facts.tcp_pages?, State::Warning, fix))
}

fn backlog(size: Size, facts: &Facts) -> Option<Need> {
    if !size.is_local {
        return None;
    }
    let needed = BACKLOG_WANTED.min(size.connections.into());
    let fix = format!("sysctl -w net.core.somaxconn={needed}, and restart the server");
    Some(number("net.core.somaxconn", needed, facts.backlog?, State::Warning, fix))
}

fn conntrack(size: Size, facts: &Facts) -> Option<Need> {
    let needed = u64::from(size.connections) + u64::from(size.connections) / 10;
    let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={needed}");
    Some(number("net.netfilter.nf_conntrack_max", needed, facts.conntrack?, State::Missing, fix))
}

/// Generator and server need the cores: what runs beside them is in the figures.
fn machine(facts: &Facts) -> Option<Need> {
    let Load { busy, average, cores } = facts.load?;
    let state = if busy <= BUSY_MAX { State::Ok } else { State::Warning };
    let fix = match state {
        State::Ok => String::new(),
        _ => "end what else runs here (`top` names it), or take a machine of its own".to_owned(),
    };
    Some(Need {
        name: "cores in use by others",
        needed: format!("at most {:.0}%", BUSY_MAX * 100.0),
        found: format!("{:.0}% of {cores}, load {average:.1}", busy * 100.0),
        state,
        fix,
    })
}

/// True if a server accepts connections at the address.
pub fn reach(target: SocketAddr) -> Need {
    let (name, needed) = ("target", format!("{target} accepts"));
    match TcpStream::connect_timeout(&target, ANSWER_WITHIN) {
        Ok(_) => Need { name, needed, found: "it does".into(), state: State::Ok, fix: String::new() },
        Err(error) => Need {
            name,
            needed,
            found: error.to_string(),
            state: State::Missing,
            fix: format!("start it: moorline run --set listener.address={target}"),
        },
    }
}

/// The rows for a terminal.
pub fn text(size: Size, needs: &[Need]) -> String {
    let where_ = if size.is_local { "server on this machine" } else { "server elsewhere" };
    let mut out = format!("doctor   {} connections, {where_}\n", units::count(size.connections.into()));
    let _ = writeln!(out, "{:<10}{:<34}{:>16}{:>24}", "", "", "needed", "found");
    for need in needs {
        let word = match need.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "MISSING",
        };
        let _ = writeln!(out, "{word:<10}{:<34}{:>16}{:>24}", need.name, need.needed, need.found);
        if !need.fix.is_empty() {
            let _ = writeln!(out, "{:<10}> {}", "", need.fix);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            open_files: (1_024, 20_000),
            server_files: None,
            nr_open: Some(1_048_576),
            file_max: Some(9_000_000),
            port_range: Some((32_768, 60_999)),
            sources: (1, None),
            memory: Some(24 << 30),
            tcp_pages: Some(500_000),
            backlog: Some(4_096),
            conntrack: None,
            load: Some(Load { busy: 0.1, average: 0.2, cores: 4 }),
        }
    }

    fn row(connections: u32, is_local: bool, facts: &Facts, name: &str) -> Need {
        let rows = needs(Size { connections, is_local, has_tls: false }, facts);
        rows.into_iter().find(|row| row.name.starts_with(name)).unwrap()
    }

    #[test]
    fn a_small_run_needs_nothing() {
        assert!(
            needs(Size { connections: 10_000, is_local: true, has_tls: false }, &facts())
                .iter()
                .all(|it| it.state == State::Ok)
        );
    }

    #[test]
    fn each_gap_has_its_exact_fix() {
        let fix = |name: &str| row(1_000_000, true, &facts(), name).fix;
        assert_eq!(fix("generator"), "nothing: --procs auto takes 51 processes");
        assert!(fix("server's").contains("ulimit -Hn 1000200 && ulimit -n 1000200"), "{}", fix("server's"));
        assert_eq!(fix("source ports"), "--src 127.0.0.1-36");
        assert_eq!(fix("net.ipv4.tcp_mem"), "sysctl -w net.ipv4.tcp_mem=\"2000000 2000000 4000000\"");
        let poor =
            Facts { memory: Some(1 << 30), conntrack: Some(65_536), file_max: Some(1_000_000), ..facts() };
        assert_eq!(
            row(1_000_000, true, &poor, "memory").fix,
            "-c 124160 fits; or more memory: a larger machine, or a higher limit of the control group"
        );
        assert!(row(1_000_000, true, &poor, "net.netfilter").fix.ends_with("=1100000"));
        assert!(row(1_000_000, true, &poor, "fs.file-max").fix.ends_with("=2000400"));
    }

    #[test]
    fn a_busy_machine_has_a_row() {
        assert_eq!(row(1_000, true, &facts(), "cores").found, "10% of 4, load 0.2");
        let busy = Facts { load: Some(Load { busy: 0.9, average: 18.0, cores: 2 }), ..facts() };
        let row = row(1_000, true, &busy, "cores");
        assert_eq!((row.state, row.found.as_str()), (State::Warning, "90% of 2, load 18.0"));
        assert!(row.fix.contains("`top`"), "{}", row.fix);
    }

    #[test]
    fn a_server_elsewhere_is_not_judged_by_this_machine() {
        let rows = needs(Size { connections: 1_000_000, is_local: false, has_tls: false }, &facts());
        assert!(rows.iter().all(|row| !row.name.starts_with("server's")), "{rows:?}");
        assert!(row(1_000_000, false, &facts(), "source ports").fix.contains("36 addresses"));
        let known = Facts { server_files: Some(1_048_576), ..facts() };
        assert_eq!(row(1_000_000, false, &known, "server's").state, State::Ok);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let here = Facts::here(&Sources::default(), i32::try_from(std::process::id()).ok());
        assert!(here.memory.unwrap() > 0 && here.server_files.unwrap() > 0);
    }
}

//! Hot restart with little memory: whoever sets the limit, the check refuses it by name, and the old process serves on.

use crate::exhaustion;
use crate::gateway::Backend;
use crate::raw::{Client, bytes_of, message, send_frame};
use crate::series::Series;
use crate::until;
use moorline_proto::message::client::Code;

/// Sets a soft limit of a running process; `None`: this machine has no `prlimit`.
fn limit(pid: u32, name: &str, soft: &str) -> Option<()> {
    exhaustion::limit(pid, name, &format!("{soft}:unlimited"))
}

/// A line of `/proc/PID/status`, in bytes.
fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    let kib = line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number") << 10
}

#[test]
fn limits_of_the_process_on_its_memory_refuse_it_by_name() {
    const CLIENTS: usize = 100;
    let backend = Backend::start();
    let series = Series::start(&backend, &["limits.frame_timeout=1h", "heartbeat.max=1h", "log.level=info"]);
    // Six megabytes that would be there twice more: frames that have not come whole.
    let payload = vec![7; 60_000];
    let frame = |number: usize| bytes_of(&send_frame(1, &message(number as u128 + 1, "alice", &payload)));
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| {
            let mut client = Client::login(series.gateway.listener, &format!("half-{number}"), "d");
            client.write(&frame(number)[..59_000]);
            client
        })
        .collect();
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    series.gateway.until_at_least("input_bytes", 59_000 * CLIENTS as u64 * 9 / 10);
    for (name, taken, said) in [("as", "VmSize:", "RLIMIT_AS"), ("data", "VmData:", "RLIMIT_DATA")] {
        let pid = series.pid();
        // Less than twice what is there, and enough to serve.
        let Some(()) = limit(pid, name, &(status(pid, taken) + (8 << 20)).to_string()) else { return };
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{restart:?}");
        let problem = &restart.problem;
        assert!(problem.starts_with("check: ") && problem.contains(said), "{problem}");
        assert!(
            problem.contains("bytes of memory are needed") && problem.contains("raise that limit"),
            "{problem}"
        );
        assert_eq!(series.pid(), pid, "the old process serves on");
        alice.beat(30);
        limit(pid, name, "unlimited").expect("it was there");
        series.restart();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.write(&frame(number)[59_000..]);
        assert_eq!(client.answer(1).code(), Code::Ok, "its frame goes on at the byte");
    }
}

#[test]
fn a_file_limit_below_the_snapshot_refuses_it_and_ends_nobody() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let pid = series.pid();
    // Small enough for any snapshot; nothing is queued that a check could see.
    let Some(()) = limit(pid, "fsize", "64") else { return };
    let (code, restart) = series.upgrade(&[]);
    assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{restart:?}");
    assert!(
        restart.problem.contains("RLIMIT_FSIZE") || restart.problem.contains("File too large"),
        "{restart:?}"
    );
    client.beat(30);
    limit(pid, "fsize", "unlimited").expect("it was there");
    series.restart();
    client.beat(30);
}

/// A control group for one process; `None`: this machine lets the test make none.
struct Group {
    folder: std::path::PathBuf,
    limit: &'static str,
}

impl Group {
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |front: &str| {
            let is_it = |line: &&str| line.split_once(':').is_some_and(|(_, rest)| rest.starts_with(front));
            own.lines().find(is_it)?.rsplit_once(':').map(|(_, path)| path.trim_start_matches('/').to_owned())
        };
        let one =
            path("memory:").map(|path| (format!("/sys/fs/cgroup/memory/{path}"), "memory.limit_in_bytes"));
        let two = path(":").map(|path| (format!("/sys/fs/cgroup/{path}"), "memory.max"));
        [one, two].into_iter().flatten().find_map(|(parent, limit)| {
            let folder = std::path::Path::new(&parent).join(format!("moorline-e2e-{}", std::process::id()));
            std::fs::create_dir(&folder).ok()?;
            let group = Self { folder, limit };
            group.folder.join(limit).exists().then_some(group)
        })
    }

    fn limit(&self, bytes: &str) {
        std::fs::write(self.folder.join(self.limit), bytes).expect("our group");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        until("nobody is in the group", || std::fs::remove_dir(&self.folder).ok());
    }
}

#[test]
fn the_limit_of_the_control_group_counts_and_not_the_machines_memory() {
    let Some(group) = Group::new() else {
        return crate::skipped("no control group can be made here");
    };
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    std::fs::write(group.folder.join("cgroup.procs"), series.pid().to_string()).expect("our group");
    group.limit("8388608");
    let (code, restart) = series.upgrade(&[]);
    assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{restart:?}");
    assert!(restart.problem.contains(group.limit), "{}", restart.problem);
    client.beat(30);
    group.limit("2147483648");
    series.restart();
    client.beat(30);
    // The one that serves is not the kernel's first choice any more.
    let score = || std::fs::read_to_string(format!("/proc/{}/oom_score_adj", series.pid())).expect("it runs");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("this test runs");
    until("the score of before", || (score() == own).then_some(()));
    drop(client);
    drop(series);
}

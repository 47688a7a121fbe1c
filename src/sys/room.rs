//! Memory that this process may still take, by whoever limits it: the machine, a control group, a limit of the process.
//!
//! For example, a container with `memory.max` of 128 MiB runs on a machine with 60 GiB free. The container's group uses
//! 100 MiB, of which 10 MiB are cached files that the kernel gives back: 38 MiB are left, and 60 GiB say nothing.

use nix::sys::resource::{Resource, getrlimit};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Numbers from which a limit of a control group of version 1 means none.
const NO_LIMIT_MIN: u64 = 1 << 60;

/// Memory that is left below a limit, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that can still be taken.
    pub bytes: u64,
    /// The limit, in bytes.
    pub limit: u64,
    /// Setter of the limit, for people.
    pub by: String,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes are available ({})", self.bytes, self.by)
    }
}

/// Returns the least room for this process and another one beside it; `None`: the system tells nothing.
pub fn of_memory() -> Option<Room> {
    machine().into_iter().chain(groups()).min_by_key(|room| room.bytes)
}

/// Returns the least limit of all memory of this process and those beside it; `None`: the system tells nothing.
pub fn limit_of_memory() -> Option<Room> {
    machine().into_iter().chain(groups()).min_by_key(|room| room.limit)
}

/// Returns the least room in the address space of one process like this one; `None`: there is no limit.
pub fn of_addresses() -> Option<Room> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let one = |resource, by: &str, taken: &str| {
        let (limit, _) = getrlimit(resource).ok()?;
        if limit == nix::libc::RLIM_INFINITY {
            return None;
        }
        let taken = kib(&status, taken).unwrap_or(0);
        Some(Room { bytes: limit.saturating_sub(taken), limit, by: by.to_owned() })
    };
    let all = [
        one(Resource::RLIMIT_AS, "RLIMIT_AS (ulimit -v)", "VmSize:"),
        one(Resource::RLIMIT_DATA, "RLIMIT_DATA (ulimit -d)", "VmData:"),
    ];
    all.into_iter().flatten().min_by_key(|room| room.bytes)
}

/// Returns the limit of a file's length, which files in memory have too; `None`: there is no limit.
pub fn of_file() -> Option<Room> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    (limit != nix::libc::RLIM_INFINITY).then(|| Room {
        bytes: limit,
        limit,
        by: "RLIMIT_FSIZE (ulimit -f)".to_owned(),
    })
}

fn machine() -> Option<Room> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let (bytes, limit) = (kib(&text, "MemAvailable:")?, kib(&text, "MemTotal:")?);
    Some(Room { bytes, limit, by: "MemAvailable of this machine".to_owned() })
}

/// `NAME   123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The control groups of this process that have a limit.
fn groups() -> Vec<Room> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let folders = folders(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    folders.iter().filter_map(|(version, folder)| group(*version, folder)).collect()
}

/// Version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Folders of the groups of a process, from the innermost to the root of each mount.
fn folders(cgroup: &str, mounts: &str) -> Vec<(Version, PathBuf)> {
    let mut folders = Vec::new();
    for line in mounts.lines() {
        // 32 31 0:29 ROOT MOUNTPOINT rw - cgroup cgroup rw,memory
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut front = front.split(' ').skip(3);
        let (Some(root), Some(mount)) = (front.next(), front.next()) else { continue };
        let mut back = back.split(' ');
        let version = match (back.next(), back.next_back()) {
            (Some("cgroup2"), _) => Version::Two,
            (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "memory") => {
                Version::One
            }
            _ => continue,
        };
        let Some(path) = path_in(cgroup, version) else { continue };
        // In a container the mount may begin at the group itself, or hide where it is.
        let below = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        let mount = Path::new(mount);
        let inner = if mount.join(below).is_dir() { mount.join(below) } else { mount.to_owned() };
        let up = inner.ancestors().take_while(|folder| folder.starts_with(mount));
        folders.extend(up.map(|folder| (version, folder.to_owned())));
    }
    folders
}

/// Path of a process's group in `/proc/self/cgroup`.
fn path_in(cgroup: &str, version: Version) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match version {
            Version::Two => number == "0" && controllers.is_empty(),
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
        };
        fits.then_some(path)
    })
}

/// Returns the room in one group; `None`: it has no limit.
fn group(version: Version, folder: &Path) -> Option<Room> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, usage, cached) = match version {
        Version::Two => ("memory.max", "memory.current", "inactive_file "),
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    };
    let (name, limit) = (limit, number(limit)?); // "max": none
    if limit >= NO_LIMIT_MIN {
        return None;
    }
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
    let taken = number(usage)?.saturating_sub(cached.unwrap_or(0));
    let by = format!("{name} of {}", folder.display());
    Some(Room { bytes: limit.saturating_sub(taken), limit, by })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("moorline-room-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("system/moorline")).expect("made");
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).expect("written");
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn least(cgroup: &str, mounts: &str) -> Option<(u64, String)> {
        let rooms = folders(cgroup, mounts);
        let rooms = rooms.iter().filter_map(|(version, folder)| group(*version, folder));
        rooms.min_by_key(|room| room.bytes).map(|room| (room.bytes, room.by))
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_and_cached_files_do_not() {
        let root = Folder::new("two");
        let mounts = format!("25 1 0:22 / {} rw - cgroup2 cgroup2 rw\n", root.0.display());
        let cgroup = "0::/system/moorline\n";
        assert_eq!(least(cgroup, &mounts), None, "no file, no limit");
        root.write("system/moorline/memory.max", "max\n");
        root.write("system/moorline/memory.current", "100\n");
        assert_eq!(least(cgroup, &mounts), None, "max is no limit");
        root.write("system/memory.max", "1000\n");
        root.write("system/memory.current", "900\n");
        root.write("system/memory.stat", "anon 1\ninactive_file 300\nactive_file 9\n");
        let (bytes, by) = least(cgroup, &mounts).expect("a limit of the parent");
        assert_eq!(bytes, 400);
        assert!(by.starts_with("memory.max of ") && by.ends_with("/system"), "{by}");
        root.write("system/moorline/memory.max", "150\n");
        assert_eq!(least(cgroup, &mounts).expect("a limit").0, 50);
        root.write("system/moorline/memory.current", "200\n");
        assert_eq!(least(cgroup, &mounts).expect("a limit").0, 0);
    }

    #[test]
    fn a_group_of_version_1_is_found_also_where_a_container_hides_its_path() {
        let root = Folder::new("one");
        let mounts = |root_of_mount: &str| {
            format!(
                "31 1 0:1 / /elsewhere rw - cgroup cgroup rw,cpu\n\
                 32 31 0:29 {root_of_mount} {} rw,relatime - cgroup cgroup rw,memory\n",
                root.0.display()
            )
        };
        root.write("memory.limit_in_bytes", "9223372036854771712\n");
        root.write("memory.usage_in_bytes", "5\n");
        root.write("system/moorline/memory.limit_in_bytes", "500\n");
        root.write("system/moorline/memory.usage_in_bytes", "450\n");
        root.write("system/moorline/memory.stat", "inactive_file 1\ntotal_inactive_file 30\n");
        let own = "9:name=systemd:/x\n4:memory:/system/moorline\n0::/\n";
        assert_eq!(least(own, &mounts("/")).expect("a limit").0, 80);
        assert_eq!(
            least("4:memory:/docker/7/system/moorline\n", &mounts("/docker/7")).expect("a limit").0,
            80
        );
        root.write("memory.limit_in_bytes", "600\n");
        let hidden = "4:cpu,memory:/docker/abc\n";
        assert_eq!(least(hidden, &mounts("/")).expect("that of the mount").0, 595);
    }

    #[test]
    fn this_process_has_room() {
        let room = of_memory().expect("Linux tells");
        assert!(room.bytes > 0 && room.bytes <= room.limit, "{room}");
        assert!(limit_of_memory().expect("Linux tells").limit >= room.bytes);
        if let Some(room) = of_addresses() {
            assert!(room.bytes < room.limit, "{room}");
        }
    }
}

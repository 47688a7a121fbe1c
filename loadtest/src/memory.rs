//! Memory that processes here can still have: of the machine, or of the control groups of this process.
//!
//! For example, in a container with `memory.max` of 2 GiB on a machine with 60 GiB, 2 GiB count.

use crate::report::environment::{field, kib_to_bytes};
use std::fs;
use std::path::{Path, PathBuf};

/// A limit of version 1 from which on there is none.
const NO_LIMIT_MIN: u64 = 1 << 60;

/// Returns the bytes that can be had; `None`: the system does not tell.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let machine = field(&read("/proc/meminfo"), "MemAvailable").and_then(|kib| kib_to_bytes(&kib));
    let groups = groups(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    machine.into_iter().chain(groups.iter().filter_map(|folder| left_in(folder))).min()
}

/// Folders of the groups of a process, both versions, up to the root.
fn groups(cgroup: &str, root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => root.to_owned(),
            _ if controllers.split(',').any(|one| one == "memory") => root.join("memory"),
            _ => continue,
        };
        // A container may not see where its group hangs.
        let inner = mount.join(path.trim_start_matches('/'));
        let inner = if inner.is_dir() { inner } else { mount.clone() };
        folders.extend(inner.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_owned));
    }
    folders
}

/// Returns the bytes that are left in a group; `None`: it has no limit.
fn left_in(folder: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |limit, usage, cached: &str| {
        let limit = number(limit).filter(|limit| *limit < NO_LIMIT_MIN)?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
        Some(limit.saturating_sub(number(usage)?.saturating_sub(cached.unwrap_or(0))))
    };
    left("memory.max", "memory.current", "inactive_file ")
        .or_else(|| left("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_either_version_limits_what_the_machine_has() {
        let root = std::env::temp_dir().join(format!("moorload-memory-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("a/b/memory.max", "max");
        write("a/b/memory.current", "7");
        write("a/memory.max", "1000");
        write("a/memory.current", "900");
        write("a/memory.stat", "inactive_file 200\n");
        write("memory/c/memory.limit_in_bytes", "500");
        write("memory/c/memory.usage_in_bytes", "450");
        let least = |cgroup| groups(cgroup, &root).iter().filter_map(|folder| left_in(folder)).min();
        assert_eq!(least("0::/a/b\n"), Some(300));
        assert_eq!(least("3:cpu:/a\n4:memory:/c\n0::/\n"), Some(50));
        assert_eq!(least("4:memory:/hidden\n"), None);
        fs::remove_dir_all(&root).expect("ours");
        assert!(available().expect("Linux tells") > 0);
    }
}

//! CPU time and memory of another process, from `/proc`.

use std::fs;
use std::time::Duration;

/// Clock ticks per second of `/proc/PID/stat`, fixed by the kernel's ABI.
const TICKS_PER_SECOND: u32 = 100;

/// User and system time of all threads, also of those that ended; `None`: no such process.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Resident bytes; `None`: no such process. `smaps_rollup` walks the pages; `VmRSS` of `status` may be
/// off by hundreds of KiB and is the fallback.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    parse_kib(&rollup, "Rss:")
        .or_else(|| parse_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:"))
}

fn parse_stat(stat: &str) -> Option<Duration> {
    // The name before it, in brackets, may hold anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(Duration::from_secs(1) * user.checked_add(system)? / TICKS_PER_SECOND)
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
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 150 55 0 0 20 0 3 0 99 0 0";
        assert_eq!(parse_stat(stat), Some(Duration::from_millis(2_050)));
        assert_eq!(parse_stat("42 (a) S 1"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let me = std::process::id();
        let before = resident_bytes(me).expect("it runs");
        let filled = std::hint::black_box(vec![1_u8; 16 << 20]);
        assert!(resident_bytes(me).expect("it runs") >= before + (12 << 20), "{}", filled.len());
        assert!(cpu_time(me).is_some());
        assert_eq!((cpu_time(u32::MAX), resident_bytes(u32::MAX)), (None, None));
        assert_eq!(parse_kib("Name: x\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12_288));
    }
}

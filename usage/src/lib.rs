//! Parts that the load generator and the demo share: CPU time and memory of a process, in units that repeat, so that their
//! figures mean the same, and lines of progress that no measurement waits for ([`notes`]). The gateway shares [`signals`].
//!
//! Example: a gateway has used `cpu_time(pid)` before and after 10,000 messages; the difference is what they cost.
#![forbid(unsafe_code)]

pub mod notes;
pub mod signals;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Clock ticks per second of `/proc/PID/stat`, fixed by the kernel's ABI.
const TICKS_PER_SECOND: u32 = 100;

/// User and system time of all threads of a process, also of those that ended. `None`: no such process.
///
/// The CPU clock of a process counts nanoseconds. `/proc/PID/stat` has the same sum in ticks of 10 ms and is the fallback.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let clock = i32::try_from(pid).ok().and_then(|pid| clock_getcpuclockid(Pid::from_raw(pid)).ok());
    match clock.and_then(|clock| clock_gettime(clock).ok()) {
        Some(time) => Some(Duration::from(time)),
        None => parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?),
    }
}

/// User and system time of the calling thread; 0: the kernel does not tell.
pub fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Resident memory of a process, in bytes. `None`: no such process.
///
/// `smaps_rollup` walks the pages. [`quick_resident_bytes`] is the fallback.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    parse_kib(&rollup, "Rss:").or_else(|| quick_resident_bytes(pid))
}

/// The kernel's quick estimate of [`resident_bytes`], which does not walk the pages: it counts per processor, and may be off
/// by hundreds of KiB.
pub fn quick_resident_bytes(pid: u32) -> Option<u64> {
    parse_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
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
    kib.checked_mul(1_024)
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
    fn memory_lines_are_kib() {
        assert_eq!(parse_kib("Name: x\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12_288));
        assert_eq!(parse_kib("nothing", "Rss:"), None);
        assert_eq!(parse_kib("Rss: 18446744073709551615 kB", "Rss:"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = std::process::id();
        let filled = std::hint::black_box(vec![1_u8; 64 << 20]);
        let length = filled.len() as u64;
        assert!(resident_bytes(me).is_some_and(|bytes| bytes >= length));
        assert!(quick_resident_bytes(me).is_some_and(|bytes| bytes >= length / 2));
        assert!(cpu_time(me).is_some_and(|time| !time.is_zero()));
        let of_this = thread_cpu_time();
        assert!(!of_this.is_zero() && cpu_time(me).is_some_and(|all| all >= of_this));
    }

    #[test]
    fn a_process_that_does_not_exist_has_no_figures() {
        let nobody = u32::MAX;
        assert_eq!(
            (cpu_time(nobody), resident_bytes(nobody), quick_resident_bytes(nobody)),
            (None, None, None)
        );
    }
}

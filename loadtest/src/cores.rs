//! Time of all processor cores of this machine, from `/proc/stat`: who had them, and who was kept waiting.
//!
//! Example: between two looks two cores had 2 s each. 3 s were used, 0.4 s were taken by the hypervisor for other machines
//! (steal), 0.6 s were idle: busy is 0.75, steal 0.1.

use std::fs;

/// Time of all cores since the machine started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    used: u64,
    steal: u64,
    idle: u64,
}

/// Shares of the time of all cores between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Part used by programs and the kernel of this machine, from 0 to 1.
    pub busy: f64,
    /// Part in which a core was wanted and another machine had it, from 0 to 1.
    pub steal: f64,
    /// Time of all cores together, in seconds.
    pub seconds: f64,
}

/// Ticks of a second, fixed by the ABI of the kernel.
const TICKS_PER_SECOND: f64 = 100.0;

impl Cores {
    /// Looks now; `None`: the system does not tell.
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let mut ticks = line.split_ascii_whitespace().map_while(|field| field.parse::<u64>().ok());
        let mut next = || ticks.next();
        let (user, nice, system, idle) = (next()?, next()?, next()?, next()?);
        // Older kernels have fewer columns.
        let (io_wait, irq, soft_irq, steal) =
            (next().unwrap_or(0), next().unwrap_or(0), next().unwrap_or(0), next().unwrap_or(0));
        let used = user.checked_add(nice)?.checked_add(system)?.checked_add(irq)?.checked_add(soft_irq)?;
        Some(Self { used, steal, idle: idle.checked_add(io_wait)? })
    }

    /// Shares of the time since an earlier look; `None`: no tick has passed.
    pub fn since(&self, before: &Self) -> Option<Shares> {
        // Some containers count backwards now and then.
        let used = self.used.saturating_sub(before.used);
        let steal = self.steal.saturating_sub(before.steal);
        let all = used + steal + self.idle.saturating_sub(before.idle);
        let part = |ticks: u64| ticks as f64 / all as f64;
        (all > 0).then(|| Shares {
            busy: part(used),
            steal: part(steal),
            seconds: all as f64 / TICKS_PER_SECOND,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_between_two_looks() {
        let before = Cores::parse("cpu  100 10 50 1000 20 3 4 5 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = Cores::parse("cpu  300 10 140 1050 30 8 9 45 0 0\n").unwrap();
        let shares = after.since(&before).unwrap();
        assert_eq!((shares.busy, shares.steal, shares.seconds), (0.75, 0.1, 4.0));
        assert_eq!(before.since(&before), None);
        assert_eq!(Cores::parse("cpu  1 2 3 4\n").map(|cores| cores.idle), Some(4));
        assert_eq!(Cores::parse("cpu  1 2\n"), None);
        assert_eq!(Cores::parse(""), None);
    }

    #[test]
    fn this_machine_tells() {
        assert!(Cores::now().is_some());
    }
}

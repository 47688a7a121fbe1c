//! The round trip to a client in one byte, for as long as nothing is under way to it.
//!
//! Steps are quarters of a power of two, so the value is kept to within an eighth, from 64 us up to an hour.
//!
//! Example: 1,100 us is between 1,024 and 1,280 us, which is step 17 and reads as 1,152 us.

/// Power of two of the shortest round trip that is told apart, in microseconds.
const LEAST: u32 = 6;

/// A smoothed round trip, in steps from 1; 0: none was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoundTrip(u8);

impl RoundTrip {
    /// The round trip of `micros` microseconds; 0: none was measured.
    pub(super) fn of_micros(micros: u32) -> Self {
        if micros == 0 {
            return Self(0);
        }
        let micros = micros.max(1 << LEAST);
        let power = micros.ilog2();
        let quarter = micros >> (power - 2) & 3;
        Self(u8::try_from((power - LEAST) * 4 + quarter + 1).expect("at most 104 steps"))
    }

    /// Microseconds, the middle of the step; 0: none was measured.
    pub(super) const fn micros(self) -> u32 {
        if self.0 == 0 {
            return 0;
        }
        let steps = self.0 as u32 - 1;
        let (power, quarter) = (LEAST + steps / 4, steps % 4);
        ((4 + quarter) << (power - 2)) + (1 << (power - 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_kept_to_within_an_eighth() {
        assert_eq!(RoundTrip::of_micros(0).micros(), 0);
        assert_eq!(RoundTrip::of_micros(3).micros(), 72);
        let some = [64, 79, 80, 1_100, 1_500, 33_000, 777_777, 3_100_000, u32::MAX];
        for micros in (7..32).flat_map(|power| [1u32 << power, (1 << power) - 1]).chain(some) {
            let kept = f64::from(RoundTrip::of_micros(micros).micros()) / f64::from(micros);
            assert!((0.875..=1.125).contains(&kept), "{micros}: {kept}");
        }
    }

    #[test]
    fn what_is_kept_twice_does_not_drift() {
        for micros in [64, 1_000, 50_000, 2_000_000] {
            let kept = RoundTrip::of_micros(micros);
            assert_eq!(RoundTrip::of_micros(kept.micros()), kept);
        }
    }
}

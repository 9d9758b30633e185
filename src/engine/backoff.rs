//! Every delay that the engine draws, and the draws themselves.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::config::LeaseConfig;

/// A seeded generator: the same seed gives the same run. The algorithm is named so that a seed means the same in every
/// release and on every machine.
#[derive(Clone, Debug)]
pub(super) struct Rng(Xoshiro256PlusPlus);

impl Rng {
    pub fn seeded(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Truncated exponential in [0, 1): few early, most late, so that among many who draw, the first one is well ahead
    /// of the second whatever their number (Nonnenmacher and Biersack, "Scalable Feedback for Large Groups", 1999).
    pub fn truncated_exponential(&mut self) -> f64 {
        /// Steepness: 10 keeps the expected number of draws within one echo of the first near one for groups of up to
        /// e^10 when the draws are spread over 16 echoes.
        const LAMBDA: f64 = 10.0;
        (self.uniform() * LAMBDA.exp_m1()).ln_1p() / LAMBDA
    }
}

/// The exponential backoff of those who compete for the lease.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    /// In seconds, like the cap.
    base: f64,
    factor: f64,
    steps: u32,
    jitter: f64,
    cap: f64,
}

impl Backoff {
    pub fn new(config: &LeaseConfig) -> Self {
        Self {
            base: config.backoff_base.as_secs_f64(),
            factor: config.backoff_factor,
            steps: config.backoff_steps,
            jitter: config.jitter,
            cap: config.term.as_secs_f64(),
        }
    }

    /// In seconds; at least `floor`.
    fn base(&self, floor: Duration) -> f64 {
        self.base.max(floor.as_secs_f64())
    }

    /// How long to wait after the `losses`-th loss in a row: base x factor^losses, each factor jittered, capped; past
    /// `steps` it is the cap. Then up to a tenth more, so that the capped ones don't come back in step either.
    /// `floor` raises the base where news travels slowly.
    pub fn delay(&self, losses: u32, floor: Duration, rng: &mut Rng) -> Duration {
        if losses > self.steps {
            return seconds(self.cap * (1.0 + 0.1 * rng.uniform()));
        }
        let mut delay = self.base(floor);
        if losses == 0 {
            // No factor to jitter yet, and this is where the most wake at once.
            return self.jittered(delay, self.cap, rng);
        }
        for _ in 0..losses {
            delay *= self.factor * (1.0 + self.jitter * rng.uniform());
            if delay >= self.cap {
                delay = self.cap;
                break;
            }
        }
        seconds(delay * (1.0 + 0.1 * rng.uniform()))
    }

    /// How long one key waits after its `setbacks`-th refusal in a row: doubling up to `cap`, jittered; and the cap by a tenth
    /// more, or a rival that writes the key again and again might come first each time.
    pub fn after_refusal(&self, setbacks: u32, floor: Duration, cap: Duration, rng: &mut Rng) -> Duration {
        let doubled = self.base(floor) * 2_f64.powi(setbacks.saturating_sub(1).min(30) as i32);
        self.jittered(doubled, cap.as_secs_f64(), rng)
    }

    /// What is jittered beyond the cap is the cap, and up to a tenth more.
    fn jittered(&self, delay: f64, cap: f64, rng: &mut Rng) -> Duration {
        let place = rng.uniform();
        seconds((delay * (1.0 + self.jitter * place)).min(cap * (1.0 + 0.1 * place)))
    }

    /// How long everything pauses after the `streak`-th failure in a row: exponential up to `cap`, and up to a tenth
    /// more.
    pub fn after_failure(&self, streak: u32, floor: Duration, cap: Duration, rng: &mut Rng) -> Duration {
        let grown = self.base(floor) * self.factor.powi(streak.saturating_sub(1).min(30) as i32);
        seconds(grown.min(cap.as_secs_f64()) * (1.0 + 0.1 * rng.uniform()))
    }
}

/// Seconds to a duration, rounded to nanoseconds; what 64 bits can't hold becomes the most that they can.
pub(super) fn seconds(s: f64) -> Duration {
    // `as` saturates; `Duration::try_from_secs_f64` is exact, and too slow for the hot path.
    Duration::from_nanos((s * 1e9 + 0.5) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_defaults() -> Backoff {
        Backoff { base: 0.02, factor: 4.0, steps: 5, jitter: 0.5, cap: 60.0 }
    }

    /// All delays that 1,000 seeds draw for one losses.
    fn draws(backoff: &Backoff, losses: u32) -> (Duration, Duration) {
        let all = (0..1000).map(|seed| backoff.delay(losses, Duration::ZERO, &mut Rng::seeded(seed)));
        all.fold((Duration::MAX, Duration::ZERO), |(low, high), d| (low.min(d), high.max(d)))
    }

    #[test]
    fn each_step_grows_by_the_factor_and_its_jitter_alone() {
        let backoff = go_defaults();
        let (low, high) = draws(&backoff, 0);
        assert!(low >= Duration::from_millis(20) && high <= Duration::from_millis(30), "{low:?} {high:?}");
        let (low, high) = draws(&backoff, 1);
        assert!(low >= Duration::from_millis(80) && high <= Duration::from_millis(132), "{low:?} {high:?}");
        let (low, high) = draws(&backoff, 2);
        assert!(low >= Duration::from_millis(320) && high <= Duration::from_millis(792), "{low:?} {high:?}");
    }

    #[test]
    fn past_the_steps_the_delay_is_the_term_and_up_to_a_tenth_more() {
        let (low, high) = draws(&go_defaults(), 6);
        assert!(low >= Duration::from_secs(60) && high <= Duration::from_secs(66), "{low:?} {high:?}");
        assert!(high - low > Duration::from_secs(4), "the cap is jittered too");
    }

    #[test]
    fn the_first_step_is_jittered_too() {
        let (low, high) = draws(&go_defaults(), 0);
        assert!(high - low > Duration::from_millis(8), "{low:?} {high:?}");
    }

    #[test]
    fn a_slow_network_raises_the_base() {
        let delay = go_defaults().delay(0, Duration::from_millis(200), &mut Rng::seeded(1));
        assert!(delay >= Duration::from_millis(200));
    }

    #[test]
    fn the_extremes_of_the_settings_stay_finite() {
        let wild = Backoff { base: 1.0, factor: 1e300, steps: u32::MAX, jitter: 1.0, cap: 5.0 };
        for losses in [0, 1, 7, 1_000_000, u32::MAX] {
            assert!(wild.delay(losses, Duration::ZERO, &mut Rng::seeded(2)) <= Duration::from_millis(5_500));
        }
        let steady = Backoff { factor: 1.0, ..wild };
        assert!(steady.delay(3, Duration::ZERO, &mut Rng::seeded(3)) <= Duration::from_millis(5_500));
    }

    #[test]
    fn refusals_and_failures_back_off_up_to_their_caps() {
        let backoff = go_defaults();
        let cap = Duration::from_secs(3);
        let mut rng = Rng::seeded(4);
        for n in 1..100 {
            assert!(backoff.after_refusal(n, Duration::ZERO, cap, &mut rng) <= cap.mul_f64(1.1));
            assert!(backoff.after_failure(n, Duration::ZERO, cap, &mut rng) <= cap.mul_f64(1.1));
        }
        assert!(backoff.after_failure(100, Duration::ZERO, cap, &mut rng) >= cap);
        assert!(backoff.after_refusal(100, Duration::ZERO, cap, &mut rng) >= cap);
    }

    #[test]
    fn few_draws_are_early_and_most_are_late() {
        let mut rng = Rng::seeded(5);
        let draws: Vec<f64> = (0..10_000).map(|_| rng.truncated_exponential()).collect();
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
        assert!(draws.iter().filter(|x| **x < 0.5).count() < 200);
        assert!(draws.iter().filter(|x| **x > 0.8).count() > 8_000);
    }

    #[test]
    fn one_seed_is_one_run() {
        let mut a = Rng::seeded(6);
        let mut b = Rng::seeded(6);
        assert!((0..100).all(|_| a.uniform() == b.uniform()));
    }
}

//! The backoff, and the random draws behind every delay of the engine.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::config::LeaseConfig;

/// A seeded generator: the same seed gives the same run. The algorithm is named, so that a seed
/// means the same in every release and on every machine.
#[derive(Clone, Debug)]
pub(super) struct Rng(Xoshiro256PlusPlus);

impl Rng {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Draws uniformly from [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Draws from [0, 1) by a truncated exponential: few early, most late. Among any number of
    /// replicas that draw, the first is then well ahead of the second (Nonnenmacher and Biersack,
    /// "Scalable Feedback for Large Groups", 1999).
    pub(super) fn truncated_exponential(&mut self) -> f64 {
        /// Steepness. When the draws are spread over 16 echoes, 10 keeps the expected number of
        /// draws within one echo of the first near one, for groups of up to e^10.
        const LAMBDA: f64 = 10.0;
        (self.uniform() * LAMBDA.exp_m1()).ln_1p() / LAMBDA
    }
}

/// The exponential backoff of a replica that competes for the lease.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    /// In seconds, like `cap`.
    base: f64,
    factor: f64,
    steps: u32,
    jitter: f64,
    cap: f64,
}

impl Backoff {
    pub(super) fn new(config: &LeaseConfig) -> Self {
        Self {
            base: config.backoff_base.as_secs_f64(),
            factor: config.backoff_factor,
            steps: config.backoff_steps,
            jitter: config.jitter,
            cap: config.term.as_secs_f64(),
        }
    }

    /// Returns the base in seconds; at least `floor`.
    fn base(&self, floor: Duration) -> f64 {
        self.base.max(floor.as_secs_f64())
    }

    /// Returns how long to wait after this many losses in a row: base x factor^losses, with each
    /// factor jittered, capped at the term. Past `steps` losses it is the term. Up to a tenth is
    /// added, so that replicas whose delay is capped do not return in step. `floor` raises the base
    /// where news travels slowly.
    pub(super) fn delay(&self, losses: u32, floor: Duration, rng: &mut Rng) -> Duration {
        /// After so many steps a backoff that grows noticeably has reached the cap. Further ones
        /// are one power, so that a loss costs the same however many came before.
        const JITTERED_STEPS: u32 = 64;
        if losses > self.steps {
            return seconds(self.cap * (1.0 + 0.1 * rng.uniform()));
        }
        let mut delay = self.base(floor);
        if losses == 0 {
            // There is no factor to jitter yet, and most replicas wake together at this step.
            return self.jittered(delay, self.cap, rng);
        }
        for _ in 0..losses.min(JITTERED_STEPS) {
            delay *= self.factor * (1.0 + self.jitter * rng.uniform());
            if delay >= self.cap {
                break;
            }
        }
        let further = losses.saturating_sub(JITTERED_STEPS);
        delay *= (self.factor * (1.0 + 0.5 * self.jitter)).powf(further.into());
        seconds(delay.min(self.cap) * (1.0 + 0.1 * rng.uniform()))
    }

    /// Returns how long one key waits after this many refusals in a row: doubling up to `cap`,
    /// jittered. The cap is jittered by a tenth, because a rival that rewrites the key periodically
    /// could otherwise come first each time.
    pub(super) fn after_refusal(
        &self,
        setbacks: u32,
        floor: Duration,
        cap: Duration,
        rng: &mut Rng,
    ) -> Duration {
        let doubled = self.base(floor) * 2_f64.powi(setbacks.saturating_sub(1).min(30) as i32);
        self.jittered(doubled, cap.as_secs_f64(), rng)
    }

    /// Returns `delay` with jitter; beyond the cap, the cap with up to a tenth more.
    fn jittered(&self, delay: f64, cap: f64, rng: &mut Rng) -> Duration {
        let place = rng.uniform();
        seconds((delay * (1.0 + self.jitter * place)).min(cap * (1.0 + 0.1 * place)))
    }

    /// Returns how long all attempts pause after this many failures in a row: exponential up to
    /// `cap`, with up to a tenth more.
    pub(super) fn after_failure(
        &self,
        streak: u32,
        floor: Duration,
        cap: Duration,
        rng: &mut Rng,
    ) -> Duration {
        let grown = self.base(floor) * self.factor.powi(streak.saturating_sub(1).min(30) as i32);
        seconds(grown.min(cap.as_secs_f64()) * (1.0 + 0.1 * rng.uniform()))
    }
}

/// Returns seconds as a duration, rounded to nanoseconds and saturated at 64 bits of them.
pub(super) fn seconds(s: f64) -> Duration {
    // `as` saturates. `Duration::try_from_secs_f64` is exact, but too slow for the hot path.
    Duration::from_nanos((s * 1e9 + 0.5) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_defaults() -> Backoff {
        Backoff { base: 0.02, factor: 4.0, steps: 5, jitter: 0.5, cap: 60.0 }
    }

    /// Returns the shortest and the longest delay that 1,000 seeds draw after this many losses.
    fn draws(backoff: &Backoff, losses: u32) -> (Duration, Duration) {
        let all = (0..1000).map(|seed| backoff.delay(losses, Duration::ZERO, &mut Rng::seeded(seed)));
        all.fold((Duration::MAX, Duration::ZERO), |(low, high), d| (low.min(d), high.max(d)))
    }

    #[test]
    fn each_step_grows_by_jittered_factor() {
        let backoff = go_defaults();
        let (low, high) = draws(&backoff, 0);
        assert!(low >= Duration::from_millis(20) && high <= Duration::from_millis(30), "{low:?} {high:?}");
        let (low, high) = draws(&backoff, 1);
        assert!(low >= Duration::from_millis(80) && high <= Duration::from_millis(132), "{low:?} {high:?}");
        let (low, high) = draws(&backoff, 2);
        assert!(low >= Duration::from_millis(320) && high <= Duration::from_millis(792), "{low:?} {high:?}");
    }

    #[test]
    fn past_the_steps_delay_is_the_jittered_term() {
        let (low, high) = draws(&go_defaults(), 6);
        assert!(low >= Duration::from_secs(60) && high <= Duration::from_secs(66), "{low:?} {high:?}");
        assert!(high - low > Duration::from_secs(4), "the cap is jittered too");
    }

    #[test]
    fn first_step_is_jittered_too() {
        let (low, high) = draws(&go_defaults(), 0);
        assert!(high - low > Duration::from_millis(8), "{low:?} {high:?}");
    }

    #[test]
    fn slow_network_raises_the_base() {
        let delay = go_defaults().delay(0, Duration::from_millis(200), &mut Rng::seeded(1));
        assert!(delay >= Duration::from_millis(200));
    }

    #[test]
    fn extreme_settings_stay_finite() {
        let wild = Backoff { base: 1.0, factor: 1e300, steps: u32::MAX, jitter: 1.0, cap: 5.0 };
        for losses in [0, 1, 7, 1_000_000, u32::MAX] {
            assert!(wild.delay(losses, Duration::ZERO, &mut Rng::seeded(2)) <= Duration::from_millis(5_500));
        }
        let steady = Backoff { factor: 1.0, ..wild };
        assert!(steady.delay(3, Duration::ZERO, &mut Rng::seeded(3)) <= Duration::from_millis(5_500));
    }

    #[test]
    fn many_losses_draw_no_more_than_few() {
        let slow = Backoff { factor: 1.0, steps: u32::MAX, jitter: 0.0, ..go_defaults() };
        let mut rng = Rng::seeded(7);
        assert!(slow.delay(u32::MAX, Duration::ZERO, &mut rng) <= Duration::from_millis(22));
        let mut drawn = Rng::seeded(7);
        let draws = (0..100).map(|_| drawn.uniform()).collect::<Vec<_>>();
        let next = rng.uniform();
        assert!(draws.contains(&next), "at most 100 draws");
    }

    #[test]
    fn slow_growth_reaches_the_cap_all_the_same() {
        let growing = Backoff { factor: 1.001, steps: u32::MAX, jitter: 0.0, ..go_defaults() };
        let (_, after_64) = draws(&growing, 64);
        let (before_cap, _) = draws(&growing, 1_000);
        let (low, _) = draws(&growing, 1_000_000);
        assert!(after_64 < before_cap && before_cap < Duration::from_secs(1), "{after_64:?} {before_cap:?}");
        assert!(low >= Duration::from_secs(60), "{low:?}");
    }

    #[test]
    fn refusals_and_failures_back_off_to_their_caps() {
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
    fn few_draws_are_early_most_are_late() {
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

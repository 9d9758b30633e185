//! How long a pending key waits before we stop trusting the leader to write it.
//!
//! Patience is learnt like TCP's retransmission timeout (Jacobson 1988; RFC 6298). It is a smoothed
//! time, from the request for a write until the leader is seen to have made it, plus four times its
//! mean deviation. A refuted suspicion doubles it.

use std::time::Duration;

use super::backoff::{Rng, seconds};
use super::config::{LeaseConfig, PatienceMode};

#[derive(Clone, Debug)]
pub(super) struct Patience {
    /// The range over which the patience of the replicas is spread, in seconds.
    spread: f64,
    /// The smoothed sample and its mean deviation, in seconds.
    learnt: Option<(f64, f64)>,
    doublings: u32,
    /// The place of this replica in the spread: low for the few that suspect early.
    place: f64,
    /// The patience that follows from all of the above. It is kept because every event needs it.
    now: Duration,
}

/// The place in the spread of a replica that goes first by the roster: far enough from the start that
/// news which are a little late are not taken for a death.
const FIRST: f64 = 0.6;
/// The least place of the others.
const BEHIND_THE_FIRST: f64 = 0.8;

impl Patience {
    pub(super) fn new(config: &LeaseConfig, rng: &mut Rng) -> Self {
        let mut new = Self {
            spread: config.tuning.patience_spread.as_secs_f64(),
            learnt: None,
            doublings: 0,
            place: rng.truncated_exponential(),
            now: config.term,
        };
        new.update(config);
        new
    }

    /// Returns the patience in force, which is never above the term.
    pub(super) fn current(&self) -> Duration {
        self.now
    }

    /// Returns whether a replica at another place in the spread may have lost patience by then. What
    /// it writes says nothing about a leader, nor about the pace of one.
    pub(super) fn is_late(&self, waited: Duration) -> bool {
        waited >= self.unspread()
    }

    /// Returns the patience for a key of a replica that is alive, with half of the spread: that costs
    /// one refused write at most, and lets a replica that is overloaded share its load early.
    pub(super) fn for_one_key(&self) -> Duration {
        self.now.saturating_sub(seconds(self.spread * self.place / 2.0))
    }

    /// Returns the patience without the spread: that of the first replica to suspect.
    pub(super) fn unspread(&self) -> Duration {
        self.now.saturating_sub(seconds(self.spread * self.place))
    }

    /// Returns the place of this replica in its group, in [0, 1): few are low, most are high.
    pub(super) fn place(&self) -> f64 {
        self.place
    }

    /// Learns that the leader wrote a key `sample` after we wanted it. The key must not have been
    /// attempted by us: after an attempt of our own, the time says nothing about the leader (Karn's
    /// rule).
    pub(super) fn sample(&mut self, sample: Duration, config: &LeaseConfig) {
        // A machine that slept saw a long wait. A sample above the term cannot raise patience
        // further, but would take longer to unlearn.
        let x = sample.min(config.term).as_secs_f64();
        self.learnt = Some(match self.learnt {
            None => (x, x / 2.0),
            Some((mean, deviation)) => (0.875 * mean + 0.125 * x, 0.75 * deviation + 0.25 * (mean - x).abs()),
        });
        self.doublings = 0;
        self.update(config);
    }

    /// Learns that a suspicion was refuted: the leader is alive. The next suspicion waits twice as
    /// long, and from another place, so that two replicas that suspected at the same time do not do
    /// so again.
    pub(super) fn refuted(&mut self, config: &LeaseConfig, rng: &mut Rng) {
        self.doublings = (self.doublings + 1).min(32);
        self.place = rng.truncated_exponential();
        self.update(config);
    }

    /// The roster says whether we go first when the leader falls silent; `None` if it says nothing.
    pub(super) fn inherit(&mut self, is_first: Option<bool>, config: &LeaseConfig, rng: &mut Rng) {
        self.place = match is_first {
            Some(true) => FIRST,
            Some(false) => self.place.max(BEHIND_THE_FIRST),
            None => rng.truncated_exponential(),
        };
        self.update(config);
    }

    fn update(&mut self, config: &LeaseConfig) {
        let PatienceMode::Adaptive { min } = config.patience else {
            self.now = config.term;
            return;
        };
        let initial = config.tuning.initial_patience.as_secs_f64();
        let learnt = self.learnt.map_or(initial, |(mean, deviation)| mean + 4.0 * deviation);
        let doubled = seconds(learnt * (1_u64 << self.doublings) as f64);
        self.now = doubled.max(min).saturating_add(seconds(self.spread * self.place)).min(config.term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::LeaseBuilder;

    const TERM: Duration = Duration::from_secs(60);
    const MIN: Duration = Duration::from_millis(500);

    fn config() -> LeaseConfig {
        LeaseBuilder::new("test").term(TERM).min_patience(MIN).build().expect("settings are valid")
    }

    fn adaptive(seed: u64) -> (Patience, Rng) {
        let mut rng = Rng::seeded(seed);
        (Patience::new(&config(), &mut rng), rng)
    }

    #[test]
    fn first_patience_is_1s_spread_over_2s() {
        for seed in 0..100 {
            let (patience, _) = adaptive(seed);
            assert_eq!(patience.unspread(), seconds(1.0));
            assert!(patience.current() < seconds(3.0));
        }
    }

    #[test]
    fn samples_count_as_in_rfc_6298() {
        let (mut patience, _) = adaptive(1);
        patience.sample(Duration::from_secs(2), &config());
        assert_eq!(patience.unspread().as_millis(), 2_000 + 4 * 1_000);
        patience.sample(Duration::from_secs(2), &config());
        assert_eq!(patience.unspread().as_millis(), 2_000 + 4 * 750);
    }

    #[test]
    fn fast_leaders_never_lower_patience_below_minimum() {
        let (mut patience, _) = adaptive(2);
        (0..100).for_each(|_| patience.sample(Duration::from_millis(1), &config()));
        assert_eq!(patience.unspread(), MIN);
    }

    #[test]
    fn patience_never_exceeds_the_term() {
        let (mut patience, mut rng) = adaptive(3);
        (0..100).for_each(|_| patience.refuted(&config(), &mut rng));
        assert_eq!(patience.current(), TERM);
        patience.sample(Duration::from_secs(10_000), &config());
        assert_eq!(patience.current(), TERM);
        // A sample far above the term is soon unlearnt.
        (0..40).for_each(|_| patience.sample(Duration::from_millis(10), &config()));
        assert!(patience.current() < TERM / 10, "{patience:?}");
    }

    #[test]
    fn refuted_suspicion_doubles_and_sample_resets() {
        let (mut patience, mut rng) = adaptive(4);
        patience.sample(Duration::from_secs(1), &config());
        patience.refuted(&config(), &mut rng);
        patience.refuted(&config(), &mut rng);
        assert_eq!(patience.unspread().as_millis(), 4 * 3_000);
        patience.sample(Duration::from_secs(1), &config());
        assert_eq!(patience.unspread().as_millis(), 1_000 + 4 * 375);
    }

    #[test]
    fn refuted_suspicion_moves_the_replica_elsewhere() {
        let (mut patience, mut rng) = adaptive(5);
        let place = patience.place();
        patience.refuted(&config(), &mut rng);
        assert_ne!(place, patience.place());
    }

    #[test]
    fn fixed_patience_is_always_the_term() {
        let mut rng = Rng::seeded(6);
        let config =
            LeaseBuilder::new("test").term(TERM).fixed_patience().build().expect("settings are valid");
        let mut patience = Patience::new(&config, &mut rng);
        patience.sample(Duration::from_millis(1), &config);
        patience.refuted(&config, &mut rng);
        assert_eq!(patience.current(), TERM);
    }
}

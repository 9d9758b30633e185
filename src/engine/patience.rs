//! How long a pending key waits before we stop trusting the leader to do it.
//!
//! Learnt like TCP's retransmission timeout (Jacobson 1988; RFC 6298): a smoothed time from wanting a write to seeing
//! that the leader made it, plus four times its mean deviation; doubled when a suspicion was refuted.

use std::time::Duration;

use super::backoff::{Rng, seconds};
use super::config::{LeaseConfig, PatienceMode};

#[derive(Clone, Debug)]
pub(super) struct Patience {
    mode: PatienceMode,
    term: Duration,
    /// Before the first sample, in seconds.
    initial: f64,
    /// How far apart the replicas are, in seconds.
    spread: f64,
    /// Smoothed sample and mean deviation, in seconds.
    learnt: Option<(f64, f64)>,
    doublings: u32,
    /// Where in the spread this replica stands: small for the few that suspect early.
    place: f64,
    /// What follows from all of the above; asked for at every event, so it is kept.
    now: Duration,
}

impl Patience {
    pub fn new(config: &LeaseConfig, rng: &mut Rng) -> Self {
        let mut new = Self {
            mode: config.patience,
            term: config.term,
            initial: config.tuning.initial_patience.as_secs_f64(),
            spread: config.tuning.patience_spread.as_secs_f64(),
            learnt: None,
            doublings: 0,
            place: rng.truncated_exponential(),
            now: config.term,
        };
        new.update();
        new
    }

    /// The patience in force; never above the term.
    pub fn current(&self) -> Duration {
        self.now
    }

    /// Whether some replica in our place would have lost patience before that.
    pub fn is_late(&self, sample: Duration) -> bool {
        sample >= self.unspread()
    }

    /// How long to wait if anybody else is to go first: hardly anybody who learnt about the same waits for longer.
    pub fn yielding(&self) -> Duration {
        (self.unspread() * 5 / 4).saturating_add(seconds(self.spread)).min(self.term)
    }

    /// That of the first to suspect.
    pub fn unspread(&self) -> Duration {
        self.now.saturating_sub(seconds(self.spread * self.place))
    }

    /// Where this replica stands among its group, in [0, 1): few low, most high.
    pub fn place(&self) -> f64 {
        self.place
    }

    /// The leader did a key that we wanted `sample` ago and never attempted ourselves (Karn's rule: an attempt of our own
    /// says nothing about the leader).
    pub fn sample(&mut self, sample: Duration) {
        // More than patience can become would only take the longer to unlearn: a machine that slept saw a long wait.
        let x = sample.min(self.term).as_secs_f64();
        self.learnt = Some(match self.learnt {
            None => (x, x / 2.0),
            Some((mean, deviation)) => (0.875 * mean + 0.125 * x, 0.75 * deviation + 0.25 * (mean - x).abs()),
        });
        self.doublings = 0;
        self.update();
    }

    /// We suspected the leader and were refused: it lives. Wait twice as long next time, and from another place, so that
    /// two who suspected at once don't do so again.
    pub fn refuted(&mut self, rng: &mut Rng) {
        self.doublings = (self.doublings + 1).min(32);
        self.place = rng.truncated_exponential();
        self.update();
    }

    fn update(&mut self) {
        let PatienceMode::Adaptive { min } = self.mode else {
            self.now = self.term;
            return;
        };
        let learnt = self.learnt.map_or(self.initial, |(mean, deviation)| mean + 4.0 * deviation);
        let doubled = seconds(learnt * (1_u64 << self.doublings) as f64);
        self.now = doubled.max(min).saturating_add(seconds(self.spread * self.place)).min(self.term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::LeaseBuilder;

    const TERM: Duration = Duration::from_secs(60);
    const MIN: Duration = Duration::from_millis(500);

    fn adaptive(seed: u64) -> (Patience, Rng) {
        let mut rng = Rng::seeded(seed);
        let config =
            LeaseBuilder::new("test").term(TERM).min_patience(MIN).build().expect("settings are valid");
        (Patience::new(&config, &mut rng), rng)
    }

    #[test]
    fn patience_is_one_second_before_the_first_sample_and_spread_over_two() {
        for seed in 0..100 {
            let (patience, _) = adaptive(seed);
            assert_eq!(patience.unspread(), seconds(1.0));
            assert!(patience.current() < seconds(3.0));
        }
    }

    #[test]
    fn samples_set_it_as_rfc_6298_sets_the_retransmission_timeout() {
        let (mut patience, _) = adaptive(1);
        patience.sample(Duration::from_secs(2));
        assert_eq!(patience.unspread().as_millis(), 2_000 + 4 * 1_000);
        patience.sample(Duration::from_secs(2));
        assert_eq!(patience.unspread().as_millis(), 2_000 + 4 * 750);
    }

    #[test]
    fn fast_leaders_never_bring_it_below_the_minimum() {
        let (mut patience, _) = adaptive(2);
        (0..100).for_each(|_| patience.sample(Duration::from_millis(1)));
        assert_eq!(patience.unspread(), MIN);
    }

    #[test]
    fn slow_leaders_and_refuted_suspicions_never_bring_it_above_the_term() {
        let (mut patience, mut rng) = adaptive(3);
        (0..100).for_each(|_| patience.refuted(&mut rng));
        assert_eq!(patience.current(), TERM);
        patience.sample(Duration::from_secs(10_000));
        assert_eq!(patience.current(), TERM);
        // And what was far above it is soon unlearnt.
        (0..40).for_each(|_| patience.sample(Duration::from_millis(10)));
        assert!(patience.current() < TERM / 10, "{patience:?}");
    }

    #[test]
    fn a_refuted_suspicion_doubles_it_and_a_sample_resets_the_doubling() {
        let (mut patience, mut rng) = adaptive(4);
        patience.sample(Duration::from_secs(1));
        patience.refuted(&mut rng);
        patience.refuted(&mut rng);
        assert_eq!(patience.unspread().as_millis(), 4 * 3_000);
        patience.sample(Duration::from_secs(1));
        assert_eq!(patience.unspread().as_millis(), 1_000 + 4 * 375);
    }

    #[test]
    fn a_refuted_suspicion_moves_the_replica_to_another_place() {
        let (mut patience, mut rng) = adaptive(5);
        let place = patience.place();
        patience.refuted(&mut rng);
        assert_ne!(place, patience.place());
    }

    #[test]
    fn fixed_patience_is_the_term_whatever_happens() {
        let mut rng = Rng::seeded(6);
        let config =
            LeaseBuilder::new("test").term(TERM).fixed_patience().build().expect("settings are valid");
        let mut patience = Patience::new(&config, &mut rng);
        patience.sample(Duration::from_millis(1));
        patience.refuted(&mut rng);
        assert_eq!(patience.current(), TERM);
    }
}

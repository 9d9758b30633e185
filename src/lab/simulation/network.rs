//! The network: how long messages take, and which ones go astray.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::plan::Plan;

pub(super) struct Network {
    pub rng: SmallRng,
    latency: Duration,
    tail: u32,
    disorder: u32,
    storm: Duration,
}

impl Network {
    pub fn new(plan: &Plan) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            latency: plan.latency,
            tail: plan.tail,
            disorder: plan.disorder,
            storm: plan.storm,
        }
    }

    /// Draws how long a message takes that is sent now.
    pub fn one_way(&mut self, now: Duration) -> Duration {
        let spread = (self.latency / 2).mul_f64(self.rng.random_range(0.8..1.2));
        if self.one_in(self.tail, now) { spread * self.rng.random_range(10..100) } else { spread }
    }

    /// Draws whether news are sent out of order, or twice.
    pub fn is_disordered(&mut self, now: Duration) -> bool {
        self.one_in(self.disorder, now)
    }

    /// Draws whether something happens that happens once in `many` times, while the storm lasts.
    fn one_in(&mut self, many: u32, now: Duration) -> bool {
        many > 0 && now < self.storm && self.rng.random_range(0..many) == 0
    }
}

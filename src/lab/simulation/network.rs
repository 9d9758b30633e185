//! The network: how long messages take, and which ones go astray.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::plan::Plan;

pub(super) struct Network {
    pub rng: SmallRng,
    latency: Duration,
    tail: u32,
    disorder: u32,
    late: u32,
    late_by: Duration,
    storm: Duration,
    /// How many messages have taken longer than usual.
    pub late_messages: u64,
}

impl Network {
    pub fn new(plan: &Plan) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            latency: plan.latency,
            tail: plan.tail,
            disorder: plan.disorder,
            late: plan.late,
            late_by: plan.late_by,
            storm: plan.storm,
            late_messages: 0,
        }
    }

    /// Draws how long a message takes that is sent now.
    pub fn one_way(&mut self, now: Duration) -> Duration {
        let spread = (self.latency / 2).mul_f64(self.rng.random_range(0.8..1.2));
        if self.one_in(self.tail, now) { spread * self.rng.random_range(10..100) } else { spread }
    }

    /// Draws how much longer news take.
    pub fn lateness(&mut self, now: Duration) -> Duration {
        match self.one_in(self.late, now) {
            true => self.late_by.mul_f64(self.rng.random_range(0.0..1.0)),
            false => Duration::ZERO,
        }
    }

    /// Draws whether news are sent out of order, or twice.
    pub fn is_disordered(&mut self, now: Duration) -> bool {
        self.one_in(self.disorder, now)
    }

    /// Draws whether something happens that happens once in `many` times, while the storm lasts.
    fn one_in(&mut self, many: u32, now: Duration) -> bool {
        let happens = many > 0 && now < self.storm && self.rng.random_range(0..many) == 0;
        self.late_messages += u64::from(happens);
        happens
    }
}

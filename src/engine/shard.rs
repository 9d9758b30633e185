//! A shard: a part of the keys, with a contest of its own for its lease.

use super::{
    backoff::Rng, config::LeaseConfig, contest::Contest, in_flight::Counted, patience::Patience,
    roster::Turn, time::Timestamp, window::Window,
};

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) contest: Contest,
    /// When the first probe of the election may start; drawn when an idle replica gets its first
    /// job.
    pub(super) election: Timestamp,
    pub(super) window: Window,
    pub(super) takeovers: Window,
    /// When the last takeover started.
    pub(super) last_takeover: Timestamp,
    pub(super) patience: Patience,
    /// The attempts in flight within their deadline.
    pub(super) counted: Counted,
    /// All attempts in flight.
    pub(super) out: u32,
    pub(super) turn: Turn,
    /// When the shard was last handed over, to us or to another.
    pub(super) handed_over: Timestamp,
    /// Until here, others' writes in a shard that was handed over are ones that they had begun before.
    pub(super) hand_over_until: Timestamp,
}

impl Shard {
    pub(super) fn new(config: &LeaseConfig, rng: &mut Rng) -> Self {
        let window = || Window::new(config.concurrency);
        Self {
            contest: Contest::default(),
            election: Timestamp::ZERO,
            window: window(),
            takeovers: window(),
            last_takeover: Timestamp::ZERO,
            patience: Patience::new(config, rng),
            counted: Counted::default(),
            out: 0,
            turn: Turn::Open,
            handed_over: Timestamp::ZERO,
            hand_over_until: Timestamp::ZERO,
        }
    }

    /// Returns until when this replica leads the shard, if it does.
    pub(super) fn led_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.contest.leads(now).then(|| self.contest.lease_end())
    }
}

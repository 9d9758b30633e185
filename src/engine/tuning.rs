//! The figures of the rules.

use std::time::Duration;

/// The figures of the rules that are nobody's to set, in one place, so that the simulator can sweep them; `docs/tuning.md`
/// shows what it found. What depends on the use is a setting of the [`Builder`](crate::LeaseBuilder).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tuning {
    /// The election delay is drawn over this many echoes, so that the first to go is heard by the others. Default: 16.
    pub election_echoes: u32,
    /// The incumbent's head start over a follower's fresh work, in echoes. Default: 4.
    pub head_start_echoes: u32,
    /// No backoff is shorter than so many echoes: news of a write must be able to arrive in time to stop the next one.
    /// Default: 2.
    pub backoff_echoes: u32,
    /// Two leaders that see each other's work both step down. What they wait then is drawn over this many echoes more,
    /// evenly, because they are few: otherwise they meet again, and again. Default: 16.
    pub rival_echoes: u32,
    /// By how much a success opens the window. Default: 1.
    pub window_growth: usize,
    /// Patience before the first sample (RFC 6298, 2.1). Default: 1 s.
    pub initial_patience: Duration,
    /// The first to suspect a dead leader is this far ahead of most others, so that its success silences them. Default:
    /// 2 s.
    pub patience_spread: Duration,
    /// For how long an overdue key is ours the first time, in patiences. While it is not, it is late by one. Default: 2.
    pub adoption_patiences: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            election_echoes: 16,
            head_start_echoes: 4,
            backoff_echoes: 2,
            rival_echoes: 16,
            window_growth: 1,
            initial_patience: Duration::from_secs(1),
            patience_spread: Duration::from_secs(2),
            adoption_patiences: 2,
        }
    }
}

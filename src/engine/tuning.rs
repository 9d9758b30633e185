//! The constants of the rules.

use std::time::Duration;

/// The constants of the rules. No user needs to set them; they are in one place so that the
/// simulator can sweep them. `docs/tuning.md` shows what it found. Values that depend on the use
/// are settings of the [`LeaseBuilder`](crate::LeaseBuilder).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tuning {
    /// The range of the election delay, in echoes. It is wide so that the first replica to write is
    /// heard by the others. Default: 16.
    pub election_echoes: u32,
    /// The incumbent's head start over a follower's fresh work, in echoes. Default: 4.
    pub head_start_echoes: u32,
    /// The shortest backoff, in echoes: news of a write must be able to arrive in time to stop the
    /// next one. Default: 2.
    pub backoff_echoes: u32,
    /// The range of the delay that is added when two leaders see each other's writes and both step
    /// down, in echoes. It is drawn evenly, because they are few; otherwise they would meet again.
    /// Default: 16.
    pub rival_echoes: u32,
    /// The number of attempts by which a success opens the window. Default: 1.
    pub window_growth: u32,
    /// Patience before the first sample (RFC 6298, section 2.1). Default: 1 s.
    pub initial_patience: Duration,
    /// The range over which the patience of the replicas is spread. The first to suspect a dead
    /// leader is this far ahead of most others, so that its success silences them. Default: 2 s.
    pub patience_spread: Duration,
    /// How many patiences another replica's key waits until a replica that has keys of its own to
    /// write takes it over. Default: 2.
    pub busy_patiences: u32,
    /// How long a key's incumbent is remembered after the key was last written or wanted, in terms.
    /// Default: 2.
    pub memory_terms: u32,
    /// For how long a replica that gets a shard by a change of the roster takes the writes of others
    /// there for ones that they had begun before, in echoes. Default: 20.
    pub hand_over_echoes: u32,
    /// The longest echo that counts, so that no delay that is measured in echoes takes many seconds.
    /// Default: 250 ms.
    pub longest_echo: Duration,
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
            busy_patiences: 2,
            memory_terms: 2,
            hand_over_echoes: 20,
            longest_echo: Duration::from_millis(250),
        }
    }
}

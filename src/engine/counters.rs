//! Counts of what an engine has done.

/// Counts since the engine was created, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Attempts that started.
    pub attempts: u64,
    /// Attempts whose write succeeded.
    pub written: u64,
    /// Attempts whose write the store refused as stale.
    pub conflicts: u64,
    /// Attempts that learnt nothing.
    pub failures: u64,
    /// Times that a key had its third setback in a row, and that was a failure: it keeps failing.
    pub kept_failing: u64,
    /// Attempts that found nothing to write.
    pub unchanged: u64,
    /// Attempts that the store denied.
    pub denied: u64,
    /// Attempts that found another writer.
    pub written_by_others: u64,
    /// Attempts that panicked.
    pub panics: u64,
    /// Times that this process became leader.
    pub won: u64,
    /// Times that this process became a follower.
    pub lost: u64,
    /// Writes of other replicas that did our jobs.
    pub evidence: u64,
    /// Probes that started because the leader seemed dead.
    pub suspicions: u64,
    /// Attempts of single keys that their last writer, or a living leader, left pending.
    pub takeovers: u64,
}

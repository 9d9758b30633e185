//! An attempt, as the engine hands it out.

use super::time::Timestamp;

/// The identifier of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub(super) u64);

/// An attempt to run now.
///
/// Its outcome must come back, with the job, through
/// [`Engine::handle_outcome`](super::Engine::handle_outcome) or
/// [`Engine::handle_panic`](super::Engine::handle_panic).
#[derive(Debug)]
#[must_use]
pub struct Start<K, J> {
    /// The identifier of the attempt.
    pub id: AttemptId,
    /// The key that the job is for.
    pub key: K,
    /// The job.
    pub job: J,
    /// The number of this attempt of the job, from 1.
    pub number: u32,
    /// The number of the key's shard, from 0.
    pub shard: u16,
    /// Times that this process had become leader of the shard when the attempt started.
    pub epoch: u64,
    /// When the attempt stops holding its slot.
    pub deadline: Timestamp,
}

//! The election that a lease follows.

use tokio::task::AbortHandle;

use crate::store::Fence;

/// The election that a lease follows.
#[derive(Default)]
pub(super) struct Following {
    /// The number of elections followed so far. Only the follower of the last one decides.
    pub number: u64,
    /// The fence of the leadership that was applied last: another one is another reign.
    pub reign: Option<Fence>,
    /// The task that follows.
    pub task: Option<AbortHandle>,
}

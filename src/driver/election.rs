//! The results of an election, applied to the lease that follows it.

use std::{hash::Hash, sync::Arc};

use tokio::task::AbortHandle;

use super::shared::{Phase, Shared};
use crate::{clock::Moment, status::LeaseClosed, store::Fence};

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Shared<K> {
    /// Begins to follow an election, instead of the one before, which decides nothing from now on.
    /// Returns its number.
    pub(crate) fn begin_following(&self) -> u64 {
        let mut state = self.lock();
        state.following.number += 1;
        let (number, before) = (state.following.number, state.following.task.take());
        drop(state);
        if let Some(before) = before {
            before.abort();
        }
        number
    }

    /// Keeps the task that follows an election, unless another is followed by now.
    pub(crate) fn set_follower(&self, number: u64, follower: AbortHandle) {
        let mut state = self.lock();
        if state.following.number == number && !matches!(state.phase, Phase::Closed(_)) {
            state.following.task = Some(follower);
            return;
        }
        drop(state);
        follower.abort();
    }

    /// Applies the result of the election with this number: until when it made this replica leader,
    /// and by which fence; `None` if it did not. Attempts carry the fence if `fenced`. Returns whether
    /// the election is still the one that is followed.
    pub(crate) fn handle_election(
        &self,
        number: u64,
        led: Option<(Moment, Fence)>,
        fenced: bool,
    ) -> Result<bool, LeaseClosed> {
        let reign = led.as_ref().map(|(_, fence)| fence);
        // A leadership that was lost and won again between two looks is two: attempts of the first
        // one are cancelled.
        let is_followed = self.update(|state, now| {
            let is_followed = state.following.number == number;
            if is_followed && (reign.is_none() || state.following.reign.as_ref() != reign) {
                state.following.reign = None;
                state.engine.handle_not_elected(now);
            }
            is_followed
        })?;
        let Some((until, fence)) = led.filter(|_| is_followed) else { return Ok(is_followed) };
        let until = self.timestamp(until);
        // Under one lock, so that no attempt of this leadership starts without the fence, and none of
        // an earlier one with it.
        self.update(|state, now| {
            let is_followed = state.following.number == number;
            if is_followed {
                state.fence = fenced.then(|| Arc::new(fence.clone()));
                state.following.reign = Some(fence);
                state.engine.handle_elected(now, until);
            }
            is_followed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{LeaseBuilder, driver};

    #[tokio::test(start_paused = true)]
    async fn only_the_last_election_decides() {
        let config = LeaseBuilder::new("test").build().expect("valid");
        let shared: Arc<Shared<u32>> = driver::spawn(config, &tokio::runtime::Handle::current());
        let led = || Some((Moment::now() + Duration::from_secs(10), Fence::new("test", "election", 1)));
        let first = shared.begin_following();
        assert_eq!(shared.handle_election(first, led(), true), Ok(true));
        assert!(shared.is_leader());
        let second = shared.begin_following();
        assert_eq!(shared.handle_election(second, None, true), Ok(true));
        // The first follower had looked before it was stopped.
        assert_eq!(shared.handle_election(first, led(), true), Ok(false));
        assert!(!shared.is_leader());
        assert_eq!(shared.handle_election(second, led(), true), Ok(true));
        assert_eq!(shared.handle_election(first, None, true), Ok(false));
        assert!(shared.is_leader());
    }
}

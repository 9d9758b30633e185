//! A lease that follows an election.

use std::{hash::Hash, sync::Arc};

use super::{WriterLease, runtime};
use crate::{
    clock::Moment,
    election::{Elector, Leadership},
    status::SpawnError,
    store::Fence,
};

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// Lets an election decide. From now on jobs run only while the elector leads, and attempts
    /// carry its [fence](crate::Attempt::fence). The election alone says who leads and until when:
    /// neither our writes nor those of others move the lease. When the leadership ends, the
    /// attempts in flight are [cancelled](crate::Attempt::cancelled).
    ///
    /// A job that is tried while another replica is elected stays pending until that replica does
    /// it, or until this one is elected. A caller that awaits it may wait long.
    ///
    /// A [`Guard`](crate::Guard) on this lease writes with the fence, so its store must be able to
    /// check it: the store of the same etcd, ZooKeeper or Redis that holds the election. When the
    /// elector ends, the lease runs nothing. Another call follows another elector instead; when it
    /// returns, the one before decides nothing any more. The lease does not keep the elector alive.
    ///
    /// Another fence is another leadership, even if the lease saw nothing between the two: attempts of
    /// the first one are cancelled.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime; the lease then decides as before.
    ///
    /// ```
    /// # use writerlease::{Outcome, WriterLease, election::Elector};
    /// # async fn f(elector: impl Elector) -> Result<(), Box<dyn std::error::Error>> {
    /// let lease: WriterLease<u32> = WriterLease::builder("leader-only").spawn()?;
    /// lease.follow(&elector)?;
    /// lease.try_work(7, |attempt| async move {
    ///     println!("{} leads, by {:?}", attempt.key(), attempt.fence());
    ///     Outcome::Written
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn follow(&self, elector: &impl Elector) -> Result<(), SpawnError> {
        self.follow_leadership(elector, true)
    }

    /// Like [`follow`](Self::follow), but without fences, for jobs whose store does not hold the
    /// election. A leader that was paused may then write after its successor. Use it only where
    /// writes are compared with the value that was read.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime.
    pub fn follow_unfenced(&self, elector: &impl Elector) -> Result<(), SpawnError> {
        self.follow_leadership(elector, false)
    }

    fn follow_leadership(&self, elector: &impl Elector, fenced: bool) -> Result<(), SpawnError> {
        let runtime = runtime()?;
        let mut leadership = elector.leadership();
        leadership.mark_unchanged();
        let number = self.handle.shared.begin_following();
        // The present state is applied before this returns, so that no job that is tried after this
        // call runs unelected. A lease that has ended needs no leader.
        let _ = self.handle.shared.handle_election(number, led(elector.state()), fenced);
        let shared = Arc::downgrade(&self.handle.shared);
        let follower = runtime.spawn(async move {
            loop {
                let changed = leadership.changed().await;
                let Some(shared) = shared.upgrade() else { return };
                // An elector that was dropped no longer leads.
                let next = match changed {
                    Ok(()) => leadership.borrow_and_update().clone(),
                    Err(_) => Leadership::Unknown,
                };
                let is_followed = shared.handle_election(number, led(next), fenced).unwrap_or(false);
                if !is_followed || changed.is_err() {
                    return;
                }
            }
        });
        self.handle.shared.set_follower(number, follower.abort_handle());
        Ok(())
    }
}

/// Returns until when `leadership` lets this process lead, and by which fence.
fn led(leadership: Leadership) -> Option<(Moment, Fence)> {
    match leadership {
        Leadership::Leader { fence, until } => Some((until, fence)),
        _ => None,
    }
}

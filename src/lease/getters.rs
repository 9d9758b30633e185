//! The getters of a lease: they look and change nothing.

use std::{hash::Hash, sync::Arc};

use tokio::sync::{broadcast, watch};

use super::WriterLease;
use crate::{
    engine::{Explanation, RosterChange},
    status::{MemberSnapshot, ShardSnapshot, Snapshot, Status},
};

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// Returns whether our work holds the lease at this moment. An idle lease belongs to nobody: a
    /// term after the last write this is false, until the next job succeeds. The term continues
    /// while the machine is suspended, where [the clock shows that](crate::Moment).
    ///
    /// It is a hint, and no lock: another replica may write at the same moment. The store's
    /// comparison of versions, or a [`Fence`](crate::store::Fence), refuses the later of two
    /// writes.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Collects statistics on one replica only: twice would be harmless, but costs.
    /// fn should_collect(lease: &WriterLease<String>) -> bool {
    ///     lease.is_leader()
    /// }
    /// ```
    pub fn is_leader(&self) -> bool {
        self.handle.shared.is_leader()
    }

    /// Returns whether our work holds the lease of the key's shard at this moment: for what only one
    /// replica should do for each object. It is a hint, and no lock, as [`is_leader`](Self::is_leader)
    /// is.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// # fn write_status(_: &str) {}
    /// # fn collect_statistics(_: &str) {}
    /// /// All replicas reconcile all objects; one of them does the expensive part of each.
    /// fn reconcile(lease: &WriterLease<String>, object: &String) {
    ///     write_status(object);
    ///     if lease.leads(object) {
    ///         collect_statistics(object);
    ///     }
    /// }
    /// ```
    pub fn leads(&self, key: &K) -> bool {
        self.handle.shared.leads(key)
    }

    /// Returns a channel that receives each change of the [roster](Self::join), and which shards that
    /// moved. A receiver that falls behind by 64 changes loses the oldest.
    ///
    /// ```
    /// use writerlease::WriterLease;
    ///
    /// async fn log_moves(lease: &WriterLease<String>) {
    ///     let mut changes = lease.subscribe_roster();
    ///     while let Ok(change) = changes.recv().await {
    ///         println!("{:?} joined, {:?} left: {} shards moved", change.joined, change.left, change.moved);
    ///     }
    /// }
    /// ```
    pub fn subscribe_roster(&self) -> broadcast::Receiver<Arc<RosterChange>> {
        self.handle.shared.subscribe_roster()
    }

    /// Returns how many keys have a pending job, attempts in flight not counted.
    pub fn len(&self) -> usize {
        self.handle.shared.lock().engine.len()
    }

    /// Returns whether no job is pending. Attempts may still be in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the status of this moment, which [`subscribe`](Self::subscribe) sends soon.
    pub fn status(&self) -> Status {
        self.handle.shared.status()
    }

    /// Returns a channel that receives each change of the status. The last status has
    /// [`Status::closed`] set. Drop a [borrow](watch::Receiver::borrow) of it before the next `await`:
    /// the lease waits for it. Calls that are not async never do.
    ///
    /// ```
    /// use writerlease::WriterLease;
    ///
    /// async fn log_roles(lease: WriterLease<u32>) {
    ///     let mut statuses = lease.subscribe();
    ///     drop(lease); // the channel does not keep the lease alive, and the handle would
    ///     while statuses.changed().await.is_ok() {
    ///         let status = *statuses.borrow_and_update();
    ///         println!("{:?}, epoch {}", status.role, status.epoch);
    ///         if status.closed.is_some() {
    ///             return;
    ///         }
    ///     }
    /// }
    /// ```
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.handle.shared.subscribe()
    }

    /// Returns what a key waits for, or `None` if it is not pending.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// fn log(lease: &WriterLease<String>, key: &String) {
    ///     match lease.explain(key) {
    ///         // such as "pending for 4.2s; not attempted yet; waits for the replica that wrote it last, for 1.3s at most"
    ///         Some(explanation) => println!("{key}: {explanation}"),
    ///         None => println!("{key}: nothing to do"),
    ///     }
    /// }
    /// ```
    pub fn explain(&self, key: &K) -> Option<Explanation> {
        let state = self.handle.shared.lock();
        state.engine.explain(self.handle.shared.now(), key)
    }

    /// Returns a snapshot of the lease's state, for logs and metrics. It takes longer the more keys
    /// wait for their next try, because one of them may be the oldest.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// fn log(lease: &WriterLease<u32>) {
    ///     let snapshot = lease.snapshot();
    ///     println!("{} pending, {} refused so far", snapshot.pending, snapshot.counters.conflicts);
    /// }
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        let state = self.handle.shared.lock();
        let now = self.handle.shared.now();
        Snapshot {
            pending: state.engine.len(),
            oldest_pending: state.engine.oldest_pending().map(|(_, since)| now - since),
            failing: state.engine.failing(),
            in_flight: state.engine.in_flight(),
            window: state.engine.window(),
            losses: state.engine.losses(),
            lease_remaining: state.engine.lease_end() - now,
            patience: state.engine.patience(),
            echo: state.engine.echo(),
            counters: state.engine.counters(),
            shards: state.engine.shards().map(|shard| ShardSnapshot::new(shard, now)).collect(),
            members: state.engine.members().map(MemberSnapshot::new).collect(),
        }
    }
}

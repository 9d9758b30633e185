//! Leader election, for jobs that only one process may do.
//!
//! A [`WriterLease`](crate::WriterLease) needs no elected leader: the replica that works leads.
//! Some jobs cannot be compared and written, or other programs expect an elected leader. For these,
//! electors take part in elections on etcd, ZooKeeper and Redis.
//!
//! | elector | on | replaces | takes part with |
//! |---|---|---|---|
//! | [`EtcdElector`](crate::etcd::EtcdElector) | etcd | pingcap/tiflow `dm/pkg/election` | Go's `clientv3/concurrency`, `etcdctl elect` |
//! | [`EtcdVoters`](crate::etcd::EtcdVoters) | etcd | gravitational/coordinate `leader` | all that create the same key in etcd's v3 API |
//! | [`ZookeeperElector`](crate::zookeeper::ZookeeperElector) | ZooKeeper | dcos/dcos-go `elector` | dcos-go, Curator, kazoo |
//! | [`RedisElector`](crate::redis::RedisElector) | Redis | ethpandaops `leaderelection` | redsync, redis-py's `Lock` |
//!
//! Tests need no server: feature `lab` has an election in memory (`lab::MemoryElection`), and the
//! suite that all electors pass, for electors of your own (`lab::conformance::elections`).
//!
//! They replace four Go packages;
//! [docs/migrating.md](https://docs.rs/crate/writerlease/latest/source/docs/migrating.md) lists
//! every call of these.
//!
//! # Promises
//!
//! 1. **Leadership ends by the candidate's own clock.** [`Leadership::Leader`] has the time, on a
//!    monotonic clock. It counts from the *sending* of the last renewal that succeeded, less a
//!    fiftieth for clocks that run apart. The server counts from later on, so it elects nobody else
//!    before, even if this process was stopped or cut off or its machine suspended
//!    ([`Moment`](crate::Moment) lists the systems on which suspension counts).
//!    [`is_leader`](Elector::is_leader) looks at the clock and is right immediately. Events and the
//!    channel follow within a second of a suspension.
//! 2. **Every leader has a token,** greater than those before it in the same election, and a
//!    [`Fence`] for the stores on its server, which refuse a write that was sent too late.
//! 3. **A candidate stops before its server learns of it.** When it resigns or is closed, its
//!    readers see that it leads no more, and only then does the server.
//! 4. **Nothing is left behind.** After [`close`](Elector::close) the server holds nothing of the
//!    candidate. If it did not answer, the rest expires with the session, within the TTL.
//! 5. **The end is visible.** An elector whose task has ended, for any reason, is
//!    [`Leadership::Failed`].
//!
//! A leader that loses contact for longer than its time is [`Leadership::Unknown`]. If nobody took
//! over meanwhile, it leads again with the same token: its term of leadership has not ended.
//!
//! Electors run on the tokio runtime on which they are started; it needs timers and I/O.
//! [`Elector::events`] is a [`Stream`](futures_util::Stream), which readers poll with the crate
//! `futures-util` or a similar one. A client that is handed in comes from `etcd-client` 0.21 or
//! `zookeeper-client` 0.11.

#[cfg(any(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
pub(crate) mod candidate;
mod error;
mod leadership;
#[cfg(any(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
pub(crate) mod publisher;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
pub(crate) mod retries;

use tokio::sync::watch;

pub use self::{
    error::ElectionError,
    leadership::{Event, Events, Leadership},
};
use crate::store::Fence;

/// A candidate in an election. The [module](self) lists what all implementations promise.
///
/// Dropping the last handle closes the elector in the background.
pub trait Elector: Send + Sync + 'static {
    /// The name by which others know this candidate.
    fn identity(&self) -> &str;

    /// A channel with the current state, renewals included.
    ///
    /// Drop a [`borrow`](watch::Receiver::borrow) of it before the next `await`: the elector waits
    /// for it. Calls that are not async never do, so a caller may make them under a borrow.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// The current state, a copy. It may be a moment ahead of the channel.
    ///
    /// An elector that keeps its state elsewhere overrides this. The default borrows from the channel,
    /// and so must not be called under a borrow of it.
    fn state(&self) -> Leadership {
        self.leadership().borrow().clone()
    }

    /// A stream of the events from now on, in order and without gaps. It starts with the current
    /// state, if that is known. The buffer for a slow reader has no limit.
    fn events(&self) -> Events;

    /// Gives the leadership up and lets others win. The candidate competes on, behind them. If it
    /// does not lead, it goes to the end of the queue, where there is one.
    ///
    /// When this returns, [`leadership`](Self::leadership) has left the old term of leadership. A
    /// call that is dropped may or may not have an effect.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Store`] if the server did not answer: the candidate has resigned, but the
    /// others wait until its session ends. [`ElectionError::Closed`] if this elector has ended,
    /// [`ElectionError::Died`] if its task is gone.
    fn resign(&self) -> impl Future<Output = Result<(), ElectionError>> + Send;

    /// Ends the candidacy, after a resignation if it leads, and returns when the server holds
    /// nothing of it. If the server does not answer, this takes the longest time of one request.
    /// Further calls have no effect. A call that is dropped closes the elector all the same.
    fn close(&self) -> impl Future<Output = ()> + Send;

    /// Returns whether the candidate leads at this moment, by its own clock.
    fn is_leader(&self) -> bool {
        self.state().is_leader()
    }

    /// Returns the fence for a write that is sent now; `None` unless the candidate leads.
    fn fence(&self) -> Option<Fence> {
        self.state().fence().cloned()
    }
}

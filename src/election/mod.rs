//! Leader election, for work that only one process may do at all.
//!
//! A [`WriterLease`](crate::WriterLease) needs no leader: whoever works leads. Where the work itself cannot be compared and
//! written, or others expect an elected leader, these electors take part in elections on etcd, ZooKeeper and Redis. They
//! replace four packages that many use; what those offer, each adapter's page tells line by line.
//!
//! | elector | on | after | candidates of others that take part |
//! |---|---|---|---|
#![cfg_attr(
    feature = "etcd",
    doc = "| [`EtcdElector`](crate::etcd::EtcdElector) | etcd | pingcap/tiflow `dm/pkg/election` | Go's `clientv3/concurrency`, `etcdctl elect` |"
)]
#![cfg_attr(
    feature = "etcd",
    doc = "| [`EtcdVoters`](crate::etcd::EtcdVoters) | etcd | gravitational/coordinate `leader` | whoever creates the same key |"
)]
#![cfg_attr(
    feature = "zookeeper",
    doc = "| [`ZookeeperElector`](crate::zookeeper::ZookeeperElector) | ZooKeeper | dcos/dcos-go `elector` | dcos-go, Curator, kazoo |"
)]
#![cfg_attr(
    feature = "redis",
    doc = "| [`RedisElector`](crate::redis::RedisElector) | Redis | ethpandaops `leaderelection` | redsync, redis-py's `Lock` |"
)]
//!
//! # What all promise
//!
//! 1. **Leadership ends by our own clock.** [`Leadership::Leader`] says until when, on a monotonic clock, counted from the
//!    *sending* of the last renewal that succeeded, less a fiftieth for clocks that don't run alike. The engine counts from
//!    later on, so nobody else is elected before, however long this process was stopped or cut off, or the machine suspended
//!    ([`Moment`](crate::Moment) has the systems where that is counted). What looks at the clock is right at once; events and the channel
//!    follow within a second of a suspension.
//! 2. **Every leader has a token,** greater than those before it in the same election, and a [`Fence`] for the stores of its
//!    engine: a write that was sent too late is refused there.
//! 3. **We stop before we say so.** Whoever resigns or closes is told to be no leader first, and only then is the engine told.
//! 4. **Nothing is left behind.** After [`close`](Elector::close) the engine holds nothing of the candidate. If it could not be
//!    told, what is left ends with the session: within its TTL.
//! 5. **The end is visible.** An elector whose task is gone, for whatever reason, is [`Leadership::Failed`].
//!
//! Electors run on the tokio runtime on which they are started; it needs timers and I/O. [`Elector::events`] is a
//! [`Stream`](futures_util::Stream), so its readers need the crate `futures-util` (or the like), and those who hand in a client the crate it is of:
//! `etcd-client` 0.21, `zookeeper-client` 0.11.
//!
//! A leader that lost contact for longer than its time is [`Leadership::Unknown`]. If it turns out that nobody took over, it
//! leads again, with the same token: it is still the same reign.

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
pub(crate) mod candidate;
mod error;
mod leadership;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
pub(crate) mod publisher;

use tokio::sync::watch;

pub use self::{
    error::ElectionError,
    leadership::{Event, Events, Leadership},
};
use crate::store::Fence;

/// A candidate in an election. The [module](self) says what each implementation promises.
///
/// Dropping the last handle closes the elector in the background.
pub trait Elector: Send + Sync + 'static {
    /// How others see this candidate.
    fn identity(&self) -> &str;

    /// A channel with the current state, renewals included.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// What happens from now on, in order and without gaps; the state of now comes first, if it is known. It is buffered
    /// without limit for a reader that is slow.
    fn events(&self) -> Events;

    /// Gives the leadership up and lets others win. The candidate goes on competing, behind them. Of one that doesn't lead
    /// this asks nothing but to go to the end of the queue, where there is one.
    ///
    /// When this returns, `leadership` doesn't say that we lead by the old reign. A call that is dropped has an effect or none.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Store`] if the engine could not be told: we resigned all the same, but the others have to wait until
    /// our session ends. [`ElectionError::Closed`] if this elector has ended, [`ElectionError::Died`] if its task is gone.
    fn resign(&self) -> impl Future<Output = Result<(), ElectionError>> + Send;

    /// Ends the candidacy, after resigning if we lead, and returns when the engine holds nothing of it. If the engine does
    /// not answer, that takes as long as one request may take. Further calls do nothing. A call that is dropped closes all the
    /// same.
    fn close(&self) -> impl Future<Output = ()> + Send;

    /// Whether we lead at this moment, by our own clock.
    fn is_leader(&self) -> bool {
        self.leadership().borrow().is_leader()
    }

    /// The fence for a write that is to be sent now; `None` unless we lead.
    fn fence(&self) -> Option<Fence> {
        self.leadership().borrow().fence().cloned()
    }
}

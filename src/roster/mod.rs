//! The roster in a store: the names of the replicas that are about.
//!
//! The engine decides what is to be written, and [`keeper`] writes it.

mod entry;
mod keeper;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};

#[cfg(all(
    any(test, fuzzing),
    feature = "etcd",
    feature = "lab",
    feature = "redis",
    feature = "zookeeper"
))]
pub(crate) use self::entry::{member as entry_member, text as entry_text};

use self::keeper::Keeper;
use crate::{
    driver::RosterLink,
    engine::{Member, config::ConfigError},
    lease::WriterLease,
    status::SpawnError,
    store::Store,
};

/// The settings of a roster: where it is kept, and our entry on it.
///
/// A roster lists the replicas that are about, one small key each, `<prefix>/<name>`. All that see
/// the same roster agree on whose turn a part of the keys is, so that they need not find out by
/// competing. [`Guard::join`](crate::Guard::join) and [`WriterLease::join`] start it.
///
/// The roster is kept by work. A replica writes its entry when it has its first job and deletes it
/// when it shuts down. There is no heartbeat and no expiry, so an idle group sends nothing. A replica
/// that was killed is struck off by another one that took over its work: it marks the entry, and deletes it
/// if the replica does not answer by writing the entry anew.
///
/// The roster is advice, never a lock. If it is stale, cannot be read or is deleted, that costs time
/// or a refused write. Writes are compared as always.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{Guard, Roster, WriterLease, store::{MemoryStore, Store}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let guard = Guard::new(store.clone(), WriterLease::builder("route-status").spawn()?, "status/")?;
/// guard.join(Roster::new("roster").name("replica-1"))?;
///
/// guard.ensure("default/my-route", |_| Some("admitted")).await;
/// assert!(store.get("roster/replica-1").await?.is_some());
///
/// guard.lease().shutdown(Duration::from_secs(5)).await;
/// assert!(store.get("roster/replica-1").await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Roster {
    prefix: String,
    name: Option<String>,
    weight: u16,
}

impl Roster {
    /// Returns the settings of a roster under a prefix of the store, which must not be empty. The
    /// entries' keys are `<prefix>/<name>`; a slash at the end of `prefix` may be given or left out.
    ///
    /// All replicas of a group use the same prefix, and no other group does.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), name: None, weight: 1 }
    }

    /// Sets the name of this replica: 1 to 253 bytes without a slash or control characters.
    ///
    /// Two replicas that are about at the same time must have different names. If they share one,
    /// they compete for the same keys, which costs refused writes. A replica that restarts under its
    /// old name takes its entry over, and nothing moves.
    ///
    /// Default: in a Kubernetes pod its name, from the environment variable `POD_NAME` or else
    /// `HOSTNAME`. Elsewhere a random name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the share of the work of this replica, from 1 to 100: one of weight 2 gets twice as much
    /// as one of weight 1. Default: 1.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// Checks that no entry's key starts with a guard's prefix, and the other way round.
    pub(crate) fn check_outside(&self, guarded: &str) -> Result<(), ConfigError> {
        let prefix = format!("{}/", self.bare_prefix());
        let overlaps = prefix.starts_with(guarded) || guarded.starts_with(&prefix);
        ConfigError::require(
            !overlaps,
            "prefix",
            &self.prefix,
            format!("outside of the guard's prefix {guarded:?}"),
        )
    }

    fn bare_prefix(&self) -> &str {
        self.prefix.trim_end_matches('/')
    }

    /// Returns the prefix of the entries with its slash, and our entry.
    fn check(self) -> Result<(String, Member), ConfigError> {
        let prefix = self.bare_prefix();
        ConfigError::require(!prefix.is_empty(), "prefix", &self.prefix, "more than slashes")?;
        let prefix = format!("{prefix}/");
        let name = self.name.unwrap_or_else(|| default_name(|variable| std::env::var(variable).ok()));
        let rule = format!("1 to {} bytes without a slash or control characters", entry::LONGEST_NAME);
        ConfigError::require(entry::is_name(&name), "name", &name, rule)?;
        let weights = 1..=Member::MAX_WEIGHT;
        let rule = format!("from {} to {}", weights.start(), weights.end());
        ConfigError::require(weights.contains(&self.weight), "weight", self.weight, rule)?;
        Ok((prefix, Member::new(name, self.weight)))
    }
}

/// Returns the name of the pod, or a random one.
fn default_name(environment: impl Fn(&str) -> Option<String>) -> String {
    let hostname = || environment("KUBERNETES_SERVICE_HOST").and_then(|_| environment("HOSTNAME"));
    let random = || format!("{:016x}", RandomState::new().hash_one("name"));
    let is_set = |name: &String| !name.is_empty();
    environment("POD_NAME").or_else(hostname).filter(is_set).unwrap_or_else(random)
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// Puts this replica on a roster in `store` when it has its first job, and keeps track of who is
    /// on it. Call it before the first job: until the roster was read, jobs wait for a moment, and
    /// that saves the race of a group that starts.
    ///
    /// The entry is deleted by [`shutdown`](Self::shutdown), after the attempts in flight have
    /// finished and within the grace. When the last handle is dropped, the entry is deleted as far as
    /// the runtime still allows. A process that is killed leaves its entry for others to strike off.
    ///
    /// If the store denies the entry or the reading, this is logged once, the lease goes on without,
    /// and tries again at a slow pace. A [`Guard`](crate::Guard) passes its own store by
    /// [`Guard::join`](crate::Guard::join).
    ///
    /// # Errors
    ///
    /// - [`SpawnError::Config`]: the prefix, the name or the weight cannot be used.
    /// - [`SpawnError::NoRuntime`] outside of a tokio runtime.
    /// - [`SpawnError::AlreadyJoined`]: the lease has a roster.
    /// - [`SpawnError::Closed`]: the lease was shut down.
    ///
    /// ```
    /// use writerlease::{Outcome, Roster, WriterLease, store::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease: WriterLease<u64> = WriterLease::builder("jobs").spawn()?;
    /// lease.join(MemoryStore::new(), Roster::new("roster").name("replica-1").weight(2))?;
    /// lease.try_work(7, |_| async { Outcome::Written })?;
    /// assert!(lease.wait().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn join<S: Store>(&self, store: S, roster: Roster) -> Result<(), SpawnError> {
        let (prefix, own) = roster.check()?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        let (requests, received) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(());
        self.shared().join(own.clone(), RosterLink { requests, ended })?;
        let keeper = Keeper::new(self.shared().clone(), Arc::new(store), prefix, own);
        runtime.spawn(async move {
            keeper.run(received).await;
            drop(end);
        });
        Ok(())
    }
}

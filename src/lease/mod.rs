//! The handle of a lease.

mod follow;
mod for_guards;
mod getters;
mod reporter;

use std::{fmt, hash::Hash, pin::pin, sync::Arc, time::Duration};

pub(crate) use self::reporter::PrefixClaim;
pub use self::reporter::WatchReporter;
use crate::{
    driver::{self, Attempt, BoxedJob, Contained, Shared},
    engine::{Engine, Timestamp, config::LeaseBuilder, outcome::Verdict},
    status::{LeaseClosed, SpawnError, Status},
};

/// A lease that is held by doing the work it protects.
///
/// The handle is cheap to clone. When the last one is dropped, no attempt starts any more, pending
/// jobs are dropped, and attempts in flight run to their end. [`shutdown`](Self::shutdown) returns
/// the keys that were left.
///
/// ```
/// use std::sync::Arc;
/// use writerlease::{Outcome, WriterLease};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lease = WriterLease::builder("route-status").spawn()?;
/// let key: Arc<str> = "default/my-route".into();
/// lease.try_work(key, |attempt| async move {
///     println!("attempt {} at {}", attempt.number(), attempt.key());
///     Outcome::Written // the write succeeded
/// })?;
/// assert!(lease.wait().await?, "no other replica is there: we lead");
/// # Ok(())
/// # }
/// ```
///
/// A job is called once per attempt, so it clones everything that it needs. The job below reads,
/// compares and writes. A watcher reports to the lease when another replica wrote what the job
/// would have written. The [`Guard`](crate::Guard) does all of this, ready made.
///
/// ```
/// use writerlease::{LeaseClosed, Outcome, Verdict, WriterLease};
/// # #[derive(Clone)] struct Db;
/// # struct Row { value: String, version: u64 }
/// # enum Error { Stale, Other }
/// # impl Db {
/// #     async fn read(&self, _: &str) -> Result<Row, Error> { Ok(Row { value: String::new(), version: 0 }) }
/// #     async fn write(&self, _: &str, _: &str, _: u64) -> Result<(), Error> { Ok(()) }
/// # }
///
/// fn set(lease: &WriterLease<String>, db: &Db, key: &str, want: &'static str) -> Result<(), LeaseClosed> {
///     let db = db.clone();
///     lease.try_work(key.to_owned(), move |attempt| {
///         let db = db.clone();
///         async move {
///             let Ok(row) = db.read(attempt.key()).await else { return Outcome::Failed };
///             if row.value == want {
///                 return Outcome::Unchanged;
///             }
///             match db.write(attempt.key(), want, row.version).await {
///                 Ok(()) => Outcome::Written,
///                 Err(Error::Stale) => Outcome::Conflict, // tried again soon, from the read on
///                 Err(Error::Other) => Outcome::Failed,
///             }
///         }
///     })
/// }
///
/// /// Called for each write in the database's change feed that was not ours.
/// fn changed(lease: &WriterLease<String>, key: &str, value: &str, want: &str) {
///     if value == want {
///         lease.extend(&key.to_owned());
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let lease: WriterLease<String> = WriterLease::builder("x").spawn()?;
/// # changed(&lease, "k", "a", "b");
/// # set(&lease, &Db, "k", "want")?;
/// # assert!(lease.wait().await?);
/// # Ok(())
/// # }
/// ```
///
/// A program that reports foreign writes should also report how long news takes, because all delays
/// are measured in that: each time with [`echo`](Self::echo), or once with
/// [`echo_hint`](LeaseBuilder::echo_hint) if it is known.
pub struct WriterLease<K: Hash + Eq + Clone + Send + Sync + 'static> {
    handle: Arc<Handle<K>>,
}

/// Ends the driver with the last [`WriterLease`]. The driver itself holds only the [`Shared`] part.
struct Handle<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
}

impl LeaseBuilder {
    /// Checks the settings and starts a lease on the current tokio runtime, which must have timers
    /// enabled.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Config`] if a setting cannot be used, [`SpawnError::NoRuntime`] outside of a
    /// runtime. On a runtime without timers the driver dies immediately: see
    /// [`LeaseClosed::DriverDied`].
    ///
    /// ```
    /// use writerlease::{LeaseBuilder, SpawnError, WriterLease};
    ///
    /// let lease: Result<WriterLease<u32>, _> = LeaseBuilder::new("status").spawn();
    /// assert_eq!(lease.unwrap_err(), SpawnError::NoRuntime);
    /// ```
    pub fn spawn<K>(self) -> Result<WriterLease<K>, SpawnError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        let config = self.build()?;
        Ok(WriterLease { handle: Arc::new(Handle { shared: driver::spawn(config, &runtime()?) }) })
    }
}

impl WriterLease<Arc<str>> {
    /// Returns the settings for a lease of this name.
    ///
    /// [`LeaseBuilder::spawn`] starts it for keys of any type. The compiler infers the type from
    /// the first use, or from an annotation: `WriterLease::builder("x").spawn::<u32>()`.
    pub fn builder(name: impl Into<String>) -> LeaseBuilder {
        LeaseBuilder::new(name)
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// **Try**: queues a job for a key. It runs immediately if this process wrote the key last. If
    /// nobody is known to have written it, it runs when this process leads; if another process has,
    /// after a patience. The [engine](crate::engine) has the rules.
    ///
    /// At most one job per key is pending. A newer job replaces it and keeps its place. If an
    /// attempt of the key is in flight, the new job runs afterwards. The job is called once per
    /// attempt and returns an [`Outcome`](crate::Outcome), or a [`Verdict`] that also says what to
    /// do next. It must not block the thread. A job that panics runs again after the retry
    /// interval; a panic of its destructor is only logged.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] if the lease takes no more jobs; this one is then dropped.
    ///
    /// ```
    /// use std::time::Duration;
    /// use writerlease::{LeaseClosed, Outcome, WriterLease};
    ///
    /// fn refresh(lease: &WriterLease<u32>) -> Result<(), LeaseClosed> {
    ///     lease.try_work(7, |attempt| async move {
    ///         println!("writes key {}", attempt.key());
    ///         Outcome::Written.retry_after(Duration::from_secs(30)) // and again in 30 s
    ///     })
    /// }
    /// ```
    pub fn try_work<F, T, V>(&self, key: K, job: F) -> Result<(), LeaseClosed>
    where
        F: FnMut(Attempt<K>) -> T + Send + 'static,
        T: Future<Output = V> + Send + 'static,
        V: Into<Verdict>,
    {
        let mut job = Contained::new(job);
        let job: BoxedJob<K> = Box::new(move |attempt, run| {
            let future = job.get()(attempt);
            run.set(async move { future.await.into() });
        });
        self.handle.shared.try_work(key, job)
    }

    /// **Extend**: records that another replica's write did what our job for this key would have
    /// done. Their lease is extended, and our pending job for the key is dropped.
    ///
    /// Call it only after looking at the value, because an event about an older state must not
    /// clear a newer job. On a lease that has ended this does nothing.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Called for each write that was not ours.
    /// fn changed(lease: &WriterLease<String>, key: &String, value: &str, want: &str) {
    ///     if value == want {
    ///         lease.extend(key);
    ///     }
    /// }
    /// ```
    pub fn extend(&self, key: &K) {
        self.extend_at(key, None);
    }

    /// Like [`extend`](Self::extend), for a store that orders all its writes. `revision` is the
    /// position of the write in that order, such as etcd's revision. Evidence from before the write
    /// that made us leader clears the key and changes nothing else.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Called for each event of a watch of etcd that was not ours.
    /// fn changed(lease: &WriterLease<String>, key: &String, value: &str, want: &str, mod_revision: u64) {
    ///     if value == want {
    ///         lease.extend_at(key, Some(mod_revision));
    ///     }
    /// }
    /// ```
    pub fn extend_at(&self, key: &K, revision: Option<u64>) {
        self.send(|engine, now| engine.handle_extend(now, key, revision));
    }

    /// Records another write of our group, to this key: the writer's lease is extended, and our
    /// pending jobs stay. The key tells the shard whose lease it is.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Called for each write of another replica.
    /// fn changed(lease: &WriterLease<String>, key: &String, value: &str, want: &str) {
    ///     if value == want { lease.extend(key) } else { lease.observe(key) }
    /// }
    /// ```
    pub fn observe(&self, key: &K) {
        self.send(|engine, now| engine.handle_observe(now, key, None));
    }

    /// **Remove**: gives a key up and drops its pending job. An attempt in flight continues, but is
    /// not repeated.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Called when an object was deleted.
    /// fn deleted(lease: &WriterLease<String>, key: &String) {
    ///     lease.remove(key);
    /// }
    /// ```
    pub fn remove(&self, key: &K) {
        self.send(|engine, now| engine.handle_remove(now, key));
    }

    /// Ends the lease, whoever holds it. We do not lead until our next success, and the next
    /// attempt needs no delay. On a lease that [follows](Self::follow) an election this does
    /// nothing.
    ///
    /// ```
    /// # use writerlease::WriterLease;
    /// /// Called on the last replica after the others were shut down.
    /// fn alone(lease: &WriterLease<String>) {
    ///     lease.expire(); // their lease need not be awaited
    /// }
    /// ```
    pub fn expire(&self) {
        self.send(|engine, now| engine.handle_expire(now));
    }

    /// Reports how long a write of ours took, from its start until it came back through a watch.
    /// All delays are measured in this time. A [`Guard`](crate::Guard) reports it by itself.
    ///
    /// ```
    /// # use std::time::Instant;
    /// # use writerlease::WriterLease;
    /// /// Called when a watch returns our own write, whose attempt started at `start`.
    /// fn returned(lease: &WriterLease<String>, start: Instant) {
    ///     lease.echo(start.elapsed());
    /// }
    /// ```
    pub fn echo(&self, echo: Duration) {
        self.send(|engine, now| engine.handle_echo(now, echo));
    }

    /// Returns a reporter for a program that reports foreign writes without a guard. The reporter
    /// sets [`Status::watch`], which says whether these writes are observed at present.
    ///
    /// ```
    /// use writerlease::{WatchState, WriterLease};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease: WriterLease<u32> = WriterLease::builder("status").spawn()?;
    /// let reporter = lease.watch_reporter();
    /// assert_eq!(lease.status().watch, Some(WatchState::Starting));
    /// reporter.set(WatchState::Live);
    /// assert_eq!(lease.status().watch, Some(WatchState::Live));
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch_reporter(&self) -> WatchReporter<K> {
        WatchReporter::new(self.handle.shared.clone())
    }

    /// **Wait**: waits for the first decision: until the first job is finished by us, by another
    /// replica, because there was nothing to write, or because it was given up. Returns whether we
    /// lead then. Cancel safe.
    ///
    /// Once there was a decision, it returns immediately. To await one job, let the job send on a
    /// channel; a [`Guard`](crate::Guard) does that.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] once the lease takes no more jobs.
    ///
    /// ```
    /// # use writerlease::{Outcome, WriterLease};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = WriterLease::builder("status").spawn()?;
    /// lease.try_work("key", |_| async { Outcome::Written })?;
    /// assert!(lease.wait().await?); // our write was the first, so we lead
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(&self) -> Result<bool, LeaseClosed> {
        let mut statuses = self.subscribe();
        let done = |status: &Status| status.decided || status.closed.is_some();
        let mut status = self.status();
        if !done(&status) {
            status = *statuses.wait_for(done).await.map_err(|_| LeaseClosed::DriverDied)?;
        }
        status.closed.map_or(Ok(status.is_leader), Err)
    }

    /// Like [`wait`](Self::wait), for at most `timeout`. Returns `None` if nothing was decided in
    /// time. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] once the lease takes no more jobs.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use writerlease::WriterLease;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease: WriterLease<u32> = WriterLease::builder("status").spawn()?;
    /// assert_eq!(lease.wait_timeout(Duration::from_secs(5)).await?, None); // no job, no decision
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Option<bool>, LeaseClosed> {
        match tokio::time::timeout(timeout, self.wait()).await {
            Ok(decided) => decided.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Applies an event to the engine. A lease that has ended ignores it.
    fn send<R>(&self, event: impl FnOnce(&mut Engine<K, BoxedJob<K>>, Timestamp) -> R) {
        let _ = self.handle.shared.handle(event);
    }

    /// Stops the lease: takes no more jobs, starts no more attempts, waits for those in flight for
    /// at most `grace`, and cancels the rest. Returns the keys whose jobs were not finished: first
    /// those that were pending, oldest first, then those whose attempts were still in flight.
    ///
    /// Then it leaves its [roster](Self::join), if it has one, also within the grace.
    ///
    /// A cancelled attempt [learns of it](Attempt::cancelled) and is left to itself; a write that
    /// was sent is never cut off. A call that is dropped early stops the lease all the same, and
    /// another call then returns the keys.
    ///
    /// ```
    /// use std::time::Duration;
    /// use writerlease::{Outcome, WriterLease};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = WriterLease::builder("status").spawn()?;
    /// lease.try_work("key", |_| async { Outcome::Written })?;
    /// assert_eq!(lease.shutdown(Duration::from_secs(5)).await, ["key"]); // it had not started yet
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, grace: Duration) -> Vec<K> {
        let shared = &self.handle.shared;
        let mut statuses = self.subscribe();
        let mut closed = async || drop(statuses.wait_for(|status| status.closed.is_some()).await);
        let mut grace = pin!(tokio::time::sleep(grace));
        shared.drain();
        tokio::select! {
            biased;
            // The others learn that we leave once nothing of ours is in flight.
            () = async { closed().await; shared.left_roster().await } => {}
            () = &mut grace => {
                shared.abandon();
                closed().await;
            }
        }
        let (jobs, in_flight) = {
            let mut state = shared.lock();
            let jobs = state.engine.drain();
            (jobs, state.engine.keys_in_flight().cloned().collect::<Vec<K>>())
        };
        // The jobs themselves are users' closures, so they are dropped here, outside of the lock.
        let mut keys: Vec<K> = jobs.into_iter().map(|(key, _)| key).collect();
        for key in in_flight {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Clone for WriterLease<K> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone() }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> fmt::Debug for WriterLease<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterLease").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Handle<K> {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

fn runtime() -> Result<tokio::runtime::Handle, SpawnError> {
    tokio::runtime::Handle::try_current().map_err(|_| SpawnError::NoRuntime)
}

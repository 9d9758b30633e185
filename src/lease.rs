use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    clock::Moment,
    driver::{self, Attempt, BoxedWork, Shared},
    election::{Elector, Leadership},
    engine::{Engine, Timestamp, config::LeaseBuilder, outcome::Verdict},
    status::{LeaseClosed, Snapshot, SpawnError, Status, WatchState},
    store::Fence,
};

/// A lease that is held by doing the work it protects.
///
/// The handle is cheap to clone. When the last one is dropped, nothing new is started, pending work is dropped, and
/// attempts in flight run to their end; use [`shutdown`](Self::shutdown) to know what was left.
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
///     Outcome::Written // the write landed
/// })?;
/// assert!(lease.wait().await?, "nobody else is about: we lead");
/// # Ok(())
/// # }
/// ```
///
/// A work is called once per attempt, so it clones what it needs. This one reads, compares and writes; a watcher tells the
/// lease when somebody else did what it would have done. (The [`Guard`](crate::Guard) is all of that, ready made.)
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
/// /// The database's change feed told a write that was not ours.
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
/// Whoever feeds foreign writes should also tell how long news takes ([`echo`](Self::echo), or
/// [`echo_hint`](LeaseBuilder::echo_hint) where that is known): all delays are measured in that.
pub struct WriterLease<K: Hash + Eq + Clone + Send + Sync + 'static> {
    handle: Arc<Handle<K>>,
}

/// Ends the driver with the last [`WriterLease`]. The driver itself holds only the [`Shared`] part.
struct Handle<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
}

impl LeaseBuilder {
    /// Checks the settings and starts a lease on the current tokio runtime, which must have timers enabled.
    ///
    /// # Errors
    ///
    /// [`SpawnError`] if a setting cannot be used, or outside of a runtime. On a runtime without timers the driver dies at
    /// once: see [`LeaseClosed::DriverDied`].
    pub fn spawn<K>(self) -> Result<WriterLease<K>, SpawnError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        let config = self.build()?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        Ok(WriterLease { handle: Arc::new(Handle { shared: driver::spawn(config, &runtime) }) })
    }
}

impl WriterLease<Arc<str>> {
    /// Settings for a lease of this name; [`LeaseBuilder::spawn`] starts it, for keys of any type: that of its first use, or as
    /// in `let lease: WriterLease<u32> = WriterLease::builder("x").spawn()?`.
    pub fn builder(name: impl Into<String>) -> LeaseBuilder {
        LeaseBuilder::new(name)
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WriterLease<K> {
    /// **Try**: queues work for a key; it runs when this process leads, or when it is the key's turn all the same.
    ///
    /// At most one work per key is pending: a newer one replaces it, and keeps its place. If an attempt of the key is in
    /// flight, the new work runs afterwards. The work is called once per attempt and returns an
    /// [`Outcome`](crate::Outcome), or a [`Verdict`] that also says what to do next. It must not block the thread. A work
    /// that panics is tried again at the retry interval.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] if the lease takes no more work; the work is dropped.
    pub fn try_work<F, T, V>(&self, key: K, mut work: F) -> Result<(), LeaseClosed>
    where
        F: FnMut(Attempt<K>) -> T + Send + 'static,
        T: Future<Output = V> + Send + 'static,
        V: Into<Verdict>,
    {
        let work: BoxedWork<K> = Box::new(move |attempt| {
            let attempt = work(attempt);
            Box::pin(async move { attempt.await.into() })
        });
        self.handle.shared.try_work(key, work)
    }

    /// **Extend**: somebody else's write did what our work for this key would have done. Their lease is extended, and our
    /// pending work for the key is dropped.
    ///
    /// Call it only after looking at the value: an event about an older state must not clear newer work. On a lease that
    /// has ended this does nothing.
    pub fn extend(&self, key: &K) {
        self.extend_at(key, None);
    }

    /// Like [`extend`](Self::extend), for a store that orders all its writes: `revision` is the position of the write that was
    /// seen. Evidence from before the write that made us leader clears the key and moves nothing else.
    pub fn extend_at(&self, key: &K, revision: Option<u64>) {
        self.send(|engine, now| engine.handle_extend(now, key, revision));
    }

    /// One of our group wrote something else: its lease is extended, and our own work still stands. It makes no difference
    /// which key it wrote.
    pub fn observe(&self) {
        self.send(|engine, now| engine.handle_observe(now, None));
    }

    /// **Remove**: the key is no longer ours to do; its pending work is dropped. An attempt in flight goes on, but is not
    /// repeated.
    pub fn remove(&self, key: &K) {
        self.send(|engine, now| engine.handle_remove(now, key));
    }

    /// Ends the lease, whoever holds it: we don't lead until our next success, and the next attempt needs no delay.
    pub fn expire(&self) {
        self.send(|engine, now| engine.handle_expire(now));
    }

    /// Tells how long a write of ours took to come back through a watch, from the start of the write. Delays are measured
    /// in these. The guard does it by itself.
    pub fn echo(&self, echo: Duration) {
        self.send(|engine, now| engine.handle_echo(now, echo));
    }

    /// For whoever feeds foreign writes without a guard: tells in the [`Status`] whether they are observed at present.
    pub fn watch_reporter(&self) -> WatchReporter<K> {
        WatchReporter::new(self.handle.shared.clone())
    }

    /// Lets an election decide: from now on works run only while the elector leads, and with its [fence](Attempt::fence). The
    /// election alone says who leads and until when; what works and others write moves no lease. Attempts that are out when
    /// the leadership ends are [told](Attempt::cancelled).
    ///
    /// What is tried elsewhere stays pending until somebody does it, or the election is won there: who awaits that may
    /// wait for long.
    ///
    /// A [`Guard`](crate::Guard) on this lease writes with the fence, so its store must be one that can check it:
    /// the engine of the election. An elector that has ended leaves a lease that runs nothing; another call follows
    /// another elector instead. The lease doesn't keep the elector alive.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// ```
    /// # use writerlease::{Outcome, WriterLease, election::Elector};
    /// # async fn f(elector: impl Elector) -> Result<(), Box<dyn std::error::Error>> {
    /// let lease: WriterLease<u32> = WriterLease::builder("leader-only").spawn()?;
    /// lease.follow(&elector);
    /// lease.try_work(7, |attempt| async move {
    ///     println!("{} leads, by {:?}", attempt.key(), attempt.fence());
    ///     Outcome::Written
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn follow(&self, elector: &impl Elector) {
        self.follow_leadership(elector, true);
    }

    /// The same without fences, for works whose store is not the engine of the election. A leader that was paused may then
    /// write after its successor: use it only where writes are compared with what was read.
    pub fn follow_unfenced(&self, elector: &impl Elector) {
        self.follow_leadership(elector, false);
    }

    fn follow_leadership(&self, elector: &impl Elector, fenced: bool) {
        let mut leadership = elector.leadership();
        // At once, so that nothing runs unelected that is tried after this call. A lease that has ended needs no leader.
        let now = leadership.borrow_and_update().clone();
        let _ = self.handle.shared.handle_election(led(&now, fenced));
        let shared = Arc::downgrade(&self.handle.shared);
        let follower = tokio::spawn(async move {
            loop {
                let changed = leadership.changed().await;
                let Some(shared) = shared.upgrade() else { return };
                // An elector that is gone leads no more.
                let next = match changed {
                    Ok(()) => leadership.borrow_and_update().clone(),
                    Err(_) => Leadership::Unknown,
                };
                if shared.handle_election(led(&next, fenced)).is_err() || changed.is_err() {
                    return;
                }
            }
        });
        self.handle.shared.set_follower(follower.abort_handle());
    }

    /// Until the first echo: a round trip to the store took this long.
    pub(crate) fn echo_hint(&self, round_trip: Duration) {
        self.send(|engine, now| engine.handle_echo_hint(now, round_trip));
    }

    /// **Wait**: until the first work is finished, by us or by somebody else, or there was nothing to write, or it was given
    /// up; returns whether we lead then. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] once the lease takes no more work.
    pub async fn wait(&self) -> Result<bool, LeaseClosed> {
        let mut statuses = self.subscribe();
        let status = statuses.wait_for(|status| status.decided || status.closed.is_some()).await;
        match status.map(|status| *status) {
            Ok(Status { closed: None, is_leader, .. }) => Ok(is_leader),
            Ok(Status { closed: Some(closed), .. }) => Err(closed),
            Err(_) => Err(LeaseClosed::DriverDied),
        }
    }

    /// Like [`wait`](Self::wait), for at most `timeout`; `None` if nothing was decided in time. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`LeaseClosed`] once the lease takes no more work.
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Option<bool>, LeaseClosed> {
        match tokio::time::timeout(timeout, self.wait()).await {
            Ok(decided) => decided.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Whether our work holds the lease at this moment. An idle lease is nobody's: a term after the last write this is
    /// false, until there is work again. The term goes on while the machine is suspended, where that [can be
    /// known](crate::Moment).
    pub fn is_leader(&self) -> bool {
        self.handle.shared.is_leader()
    }

    /// How many keys have work pending that no attempt is out with.
    pub fn len(&self) -> usize {
        self.handle.shared.lock().engine.len()
    }

    /// Whether no work is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An event for the engine. To a lease that has ended it means nothing.
    fn send<R>(&self, event: impl FnOnce(&mut Engine<K, BoxedWork<K>>, Timestamp) -> R) {
        let _ = self.handle.shared.handle(event);
    }

    /// The status, as the last subscriber was told it.
    pub fn status(&self) -> Status {
        *self.subscribe().borrow()
    }

    /// A channel that tells each change of the status. After the last one, [`Status::ended`] is set.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.handle.shared.subscribe()
    }

    /// A look inside.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.handle.shared.lock();
        Snapshot {
            pending: state.engine.len(),
            in_flight: state.engine.in_flight(),
            window: state.engine.window(),
            losses: state.engine.losses(),
            lease_remaining: self.handle.shared.lease_remaining(&state),
            patience: state.engine.patience(),
            echo: state.engine.echo(),
            counters: state.engine.counters(),
        }
    }

    /// Takes no more work, starts no more attempts, waits for those in flight for at most `grace`, then cancels the rest,
    /// and returns the keys whose work was not finished: those pending, oldest first, and those whose attempts were still
    /// out.
    ///
    /// A cancelled attempt is told so and left to itself; a write that was sent is never cut off. A call that is dropped
    /// before it returns has stopped the lease all the same; another call then returns the keys.
    pub async fn shutdown(&self, grace: Duration) -> Vec<K> {
        let shared = &self.handle.shared;
        let mut statuses = self.subscribe();
        let mut ended = async || drop(statuses.wait_for(|status| status.closed.is_some()).await);
        shared.drain();
        if tokio::time::timeout(grace, ended()).await.is_err() {
            shared.abandon();
            ended().await;
        }
        let (works, out) = {
            let mut state = shared.lock();
            let works = state.engine.drain();
            (works, state.engine.keys_in_flight().cloned().collect::<Vec<K>>())
        };
        // The works themselves are dropped here, outside of the lock.
        let mut keys: Vec<K> = works.into_iter().map(|(key, _)| key).collect();
        for key in out {
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

/// Tells a lease the state of one feed, for [`Status::watch`](crate::Status::watch); the [`Guard`](crate::Guard) has its own.
/// Dropping it takes the feed back.
pub struct WatchReporter<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    id: u64,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> WatchReporter<K> {
    pub(crate) fn new(shared: Arc<Shared<K>>) -> Self {
        let id = shared.add_watch();
        Self { shared, id }
    }

    /// The feed is in this state now.
    pub fn set(&self, watch: WatchState) {
        self.shared.set_watch(self.id, Some(watch));
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for WatchReporter<K> {
    fn drop(&mut self) {
        self.shared.set_watch(self.id, None);
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> fmt::Debug for WatchReporter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchReporter").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Until when `leadership` lets this process lead, and the fence of its attempts if they are to carry one.
fn led(leadership: &Leadership, fenced: bool) -> Option<(Moment, Option<Fence>)> {
    match leadership {
        Leadership::Leader { fence, until } => Some((*until, fenced.then(|| fence.clone()))),
        _ => None,
    }
}

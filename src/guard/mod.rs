//! The guard: desired state in, writes and outcomes out.
//!
//! ```text
//!      ensure(key, closure) ─────> keys: the objects and their lock ───queue──> lease
//!               │                      │           ^                              │
//!               v                      │           │ changes                   attempt
//!            Ensure <────outcomes──────┘           │                              v
//!                                        watch: the task ──watch──> store <──get, put── attempt
//! ```
//!
//! The [`object`](crate::object) decides the meaning of reads, answers and changes. These files are
//! the shell around it: `keys` holds the objects and carries out their effects, `attempt` calls the
//! store, `watch` receives its changes, `ensure` is what a caller waits for, and `explain` says what
//! went wrong with a key.

mod attempt;
mod ensure;
mod explain;
mod keys;
mod outcome;
mod trouble;
mod watch;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, oneshot},
    task::AbortHandle,
    time::Instant,
};

pub(crate) use self::keys::Desired;
use self::keys::{DesiredFn, Effects, GuardedRequest, KeyTable, Object};
pub use self::{
    ensure::Ensure,
    explain::KeyExplanation,
    outcome::{EnsureOutcome, Notice},
};
use crate::{
    clock,
    contention::ContentionTracker,
    lease::{PrefixClaim, WatchReporter, WriterLease},
    object::Request,
    roster::Roster,
    status::{SpawnError, WatchState},
    store::{Store, Version},
};

/// Keeps the keys under a prefix of a store as its callers want them, and keeps replicas that want
/// the same from contending for them.
///
/// A caller says how a key must look; the guard decides when to write it. On this process's turn it
/// reads the key, asks the caller's closure, and writes the closure's value with compare-and-write.
/// Otherwise it learns from the watch that another replica did so. All replicas may want the same:
/// one of them writes, and the others see it done.
///
/// The handle is cheap to clone. Dropping the last one ends the watch and voids the guard's pending
/// jobs in the lease.
///
/// ```
/// use writerlease::{EnsureOutcome, Guard, WriterLease, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lease = WriterLease::builder("route-status").spawn()?;
/// let guard = Guard::new(MemoryStore::new(), lease, "status/")?;
///
/// let admitted = |current: Option<&[u8]>| match current {
///     Some(b"admitted") => None, // it is right already
///     _ => Some("admitted"),     // write this
/// };
/// assert!(matches!(guard.ensure("default/my-route", admitted).await, EnsureOutcome::Written(_)));
/// assert!(matches!(guard.ensure("default/my-route", admitted).await, EnsureOutcome::Satisfied));
/// # Ok(())
/// # }
/// ```
pub struct Guard<S: Store> {
    inner: Arc<Inner<S>>,
    _watch: Arc<WatchTask>,
}

/// Ends the watch and frees the prefix with the last [`Guard`].
struct WatchTask {
    task: OnceLock<AbortHandle>,
    _claim: Option<PrefixClaim<Arc<str>>>,
}

struct Inner<S> {
    store: Arc<S>,
    lease: WriterLease<Arc<str>>,
    prefix: Box<str>,
    keys: Mutex<KeyTable>,
    /// Objects count time from here.
    origin: Instant,
    notices: broadcast::Sender<Notice>,
    watch_state: Mutex<WatchState>,
    reporter: WatchReporter<Arc<str>>,
    contention: Arc<ContentionTracker<Arc<str>, Bytes>>,
}

/// The number of notices that a slow listener may fall behind.
const NOTICES: usize = 256;

impl<S: Store> Guard<S> {
    /// Guards the keys of `store` that start with `prefix`, under `lease`, and starts to watch
    /// them.
    ///
    /// The lease's keys are those of the store, `Arc<str>`. Several guards may share a lease if none
    /// of their prefixes is the beginning of another, even if their stores differ: the lease knows
    /// a job by its key alone. The guard keeps the last value of each key under its prefix
    /// in memory, as a controller's cache does.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime,
    /// [`SpawnError::OverlappingPrefixes`] if another guard of the lease has an overlapping prefix.
    /// Dropping a guard's last handle frees its prefix.
    pub fn new(
        store: S,
        lease: WriterLease<Arc<str>>,
        prefix: impl Into<String>,
    ) -> Result<Self, SpawnError> {
        Self::with_contention(store, lease, prefix, Arc::default())
    }

    /// Like [`new`](Self::new), with the caller's own contention tracker: one with another
    /// interval, one whose comparison leaves out timestamps, or one that several guards share. The
    /// tracker compares whole values, as they were stored.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_contention(
        store: S,
        lease: WriterLease<Arc<str>>,
        prefix: impl Into<String>,
        contention: Arc<ContentionTracker<Arc<str>, Bytes>>,
    ) -> Result<Self, SpawnError> {
        let prefix = prefix.into();
        let claim = lease.claim_prefix(&prefix)?;
        Self::start(store, lease, prefix, contention, Some(claim))
    }

    /// Like [`with_contention`](Self::with_contention), for a store whose keys are no others' on
    /// this lease: the caller sees to that.
    #[cfg(feature = "kube")]
    pub(crate) fn unclaimed(
        store: S,
        lease: WriterLease<Arc<str>>,
        contention: Arc<ContentionTracker<Arc<str>, Bytes>>,
    ) -> Result<Self, SpawnError> {
        Self::start(store, lease, String::new(), contention, None)
    }

    fn start(
        store: S,
        lease: WriterLease<Arc<str>>,
        prefix: String,
        contention: Arc<ContentionTracker<Arc<str>, Bytes>>,
        claim: Option<PrefixClaim<Arc<str>>>,
    ) -> Result<Self, SpawnError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        let reporter = lease.watch_reporter();
        let inner = Arc::new(Inner {
            store: Arc::new(store),
            lease,
            prefix: prefix.into_boxed_str(),
            keys: Mutex::default(),
            origin: clock::now(),
            notices: broadcast::Sender::new(NOTICES),
            watch_state: Mutex::new(WatchState::Starting),
            reporter,
            contention,
        });
        let changes = inner.store.watch(&inner.prefix);
        let watch = Arc::new(WatchTask { task: OnceLock::new(), _claim: claim });
        let task = runtime.spawn(watch::run(Arc::downgrade(&inner), Arc::downgrade(&watch), changes));
        // The cell is new, so this sets it.
        let _ = watch.task.set(task.abort_handle());
        Ok(Self { inner, _watch: watch })
    }

    /// Requests that the value of a key be as `desire` says, and returns immediately. The key is
    /// relative to the prefix.
    ///
    /// `desire` receives the current value, `None` if the key does not exist, and returns the value
    /// to write, or `None` if the current one is right. The guard calls it for each attempt and for
    /// each change that the watch reports, so it should be quick and must always give the same
    /// answer for the same value. It must be content with the value that it wants: for one that is
    /// not, the guard writes once per interval of its contention tracker
    /// ([`EnsureOutcome::NeverContent`]). If it panics, the guard tries the key again at the retry
    /// interval.
    ///
    /// A newer call for the same key replaces an older one that is still pending.
    ///
    /// A value that the watch has shown to be right is [`Satisfied`](EnsureOutcome::Satisfied)
    /// immediately, on every replica, also on one that does not lead or is not elected. This asks
    /// neither the store nor the lease.
    ///
    /// The guard relies on the watch, and a watch lags: `Satisfied` and
    /// [`ByOther`](EnsureOutcome::ByOther) may be about a state that is older than the call. A
    /// caller that learns elsewhere of a later change calls again.
    pub fn ensure<D, V>(&self, key: &str, desire: D) -> Ensure
    where
        D: Fn(Option<&[u8]>) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        self.want(key, "", None, Arc::new(move |current| Desired::of(desire(current))))
    }

    /// Like [`ensure`](Self::ensure), for an object that somebody else creates. If it does not
    /// exist, the call ends as [`EnsureOutcome::Gone`].
    pub fn ensure_existing<D, V>(&self, key: &str, desire: D) -> Ensure
    where
        D: Fn(&[u8]) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        let desire = move |current: Option<&[u8]>| match current {
            Some(current) => Desired::of(desire(current)),
            None => Desired::Gone,
        };
        self.want(key, "", None, Arc::new(desire))
    }

    /// Like [`ensure`](Self::ensure), for one part of an object, such as one condition of a status.
    ///
    /// Parts of one key that are pending at the same time become one write: each receives the value
    /// that the one before it, in order of their first calls, wants to write. Those that change the
    /// value end as [`EnsureOutcome::Written`], the others as [`EnsureOutcome::Satisfied`]. Until
    /// all pending parts are right, those that are right wait for the others. `""` is the part of
    /// [`ensure`](Self::ensure).
    pub fn ensure_part<D, V>(&self, key: &str, part: &str, desire: D) -> Ensure
    where
        D: Fn(Option<&[u8]>) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        self.want(key, part, None, Arc::new(move |current| Desired::of(desire(current))))
    }

    /// Requests that a key not exist, and returns immediately.
    ///
    /// On this process's turn the guard reads the key and deletes the version that it read, with the
    /// same fence as a write. The call ends as [`EnsureOutcome::Deleted`] after this process's
    /// deletion, as [`EnsureOutcome::Satisfied`] if the key did not exist, and as
    /// [`EnsureOutcome::ByOther`] if somebody else deleted it meanwhile. A deletion has no writer, so
    /// while this call is pending every other process's deletion of the key counts as a
    /// competitor's.
    ///
    /// The last call for a key decides whether it is to exist: this one replaces all pending calls
    /// for the key, in all its parts, and a later [`ensure`](Self::ensure) or
    /// [`ensure_part`](Self::ensure_part) replaces this one. The call keeps nobody from creating the
    /// key again: a caller that learns of that calls again. The [contention](Self::contention)
    /// tracker counts values only.
    ///
    /// # Errors
    ///
    /// A refusal is an outcome, as for `ensure`: [`EnsureOutcome::Denied`], after which the request
    /// stays pending, or [`EnsureOutcome::Invalid`]. After a conflict, a lost answer or an outage the
    /// guard tries again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the [`Ensure`] changes nothing: the request stays pending. [`remove`](Self::remove)
    /// withdraws it; a deletion in flight may still succeed.
    ///
    /// ```
    /// use writerlease::{EnsureOutcome, Guard, WriterLease, store::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = WriterLease::builder("dns-records").spawn()?;
    /// let guard = Guard::new(MemoryStore::new(), lease, "dns/")?;
    /// guard.ensure("old.example", |_| Some("192.0.2.1")).await;
    /// assert!(matches!(guard.ensure_absent("old.example").await, EnsureOutcome::Deleted));
    /// assert!(matches!(guard.ensure_absent("old.example").await, EnsureOutcome::Satisfied));
    /// # Ok(())
    /// # }
    /// ```
    pub fn ensure_absent(&self, key: &str) -> Ensure {
        self.request(key, "", None, Arc::new(|_| Desired::Absent), Object::handle_absence_request)
    }

    /// Requests a part of an object that the caller saw at a version, if it did.
    pub(crate) fn want(&self, key: &str, part: &str, seen: Option<Version>, wish: DesiredFn) -> Ensure {
        self.request(key, part, seen, wish, Object::handle_request)
    }

    fn request(
        &self,
        key: &str,
        part: &str,
        seen: Option<Version>,
        wish: DesiredFn,
        handle: impl FnOnce(&mut Object, GuardedRequest) -> Effects,
    ) -> Ensure {
        let (waiter, ending) = oneshot::channel();
        let key = self.inner.full(key);
        self.inner.update(&key, |keys| {
            let request =
                Request { id: keys.next_request(), part: part.into(), wish, seen, waiter: Some(waiter) };
            ((), handle(keys.object(&key), request))
        });
        Ensure { ending }
    }

    /// Withdraws the pending requests for a key, in all its parts. An attempt in flight goes on and
    /// is not repeated.
    pub fn remove(&self, key: &str) {
        self.inner.update_object(&self.inner.full(key), |object| ((), object.handle_removal()));
    }

    /// Takes in that the caller sees a key as it should be. Returns false if something is pending.
    #[cfg(feature = "kube")]
    pub(crate) fn handle_satisfied(&self, key: &str) -> bool {
        let key = self.inner.full(key);
        let keys = self.inner.keys.lock();
        let is_idle = keys.get(&key).is_none_or(|object| object.requests().is_empty());
        if is_idle {
            self.inner.lease.satisfied(&key);
        }
        is_idle
    }

    /// Returns the store's error, once, if it refused the last request for a key for good at this
    /// version. Forgets a refusal at another version.
    #[cfg(feature = "kube")]
    pub(crate) fn take_refusal(
        &self,
        key: &str,
        at: Option<&Version>,
    ) -> Option<Arc<crate::store::StoreError>> {
        let refusal = self.inner.keys.lock().take_refusal(&self.inner.full(key), at)?;
        refusal.refusal().cloned()
    }

    /// Puts this replica on a roster in the guard's store when it has its first job:
    /// [`WriterLease::join`] with the same store. The roster belongs to the lease and outlives the
    /// guard.
    ///
    /// # Errors
    ///
    /// As for [`WriterLease::join`]. The prefix of the roster must also be outside of that of the
    /// guard, because the entries are nothing to guard.
    ///
    /// ```
    /// use writerlease::{Guard, Roster, WriterLease, store::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = WriterLease::builder("route-status").spawn()?;
    /// let guard = Guard::new(MemoryStore::new(), lease, "status/")?;
    /// guard.join(Roster::new("roster"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn join(&self, roster: Roster) -> Result<(), SpawnError> {
        roster.check_outside(&self.inner.prefix)?;
        self.inner.lease.join(self.inner.store.clone(), roster)
    }

    /// Returns the lease.
    pub fn lease(&self) -> &WriterLease<Arc<str>> {
        &self.inner.lease
    }

    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// Returns whether this guard sees the writes of others. The lease's [`Status`](crate::Status)
    /// has it, too, and publishes each change.
    pub fn watch_state(&self) -> WatchState {
        *self.inner.watch_state.lock()
    }

    /// Returns the tracker, which knows the contended keys and how often that happened.
    pub fn contention(&self) -> &ContentionTracker<Arc<str>, Bytes> {
        &self.inner.contention
    }

    /// Subscribes to the problems from now on, also those of calls for which nobody waits.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.inner.notices.subscribe()
    }
}

impl<S> Inner<S> {
    /// Returns the key as the store knows it.
    fn full(&self, key: &str) -> Arc<str> {
        format!("{}{key}", self.prefix).into()
    }
}

impl<S: Store> Clone for Guard<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), _watch: self._watch.clone() }
    }
}

impl<S: Store> fmt::Debug for Guard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("prefix", &self.inner.prefix)
            .field("lease", &self.inner.lease)
            .field("watch", &self.watch_state())
            .finish_non_exhaustive()
    }
}

impl Drop for WatchTask {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

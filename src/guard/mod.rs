//! The guard: desired state in, outcomes fed.
//!
//! ```text
//!     ensure(key, closure) ──> book: what is known and wanted of each key ──try──> lease ──attempt──┐
//!            │                   ^            │ a foreign write did our work                        │
//!            v                   │            └──extend──> lease                                    v
//!         Ensure               feed <──watch── store <──get, put── read, ask the closures, write if they changed it
//! ```

mod attempt;
mod keys;
mod watch;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, oneshot},
    task::AbortHandle,
    time::Instant,
};

pub(crate) use self::keys::Desired;
use self::keys::{DesiredFn, KeyTable};
use crate::{
    clock::{self, Moment},
    contention::ContentionTracker,
    lease::{WatchReporter, WriterLease},
    object::Request,
    status::{LeaseClosed, SpawnError, WatchState},
    store::{Store, StoreError, Version},
};

/// Guards the keys under a prefix of a store: writes what is wanted when it is this process's turn, and learns from the
/// writes of others when it isn't.
///
/// Say what a key must look like, not when to write it. The guard asks the store, asks the closure, writes if the closure
/// says so, with compare-and-write, and feeds the lease with what came of it. Every replica may want the same thing: one of
/// them writes, the others see it done.
///
/// The handle is cheap to clone. With the last one the feed ends; work that is pending in the lease is then void.
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
///     Some(b"admitted") => None, // it is there already
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

/// How an [`ensure`](Guard::ensure) ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EnsureOutcome {
    /// We wrote it; the version is that of our write.
    Written(Version),
    /// It was so already, or became so by writes that say nothing about a competitor.
    Satisfied,
    /// Somebody else's write did it.
    ByOther,
    /// A newer call for the same key and part took its place.
    Superseded,
    /// [`Guard::remove`] was called.
    Removed,
    /// Two groups want different values of the key: this one was written, changed by somebody else, written again and changed
    /// again. It is left alone for a while, because to go on would serve nobody; whoever still wants it asks again then.
    Contended {
        /// For so long.
        until: Moment,
    },
    /// The object does not exist, and [`ensure_existing`](Guard::ensure_existing) does not create it.
    Gone,
    /// The store denied the request. Nobody retries; others who may will take over.
    Denied(Arc<StoreError>),
    /// The value is larger than the store takes.
    TooLarge(Arc<StoreError>),
    /// The store can never take this key or value.
    Invalid(Arc<StoreError>),
    /// The lease takes no more work.
    LeaseClosed(LeaseClosed),
    /// The last handle of the guard was dropped.
    Dropped,
}

/// Waits for the end of an [`ensure`](Guard::ensure). Dropping it changes nothing: the work stays pending.
#[derive(Debug)]
pub struct Ensure {
    ending: oneshot::Receiver<EnsureOutcome>,
}

/// What the guard tells whoever listens, because nobody may be waiting for an [`Ensure`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The store refused to do what a key's work wants, for good: it was denied, too large or invalid.
    Refused {
        /// The key, prefix included.
        key: Arc<str>,
        /// What the store said.
        error: Arc<StoreError>,
    },
    /// A key's work was given up, because somebody else writes something else again and again; see [`EnsureOutcome::Contended`].
    Contended {
        /// The key, prefix included.
        key: Arc<str>,
        /// Nobody writes it for so long.
        until: Moment,
    },
    /// The watch was interrupted; until it is back the guard is blind to the writes of others, and goes on working.
    WatchInterrupted {
        /// What the store said.
        error: Arc<StoreError>,
    },
    /// The watch goes on.
    WatchRestored,
    /// The watch is over for good.
    WatchEnded,
}

/// Ends the feed with the last [`Guard`].
struct WatchTask(AbortHandle);

struct Inner<S> {
    store: S,
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

/// How many notices a slow listener may fall behind.
const NOTICES: usize = 256;

impl<S: Store> Guard<S> {
    /// Guards the keys of `store` that start with `prefix`, under `lease`, and starts to watch them.
    ///
    /// The lease's keys are those of the store, `Arc<str>`. Several guards may share a lease, if their prefixes don't overlap. The guard keeps the last value of each key under
    /// its prefix in memory, as a controller's cache does.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime.
    pub fn new(
        store: S,
        lease: WriterLease<Arc<str>>,
        prefix: impl Into<String>,
    ) -> Result<Self, SpawnError> {
        Self::with_contention(store, lease, prefix, Arc::default())
    }

    /// Like [`new`](Self::new), with a contention tracker of one's own: with another interval, with a comparison that leaves
    /// out what differs from write to write, or shared between guards. What is lost is the whole value, as it was stored.
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
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        let reporter = lease.watch_reporter();
        let inner = Arc::new(Inner {
            store,
            lease,
            prefix: prefix.into().into_boxed_str(),
            keys: Mutex::default(),
            origin: clock::now(),
            notices: broadcast::Sender::new(NOTICES),
            watch_state: Mutex::new(WatchState::Starting),
            reporter,
            contention,
        });
        let changes = inner.store.watch(&inner.prefix);
        let watch = runtime.spawn(watch::run(Arc::downgrade(&inner), changes));
        Ok(Self { inner, _watch: Arc::new(WatchTask(watch.abort_handle())) })
    }

    /// Wants the value of a key to be as `desire` says, and returns at once. The key is relative to the prefix.
    ///
    /// `desire` is given the current value, `None` if there is none, and returns the value to write, or `None` if the
    /// current one is right. It is asked again for each attempt and for each change that the watch tells, so it should be
    /// quick and must depend on nothing that changes meanwhile. If it panics, the key is tried again at the retry interval.
    ///
    /// A newer call for the same key takes the place of an older one that is still pending.
    ///
    /// Whoever does not lead asks nobody but the guard's watch, and a watch lags: [`EnsureOutcome::ByOther`] may tell of a state that
    /// is older than the call. Whoever knows from elsewhere of a later change that made the value wrong asks again.
    pub fn ensure<D, V>(&self, key: &str, desire: D) -> Ensure
    where
        D: Fn(Option<&[u8]>) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        self.want(key, "", Arc::new(move |current| Desired::of(desire(current))))
    }

    /// Like [`ensure`](Self::ensure), for an object that somebody else creates: if it does not exist, the call ends as
    /// [`EnsureOutcome::Gone`].
    pub fn ensure_existing<D, V>(&self, key: &str, desire: D) -> Ensure
    where
        D: Fn(&[u8]) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        let desire = move |current: Option<&[u8]>| match current {
            Some(current) => Desired::of(desire(current)),
            None => Desired::Gone,
        };
        self.want(key, "", Arc::new(desire))
    }

    /// Like [`ensure`](Self::ensure), for one concern of several that share an object, such as one condition of a status.
    ///
    /// Parts of one key that are pending at once become one write: each is given the value that the one before it, in order
    /// of their first calls, wants to write. Those that change something end as [`EnsureOutcome::Written`], the others as
    /// [`EnsureOutcome::Satisfied`]. `""` is the part of [`ensure`](Self::ensure).
    pub fn ensure_part<D, V>(&self, key: &str, part: &str, desire: D) -> Ensure
    where
        D: Fn(Option<&[u8]>) -> Option<V> + Send + Sync + 'static,
        V: Into<Bytes>,
    {
        self.want(key, part, Arc::new(move |current| Desired::of(desire(current))))
    }

    pub(crate) fn want(&self, key: &str, part: &str, wish: DesiredFn) -> Ensure {
        let (waiter, ending) = oneshot::channel();
        let key = self.inner.full(key);
        self.inner.update(&key, |keys| {
            let request = Request { id: keys.next_request(), part: part.into(), wish, waiter };
            ((), keys.object(&key).handle_request(request))
        });
        Ensure { ending }
    }

    /// Gives up what is pending for a key, in all its parts. An attempt in flight goes on, but is not repeated.
    pub fn remove(&self, key: &str) {
        self.inner.update_object(&self.inner.full(key), |object| ((), object.handle_removal()));
    }

    /// Returns whether anything is pending for a key.
    #[cfg(feature = "kube")]
    pub(crate) fn is_pending(&self, key: &str) -> bool {
        self.inner.keys.lock().get(&self.inner.full(key)).is_some_and(|object| object.is_pending())
    }

    /// Returns why the store refused the last request for a key for good, if it did so at this version; once. A refusal at
    /// another version is forgotten.
    #[cfg(feature = "kube")]
    pub(crate) fn take_refusal(&self, key: &str, at: Option<&Version>) -> Option<Arc<StoreError>> {
        let refusal = self.inner.keys.lock().take_refusal(&self.inner.full(key), at)?;
        refusal.refusal().cloned()
    }

    /// The lease.
    pub fn lease(&self) -> &WriterLease<Arc<str>> {
        &self.inner.lease
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// Whether this guard sees what others write. The lease's [`Status`](crate::Status) tells the same, and each change of it.
    pub fn watch_state(&self) -> WatchState {
        *self.inner.watch_state.lock()
    }

    /// Which keys are contended, and how often that happened.
    pub fn contention(&self) -> &ContentionTracker<Arc<str>, Bytes> {
        &self.inner.contention
    }

    /// What goes wrong from now on, also for works that nobody waits for.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.inner.notices.subscribe()
    }
}

impl EnsureOutcome {
    /// Returns what the store said if it refused for good.
    fn refusal(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Denied(error) | Self::TooLarge(error) | Self::Invalid(error) => Some(error),
            _ => None,
        }
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
        self.0.abort();
    }
}

impl Future for Ensure {
    type Output = EnsureOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<EnsureOutcome> {
        // Nobody is left to say how it ended.
        Pin::new(&mut self.ending).poll(cx).map(|ending| ending.unwrap_or(EnsureOutcome::Dropped))
    }
}

//! Status updates from within the reconcile loop of a controller.
//!
//! Several replicas of a controller run, without an elected leader, and each of them reconciles every object. What they do to
//! the world must therefore be the same whoever does it; what they write of it, the status, goes through a [`StatusGuard`]:
//! one replica writes it, the others see it done in the events that they watch anyway.
//!
//! ```toml
//! [dependencies]
//! futures-util = "0.3"
//! k8s-openapi = { version = "0.29", features = ["latest"] } # or that of your clusters
//! kube = { version = "5", features = ["derive", "runtime"] }
//! schemars = "1"
//! serde = { version = "1", features = ["derive"] }
//! serde_json = "1"
//! tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
//! writerlease = { version = "0.1", features = ["kube"] }
//! ```
//!
#![cfg_attr(not(doctest), doc = include_str!("kube/controller.md"))]
//!
//! All replicas need the [rights of the store](KubeStore#rights): `update` on the status, beside what a controller needs anyway.
//!
//! Here the guard has a watch of its own, because a stable [`Controller`](::kube::runtime::Controller) does not let go of its
//! events. With kube's feature `unstable-runtime`, [`KubeStore::observe`] taps those of a controller that is made
//! [`for_stream`](https://docs.rs/kube/latest/kube/runtime/struct.Controller.html#method.for_stream), and there is no second
//! watch. (Not `for_shared_stream`: as of kube 5.0 a controller that is told of an object that is gone by then sleeps on,
//! and may reconcile what comes next only when something else wakes it.)

use std::{
    fmt::Debug,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::kube::{Resource, runtime::controller::Action};
use bytes::Bytes;
use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    contention::ContentionTracker,
    error::SpawnError,
    guard::{Desired, Ending, Ensured, Guard},
    lease::WriterLease,
    store::{
        KubeStore, StoreError,
        kube::object::{decode, is_same_work, version_of, with_status},
    },
};

/// Guards the status of Kubernetes objects of one kind. The [module](self) shows how it is used.
///
/// A handle is cheap to clone.
pub struct StatusGuard<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    guard: Guard<KubeStore<K>>,
}

/// What became of a call so far: what a reconcile returns, or, awaited, how it ends. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "`action` is what a reconcile returns"]
pub struct Ensuring {
    state: State,
    /// After this time it may be our turn, or a refusal may be known.
    patience: Duration,
}

#[derive(Debug)]
enum State {
    /// It is as it should be, as far as the object tells that was reconciled.
    Right,
    Pending(Ensured),
    Refused(Refused),
}

/// The API server refuses to write an object's status for good: it is denied (403), or makes no sense to it (422).
#[derive(Clone, Debug, thiserror::Error)]
#[error("the status of {key} is refused: {error}")]
pub struct Refused {
    /// `namespace/name`, or the name.
    pub key: Arc<str>,
    /// What the server said.
    #[source]
    pub error: Arc<StoreError>,
}

/// What is pending is looked at again no later, because a refusal has no event.
const LATEST: Duration = Duration::from_secs(60);
/// Nor earlier.
const EARLIEST: Duration = Duration::from_secs(1);

impl<K> StatusGuard<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// Guards the status of a store's objects under a lease. Each kind needs a lease of its own: the keys are the objects'
    /// names, and do not tell kinds apart.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime.
    pub fn new(store: KubeStore<K>, lease: WriterLease<Arc<str>>) -> Result<Self, SpawnError> {
        Self::with_contention(
            store,
            lease,
            ContentionTracker::comparing(|one: &Bytes, other| is_same_work(one, other)),
        )
    }

    /// Like [`new`](Self::new), with a contention tracker of one's own, such as [`tracker`](Self::tracker) makes.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_contention(
        store: KubeStore<K>,
        lease: WriterLease<Arc<str>>,
        contention: ContentionTracker<Arc<str>, Bytes>,
    ) -> Result<Self, SpawnError> {
        Ok(Self { guard: Guard::with_contention(store, lease, "", Arc::new(contention))? })
    }

    /// A contention tracker for which the status of two objects is the same if `same` says so. By default it is the same if it
    /// differs in nothing but the times of conditions (`lastTransitionTime` and its like), which are new in each write. An
    /// object that was made anew is never the same.
    pub fn tracker(
        same: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
    ) -> ContentionTracker<Arc<str>, Bytes> {
        ContentionTracker::comparing(move |one: &Bytes, other: &Bytes| match (decode(one), decode(other)) {
            (Ok::<K, _>(one), Ok::<K, _>(other)) => one.meta().uid == other.meta().uid && same(&one, &other),
            _ => false,
        })
    }

    /// Wants the status of `object` to be as `desire` says, and returns at once.
    ///
    /// `desire` is given the object as it is, though later without its `resourceVersion` and `managedFields`, and returns the
    /// status to write, or `None` if it is right. It is asked again for each attempt and each change, so it should be quick and
    /// must depend on nothing that changes meanwhile; what it depends on of the spec it should take from what it is given. A
    /// newer call for the same object takes the place of an older one.
    ///
    /// The status is replaced as a whole: fields of it that `T` does not know are gone.
    ///
    /// An object that was deleted and created again under the same name is another one, whose status is not touched.
    ///
    /// A panic of `desire` in an attempt holds up this object only; a status that cannot be JSON (a map whose keys are no
    /// strings) counts as one.
    pub fn ensure_status<D, T>(&self, object: &K, desire: D) -> Ensuring
    where
        D: Fn(&K) -> Option<T> + Send + Sync + 'static,
        T: Serialize,
    {
        self.ensure_part(object, "", desire)
    }

    /// Like [`ensure_status`](Self::ensure_status), for one concern of several that share a status, such as one condition.
    /// Parts of one object that are pending at once become one write: each is given what the one before it wants to write.
    pub fn ensure_part<D, T>(&self, object: &K, part: &str, desire: D) -> Ensuring
    where
        D: Fn(&K) -> Option<T> + Send + Sync + 'static,
        T: Serialize,
    {
        let key = KubeStore::key(object);
        let version = object.meta().resource_version.as_deref().map(version_of);
        let state = if let Some(error) = self.guard.take_refusal(&key, version.as_ref()) {
            State::Refused(Refused { key, error })
        } else if desire(object).is_none() && !self.guard.is_pending(&key) {
            State::Right
        } else {
            let uid = object.meta().uid.clone();
            let desire = move |current: Option<&[u8]>| {
                let Some(value) = current else { return Desired::Gone };
                let object: K = decode(value).expect("the store encoded it");
                if object.meta().uid != uid {
                    return Desired::Gone;
                }
                let Some(status) = desire(&object) else { return Desired::Right };
                let status = serde_json::to_value(status).expect("a status can be written as JSON");
                Desired::Write(with_status(value, status).expect("the store encoded it"))
            };
            State::Pending(self.guard.want(&key, part, Arc::new(desire)))
        };
        let patience = self.guard.lease().snapshot().lease_remaining.clamp(EARLIEST, LATEST);
        Ensuring { state, patience }
    }

    /// Gives up what is pending for an object, in all its parts.
    pub fn forget(&self, object: &K) {
        self.guard.remove(&KubeStore::key(object));
    }

    /// What is beneath: the lease, the store, what goes wrong.
    pub fn guard(&self) -> &Guard<KubeStore<K>> {
        &self.guard
    }
}

impl Ensuring {
    /// What a reconcile returns: whether to be called again without a change of the object, and when.
    ///
    /// | | |
    /// |---|---|
    /// | it is right | await the next change |
    /// | pending | its event comes; or look again when the lease ends, after 1 to 60 s |
    /// | two groups fight over the status ([`Ending::Contended`]) | requeue when the tracker lets it be written again |
    /// | the last attempt was refused | an error, for [`error_policy`] |
    ///
    /// # Errors
    ///
    /// [`Refused`], once per refusal, unless the object changed since; nothing is tried before the next call.
    pub fn action(self) -> Result<Action, Refused> {
        action_of([self])
    }

    /// When to look again, if not at the next change.
    fn again(self) -> Result<Option<Duration>, Refused> {
        match self.state {
            State::Right => Ok(None),
            State::Refused(refused) => Err(refused),
            State::Pending(ensured) => Ok(Some(match ensured.now_or_never() {
                Some(Ending::Contended { until }) => until.remaining().max(EARLIEST),
                _ => self.patience,
            })),
        }
    }
}

/// What a reconcile returns that wanted [several parts](StatusGuard::ensure_part) or objects: the [`action`](Ensuring::action)
/// that comes first.
///
/// # Errors
///
/// [`Refused`], for the first that is.
pub fn action_of(all: impl IntoIterator<Item = Ensuring>) -> Result<Action, Refused> {
    let mut earliest = None;
    let mut refused = None;
    for ensuring in all {
        match ensuring.again() {
            Ok(again) => earliest = earliest.into_iter().chain(again).min(),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(earliest.map_or_else(Action::await_change, Action::requeue)),
    }
}

/// Waits for the end, which a reconcile should not do: it would hold its object up. Cancel safe.
impl Future for Ensuring {
    type Output = Ending;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ending> {
        match &mut self.state {
            State::Right => Poll::Ready(Ending::Satisfied),
            State::Pending(ensured) => Pin::new(ensured).poll(cx),
            State::Refused(refused) => Poll::Ready(match &*refused.error {
                StoreError::Denied { .. } => Ending::Denied(refused.error.clone()),
                StoreError::TooLarge { .. } => Ending::TooLarge(refused.error.clone()),
                _ => Ending::Invalid(refused.error.clone()),
            }),
        }
    }
}

/// The `error_policy` of a controller whose reconcile returns [`Refused`]: what was denied is tried again in a minute,
/// because rights are given without an event; what makes no sense to the server waits for a change of the object.
///
/// In a policy of one's own, call it for this error.
pub fn error_policy<K, C>(_object: Arc<K>, refused: &Refused, _context: Arc<C>) -> Action {
    match &*refused.error {
        StoreError::Denied { .. } => Action::requeue(LATEST),
        _ => Action::await_change(),
    }
}

impl<K> Clone for StatusGuard<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    fn clone(&self) -> Self {
        Self { guard: self.guard.clone() }
    }
}

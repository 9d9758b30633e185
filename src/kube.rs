//! Status updates from within the reconcile loop of a controller.
//!
//! Several replicas of a controller run, without an elected leader, and each of them reconciles every object. What they do to
//! the world must therefore be the same whoever does it; what they write of it, the status, goes through a [`StatusGuard`]:
//! one replica writes it, the others see it done in the events that they watch anyway.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use futures_util::StreamExt;
//! use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
//! use kube::{
//!     Api, Client,
//!     runtime::{Controller, WatchStreamExt, controller::Action, reflector, watcher},
//! };
//! use writerlease::{
//!     WriterLease,
//!     kube::{Refused, StatusGuard, error_policy},
//!     store::KubeStore,
//! };
//!
//! async fn reconcile(object: Arc<Deployment>, guard: Arc<StatusGuard<Deployment>>) -> Result<Action, Refused> {
//!     let desire = |current: &Deployment| {
//!         let mut status = current.status.clone().unwrap_or_default();
//!         status.observed_generation = current.metadata.generation;
//!         (current.status.as_ref() != Some(&status)).then_some(status)
//!     };
//!     // Returns at once. Whether and when to write is a matter of the guard.
//!     guard.ensure_status(&object, desire).action()
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::try_default().await?;
//! let lease = WriterLease::builder("deployment-status").spawn()?;
//! let controller = Controller::new(Api::<Deployment>::all(client.clone()), watcher::Config::default());
//! // It reads what the controller reads.
//! let store = KubeStore::new(Api::all(client)).manager("my-controller").reader(controller.store());
//! let guard = Arc::new(StatusGuard::new(store, lease.clone())?);
//! controller.run(reconcile, error_policy, guard).for_each(|_| async {}).await;
//! // Whoever leaves in peace ends what it began; the others miss its next writes and go on.
//! lease.shutdown(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! Here the guard has a watch of its own, because a stable [`Controller`](::kube::runtime::Controller) does not let go of its
//! events. With kube's feature `unstable-runtime`, [`KubeStore::observe`] taps those of a controller that is made
//! [`for_stream`](https://docs.rs/kube/latest/kube/runtime/struct.Controller.html#method.for_stream), and there is no second
//! watch.

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
    driver::Moment,
    error::SpawnError,
    guard::{Desired, Ending, Ensured, Guard},
    lease::WriterLease,
    store::{
        KubeStore, StoreError,
        kube::{
            Subject,
            object::{decode, is_same, with_status},
        },
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
    /// Guards the status of a store's objects under a lease.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside of a tokio runtime.
    pub fn new(store: KubeStore<K>, lease: WriterLease<Arc<str>>) -> Result<Self, SpawnError> {
        let same = |one: &Bytes, other: &Bytes| is_same(one, other, Subject::Status);
        Self::with_contention(store, lease, Arc::new(ContentionTracker::comparing(same)))
    }

    /// Like [`new`](Self::new), with a contention tracker of one's own. What it compares are whole objects, as JSON; by default
    /// two are the same if their status is.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_contention(
        store: KubeStore<K>,
        lease: WriterLease<Arc<str>>,
        contention: Arc<ContentionTracker<Arc<str>, Bytes>>,
    ) -> Result<Self, SpawnError> {
        Ok(Self { guard: Guard::with_contention(store, lease, "", contention)? })
    }

    /// Wants the status of `object` to be as `desire` says, and returns at once.
    ///
    /// `desire` is given the object as it is, and returns the status to write, or `None` if it is right. It is asked again for
    /// each attempt and each change, so it should be quick and must depend on nothing that changes meanwhile; what it depends on
    /// of the spec it should take from what it is given. A newer call for the same object takes the place of an older one.
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
        let state = if let Some(error) = self.guard.take_refusal(&key) {
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
    /// [`Refused`], once per refusal; nothing is tried before the next call.
    pub fn action(self) -> Result<Action, Refused> {
        match self.state {
            State::Right => Ok(Action::await_change()),
            State::Refused(refused) => Err(refused),
            State::Pending(ensured) => Ok(match ensured.now_or_never() {
                Some(Ending::Contended { until }) => requeue_at(until),
                _ => Action::requeue(self.patience),
            }),
        }
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

fn requeue_at(until: Moment) -> Action {
    Action::requeue(until.remaining().max(EARLIEST))
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

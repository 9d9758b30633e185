//! Guards the status of the objects of one kind.

use std::{
    fmt::Debug,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use kube::{Resource, runtime::controller::Action};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::unconstrained;

use super::{
    lease_store::LeaseStore,
    object::{decode, is_same_status, version_of, with_status},
    store::KubeStore,
};
use crate::{
    contention::ContentionTracker,
    guard::{Desired, Ensure, EnsureOutcome, Guard},
    lease::WriterLease,
    roster::Roster,
    status::SpawnError,
    store::StoreError,
};

/// A guard of the status of Kubernetes objects of one kind. The [module](super) shows its use.
///
/// Clones are cheap and share everything.
pub struct StatusGuard<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    guard: Guard<KubeStore<K>>,
}

/// The state of a call to [`StatusGuard::ensure_status`].
///
/// A reconcile returns its [`action`](Self::action). Awaited, it yields how the call ends. To drop
/// it changes nothing.
#[derive(Debug)]
#[must_use = "a reconcile returns its `action`"]
pub struct EnsureStatus {
    state: State,
    /// When to call a pending reconcile again: by then this replica may lead, or a refusal may be
    /// known.
    requeue_after: Duration,
}

#[derive(Debug)]
enum State {
    /// The reconciled object has the desired status, and nothing is pending.
    Satisfied,
    Pending(Ensure),
    Refused(Refused),
}

/// The API server refused a status for good: the write was denied (401, 403), invalid (400, 422) or
/// too large (413).
#[derive(Clone, Debug, thiserror::Error)]
#[error("the status of {key} is refused: {error}")]
pub struct Refused {
    /// `namespace/name`, or the name.
    pub key: Arc<str>,
    /// The answer of the server.
    #[source]
    pub error: Arc<StoreError>,
}

/// The shortest time until a pending reconcile is called again.
const MIN_REQUEUE: Duration = Duration::from_secs(1);
/// The longest, because no event announces a refusal.
const MAX_REQUEUE: Duration = Duration::from_secs(60);

impl<K> StatusGuard<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// Guards the status of a store's objects under a lease. Each kind needs its own lease, because
    /// the keys are the objects' names without their kind. Guards of one kind in different
    /// namespaces may share a lease.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoRuntime`] outside a tokio runtime.
    pub fn new(store: KubeStore<K>, lease: WriterLease<Arc<str>>) -> Result<Self, SpawnError> {
        Self::with_contention(
            store,
            lease,
            ContentionTracker::comparing(|one: &Bytes, other| is_same_status(one, other)),
        )
    }

    /// Like [`new`](Self::new), with a contention tracker such as one that
    /// [`tracker`](Self::tracker) returns.
    ///
    /// # Errors
    ///
    /// The same as [`new`](Self::new).
    pub fn with_contention(
        store: KubeStore<K>,
        lease: WriterLease<Arc<str>>,
        contention: ContentionTracker<Arc<str>, Bytes>,
    ) -> Result<Self, SpawnError> {
        Ok(Self { guard: Guard::unclaimed(store, lease, Arc::new(contention))? })
    }

    /// Puts this replica on a roster when it has its first job: [`WriterLease::join`] with a
    /// [`LeaseStore`] in the client's default namespace, which is that of the pod. The prefix of the
    /// roster is the name of the group, a DNS label such as `address-controller`.
    ///
    /// The replicas need the [rights](LeaseStore#rights) on `Lease` objects. Without these the guard
    /// logs a warning and goes on as before.
    ///
    /// # Errors
    ///
    /// As for [`WriterLease::join`].
    ///
    /// ```no_run
    /// # use k8s_openapi::api::core::v1::Service;
    /// use writerlease::{Roster, kube::StatusGuard};
    ///
    /// # fn f(guard: StatusGuard<Service>) -> Result<(), Box<dyn std::error::Error>> {
    /// guard.join(Roster::new("address-controller"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn join(&self, roster: Roster) -> Result<(), SpawnError> {
        let client = self.guard.store().client().clone();
        let namespace = client.default_namespace().to_owned();
        self.guard.lease().join(LeaseStore::new(client, &namespace), roster)
    }

    /// Returns a contention tracker that compares the status of two states of an object by `same`,
    /// which has the duties that [`comparing`](ContentionTracker::comparing) states.
    ///
    /// By default all of the status is compared except the times of conditions at any depth, such
    /// as `lastTransitionTime`, which differ in each write. A status with other times that differ in
    /// each write needs a comparison of its own, or a fight over it is overlooked. An object that was deleted and created
    /// again is always different from the earlier one.
    pub fn tracker(
        same: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
    ) -> ContentionTracker<Arc<str>, Bytes> {
        ContentionTracker::comparing(move |one: &Bytes, other: &Bytes| match (decode(one), decode(other)) {
            (Ok::<K, _>(one), Ok::<K, _>(other)) => one.meta().uid == other.meta().uid && same(&one, &other),
            _ => false,
        })
    }

    /// Requests that the status of `object` become as `desired` says. Returns immediately.
    ///
    /// `desired` returns the status to write, or `None` if the object has it already. It is called
    /// with `object`, and again for each attempt and each change with the current state of the
    /// object, then without its `resourceVersion` and `managedFields`. It should be quick, and must
    /// depend only on its argument and on values that stay the same: take the spec from the
    /// argument. A newer call for the same object replaces an older one.
    ///
    /// The status is replaced as a whole: fields that `T` does not declare are deleted.
    ///
    /// If the object is deleted and another one is created under its name, the status of the new
    /// one is left alone.
    ///
    /// A panic of `desired` during an attempt delays this object only. A status that cannot be
    /// encoded as JSON, such as a map with keys other than strings, counts as a panic.
    pub fn ensure_status<D, T>(&self, object: &K, desired: D) -> EnsureStatus
    where
        D: Fn(&K) -> Option<T> + Send + Sync + 'static,
        T: Serialize,
    {
        self.ensure_part(object, "", desired)
    }

    /// Like [`ensure_status`](Self::ensure_status), for one of several parts of a status, such as
    /// one condition.
    ///
    /// Parts of an object that are pending at the same time become one write: each `desired` is
    /// called with the result of the one before it.
    pub fn ensure_part<D, T>(&self, object: &K, part: &str, desired: D) -> EnsureStatus
    where
        D: Fn(&K) -> Option<T> + Send + Sync + 'static,
        T: Serialize,
    {
        let key = KubeStore::key(object);
        let version = object.meta().resource_version.as_deref().map(version_of);
        let state = if let Some(error) = self.guard.take_refusal(&key, version.as_ref()) {
            State::Refused(Refused { key, error })
        } else if desired(object).is_none() && self.guard.handle_satisfied(&key) {
            State::Satisfied
        } else {
            let uid = object.meta().uid.clone();
            let evaluate = move |current: Option<&[u8]>| {
                let Some(value) = current else { return Desired::Gone };
                let object: K = decode(value).expect("the store encoded it");
                if object.meta().uid != uid {
                    return Desired::Gone;
                }
                let Some(status) = desired(&object) else { return Desired::Right };
                let status = serde_json::to_value(status).expect("the status cannot be encoded as JSON");
                Desired::Write(with_status(value, status).expect("the store encoded it"))
            };
            // The guard's watch may be behind the one that the object comes from.
            State::Pending(self.guard.want(&key, part, version, Arc::new(evaluate)))
        };
        let requeue_after = self.guard.lease().snapshot().lease_remaining.clamp(MIN_REQUEUE, MAX_REQUEUE);
        EnsureStatus { state, requeue_after }
    }

    /// Drops all that is pending for an object, in all its parts.
    pub fn forget(&self, object: &K) {
        self.guard.remove(&KubeStore::key(object));
    }

    /// Returns the guard beneath, with the lease, the store and the notices.
    pub fn guard(&self) -> &Guard<KubeStore<K>> {
        &self.guard
    }
}

impl EnsureStatus {
    /// Returns the action for a reconcile to return.
    ///
    /// | state | action |
    /// |---|---|
    /// | the object has the status | await the next change |
    /// | pending | requeue when the lease ends, after 1 to 60 s, in case that no change comes before |
    /// | two groups fight over the status ([`EnsureOutcome::Contended`]), or `desired` is [never content](EnsureOutcome::NeverContent) | requeue when the tracker allows the next write |
    /// | the last attempt was refused | an error, for [`error_policy`] |
    ///
    /// # Errors
    ///
    /// [`Refused`], once per refusal, unless the object has changed since. The next call tries
    /// again.
    pub fn action(self) -> Result<Action, Refused> {
        action_of([self])
    }

    /// Returns the time until the reconcile is to be called again; `None` to await a change.
    fn requeue(self) -> Result<Option<Duration>, Refused> {
        match self.state {
            State::Satisfied => Ok(None),
            State::Refused(refused) => Err(refused),
            // Outside of tokio's cooperative budget: a reconcile may have spent that, and then the
            // end of the call would be missed.
            State::Pending(ensure) => Ok(Some(match unconstrained(ensure).now_or_never() {
                Some(EnsureOutcome::Contended { until } | EnsureOutcome::NeverContent { until }) => {
                    until.remaining().max(MIN_REQUEUE)
                }
                _ => self.requeue_after,
            })),
        }
    }
}

/// Returns the earliest [`action`](EnsureStatus::action) of several calls, for a reconcile of
/// [several parts](StatusGuard::ensure_part) or objects.
///
/// # Errors
///
/// The first [`Refused`] of them.
pub fn action_of(all: impl IntoIterator<Item = EnsureStatus>) -> Result<Action, Refused> {
    let mut earliest = None;
    let mut refused = None;
    for status in all {
        match status.requeue() {
            Ok(requeue) => earliest = earliest.into_iter().chain(requeue).min(),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(earliest.map_or_else(Action::await_change, Action::requeue)),
    }
}

/// Waits until the call ends. A reconcile should not wait, because it would delay its object.
/// Cancel safe.
impl Future for EnsureStatus {
    type Output = EnsureOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<EnsureOutcome> {
        match &mut self.state {
            State::Satisfied => Poll::Ready(EnsureOutcome::Satisfied),
            State::Pending(ensure) => Pin::new(ensure).poll(cx),
            State::Refused(refused) => Poll::Ready(match &*refused.error {
                StoreError::Denied { .. } => EnsureOutcome::Denied(refused.error.clone()),
                StoreError::TooLarge { .. } => EnsureOutcome::TooLarge(refused.error.clone()),
                _ => EnsureOutcome::Invalid(refused.error.clone()),
            }),
        }
    }
}

/// The `error_policy` of a controller whose reconcile returns [`Refused`].
///
/// After a denied write the reconcile is called again in a minute, because no event announces new
/// rights. An invalid or too large status waits for a change of the object.
///
/// A policy for further errors can call this one for `Refused`.
pub fn error_policy<K, C>(_object: Arc<K>, refused: &Refused, _context: Arc<C>) -> Action {
    match &*refused.error {
        StoreError::Denied { .. } => Action::requeue(MAX_REQUEUE),
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

#[cfg(test)]
mod tests {
    use tokio::{task::consume_budget, time::sleep};

    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn contended_status_is_seen_with_a_spent_budget() {
        let contention = ContentionTracker::new();
        contention.lost("key", Bytes::from("ours"));
        let until = contention.lost("key", Bytes::from("ours")).expect("contended");
        let lease = WriterLease::builder("status").spawn().unwrap();
        let guard = Guard::with_contention(MemoryStore::new(), lease, "", Arc::new(contention)).unwrap();
        let ensure = guard.ensure("key", |_| Some("ours"));
        sleep(MIN_REQUEUE).await;
        tokio::spawn(async move {
            while consume_budget().now_or_never().is_some() {}
            let status = EnsureStatus { state: State::Pending(ensure), requeue_after: MIN_REQUEUE };
            assert_eq!(status.requeue().unwrap(), Some(until.remaining()));
        })
        .await
        .unwrap();
    }
}

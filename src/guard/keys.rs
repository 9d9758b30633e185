//! The guard's objects behind one lock, and their effects on the lease and the callers.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{EnsureOutcome, Inner, Notice, trouble::Trouble};
use crate::{
    engine::Timestamp,
    object::{
        self, Before, Change, Completion, Effect, Evaluation, Question, Request, RequestId, Stale, Types,
        Wishes,
    },
    status::LeaseClosed,
    store::{self, Store, Version},
};

/// A user's closure that evaluates the current value. It is called and dropped outside of the lock.
pub(crate) type DesiredFn = Arc<dyn Fn(Option<&[u8]>) -> Desired + Send + Sync>;
pub(crate) type Desired = object::Desired<Bytes>;

pub(super) type Object = object::Object<Guarded>;
pub(super) type GuardedRequest = Request<Version, DesiredFn, oneshot::Sender<EnsureOutcome>>;
pub(super) type Effects = Vec<Effect<Guarded>>;

/// The types of guarded objects.
#[derive(Debug, PartialEq)]
pub(super) enum Guarded {}

impl Types for Guarded {
    type Value = Bytes;
    type Version = store::Version;
    type Wish = DesiredFn;
    type Waiter = oneshot::Sender<EnsureOutcome>;
    type Reason = EnsureOutcome;

    fn evaluate(wish: &DesiredFn, current: Option<&Bytes>) -> Desired {
        wish(current.map(|current| &**current))
    }
}

impl object::Version for store::Version {
    fn revision(&self) -> Option<u64> {
        self.revision()
    }

    fn key_revision(&self) -> Option<u64> {
        self.key_revision()
    }
}

/// The objects under the guard's prefix.
#[derive(Default)]
pub(super) struct KeyTable {
    objects: HashMap<Arc<str>, Object>,
    /// A listing was complete: a key without an object did not exist then.
    listed: bool,
    /// A listing is in progress: some objects may still be as they were before it.
    lists: bool,
    /// The watch is not interrupted.
    pub watches: bool,
    /// The number of requests so far.
    requests: u64,
    /// By key; most have none.
    pub troubles: HashMap<Arc<str>, Trouble>,
}

impl KeyTable {
    pub fn object(&mut self, key: &Arc<str>) -> &mut Object {
        let absent = self.listed;
        self.objects.entry(key.clone()).or_insert_with(|| Object::new(absent))
    }

    /// Forgets an object that carries no information.
    fn prune(&mut self, key: &str) {
        if self.objects.get(key).is_some_and(Object::is_blank) {
            self.objects.remove(key);
        }
    }

    pub fn get(&self, key: &str) -> Option<&Object> {
        self.objects.get(key)
    }

    #[cfg(feature = "kube")]
    pub fn take_refusal(&mut self, key: &str, at: Option<&Version>) -> Option<EnsureOutcome> {
        let refusal = self.objects.get_mut(key)?.take_refusal(at);
        self.prune(key);
        refusal
    }

    /// Returns what has to be evaluated before the object of a key can take in a change.
    pub fn question(&self, key: &str, change: &Change<Guarded>) -> Question<Guarded> {
        match self.objects.get(key) {
            Some(object) => object.question(change),
            None => Object::new(self.listed).question(change),
        }
    }

    pub fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub fn begin_listing(&mut self) {
        self.lists = true;
        self.watches = true;
        self.objects.values_mut().for_each(Object::handle_listing);
    }

    /// The listing is complete. Returns the keys that it did not contain.
    pub fn end_listing(&mut self) -> Vec<Arc<str>> {
        self.listed = true;
        let absent = self.objects.iter().filter(|(_, object)| !object.is_listed());
        absent.map(|(key, _)| key.clone()).collect()
    }

    /// The objects have taken in the complete listing. Returns the keys with pending requests: what
    /// is known may satisfy them now.
    pub fn finish_listing(&mut self) -> Vec<Arc<str>> {
        self.lists = false;
        let pending = self.objects.iter().filter(|(_, object)| !object.requests().is_empty());
        let mut keys: Vec<_> = pending.map(|(key, _)| key.clone()).collect();
        // In a fixed order, so that runs on paused time repeat.
        keys.sort_unstable();
        keys
    }
}

impl<S: Store> Inner<S> {
    /// Lets an event change an object, and carries out its effects.
    ///
    /// Both happen under one lock, which is held while the lease is called: a change must not clear
    /// a request that only one of the two has.
    pub(super) fn update<R>(
        self: &Arc<Self>,
        key: &Arc<str>,
        event: impl FnOnce(&mut KeyTable) -> (R, Effects),
    ) -> R {
        // Declared before the lock is taken, so that users' closures are dropped after it is
        // released.
        let mut leftovers = Leftovers::default();
        let mut keys = self.keys.lock();
        let (result, effects) = event(&mut keys);
        for effect in effects {
            self.perform(key, &mut keys, effect, &mut leftovers);
        }
        keys.prune(key);
        keys.forget_trouble(key);
        drop(keys);
        for value in leftovers.lost.drain(..) {
            self.contention.lost(key.clone(), value);
        }
        if leftovers.assess {
            self.assess(key);
        }
        result
    }

    /// Like [`update`](Self::update), for an event of the object itself.
    pub(super) fn update_object<R>(
        self: &Arc<Self>,
        key: &Arc<str>,
        event: impl FnOnce(&mut Object) -> (R, Effects),
    ) -> R {
        self.update(key, |keys| event(keys.object(key)))
    }

    fn perform(
        self: &Arc<Self>,
        key: &Arc<str>,
        keys: &mut KeyTable,
        effect: Effect<Guarded>,
        leftovers: &mut Leftovers,
    ) {
        match effect {
            Effect::Queue => {
                if let Err(closed) = self.queue(key) {
                    let ended = keys.object(key).handle_closure(EnsureOutcome::LeaseClosed(closed));
                    leftovers.complete(ended);
                }
            }
            Effect::Clear => self.lease.remove(key),
            Effect::Satisfied => self.lease.satisfied(key),
            Effect::Evidence { revision } => self.lease.extend_at(key, revision),
            Effect::Deleted => self.lease.deleted(key),
            Effect::Deny(waiters, denied) => {
                self.report_refusal(key, &denied);
                for waiter in waiters {
                    let _ = waiter.send(denied.clone());
                }
            }
            Effect::Echo(echo) => self.lease.echo(echo),
            Effect::Lost(value) => leftovers.lost.push(value),
            Effect::Assess => leftovers.assess = true,
            Effect::Complete(..) | Effect::Discard(_) => leftovers.complete([effect]),
        }
    }

    /// Evaluates the pending requests against what is known. They may be satisfied already. And
    /// evidence is a change from an unsatisfactory value to a satisfactory one, so the object must
    /// know which one it has.
    pub(super) fn assess(self: &Arc<Self>, key: &Arc<str>) {
        loop {
            let assessment = self.keys.lock().get(key).and_then(|object| object.assessment());
            let Some((question, value)) = assessment else { return };
            let evaluation = evaluate(&question.wishes, value.as_ref());
            let resting =
                evaluation.as_ref().and_then(|evaluation| self.resting(key, &question.wishes, evaluation));
            let assessed = self.update(key, |keys| {
                let live = keys.watches && !keys.lists;
                match keys.object(key).handle_assessment(&question, evaluation, live) {
                    Ok((wanted, effects)) => (Some(wanted), effects),
                    Err(Stale) => (None, Vec::new()),
                }
            });
            let Some(wanted) = assessed else { continue };
            let contended = || wanted.and_then(|wanted| self.contended(key, &wanted));
            let (wishes, reason) = match resting {
                Some((resting, outcome)) => (resting, Some(outcome)),
                None => (question.wishes, contended()),
            };
            self.update_object(key, |object| ((), object.handle_contention(&wishes, reason)));
            return;
        }
    }

    /// Takes in a change of an object. The wishes are evaluated outside of the lock, and again if
    /// they changed meanwhile.
    pub(super) fn take_in(self: &Arc<Self>, key: &Arc<str>, mut change: Change<Guarded>) {
        loop {
            let question = self.keys.lock().question(key, &change);
            let judgement = question.judge(
                |wishes| evaluate(wishes, change.value.as_ref()),
                |before| {
                    let write = change.value.as_ref().zip(change.version.as_ref());
                    write.is_some_and(|(value, version)| self.is_rival(before, value, version))
                },
            );
            let taken =
                self.update_object(key, |object| match object.handle_change(change, &question, judgement) {
                    Ok(effects) => (None, effects),
                    Err(stale) => (Some(stale), Vec::new()),
                });
            match taken {
                Some(stale) => change = stale,
                None => return,
            }
        }
    }

    /// Returns whether a rival, who does the same work as we do, wrote a value. The store may be a
    /// user's, so it is asked without a lock.
    pub(super) fn is_rival(&self, before: &Before<Bytes>, after: &Bytes, version: &Version) -> bool {
        self.store.competes(before.0.as_deref(), after, version)
    }

    /// The lease takes no more jobs: ends all requests.
    pub(super) fn close(&self, closed: LeaseClosed) {
        let mut leftovers = Leftovers::default();
        let mut keys = self.keys.lock();
        for object in keys.objects.values_mut() {
            leftovers.complete(object.handle_closure(EnsureOutcome::LeaseClosed(closed)));
        }
        drop(keys);
    }

    /// If writing `wanted` is contended, publishes a notice of that and returns the outcome of its
    /// requests.
    pub(super) fn contended(&self, key: &Arc<str>, wanted: &Bytes) -> Option<EnsureOutcome> {
        let until = self.contention.contended_until(key, wanted)?;
        // Nobody has to listen.
        let _ = self.notices.send(Notice::Contended { key: key.clone(), until });
        Some(EnsureOutcome::Contended { until })
    }

    /// Returns the wishes that are never content, and their outcome, if the key rests for that.
    pub(super) fn resting(
        &self,
        key: &Arc<str>,
        wishes: &Wishes<Guarded>,
        evaluation: &Evaluation<Bytes>,
    ) -> Option<(Wishes<Guarded>, EnsureOutcome)> {
        let until = self.contention.rests_until(key)?;
        let never_content = never_content(wishes, evaluation);
        (!never_content.is_empty()).then_some((never_content, EnsureOutcome::NeverContent { until }))
    }

    /// A write succeeded whose closures want to change it again: lets the key rest.
    pub(super) fn rest(&self, key: &Arc<str>) {
        if let Some(until) = self.contention.rest(key.clone()) {
            // Nobody has to listen.
            let _ = self.notices.send(Notice::NeverContent { key: key.clone(), until });
        }
    }

    /// Converts an instant to the time of the objects.
    pub(super) fn timestamp(&self, at: tokio::time::Instant) -> Timestamp {
        Timestamp::ZERO + (at - self.origin)
    }
}

/// Evaluates wishes against a value; `None` if a closure panics.
fn evaluate(wishes: &Wishes<Guarded>, value: Option<&Bytes>) -> Option<Evaluation<Bytes>> {
    catch_unwind(AssertUnwindSafe(|| wishes.evaluate(value))).ok()
}

/// Returns the wishes that nothing satisfies; none if a closure panics.
pub(super) fn never_content(wishes: &Wishes<Guarded>, evaluation: &Evaluation<Bytes>) -> Wishes<Guarded> {
    catch_unwind(AssertUnwindSafe(|| wishes.never_content(evaluation))).unwrap_or_else(|_| Wishes::none())
}

/// Work for the time after the lock is released: users' closures to drop, and calls of them by the
/// contention tracker and by an assessment.
#[derive(Default)]
struct Leftovers {
    wishes: Vec<DesiredFn>,
    discarded: Vec<Wishes<Guarded>>,
    /// Values that somebody changed after they had satisfied all requests.
    lost: Vec<Bytes>,
    assess: bool,
}

impl Leftovers {
    /// Ends requests. Callers learn their outcomes under the lock, before anybody can see the
    /// object without the requests.
    fn complete(&mut self, effects: impl IntoIterator<Item = Effect<Guarded>>) {
        for effect in effects {
            match effect {
                Effect::Complete(request, completion) => {
                    // Nobody has to wait for it.
                    if let Some(waiter) = request.waiter {
                        let _ = waiter.send(outcome(completion));
                    }
                    self.wishes.push(request.wish);
                }
                Effect::Discard(wishes) => self.discarded.push(wishes),
                _ => {}
            }
        }
    }
}

fn outcome(completion: Completion<store::Version, EnsureOutcome>) -> EnsureOutcome {
    match completion {
        Completion::Written(version) => EnsureOutcome::Written(version),
        Completion::Deleted => EnsureOutcome::Deleted,
        Completion::Satisfied => EnsureOutcome::Satisfied,
        Completion::ByOther => EnsureOutcome::ByOther,
        Completion::Superseded => EnsureOutcome::Superseded,
        Completion::Removed => EnsureOutcome::Removed,
        Completion::Gone => EnsureOutcome::Gone,
        Completion::GivenUp(outcome) => outcome,
    }
}

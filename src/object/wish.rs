//! Requests, their wishes, and the results of evaluating these outside of the shell's lock.

use super::opaque::{Desired, Types};

/// Names a request. The shell numbers them and uses no number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub u64);

/// A pending request for one part of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<V, W, H> {
    /// Names the request.
    pub id: RequestId,
    /// The part of the object that it concerns. A newer request for the same part replaces it.
    pub part: Box<str>,
    /// The demand on the value.
    pub wish: W,
    /// The version at which the caller saw the object, if it did. An older state, which we may
    /// still know, does not satisfy the request.
    pub seen: Option<V>,
    /// The caller that waits for its end, until it is told of a denial.
    pub waiter: Option<H>,
}

/// Copies of pending wishes in order of their parts' first requests, to be evaluated outside of the
/// shell's lock.
#[derive(Debug, PartialEq)]
pub struct Wishes<T: Types>(Vec<(RequestId, T::Wish)>);

/// The result of evaluating all wishes against one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation<V> {
    /// The state that is wanted instead of the current one, `Some(None)` for a deletion.
    pub(super) write: Option<Option<V>>,
    pub(super) changed: Vec<RequestId>,
    pub(super) gone: Vec<RequestId>,
}

/// Wishes to evaluate before an object can take in a change, or assess what it knows.
pub struct Question<T: Types> {
    /// The pending wishes. Empty if their evaluation makes no difference.
    pub wishes: Wishes<T>,
    /// The wishes of the earliest unfulfilled requests, if newer ones have replaced them.
    pub earlier: Option<Wishes<T>>,
    /// The value before the change. `Some` if it makes a difference whether a rival made the
    /// change.
    pub before: Option<Before<T::Value>>,
    pub(super) generation: u64,
}

/// The last value that was known before a write, `None` if the object did not exist or nothing was
/// known.
#[derive(Clone, Debug, PartialEq)]
pub struct Before<V>(pub Option<V>);

/// The answer to a [`Question`] about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The new value satisfies the pending wishes. `None` if a wish could not be evaluated.
    pub satisfied: Option<bool>,
    /// The new value satisfies the earlier wishes.
    pub fulfils_earlier: bool,
    /// A rival, who does the same work as we do, made the change.
    pub by_rival: bool,
}

/// The question has changed since it was asked: ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

impl<T: Types> Wishes<T> {
    pub(super) fn of(requests: &[Request<T::Version, T::Wish, T::Waiter>]) -> Self {
        Self(requests.iter().map(|request| (request.id, request.wish.clone())).collect())
    }

    /// Returns no wishes.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Does what `clone` would do if it did not ask for `T: Clone`.
    pub(super) fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    /// Evaluates each wish in turn, against the value that the one before it wants to write. Panics
    /// if a wish does.
    pub fn evaluate(&self, current: Option<&T::Value>) -> Evaluation<T::Value> {
        let mut value = current.cloned();
        let mut evaluation = Evaluation { write: None, changed: Vec::new(), gone: Vec::new() };
        for (id, wish) in &self.0 {
            match T::evaluate(wish, value.as_ref()) {
                Desired::Right => {}
                Desired::Write(new) => {
                    value = Some(new.clone());
                    evaluation.write = Some(Some(new));
                    evaluation.changed.push(*id);
                }
                Desired::Absent if value.is_some() => {
                    value = None;
                    evaluation.write = Some(None);
                    evaluation.changed.push(*id);
                }
                Desired::Absent => {}
                Desired::Gone => evaluation.gone.push(*id),
            }
        }
        // One wish may have undone what another changed.
        if evaluation.write.as_ref().map(Option::as_ref) == Some(current) {
            evaluation.write = None;
        }
        evaluation
    }

    /// Returns those that want to change the value of their own evaluation: nothing satisfies them.
    /// Panics if a wish does.
    pub fn never_content(&self, evaluation: &Evaluation<T::Value>) -> Self {
        let Some(written) = &evaluation.write else { return Self::none() };
        let again = self.evaluate(written.as_ref());
        // Those that undo each other want nothing together.
        let wants = |id| again.write.is_some() && again.changed.contains(id);
        Self(self.0.iter().filter(|(id, _)| wants(id)).cloned().collect())
    }

    /// Returns these wishes without those of `others`.
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.iter().filter(|(id, _)| !others.contains(*id)).cloned().collect())
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.0.iter().any(|(wish, _)| *wish == id)
    }

    /// Returns whether these are the wishes of exactly these requests.
    pub(super) fn are_of(&self, requests: &[Request<T::Version, T::Wish, T::Waiter>]) -> bool {
        self.0.iter().map(|(id, _)| *id).eq(requests.iter().map(|request| request.id))
    }
}

impl<V> Evaluation<V> {
    /// Returns whether the value is right as it is.
    pub fn is_satisfied(&self) -> bool {
        self.write.is_none() && self.gone.is_empty()
    }
}

impl<T: Types> Question<T> {
    pub(super) fn empty(generation: u64) -> Self {
        Self { wishes: Wishes::none(), earlier: None, before: None, generation }
    }

    /// Answers the question. `evaluate` returns `None` if a wish cannot be evaluated, and
    /// `is_rival` whether a rival made the change. Neither is called if it makes no difference.
    pub fn judge(
        &self,
        evaluate: impl Fn(&Wishes<T>) -> Option<Evaluation<T::Value>>,
        is_rival: impl FnOnce(&Before<T::Value>) -> bool,
    ) -> Judgement {
        let satisfies = |wishes: &Wishes<T>| evaluate(wishes).map(|evaluation| evaluation.is_satisfied());
        let is_asked = !self.wishes.0.is_empty();
        Judgement {
            satisfied: if is_asked { satisfies(&self.wishes) } else { None },
            fulfils_earlier: self.earlier.as_ref().and_then(satisfies) == Some(true),
            by_rival: self.before.as_ref().is_some_and(is_rival),
        }
    }
}

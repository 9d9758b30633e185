//! The pending requests of an object, at most one for each part.

use std::cmp::Ordering;

use super::{
    effect::{Completion, Effect},
    opaque::{Types, Version},
    wish::{Request, RequestId, Wishes},
};

pub(super) struct PendingRequests<T: Types> {
    /// In order of their parts' first requests.
    requests: Vec<Request<T::Version, T::Wish, T::Waiter>>,
    /// The only request is for the object's absence.
    absence: bool,
    /// The wishes that were pending when a newer request first replaced or joined them, once the
    /// object was known to be unsatisfactory. The key's age counts from these, so we must notice
    /// when somebody fulfils them.
    earlier: Option<Wishes<T>>,
}

impl<T: Types> PendingRequests<T> {
    pub fn none() -> Self {
        Self { requests: Vec::new(), absence: false, earlier: None }
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub fn all(&self) -> &[Request<T::Version, T::Wish, T::Waiter>] {
        &self.requests
    }

    pub fn ids(&self) -> Vec<RequestId> {
        self.requests.iter().map(|request| request.id).collect()
    }

    pub fn wishes(&self) -> Wishes<T> {
        Wishes::of(&self.requests)
    }

    pub fn earlier(&self) -> Option<Wishes<T>> {
        self.earlier.as_ref().map(Wishes::copy)
    }

    /// Adds a request, and returns those that it replaces: the one for the same part, or for the
    /// object's absence.
    pub fn add(
        &mut self,
        request: Request<T::Version, T::Wish, T::Waiter>,
    ) -> Vec<Request<T::Version, T::Wish, T::Waiter>> {
        if self.want_absence() {
            return self.replace_all(request, false);
        }
        self.absence = false;
        let same = self.requests.iter_mut().find(|old| old.part == request.part);
        match same {
            Some(old) => vec![std::mem::replace(old, request)],
            None => {
                self.requests.push(request);
                Vec::new()
            }
        }
    }

    /// Adds a request for the object's absence, and returns all others.
    pub fn add_absence(
        &mut self,
        request: Request<T::Version, T::Wish, T::Waiter>,
    ) -> Vec<Request<T::Version, T::Wish, T::Waiter>> {
        self.replace_all(request, true)
    }

    fn replace_all(
        &mut self,
        request: Request<T::Version, T::Wish, T::Waiter>,
        absence: bool,
    ) -> Vec<Request<T::Version, T::Wish, T::Waiter>> {
        self.absence = absence;
        std::mem::replace(&mut self.requests, vec![request])
    }

    /// Returns whether the object must not exist.
    pub fn want_absence(&self) -> bool {
        self.absence && !self.requests.is_empty()
    }

    /// Returns whether this version is certainly no older than those at which callers saw the
    /// object.
    pub fn have_seen_nothing_newer(&self, version: Option<&T::Version>) -> bool {
        self.seen().all(|seen| {
            version == Some(seen) || order(version, seen).is_some_and(|order| order != Ordering::Less)
        })
    }

    /// Returns whether this version is certainly older than one at which a caller saw the object.
    pub fn have_seen_newer(&self, version: Option<&T::Version>) -> bool {
        self.seen().any(|seen| order(version, seen) == Some(Ordering::Less))
    }

    fn seen(&self) -> impl Iterator<Item = &T::Version> {
        self.requests.iter().filter_map(|request| request.seen.as_ref())
    }

    /// Remembers the wishes that are pending now as the earlier ones, unless there are some
    /// already.
    pub fn remember(&mut self) {
        if self.earlier.is_none() {
            self.earlier = Some(self.wishes());
        }
    }

    /// Forgets the earlier wishes: somebody fulfilled them.
    pub fn forget_earlier(&mut self, effects: &mut Vec<Effect<T>>) {
        effects.extend(self.earlier.take().map(Effect::Discard));
    }

    /// Returns the callers of the requests that `which` picks, which stay pending.
    pub fn take_waiters(&mut self, which: impl Fn(RequestId) -> bool) -> Vec<T::Waiter> {
        let picked = self.requests.iter_mut().filter(|request| which(request.id));
        picked.filter_map(|request| request.waiter.take()).collect()
    }

    /// Ends the requests that `which` picks.
    pub fn complete(
        &mut self,
        effects: &mut Vec<Effect<T>>,
        which: impl Fn(RequestId) -> bool,
        ending: impl Fn(RequestId) -> Completion<T::Version, T::Reason>,
    ) {
        let ended = self.requests.extract_if(.., |request| which(request.id));
        effects.extend(ended.map(|request| {
            let ending = ending(request.id);
            Effect::Complete(request, ending)
        }));
        if self.requests.is_empty() {
            self.forget_earlier(effects);
        }
    }
}

/// Compares two versions of one object, if they have an order.
fn order<V: Version>(one: Option<&V>, other: &V) -> Option<Ordering> {
    let (one, other) = one?.key_revision().zip(other.key_revision())?;
    Some(one.cmp(&other))
}

//! One guarded object as a pure state machine: requests, reads, answers and changes go in, effects
//! come out.
//!
//! ```text
//!      callers ── handle_request, handle_removal ─────┐
//!                                                     v
//!                                               ┌───────────┐  Queue, Clear, Satisfied, Evidence, Deleted ──> the lease
//!    the store ── handle_read, handle_answer ──>│  Object   │  Complete ──> the caller of a request
//!                                               │           │  Echo ──> the lease's delays
//!                                               │ known     │  Lost ──> the contention tracker
//!    the watch ── handle_change,                │ requested │  Assess, Discard ──> the shell
//!                 handle_listing ──────────────>│ in flight │
//!                                               └───────────┘
//!                                                     ^
//!    the lease ── handle_attempt, poll_deferred ──────┘
//! ```
//!
//! The guard is a shell around these objects: it owns the lock, the store and the watch, and
//! evaluates the wishes of its users, which are closures. The simulator is another shell. Nothing
//! here takes a lock, reads a clock, awaits or logs. A *rival* is another process that does the
//! same work as we.
//!
//! A shell evaluates outside of its lock. So each event that depends on wishes takes two steps: a
//! bare noun ([`assessment`](Object::assessment), [`question`](Object::question), the wishes of
//! [`handle_attempt`](Object::handle_attempt)) copies what has to be evaluated, and the event
//! brings the answer back. An answer to a [`Question`] that changed meanwhile is refused, and the
//! shell asks again.
//!
//! An attempt is `handle_attempt`, a read, again if [`is_stale_read`](Object::is_stale_read),
//! `handle_read`, [`Step::Write`] and `handle_answer`, then
//! `poll_deferred` until it returns `None`. A read that fails skips to `handle_answer`. The shell
//! passes the [`Verdict`](crate::engine::outcome::Verdict) to the engine last.
//!
//! # Events and effects
//!
//! | event | condition | effects |
//! |---|---|---|
//! | [`handle_request`](Object::handle_request) | nothing is pending, and what is known is up to date | `Assess` |
//! | | otherwise | `Queue`, `Assess` |
//! | | the part has a request already, or absence is requested | that one is `Superseded` |
//! | [`handle_absence_request`](Object::handle_absence_request) | always | as for `handle_request`; all others are `Superseded` |
//! | [`handle_assessment`](Object::handle_assessment) | the known value satisfies all requests, and is up to date | `Satisfied`, all `Satisfied` |
//! | | the known value is unsatisfactory | notes that; `Lost` if it was satisfactory before |
//! | [`handle_removal`](Object::handle_removal) | always | all `Removed`, `Clear` |
//! | [`handle_closure`](Object::handle_closure) | always | all `GivenUp` |
//! | [`handle_contention`](Object::handle_contention) | none | `Queue` if the requests were not queued |
//! | | contended, or never content | those concerned `GivenUp`; `Clear` if none is left, otherwise `Assess` |
//! | [`handle_read`](Object::handle_read) | the object must exist and does not | `Gone` |
//! | | something to write | [`Step::Write`]; `Lost` if the value was satisfactory before |
//! | | the object must not exist and does | [`Step::Delete`]; `Lost` as above |
//! | | nothing to write, and it is our unacknowledged write or deletion | `Written` or `Deleted` |
//! | | nothing to write, and a rival wrote since we saw it unsatisfactory | `ByOther`, `Evidence`; `Queue`, `Assess` if more is requested |
//! | | nothing to write otherwise | `Satisfied` |
//! | | the object was known to exist and is gone, without evidence | the effect `Deleted`, besides the others |
//! | [`handle_answer`](Object::handle_answer) | deleted | `Deleted`; `Assess` if more is requested |
//! | | written | `Written` if the request changed the value, otherwise `Satisfied`; `Assess` if more is requested |
//! | | refused as stale, fenced off, or without an answer | none: the verdict says to retry |
//! | | denied | `Deny`, once for each request; the verdict says to retry in a minute |
//! | | impossible, or withheld | `GivenUp` |
//! | [`handle_change`](Object::handle_change) | an attempt is in flight | none: deferred until it ends |
//! | | our last write came back, neither in a listing nor over an interruption | `Echo` |
//! | | the version is the known one | `Assess`: the watch has caught up with what we read or wrote |
//! | | an entry of a listing that is older than what is known | `Assess`: it replaces what is known, and ends no request |
//! | | older than what is known otherwise, or not comparable with it | none |
//! | | satisfactory, and a rival's write made it so | `Evidence`, all `ByOther` |
//! | | satisfactory otherwise | `Satisfied`, all `Written` or `Deleted` if it is our unacknowledged write or deletion, otherwise `Satisfied` |
//! | | unsatisfactory, but a rival's write fulfilled an earlier request | `Evidence`, `Queue` |
//! | | unsatisfactory otherwise | notes that |
//! | | the object was known to exist and is gone, without evidence | the effect `Deleted`, besides the others |
//! | [`handle_listing`](Object::handle_listing) | always | none: the changes that follow are comparable |
//!
//! # The rules behind the table
//!
//! 1. **Evidence is a transition.** A rival's write from an unsatisfactory value to a satisfactory
//!    one shows that the rival does our work. The first sight of a value shows nothing, and nor
//!    does an entry of a listing: somebody may have written it long ago. Nor does a deletion: people
//!    delete, and rivals write. It only ends the last writer's claim to the object. Where absence is
//!    requested, rivals delete, too: then a deletion counts as a write does.
//! 2. **The earliest unfulfilled request counts.** A key's age in the lease is that of its oldest
//!    unfulfilled request. A rival that fulfils that one is alive, even if a newer request has
//!    replaced it.
//! 3. **Our own writes are no evidence.** Changes wait while an attempt is in flight, because one
//!    of them may be the attempt's own write that overtook its answer. After a write with an answer,
//!    its version tells. A listing may lack that write: then nothing is evidence until it, or a
//!    newer one, has been seen. After a write without an answer, the next state is taken for ours if
//!    it equals what we sent. If it does not, it may still be ours, because servers fill in defaults
//!    and drop fractions of times, and replicas share the name under which they write. So it ends
//!    requests as `Satisfied` and is no evidence. That may overlook one write of a rival, and the
//!    next one shows the rival. The opposite error would depose a leader by its own write.
//! 4. **Old news clears no new request.** A read may be ahead of the watch, so a change counts only
//!    if it is newer than what is known. Versions with a [`key_revision`](Version::key_revision)
//!    tell. With others, changes count again once the watch has caught up with the read, or lists
//!    anew. A watch may be ahead of a read, too, if the store reads from a cache. Such a read is
//!    repeated past the cache. If that one is as old, the store was restored: it is the truth, and no
//!    evidence. Where versions have no order, only the store's promise of fresh reads holds.
//! 5. **A listing is the truth.** A store that was restored starts again from smaller revisions, and
//!    only a listing shows that. So an entry of a listing replaces what is known, unless we have
//!    read or written something newer since that listing began.
//! 6. **The known value counts while it is up to date**: the watch is live, no listing is in
//!    progress, no attempt is in flight, our reads and writes have come back, and no caller saw a
//!    newer version. Requests that such a value satisfies need no job, whoever leads. An absent
//!    object that must exist is read all the same, because its creation may be on the way.
//! 7. **A denied request stays pending,** because rights are granted without an event. Its caller
//!    is told once.
//! 8. **Absence is wanted of the whole object.** Parts of an object share one write, but nothing can
//!    be absent and have parts. So the last request decides: one for absence replaces all parts, and
//!    one for a part replaces that.

mod answers;
mod attempt;
mod changes;
mod effect;
mod getters;
mod known;
mod listing;
mod opaque;
mod own_write;
mod pending;
mod reads;
#[cfg(test)]
mod tests;
mod wish;

use self::{
    attempt::{Attempt, Refusal},
    effect::Completions,
    known::Known,
    listing::Listing,
    own_write::OwnWrite,
    pending::PendingRequests,
};
pub use self::{
    effect::{Answer, Change, Completion, Effect, Effects, Step},
    opaque::{Desired, Types, Version},
    wish::{Before, Evaluation, Judgement, Question, Request, RequestId, Stale, Wishes},
};

/// One guarded object; the [module](self) draws it.
pub struct Object<T: Types> {
    known: Known<T>,
    requests: PendingRequests<T>,
    /// The last value that we saw while requests were pending did not satisfy them.
    unsatisfied: bool,
    /// The last value that satisfied all requests, until one of them next wants to write.
    satisfied: Option<T::Value>,
    own_write: OwnWrite<T>,
    in_flight: Option<Box<Attempt<T>>>,
    refusal: Option<Box<Refusal<T>>>,
    listing: Listing,
    /// The pending requests have no job in the lease yet: their assessment tells whether they need
    /// one.
    unqueued: bool,
    /// Counts whatever makes the answer to a question stale.
    generation: u64,
}

impl<T: Types> Object<T> {
    /// Returns an object without requests. With `absent`, a complete listing did not contain it;
    /// otherwise nothing is known.
    pub fn new(absent: bool) -> Self {
        Self {
            known: Known::new(absent),
            requests: PendingRequests::none(),
            unsatisfied: false,
            satisfied: None,
            own_write: OwnWrite::none(),
            in_flight: None,
            refusal: None,
            listing: Listing::default(),
            unqueued: false,
            generation: 0,
        }
    }

    /// Takes in a request, which replaces a pending one for the same part.
    pub fn handle_request(&mut self, request: Request<T::Version, T::Wish, T::Waiter>) -> Effects<T> {
        self.handle_any_request(|requests| requests.add(request))
    }

    /// Takes in a request that the object not exist, which replaces all others. A later request for
    /// a part replaces it in turn.
    pub fn handle_absence_request(&mut self, request: Request<T::Version, T::Wish, T::Waiter>) -> Effects<T> {
        self.handle_any_request(|requests| requests.add_absence(request))
    }

    /// Adds a request, which replaces those that `add` returns.
    fn handle_any_request(
        &mut self,
        add: impl FnOnce(&mut PendingRequests<T>) -> Vec<Request<T::Version, T::Wish, T::Waiter>>,
    ) -> Effects<T> {
        self.generation += 1;
        let is_first = self.requests.is_empty();
        if is_first {
            self.unsatisfied = false;
        } else if self.unsatisfied {
            self.requests.remember();
        }
        let replaced = add(&mut self.requests);
        let ended = replaced.into_iter().map(|replaced| Effect::Complete(replaced, Completion::Superseded));
        self.unqueued = is_first && self.is_up_to_date();
        let queue = (!self.unqueued).then_some(Effect::Queue);
        ended.chain(queue).chain([Effect::Assess]).collect()
    }

    /// Returns the wishes to evaluate against the known value, and that value. `None` if nothing is
    /// requested or known.
    pub fn assessment(&self) -> Option<(Question<T>, Option<T::Value>)> {
        if self.requests.is_empty() || self.known.is_nothing() {
            return None;
        }
        let question = Question { wishes: self.requests.wishes(), ..Question::empty(self.generation) };
        Some((question, self.known.value().cloned()))
    }

    /// Takes in the evaluation of an [`assessment`](Self::assessment), `None` if a wish could not
    /// be evaluated. `live` says whether the watch reports changes and no listing is in progress.
    /// Returns the value that is wanted instead of the known one. The shell asks the contention
    /// tracker about it, and then calls [`handle_contention`](Self::handle_contention).
    ///
    /// # Errors
    ///
    /// [`Stale`] if the assessment is another one by now: assess again.
    pub fn handle_assessment(
        &mut self,
        question: &Question<T>,
        evaluation: Option<Evaluation<T::Value>>,
        live: bool,
    ) -> Result<(Option<T::Value>, Effects<T>), Stale> {
        if !self.is_current(question) {
            return Err(Stale);
        }
        let is_satisfied = evaluation.as_ref().map(Evaluation::is_satisfied);
        if is_satisfied == Some(true) && live && self.is_up_to_date() {
            self.satisfied = self.known.value().cloned();
            let mut effects = vec![Effect::Satisfied];
            effects.extend(self.complete_all(Completion::Satisfied));
            return Ok((None, effects));
        }
        self.unsatisfied = is_satisfied == Some(false);
        let wanted = evaluation.and_then(|evaluation| evaluation.write);
        let lost = wanted.as_ref().and_then(|_| self.satisfied.take());
        Ok((wanted.flatten(), lost.map(Effect::Lost).into_iter().collect()))
    }

    /// Returns whether nothing newer than what is known may exist, apart from what a live watch is
    /// about to report.
    fn is_up_to_date(&self) -> bool {
        self.in_flight.is_none()
            && self.known.is_reported()
            && !self.own_write.is_unacknowledged()
            && !self.own_write.is_older_than_a_listing()
            && self.requests.have_seen_nothing_newer(self.known.version())
    }

    /// An assessment ended no request. With a reason, these wishes are contended or
    /// [never content](Wishes::never_content): gives them up, also during an attempt.
    pub fn handle_contention(&mut self, wishes: &Wishes<T>, reason: Option<T::Reason>) -> Effects<T> {
        let mut effects = Vec::new();
        if let Some(reason) = reason {
            self.complete(&mut effects, |id| wishes.contains(id), |_| Completion::GivenUp(reason.clone()));
            // Those that are left may be satisfied without the others.
            effects.push(if self.requests.is_empty() { Effect::Clear } else { Effect::Assess });
        }
        let queues = std::mem::take(&mut self.unqueued) && !self.requests.is_empty();
        effects.extend(queues.then_some(Effect::Queue));
        effects
    }

    /// The caller withdraws all requests. An attempt in flight goes on and is not repeated.
    pub fn handle_removal(&mut self) -> Effects<T> {
        let mut effects = self.complete_all(Completion::Removed);
        effects.push(Effect::Clear);
        effects
    }

    /// The lease takes no more jobs: gives all requests up.
    pub fn handle_closure(&mut self, reason: T::Reason) -> Effects<T> {
        self.complete_all(Completion::GivenUp(reason))
    }

    /// An attempt starts. Returns the wishes to evaluate against what it reads.
    pub fn handle_attempt(&mut self) -> Wishes<T> {
        self.generation += 1;
        self.in_flight = Some(Box::new(Attempt::new(self.requests.ids(), self.requests.want_absence())));
        self.requests.wishes()
    }

    /// Returns the next change that the attempt deferred. Once there is none, ends the attempt.
    pub fn poll_deferred(&mut self) -> Option<Change<T>> {
        let change = self.in_flight.as_mut().and_then(|attempt| attempt.deferred.pop_front());
        if change.is_none() {
            self.generation += 1;
            self.in_flight = None;
        }
        change
    }

    /// Forgets why the store last denied or refused a request. Returns the reason if that was at
    /// this version, or at an unknown one.
    pub fn take_refusal(&mut self, at: Option<&T::Version>) -> Option<T::Reason> {
        let Refusal { version, reason } = *self.refusal.take()?;
        version.is_none_or(|version| Some(&version) == at).then_some(reason)
    }

    /// Returns whether a new state with this version may be our last write, which has not come back.
    /// A listing may lack that write, so a state that follows may be one before it or come from it.
    fn may_be_acknowledged(&self, version: Option<&T::Version>) -> bool {
        let is_behind = self.own_write.is_older_than_a_listing() && !self.known.is_ahead_of_watch();
        is_behind || self.own_write.has_version(version)
    }

    /// Returns whether a question is still the same. Shells forget objects and make them anew, so
    /// the generation alone does not suffice.
    fn is_current(&self, question: &Question<T>) -> bool {
        question.generation == self.generation && question.wishes.are_of(self.requests.all())
    }

    /// Ends the requests that `which` picks.
    fn complete(
        &mut self,
        effects: &mut Effects<T>,
        which: impl Fn(RequestId) -> bool,
        ending: impl Fn(RequestId) -> Completions<T>,
    ) {
        self.generation += 1;
        self.requests.complete(effects, which, ending);
    }

    fn complete_all(&mut self, ending: Completions<T>) -> Effects<T> {
        let mut effects = Vec::new();
        self.complete(&mut effects, |_| true, |_| ending.clone());
        effects
    }

    /// Ends the requests that the attempt in flight tried to fulfil.
    fn complete_attempt(&mut self, effects: &mut Effects<T>, ending: impl Fn(RequestId) -> Completions<T>) {
        let in_flight = self.in_flight.as_mut();
        let attempted = in_flight.map(|attempt| std::mem::take(&mut attempt.requests)).unwrap_or_default();
        self.complete(effects, |id| attempted.contains(&id), ending);
    }
}

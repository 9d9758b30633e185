//! The meaning of a change that the watch reports.

use super::{
    Object,
    effect::{Change, Completion, Effect, Effects},
    known::Age,
    opaque::{Types, Version},
    wish::{Before, Judgement, Question},
};

impl<T: Types> Object<T> {
    /// A listing begins: the watch is no longer behind what we know.
    pub fn handle_listing(&mut self) {
        self.generation += 1;
        self.listing.begin();
        self.own_write.handle_listing();
        self.known.caught_up();
    }

    /// Returns what has to be evaluated before [`handle_change`](Self::handle_change).
    pub fn question(&self, change: &Change<T>) -> Question<T> {
        let mut question = Question::empty(self.generation);
        let is_due = change.deferred.is_some() || self.in_flight.is_none();
        if !self.requests.is_empty() && is_due && self.known.age(change) == Age::Newer {
            question.wishes = self.requests.wishes();
            question.earlier = self.requests.earlier();
            let may_be_ours = self.may_be_acknowledged(change.version.as_ref())
                || self.own_write.may_be_change(&self.known, change);
            if change.value.is_some() && !change.listing && !may_be_ours {
                question.before = Some(Before(self.known.value().cloned()));
            }
        }
        question
    }

    /// Takes in a change and the answer to its [`question`](Self::question). While an attempt is in
    /// flight the change is deferred, because it may be the attempt's own write.
    ///
    /// # Errors
    ///
    /// Returns the change if the question is another one by now.
    pub fn handle_change(
        &mut self,
        mut change: Change<T>,
        question: &Question<T>,
        judgement: Judgement,
    ) -> Result<Effects<T>, Change<T>> {
        self.listing.note(&change);
        if self.listing.has_replaced(&change) {
            return Ok(Vec::new());
        }
        if let (None, Some(attempt)) = (change.deferred, &mut self.in_flight) {
            change.deferred = Some(self.listing.number);
            attempt.deferred.push_back(change);
            return Ok(Vec::new());
        }
        // Old news needs no answer, and nor does an object that nobody wants.
        let needs_answer = !self.requests.is_empty() && self.known.age(&change) == Age::Newer;
        if needs_answer && !self.is_current(question) {
            return Err(change);
        }
        let echo = self.own_write.take_echo(&change).map(Effect::Echo);
        let mut effects: Effects<T> = echo.into_iter().collect();
        match self.known.age(&change) {
            Age::Older => {}
            Age::Unclear => self.known.note_unclear(change.version),
            Age::Known => {
                self.known.caught_up();
                effects.extend((!self.requests.is_empty()).then_some(Effect::Assess));
            }
            Age::Restored => self.restored(&mut effects, change),
            Age::Newer => self.changed(&mut effects, change, judgement),
        }
        Ok(effects)
    }

    /// Takes in an entry of a listing that may be older than what is known. It may be the truth, so
    /// later changes count from it. It may be old news, so it ends no request.
    fn restored(&mut self, effects: &mut Effects<T>, change: Change<T>) {
        self.generation += 1;
        self.refusal = None;
        self.satisfied = None;
        self.known.record(change.value, change.version);
        effects.extend((!self.requests.is_empty()).then_some(Effect::Assess));
    }

    fn changed(&mut self, effects: &mut Effects<T>, change: Change<T>, judgement: Judgement) {
        let may_be_ours = change.listing || self.own_write.may_be_change(&self.known, &change);
        let ours = may_be_ours && self.own_write.is(change.value.as_ref());
        let is_acknowledged = self.may_be_acknowledged(change.version.as_ref());
        self.own_write.pass(&self.known, &change);
        // A deletion has no writer to ask for.
        let fulfils_absence = change.value.is_none() && self.requests.want_absence();
        let by_rival = judgement.by_rival || fulfils_absence && !may_be_ours && !is_acknowledged;
        let revision = change.version.as_ref().and_then(Version::revision);
        let ending = match (&change.value, &change.version) {
            (None, _) if ours => Completion::Deleted,
            (Some(_), Some(version)) if ours => Completion::Written(version.clone()),
            _ => Completion::Satisfied,
        };
        let is_deletion = change.value.is_none();
        let was_deleted = is_deletion && self.known.value().is_some() && !ours && !by_rival;
        self.generation += 1;
        self.refusal = None;
        self.known.record(change.value.clone(), change.version);
        let is_due = !self.requests.is_empty() && !self.requests.have_seen_newer(self.known.version());
        let satisfied = judgement.satisfied.filter(|_| is_due);
        match satisfied {
            Some(true) => self.satisfied = change.value,
            // An object that is created anew under the same key is not one that somebody changed.
            _ if is_deletion => self.satisfied = None,
            _ => {}
        }
        match satisfied {
            Some(true) if self.unsatisfied && by_rival => {
                effects.push(Effect::Evidence { revision });
                effects.extend(self.complete_all(Completion::ByOther));
            }
            Some(true) => {
                effects.push(Effect::Satisfied);
                effects.extend(self.complete_all(ending));
            }
            // This fulfils our original request but not the newer one: evidence that the rival is
            // alive. The newer request starts waiting afresh.
            Some(false) if judgement.fulfils_earlier && by_rival => {
                self.unsatisfied = true;
                self.requests.forget_earlier(effects);
                effects.extend([Effect::Evidence { revision }, Effect::Queue]);
            }
            Some(false) => self.unsatisfied = true,
            None => {}
        }
        effects.extend(was_deleted.then_some(Effect::Deleted));
    }
}

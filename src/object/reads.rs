//! The meaning of what an attempt reads.

use super::{
    Object,
    attempt::Sent,
    effect::{Completion, Effect, Effects, Step},
    opaque::{Types, Version},
    wish::{Before, Evaluation},
};
use crate::engine::{
    Timestamp,
    outcome::{Outcome, Verdict},
};

impl<T: Types> Object<T> {
    /// Returns whether a read is older than what is known, or than what a caller has seen, so that the
    /// shell has to read again, past the store's cache. Versions without a key revision do not tell.
    pub fn is_stale_read(&self, read: Option<&(T::Value, T::Version)>) -> bool {
        read.is_some_and(|(_, version)| {
            self.known.is_past(version) || self.requests.have_seen_newer(Some(version))
        })
    }

    /// Returns the value before the one that an attempt read, if it makes a difference whether a
    /// rival wrote that one.
    pub fn before_read(
        &self,
        read: Option<&(T::Value, T::Version)>,
        evaluation: &Evaluation<T::Value>,
    ) -> Option<Before<T::Value>> {
        let (_, version) = read?;
        let is_news = self.known.version() != Some(version) && !self.known.is_past(version);
        let may_be_ours = self.may_be_acknowledged(Some(version)) || self.own_write.may_be_read(version);
        let asks = is_news && evaluation.is_satisfied() && !may_be_ours;
        asks.then(|| Before(self.known.value().cloned()))
    }

    /// Takes in the value and version that an attempt read, the evaluation of its wishes, and
    /// whether a rival wrote the value.
    pub fn handle_read(
        &mut self,
        now: Timestamp,
        read: Option<(T::Value, T::Version)>,
        evaluation: Evaluation<T::Value>,
        by_rival: bool,
    ) -> (Step<T>, Effects<T>) {
        let mut effects = Vec::new();
        let is_satisfied = evaluation.is_satisfied();
        let Evaluation { write, changed, gone } = evaluation;
        if !gone.is_empty() {
            self.complete(&mut effects, |id| gone.contains(&id), |_| Completion::Gone);
        }
        let Some(value) = write else {
            let verdict = self.nothing_to_write(&mut effects, read, is_satisfied, by_rival);
            return (Step::Finish(verdict), effects);
        };
        let expected = read.as_ref().map(|(_, version)| version.clone());
        let step = match (value.clone(), expected.clone()) {
            (Some(value), expected) => Step::Write { value, expected },
            (None, Some(expected)) => Step::Delete { expected },
            (None, None) => return (Step::Finish(Outcome::Unchanged.done()), effects),
        };
        self.generation += 1;
        effects.extend(self.is_deleted(read.as_ref()).then_some(Effect::Deleted));
        if let Some((value, version)) = &read {
            self.own_write.read(value, version);
        }
        self.known.learn(read);
        self.unsatisfied = true;
        // It is to be written again, so somebody changed it. Or the caller wants another value by
        // now: the contention tracker compares the two.
        effects.extend(self.satisfied.take().map(Effect::Lost));
        if let Some(attempt) = &mut self.in_flight {
            attempt.sent = Some(Sent { value, expected, changed, started: now });
        }
        (step, effects)
    }

    /// Returns whether the object was known to exist, and a read did not find it.
    fn is_deleted(&self, read: Option<&(T::Value, T::Version)>) -> bool {
        read.is_none() && self.known.value().is_some()
    }

    /// The value is satisfactory, or an object that must exist does not.
    fn nothing_to_write(
        &mut self,
        effects: &mut Effects<T>,
        read: Option<(T::Value, T::Version)>,
        is_satisfied: bool,
        by_rival: bool,
    ) -> Verdict {
        let value = read.as_ref().map(|(value, _)| value.clone());
        let version = read.as_ref().map(|(_, version)| version.clone());
        let is_deleted = self.is_deleted(read.as_ref());
        let wants_absence = self.in_flight.as_ref().is_some_and(|attempt| attempt.wants_absence);
        let is_acknowledged = self.may_be_acknowledged(version.as_ref());
        let ours = match &read {
            Some((value, version)) => self.own_write.read(value, version),
            None => self.own_write.read_absent(),
        };
        // A deletion has no writer to ask for.
        let by_rival = by_rival || is_deleted && wants_absence && !ours && !is_acknowledged;
        // The first sight of a value shows nothing.
        let by_other = is_satisfied && self.unsatisfied && by_rival;
        self.known.learn(read);
        self.satisfied = value.filter(|_| is_satisfied);
        self.requests.forget_earlier(effects);
        self.complete_attempt(effects, |_| match &version {
            Some(version) if ours => Completion::Written(version.clone()),
            None if ours => Completion::Deleted,
            _ if by_other => Completion::ByOther,
            _ => Completion::Satisfied,
        });
        if by_other {
            effects.push(Effect::Evidence { revision: version.as_ref().and_then(Version::revision) });
        } else if is_deleted && !ours {
            effects.push(Effect::Deleted);
        }
        if !self.requests.is_empty() {
            // Requests came during the attempt. The evidence has cleared their job, too.
            effects.extend(by_other.then_some(Effect::Queue));
            effects.push(Effect::Assess);
        }
        Outcome::Unchanged.done()
    }
}

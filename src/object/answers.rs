//! The meaning of the store's answer to an attempt's write.

use super::{
    Object,
    attempt::{Refusal, Sent},
    effect::{Answer, Completion, Completions, Effect, Effects},
    opaque::Types,
    wish::RequestId,
};
use crate::engine::outcome::Verdict;

impl<T: Types> Object<T> {
    /// Takes in the answer to a failed read or to a write. Returns the attempt's verdict.
    pub fn handle_answer(&mut self, answer: Answer<T>) -> (Verdict, Effects<T>) {
        let mut effects = Vec::new();
        let sent = self.in_flight.as_mut().and_then(|attempt| attempt.sent.take());
        let verdict = answer.verdict(sent.is_some());
        match answer {
            Answer::Written(version) => {
                if let Some(sent) = sent {
                    self.written(&mut effects, sent, version);
                }
            }
            Answer::Deleted => {
                if let Some(sent) = sent {
                    self.deleted(&mut effects, sent);
                }
            }
            Answer::Unanswered => self.own_write.unanswered(sent),
            Answer::Conflict | Answer::Fenced => {}
            Answer::Denied(reason) => {
                if let Some(attempt) = &self.in_flight {
                    let waiters = self.requests.take_waiters(|id| attempt.requests.contains(&id));
                    effects.extend((!waiters.is_empty()).then(|| Effect::Deny(waiters, reason.clone())));
                    let is_pending = self.requests.ids().iter().any(|id| attempt.requests.contains(id));
                    self.note_refusal(is_pending, reason);
                }
            }
            Answer::Impossible(reason) => {
                self.complete_attempt(&mut effects, |_| Completion::GivenUp(reason.clone()));
                self.note_refusal(!effects.is_empty(), reason);
            }
            Answer::Withheld(reason) => {
                self.complete_attempt(&mut effects, |_| Completion::GivenUp(reason.clone()));
            }
        }
        (verdict, effects)
    }

    /// A caller that withdrew its request meanwhile has no use for the reason, and the next caller
    /// may want another value.
    fn note_refusal(&mut self, is_wanted: bool, reason: T::Reason) {
        if is_wanted {
            let version = self.known.version().cloned();
            self.refusal = Some(Box::new(Refusal { version, reason }));
        }
    }

    fn written(&mut self, effects: &mut Effects<T>, sent: Sent<T>, version: T::Version) {
        self.own_write.succeeded(version.clone(), sent.started);
        self.satisfied = sent.value.clone();
        self.known.learn_own(sent.value.map(|value| (value, version.clone())));
        self.succeeded(effects, &sent.changed, &Completion::Written(version));
    }

    fn deleted(&mut self, effects: &mut Effects<T>, sent: Sent<T>) {
        if let Some(version) = sent.expected {
            self.own_write.deleted(version);
        }
        self.satisfied = None;
        self.known.learn_own(None);
        self.succeeded(effects, &sent.changed, &Completion::Deleted);
    }

    /// Our write succeeded. The requests that changed the state end so, the others as satisfied.
    fn succeeded(&mut self, effects: &mut Effects<T>, changed: &[RequestId], ending: &Completions<T>) {
        self.refusal = None;
        self.unsatisfied = false;
        self.requests.forget_earlier(effects);
        self.complete_attempt(effects, |id| match changed.contains(&id) {
            true => ending.clone(),
            false => Completion::Satisfied,
        });
        // Requests that came during the attempt may want more.
        effects.extend((!self.requests.is_empty()).then_some(Effect::Assess));
    }
}

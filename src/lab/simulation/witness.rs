//! What must hold in a replica each time that its engine takes something in.

use std::fmt::Display;

use crate::engine::{
    Engine, Role, Timestamp,
    outcome::{Outcome, Verdict},
};

/// Remembers what the engine was told, and compares.
#[derive(Default)]
pub(super) struct Witness {
    /// When the attempt began that began last of those whose writes landed.
    landed: Timestamp,
    /// Where the write that won the lease stands in the store's order.
    won_at: Option<u64>,
    last_answer: Timestamp,
    /// Since when the store gives no answer: when the last attempt failed, if none was answered since it began.
    silent: Option<Timestamp>,
    broken: Option<(&'static str, String)>,
}

/// How an engine stood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    at: Timestamp,
    role_generation: u64,
    role: Role,
}

impl Standing {
    pub fn of(engine: &Engine<usize, u64>, at: Timestamp) -> Self {
        Self { at, role_generation: engine.role_generation(), role: engine.role() }
    }
}

impl Witness {
    /// What did not hold.
    pub fn broken(&self) -> Option<&(&'static str, String)> {
        self.broken.as_ref()
    }

    pub fn is_silent(&self) -> bool {
        self.silent.is_some()
    }

    /// Until when the lease of a leader by work may be.
    pub fn latest_end(&self, engine: &Engine<usize, u64>) -> Timestamp {
        self.landed + engine.config().term
    }

    /// An attempt begins.
    pub fn begins(&mut self, engine: &Engine<usize, u64>, now: Timestamp) {
        if let Some(silent) = self.silent
            && now < silent + engine.config().backoff_base
        {
            self.breaks("all attempts pause after a failure", format!("{:?}", now - silent));
        }
    }

    /// An attempt ended, which began so. The engine stood like this before it was told. `by_work`: no election decides until
    /// when it leads.
    pub fn ended(
        &mut self,
        engine: &Engine<usize, u64>,
        began: Standing,
        before: Standing,
        verdict: Verdict,
        by_work: bool,
    ) {
        let (started, now) = (began.at, before.at);
        match verdict.outcome {
            Outcome::Failed => {
                let is_news =
                    self.silent.is_none_or(|silent| silent < started) && started >= self.last_answer;
                if is_news && began.role_generation == before.role_generation {
                    self.silent = Some(now);
                }
                return;
            }
            Outcome::Written => self.landed(engine, began, before, verdict.revision, by_work),
            _ => {}
        }
        self.last_answer = now;
        self.silent = None;
    }

    fn landed(
        &mut self,
        engine: &Engine<usize, u64>,
        began: Standing,
        before: Standing,
        order: Option<u64>,
        by_work: bool,
    ) {
        self.landed = self.landed.max(began.at);
        let wins = engine.role() == Role::Leader && before.role != Role::Leader;
        let extends = began.role == Role::Leader && began.role_generation == engine.role_generation();
        if wins {
            self.won_at = order;
        }
        let end = began.at + engine.config().term;
        if by_work && (wins || extends) && before.at < end && engine.lease_end() < end {
            let detail = format!("until {:?}, not {end:?}", engine.lease_end());
            self.breaks("a write holds the lease for a term", detail);
        }
    }

    /// The engine was told of somebody else's write when it stood like this.
    pub fn heard(&mut self, engine: &Engine<usize, u64>, before: Standing, order: u64) {
        let is_old = before.role == Role::Leader && self.won_at.is_some_and(|won| order < won);
        if is_old && engine.role_generation() != before.role_generation {
            let detail = format!("{order}, won at {:?}", self.won_at);
            self.breaks("news older than the write that won depose nobody", detail);
        }
    }

    fn breaks(&mut self, promise: &'static str, detail: impl Display) {
        self.broken.get_or_insert_with(|| (promise, detail.to_string()));
    }
}

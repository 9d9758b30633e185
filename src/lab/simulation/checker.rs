//! The promises that one engine keeps with every event that it takes in.

use std::{collections::BTreeSet, fmt::Display};

use crate::engine::{
    Engine, Incumbent, Role, Timestamp,
    outcome::{Outcome, Verdict},
};

/// Remembers the events of one engine, and compares.
#[derive(Default)]
pub(super) struct Checker {
    /// When the latest attempt began whose write succeeded.
    last_written: Timestamp,
    /// The position of the write that won the lease, in the store's order.
    won_at: Option<u64>,
    last_answer: Timestamp,
    /// The keys whose last attempt failed.
    failed: BTreeSet<usize>,
    /// The key that failed first since the last answer.
    suspect: Option<usize>,
    /// When the last attempt failed, if different keys failed and the store has answered no attempt
    /// in between.
    silent: Option<Timestamp>,
    /// Since when it has been silent.
    silent_since: Option<Timestamp>,
    /// The silences that are over: since when, and until when.
    silences: Vec<(Timestamp, Timestamp)>,
    /// When the last attempt failed, while it was silent, of a key that had not failed before.
    silent_to_clean: Option<Timestamp>,
    broken: Option<(&'static str, String)>,
}

/// The state of an engine at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    at: Timestamp,
    role_generation: u64,
    role: Role,
    leads: bool,
}

/// The key of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    pub key: usize,
    /// Its attempt before that had failed.
    pub failed_before: bool,
    /// The last writer of the key when the attempt started.
    pub incumbent: Incumbent,
    /// Its job was cleared while the attempt was in flight.
    pub cleared: bool,
}

impl Standing {
    pub fn of(engine: &Engine<usize, u64>, at: Timestamp) -> Self {
        let (role_generation, role) = (engine.role_generation(), engine.role());
        Self { at, role_generation, role, leads: engine.is_leader(at) }
    }

    pub fn at(&self) -> Timestamp {
        self.at
    }

    pub fn leads(&self) -> bool {
        self.leads
    }
}

impl Checker {
    /// Returns the first promise that was broken, and how.
    pub fn broken(&self) -> Option<&(&'static str, String)> {
        self.broken.as_ref()
    }

    /// Returns since when the store is known to give no answer, if it is.
    pub fn silent_since(&self) -> Option<Timestamp> {
        self.silent_since
    }

    /// Returns the times in which the store gave no answer: since when, and until when.
    pub fn silences(&self) -> impl Iterator<Item = (Timestamp, Option<Timestamp>)> {
        let over = self.silences.iter().map(|&(since, until)| (since, Some(until)));
        over.chain(self.silent_since.map(|since| (since, None)))
    }

    /// Returns the latest end that the lease of a leader by work may have.
    pub fn latest_end(&self, engine: &Engine<usize, u64>) -> Timestamp {
        self.last_written + engine.config().term
    }

    /// Returns whether the last attempt of a key failed.
    pub fn has_failed(&self, key: usize) -> bool {
        self.failed.contains(&key)
    }

    /// A key's job was cleared, and with it what is known of the key.
    pub fn key_was_cleared(&mut self, key: usize) {
        self.failed.remove(&key);
    }

    pub fn attempt_starts(&mut self, engine: &Engine<usize, u64>, now: Timestamp, key: usize) {
        let silent = if self.has_failed(key) { self.silent } else { self.silent_to_clean };
        if let Some(silent) = silent
            && now < silent + engine.config().backoff_base
        {
            self.break_promise(
                "all attempts pause after failures of different keys",
                format!("{:?}", now - silent),
            );
        }
    }

    /// An attempt ended. `began` is the engine when it started, `before` the engine before it took
    /// the verdict in. With `by_work`, no election decides until when it leads.
    pub fn attempt_ended(
        &mut self,
        engine: &Engine<usize, u64>,
        of: Of,
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
                    self.failure_is_news(now, of);
                }
                if of.cleared {
                    self.failed.remove(&of.key);
                } else {
                    self.failed.insert(of.key);
                }
                return;
            }
            Outcome::Written => self.written(engine, began, before, verdict.revision, by_work),
            _ => {}
        }
        self.last_answer = now;
        self.failed.remove(&of.key);
        (self.suspect, self.silent, self.silent_to_clean) = (None, None, None);
        self.silences.extend(self.silent_since.take().map(|since| (since, now)));
    }

    fn failure_is_news(&mut self, now: Timestamp, of: Of) {
        let is_first = !of.failed_before;
        if self.silent.is_none() && (!is_first || *self.suspect.get_or_insert(of.key) == of.key) {
            return;
        }
        self.silent = Some(now);
        self.silent_since.get_or_insert(now);
        if is_first {
            self.silent_to_clean = Some(now);
        }
    }

    fn written(
        &mut self,
        engine: &Engine<usize, u64>,
        began: Standing,
        before: Standing,
        revision: Option<u64>,
        by_work: bool,
    ) {
        self.last_written = self.last_written.max(began.at);
        let wins = engine.role() == Role::Leader && before.role != Role::Leader;
        let extends = began.role == Role::Leader && began.role_generation == engine.role_generation();
        if wins {
            self.won_at = revision;
        }
        let end = began.at + engine.config().term;
        if by_work && (wins || extends) && before.at < end && engine.lease_end() < end {
            let detail = format!("until {:?}, not {end:?}", engine.lease_end());
            self.break_promise("a write holds the lease for a term", detail);
        }
    }

    /// The store was listed anew, and may have been restored.
    pub fn store_was_listed(&mut self) {
        self.won_at = None;
    }

    /// The engine took evidence in. `before` is the engine before that.
    pub fn rival_was_seen(&mut self, engine: &Engine<usize, u64>, before: Standing, revision: Option<u64>) {
        let is_older = revision.zip(self.won_at).is_some_and(|(revision, won)| revision < won);
        let is_old = before.role == Role::Leader && is_older;
        if is_old && engine.role_generation() != before.role_generation {
            let detail = format!("{revision:?}, won at {:?}", self.won_at);
            self.break_promise("news older than the write that won depose nobody", detail);
        }
    }

    fn break_promise(&mut self, promise: &'static str, detail: impl Display) {
        self.broken.get_or_insert_with(|| (promise, detail.to_string()));
    }
}

//! A replica: the real engine, and what the guard does around it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use crate::{
    config::Builder,
    engine::{AttemptId, Engine, Timestamp},
    work::{Outcome, Verdict},
};

/// What a key holds: the round that it is at. Edits of others leave that alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub round: u64,
    /// The position of the last write in the store's order; zero if there was none.
    pub order: u64,
}

pub(super) struct Replica {
    pub engine: Engine<usize, u64>,
    /// How fast the clock runs.
    rate: f64,
    /// When the clock was at zero, in the world's time.
    born: Duration,
    /// What is wanted of each key, and since when, in the world's time.
    pub wants: BTreeMap<usize, Want>,
    known: HashMap<usize, Known>,
    /// Attempts that are out, by their keys.
    pub flying: BTreeMap<usize, Flying>,
}

/// The rounds that were wanted of a key and are not known to be reached, and since when; never none.
#[derive(Clone, Debug, Default)]
pub(super) struct Want(VecDeque<(u64, Duration)>);

impl Want {
    /// What is wanted now.
    pub fn round(&self) -> u64 {
        self.0.back().map_or(0, |(round, _)| *round)
    }

    /// What was wanted first, and since when.
    pub fn oldest(&self) -> (u64, Duration) {
        self.0.front().copied().unwrap_or_default()
    }

    /// Forgets what is reached. Returns whether that is all.
    fn reaches(&mut self, reached: u64) -> bool {
        self.0.retain(|(round, _)| *round > reached);
        self.0.is_empty()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    value: Value,
    /// We saw it while it was not as we want it.
    wrong: bool,
    /// A round that we wrote without getting an answer.
    lost: Option<u64>,
}

/// An attempt that is out.
pub(super) struct Flying {
    id: AttemptId,
    work: u64,
    started: Duration,
    /// Changes that came meanwhile.
    held: Vec<Change>,
}

/// News of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub key: usize,
    pub value: Value,
    pub listing: bool,
    /// When the write began, if it is our own.
    pub ours_since: Option<Duration>,
}

impl Replica {
    pub fn new(index: usize, term: Duration, seed: u64, rate: f64, born: Duration) -> Self {
        let config = Builder::new(format!("replica-{index}")).term(term).seed(seed).build();
        let engine = Engine::new(config.expect("plans are valid"));
        Self { engine, rate, born, wants: BTreeMap::new(), known: HashMap::new(), flying: BTreeMap::new() }
    }

    /// The replica's own clock.
    pub fn local(&self, now: Duration) -> Timestamp {
        Timestamp::from_nanos(((now - self.born).as_nanos() as f64 * self.rate) as u64)
    }

    /// When it has to be asked again, in the world's time.
    pub fn wakes(&self) -> Option<Duration> {
        let wakes = self.engine.poll_timeout()?.as_nanos();
        // A nanosecond more, because the way there and back rounds.
        Some(self.born + Duration::from_nanos((wakes as f64 / self.rate) as u64 + 2))
    }

    pub fn wants(&mut self, now: Duration, key: usize, round: u64) {
        let known = self.known.entry(key).or_default();
        if known.value.round >= round {
            return;
        }
        // What we saw last is not as it should be, if we have seen anything.
        known.wrong = known.value.order > 0;
        self.wants.entry(key).or_default().0.push_back((round, now));
        let local = self.local(now);
        self.engine.handle_try(local, key, round);
    }

    /// The keys whose attempts begin now. An error names one that has an attempt already.
    pub fn polls(&mut self, now: Duration) -> Result<Vec<usize>, usize> {
        let local = self.local(now);
        let mut begins = Vec::new();
        while let Some(start) = self.engine.poll_attempt(local) {
            let flying = Flying { id: start.id, work: start.work, started: now, held: Vec::new() };
            if self.flying.insert(start.key, flying).is_some() {
                return Err(start.key);
            }
            begins.push(start.key);
        }
        Ok(begins)
    }

    /// What was read. Returns the round to write; none, if there is nothing to write, which ends the attempt.
    pub fn read(&mut self, now: Duration, key: usize, value: Value) -> Option<u64> {
        let want = self.wants.get(&key).map(Want::round);
        let known = self.known.entry(key).or_default();
        match want {
            Some(want) if value.round < want => {
                if value.order >= known.value.order {
                    known.value = value;
                }
                known.wrong = true;
                Some(want)
            }
            _ => {
                let ours = known.lost.take() == Some(value.round);
                let by_other = known.wrong && !ours && known.value.order != value.order;
                known.value = value;
                known.wrong = false;
                self.wants.remove(&key);
                if by_other {
                    self.engine.handle_extend(self.local(now), &key, Some(value.order));
                }
                self.lands(now, key, Outcome::Unchanged.done());
                None
            }
        }
    }

    /// Our write landed; that ends the attempt.
    pub fn wrote(&mut self, now: Duration, key: usize, value: Value) {
        let known = self.known.entry(key).or_default();
        if value.order > known.value.order {
            known.value = value;
        }
        known.lost = None;
        if let Some(want) = self.wants.get_mut(&key) {
            known.wrong = !want.reaches(value.round);
            if !known.wrong {
                self.wants.remove(&key);
            }
        }
        self.lands(now, key, Outcome::Extend.done().at_order(Some(value.order)));
    }

    /// Our write was refused, or nobody knows what became of it.
    pub fn failed(&mut self, now: Duration, key: usize, outcome: Outcome, sent: Option<u64>) {
        if sent.is_some() {
            self.known.entry(key).or_default().lost = sent;
        }
        self.lands(now, key, outcome.retry());
    }

    fn lands(&mut self, now: Duration, key: usize, verdict: Verdict) {
        let Some(flying) = self.flying.remove(&key) else { return };
        let local = self.local(now);
        self.engine.handle_outcome(local, flying.id, verdict, flying.work);
        for change in flying.held {
            self.hears(now, change);
        }
    }

    /// News.
    pub fn hears(&mut self, now: Duration, change: Change) {
        if let Some(flying) = self.flying.get_mut(&change.key) {
            flying.held.push(change);
            return;
        }
        let local = self.local(now);
        if let Some(since) = change.ours_since {
            self.engine.handle_echo(local, now - since);
        }
        let known = self.known.entry(change.key).or_default();
        if change.value.order <= known.value.order {
            return;
        }
        let ours = known.lost.take() == Some(change.value.round);
        let was_wrong = std::mem::take(&mut known.wrong);
        known.value = change.value;
        let Some(want) = self.wants.get_mut(&change.key) else { return };
        let evidence = was_wrong && !ours && !change.listing;
        let (oldest, _) = want.oldest();
        if want.reaches(change.value.round) {
            self.wants.remove(&change.key);
            if evidence {
                self.engine.handle_extend(local, &change.key, Some(change.value.order));
            } else {
                self.engine.handle_remove(local, &change.key);
            }
            return;
        }
        known.wrong = true;
        if evidence && change.value.round >= oldest {
            // Not what we want by now, but what we wanted first.
            let round = want.round();
            self.engine.handle_extend(local, &change.key, Some(change.value.order));
            self.engine.handle_try(local, change.key, round);
        }
    }

    /// How long ago the attempt of a key started.
    pub fn started(&self, key: usize) -> Option<Duration> {
        self.flying.get(&key).map(|flying| flying.started)
    }
}

//! Progress of the rounds: the keys that are up to date, and the duration of each round.

use std::time::Duration;

use tokio::time::Instant;

use super::value::Value;

/// The progress of all rounds of a run.
#[derive(Debug)]
pub(super) struct RoundTracker {
    keys: Vec<Key>,
    rounds: Vec<Round>,
    /// The number of rounds at the front of the list that are complete.
    completed: usize,
    replicas: usize,
    moved: u64,
    is_killed: bool,
    moved_after_kill: u64,
}

#[derive(Clone, Debug, Default)]
struct Key {
    /// The rounds, counted from 1, that request this key.
    wanted: Vec<u64>,
    /// The number of them that the store holds.
    done: usize,
    /// The number of writes that the observer knows of, and the replica that made the last one.
    writes: u64,
    by: usize,
    /// The replica that was killed had written it.
    is_of_killed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Round {
    pub started: Instant,
    pub wanted: usize,
    pub wrong: usize,
    pub took: Option<Duration>,
    /// The number of keys that each replica wrote.
    written: Vec<u64>,
}

impl RoundTracker {
    pub fn new(keys: usize, replicas: usize) -> Self {
        Self {
            keys: vec![Key::default(); keys],
            rounds: Vec::new(),
            completed: 0,
            replicas,
            moved: 0,
            is_killed: false,
            moved_after_kill: 0,
        }
    }

    /// Starts the next round, which requests each of these keys once. Returns its number; the first
    /// is 1.
    pub fn begin(&mut self, keys: &[usize], now: Instant) -> u64 {
        let written = vec![0; self.replicas];
        self.rounds.push(Round { started: now, wanted: keys.len(), wrong: keys.len(), took: None, written });
        let round = self.rounds.len() as u64;
        for key in keys {
            self.keys[*key].wanted.push(round);
        }
        round
    }

    /// Records the value of a key in the store.
    pub fn observe(&mut self, key: usize, value: &Value, now: Instant) {
        let Some(key) = self.keys.get_mut(key) else { return };
        // A user's edit changes neither the number of writes nor the writer.
        if value.writes > key.writes {
            let moved = key.writes > 0 && key.by != value.by;
            self.moved += u64::from(moved);
            self.moved_after_kill += u64::from(moved && self.is_killed && !key.is_of_killed);
            (key.writes, key.by) = (value.writes, value.by);
            let round = (value.round as usize).checked_sub(1).and_then(|round| self.rounds.get_mut(round));
            if let Some(written) = round.and_then(|round| round.written.get_mut(value.by)) {
                *written += 1;
            }
        }
        while let Some(&wanted) = key.wanted.get(key.done)
            && wanted <= value.round
        {
            key.done += 1;
            let round = &mut self.rounds[wanted as usize - 1];
            round.wrong -= 1;
            if round.wrong == 0 {
                round.took = Some(now - round.started);
            }
        }
        while self.rounds.get(self.completed).is_some_and(|round| round.wrong == 0) {
            self.completed += 1;
        }
    }

    /// Records that a replica was killed.
    pub fn kill(&mut self, replica: usize) {
        self.is_killed = true;
        self.keys.iter_mut().for_each(|key| key.is_of_killed = key.writes > 0 && key.by == replica);
    }

    /// Returns whether at least half of the keys of this round are up to date.
    pub fn is_half_done(&self, round: u64) -> bool {
        self.round(round).is_some_and(|round| 2 * round.wrong <= round.wanted)
    }

    /// Returns how many times a key changed hands, and how many of these since the kill, except for
    /// the keys of the killed.
    pub fn moved(&self) -> (u64, u64) {
        (self.moved, self.moved_after_kill)
    }

    /// Returns the number of keys that each replica wrote in each round.
    pub fn written(&self) -> Vec<Vec<u64>> {
        self.rounds.iter().map(|round| round.written.clone()).collect()
    }

    /// Returns the oldest incomplete round and its number.
    pub fn oldest(&self) -> Option<(u64, &Round)> {
        Some((self.completed as u64 + 1, self.rounds.get(self.completed)?))
    }

    pub fn round(&self, round: u64) -> Option<&Round> {
        self.rounds.get(usize::try_from(round).ok()?.checked_sub(1)?)
    }

    /// Returns the latest round that requested this key; 0 if none did.
    pub fn wanted(&self, key: usize) -> u64 {
        self.keys[key].wanted.last().copied().unwrap_or(0)
    }

    pub fn started(&self) -> usize {
        self.rounds.len()
    }

    /// Returns the duration of each complete round.
    pub fn times(&self) -> Vec<Duration> {
        self.rounds.iter().filter_map(|round| round.took).collect()
    }

    /// Returns the number of requests, one per round and key.
    pub fn needed(&self) -> u64 {
        self.rounds.iter().map(|round| round.wanted as u64).sum()
    }

    /// Returns the number of requests for this key that the store lacks if the key is at `round`.
    pub fn missing(&self, key: usize, round: u64) -> u64 {
        self.keys[key].wanted.iter().filter(|wanted| **wanted > round).count() as u64
    }
}

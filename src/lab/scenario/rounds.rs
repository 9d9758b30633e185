//! Progress of the rounds: the keys that are up to date, and the duration of each round.

use std::time::Duration;

use tokio::time::Instant;

/// The progress of all rounds of a run.
#[derive(Debug)]
pub(super) struct RoundTracker {
    keys: Vec<Key>,
    rounds: Vec<Round>,
    /// The number of rounds at the front of the list that are complete.
    completed: usize,
}

#[derive(Clone, Debug, Default)]
struct Key {
    /// The rounds, counted from 1, that request this key.
    wanted: Vec<u64>,
    /// The number of them that the store holds.
    done: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Round {
    pub started: Instant,
    pub wanted: usize,
    pub wrong: usize,
    pub took: Option<Duration>,
}

impl RoundTracker {
    pub fn new(keys: usize) -> Self {
        Self { keys: vec![Key::default(); keys], rounds: Vec::new(), completed: 0 }
    }

    /// Starts the next round, which requests each of these keys once. Returns its number; the first
    /// is 1.
    pub fn begin(&mut self, keys: &[usize], now: Instant) -> u64 {
        self.rounds.push(Round { started: now, wanted: keys.len(), wrong: keys.len(), took: None });
        let round = self.rounds.len() as u64;
        for key in keys {
            self.keys[*key].wanted.push(round);
        }
        round
    }

    /// Records that a key is at `round` in the store.
    pub fn observe(&mut self, key: usize, round: u64, now: Instant) {
        let Some(key) = self.keys.get_mut(key) else { return };
        while let Some(&wanted) = key.wanted.get(key.done)
            && wanted <= round
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

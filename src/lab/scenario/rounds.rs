//! Which keys are right, and how long each round took to be.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Board {
    keys: Vec<Key>,
    rounds: Vec<Round>,
    /// Rounds before this one are right.
    settled: usize,
}

#[derive(Clone, Debug, Default)]
struct Key {
    /// The rounds, counted from 1, that want something of this key.
    wanted: Vec<u64>,
    /// How many of them the store has seen.
    done: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Round {
    pub started: Instant,
    pub wanted: usize,
    pub wrong: usize,
    pub took: Option<Duration>,
}

impl Board {
    pub fn new(keys: usize) -> Self {
        Self { keys: vec![Key::default(); keys], rounds: Vec::new(), settled: 0 }
    }

    /// The next round starts, and wants these keys, none twice. Returns its number; the first is 1.
    pub fn begin(&mut self, keys: &[usize], now: Instant) -> u64 {
        self.rounds.push(Round { started: now, wanted: keys.len(), wrong: keys.len(), took: None });
        let round = self.rounds.len() as u64;
        for key in keys {
            self.keys[*key].wanted.push(round);
        }
        round
    }

    /// A key is at this round now.
    pub fn saw(&mut self, key: usize, round: u64, now: Instant) {
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
        while self.rounds.get(self.settled).is_some_and(|round| round.wrong == 0) {
            self.settled += 1;
        }
    }

    /// The oldest round that is not right, and its number.
    pub fn oldest(&self) -> Option<(u64, &Round)> {
        Some((self.settled as u64 + 1, self.rounds.get(self.settled)?))
    }

    pub fn round(&self, round: u64) -> Option<&Round> {
        self.rounds.get(usize::try_from(round).ok()?.checked_sub(1)?)
    }

    /// The round that a key is wanted at now; 0 if none.
    pub fn wanted(&self, key: usize) -> u64 {
        self.keys[key].wanted.last().copied().unwrap_or(0)
    }

    pub fn started(&self) -> usize {
        self.rounds.len()
    }

    /// How long each round took.
    pub fn times(&self) -> Vec<Duration> {
        self.rounds.iter().filter_map(|round| round.took).collect()
    }

    /// Pairs of a key and a round that wants it.
    pub fn needed(&self) -> u64 {
        self.rounds.iter().map(|round| round.wanted as u64).sum()
    }

    /// How many of the rounds that wanted this key are missing in it, if it is at `round`.
    pub fn missing(&self, key: usize, round: u64) -> u64 {
        self.keys[key].wanted.iter().filter(|wanted| **wanted > round).count() as u64
    }
}

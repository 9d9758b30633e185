//! The engine's getters: they look and change nothing.

use std::{hash::Hash, time::Duration};

use super::{
    Engine, config::LeaseConfig, contest::Role, counters::Counters, incumbent::Incumbent, time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns the keys whose attempts are in flight.
    pub fn keys_in_flight(&self) -> impl Iterator<Item = &K> {
        self.in_flight.all().map(|flight| self.queue.key(flight.slot))
    }

    /// Returns who wrote a key last, as far as this replica knows and remembers.
    pub fn incumbent(&self, key: &K) -> Incumbent {
        self.queue.incumbent(key)
    }

    /// Returns the role. [`is_leader`](Self::is_leader) says whether a leader still holds the
    /// lease.
    pub fn role(&self) -> Role {
        self.contest.role()
    }

    /// Returns whether our own work holds the lease at `now`. The lease of an idle leader runs out,
    /// and then belongs to nobody.
    pub fn is_leader(&self, now: Timestamp) -> bool {
        self.contest.leads(now.max(self.clock))
    }

    /// Returns how many times this process became leader.
    pub fn epoch(&self) -> u64 {
        self.contest.epoch()
    }

    /// Returns how many times the role changed.
    pub fn role_generation(&self) -> u64 {
        self.contest.role_generation()
    }

    /// Returns how many times in a row this replica backed off behind another writer.
    pub fn losses(&self) -> u32 {
        self.contest.losses()
    }

    /// Returns when the lease ends, whoever holds it; [`Timestamp::ZERO`] before anybody did.
    pub fn lease_end(&self) -> Timestamp {
        self.contest.lease_end()
    }

    /// Returns whether some job was finished: by us, by another replica, or because there was
    /// nothing to write; or whether the store denied one.
    pub fn decided(&self) -> bool {
        self.decided
    }

    /// Returns how many attempts may be in flight while we lead.
    pub fn window(&self) -> usize {
        self.window.size()
    }

    /// Returns how long a pending key waits before we stop trusting the leader to write it.
    pub fn patience(&self) -> Duration {
        self.patience.current()
    }

    /// Returns how long our own writes take to come back through the watch, smoothed.
    pub fn echo(&self) -> Duration {
        self.echo.current()
    }

    /// Returns how many attempts are in flight, those past their deadline included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.out()
    }

    /// Returns how many keys have a pending job, attempts in flight not counted.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether no job is pending. Attempts may still be in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the counts since the engine was created.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the settings.
    pub fn config(&self) -> &LeaseConfig {
        &self.config
    }
}

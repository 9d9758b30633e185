//! The engine's getters: they look and change nothing.

use std::{hash::Hash, sync::Arc, time::Duration};

use super::{
    Engine,
    config::LeaseConfig,
    contest::Role,
    counters::Counters,
    incumbent::Incumbent,
    roster::{MemberView, Roster, Turn, shard_of},
    time::Timestamp,
};

/// A shard, as a replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardView {
    /// Its number, from 0.
    pub number: u16,
    /// Whether our own work held its lease at the last event.
    pub is_leader: bool,
    /// The member of the roster whose turn it is.
    pub member: Option<Arc<str>>,
    /// Our role in the contest for its lease.
    pub role: Role,
    /// When its lease ends, whoever holds it.
    pub lease_end: Timestamp,
    /// Since when we have this role.
    pub role_since: Timestamp,
    /// Times that our role changed.
    pub role_generation: u64,
    /// The roster's say about who leads it.
    pub turn: Turn,
    /// How long a pending key of it waits before we stop trusting its leader to write it.
    pub patience: Duration,
}

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns the keys whose attempts are in flight.
    pub fn keys_in_flight(&self) -> impl Iterator<Item = &K> {
        self.in_flight.all().map(|flight| self.queue.key(flight.slot))
    }

    /// Returns who wrote a key last, as far as this replica knows and remembers.
    pub fn incumbent(&self, key: &K) -> Incumbent {
        self.queue.incumbent(key)
    }

    /// Returns the number of the shard of a key, from 0.
    pub fn shard_of(&self, key: &K) -> u16 {
        match self.config.shards {
            1 => 0,
            shards => shard_of(key, shards),
        }
    }

    /// Returns the role: [`Role::Leader`] if we have that of any shard, [`Role::Election`] if we
    /// have that of all. [`is_leader`](Self::is_leader) says whether a leader still holds the lease.
    pub fn role(&self) -> Role {
        let roles = || self.shards.iter().map(|shard| shard.contest.role());
        if roles().any(|role| role == Role::Leader) {
            Role::Leader
        } else if roles().any(|role| role == Role::Follower) {
            Role::Follower
        } else {
            Role::Election
        }
    }

    /// Returns whether our own work holds the lease of any shard at `now`. The lease of an idle
    /// leader runs out, and then belongs to nobody.
    pub fn is_leader(&self, now: Timestamp) -> bool {
        now.max(self.clock) < self.led_until
    }

    /// Returns whether our own work holds the lease of the key's shard at `now`.
    pub fn leads(&self, now: Timestamp, key: &K) -> bool {
        self.shards[usize::from(self.shard_of(key))].contest.leads(now.max(self.clock))
    }

    /// Returns all shards as this replica sees them, by their numbers.
    pub fn shards(&self) -> impl Iterator<Item = ShardView> {
        (0..).zip(&self.shards).map(|(number, shard)| ShardView {
            number,
            is_leader: shard.contest.leads(self.clock),
            member: self.roster.as_ref().and_then(|roster| roster.member_of(number)).cloned(),
            role: shard.contest.role(),
            lease_end: shard.contest.lease_end(),
            role_since: shard.contest.role_since(),
            role_generation: shard.contest.role_generation(),
            turn: shard.turn,
            patience: shard.patience.current(),
        })
    }

    /// Returns the members of the roster, by name; none if there is no roster, or nobody is on it.
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.roster.iter().flat_map(Roster::views)
    }

    /// Returns how many members the roster has.
    pub fn members_len(&self) -> usize {
        self.roster.as_ref().map_or(0, Roster::len)
    }

    /// Returns whether there is a roster, as far as we were told.
    pub fn has_roster(&self) -> bool {
        self.roster.is_some()
    }

    /// Returns how many shards we lead at `now`.
    pub fn shards_led(&mut self, now: Timestamp) -> u16 {
        if self.config.shards == 1 {
            return self.is_leader(now).into();
        }
        self.advance(now);
        self.look_at_due();
        self.agenda.led()
    }

    /// Returns how many times this process became leader, of any shard.
    pub fn epoch(&self) -> u64 {
        self.counters.won
    }

    /// Returns our role in each shard, by number, and how many times it changed.
    pub fn roles(&self) -> impl Iterator<Item = (Role, u64)> {
        self.shards.iter().map(|shard| (shard.contest.role(), shard.contest.role_generation()))
    }

    /// Returns how many times the role in any shard changed.
    pub fn role_generation(&self) -> u64 {
        self.role_generation
    }

    /// Returns how many times in a row this replica backed off behind another writer; of several
    /// shards, in the one where that is most.
    pub fn losses(&self) -> u32 {
        self.shards.iter().map(|shard| shard.contest.losses()).max().unwrap_or_default()
    }

    /// Returns when the lease ends, whoever holds it; [`Timestamp::ZERO`] before anybody did. Of
    /// several shards, the last one counts.
    pub fn lease_end(&self) -> Timestamp {
        self.shards.iter().map(|shard| shard.contest.lease_end()).max().unwrap_or_default()
    }

    /// Returns whether some job was finished: by us, by another replica, or because there was
    /// nothing to write; or whether the store denied one.
    pub fn decided(&self) -> bool {
        self.decided
    }

    /// Returns how many attempts may be in flight while we lead, in all shards together.
    pub fn window(&self) -> usize {
        let windows = self.shards.iter().map(|shard| shard.window.size());
        windows.sum::<usize>().min(self.config.concurrency)
    }

    /// Returns how long a pending key waits before we stop trusting the leader to write it; the
    /// longest of all shards.
    pub fn patience(&self) -> Duration {
        self.shards.iter().map(|shard| shard.patience.current()).max().unwrap_or_default()
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

//! The engine's books, which every event keeps: the clock, the attempts in flight, and the shards that
//! must be looked at again.

use std::{hash::Hash, time::Duration};

use super::{Engine, attempt::AttemptId, contest::Role, in_flight::Flight, queue::Cleared, time::Timestamp};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    pub(super) fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.clock = self.clock.max(now);
        let (shards, agenda) = (&mut self.shards, &mut self.agenda);
        self.in_flight.expire(self.clock, |flight| {
            *shards[usize::from(flight.shard)].counted.of(flight) -= 1;
            agenda.touch(flight.shard);
        });
        self.clock
    }

    /// Takes the attempt that ended out of flight.
    pub(super) fn land(&mut self, id: AttemptId) -> Option<Flight> {
        let flight = self.in_flight.remove(id.0)?;
        let shard = &mut self.shards[usize::from(flight.shard)];
        shard.out -= 1;
        if !flight.late {
            *shard.counted.of(&flight) -= 1;
        }
        self.agenda.touch(flight.shard);
        Some(flight)
    }

    /// Returns the shard of a key, which must be looked at again because of an event.
    pub(super) fn touch(&mut self, key: &K) -> u16 {
        // A key that is known needs no stable hash, which costs more than the index does.
        let known = if self.shards.len() > 1 { self.queue.shard_of(key) } else { None };
        let shard = known.unwrap_or_else(|| self.shard_of(key));
        self.agenda.touch(shard);
        shard
    }

    /// All shards must be looked at again.
    pub(super) fn all_changed(&mut self) {
        self.agenda.touch_all();
        self.lead_ended();
    }

    /// Finds out when the last of our leases ends, after one of them ended early.
    pub(super) fn lead_ended(&mut self) {
        let led = self.shards.iter().filter(|shard| shard.contest.role() == Role::Leader);
        self.led_until = led.map(|shard| shard.contest.lease_end()).max().unwrap_or_default();
    }

    /// The floor of every backoff: news of a write must be able to arrive and stop the next one.
    pub(super) fn slowest_news(&self) -> Duration {
        self.echoes(self.config.tuning.backoff_echoes)
    }

    pub(super) fn echoes(&self, count: u32) -> Duration {
        self.echo.current().saturating_mul(count)
    }

    pub(super) fn forget_idle(&mut self, now: Timestamp) {
        self.queue.forget_idle(now, self.config.term.saturating_mul(self.config.tuning.memory_terms));
    }

    pub(super) fn clear(&mut self, key: &K) -> Cleared<J> {
        let cleared = self.queue.clear(self.clock, key);
        self.was_cleared(&cleared);
        cleared
    }

    /// The attempt of a cleared key in flight cannot be called back, but it must not be repeated.
    pub(super) fn was_cleared(&mut self, cleared: &Cleared<J>) {
        if let Some(slot) = cleared.running
            && let Some(flight) = self.in_flight.of_slot(slot)
        {
            flight.cleared = true;
        }
    }
}

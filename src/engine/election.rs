//! Events of an election that is held elsewhere, for an engine that follows one.

use std::hash::Hash;

use super::{Engine, authority::Authority, time::Timestamp};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Takes in that an election made us leader until `until`, or prolonged our leadership.
    ///
    /// From the first call of this or of [`handle_not_elected`](Self::handle_not_elected) on, the
    /// election alone decides. Attempts run only while we are elected, as many at the same time as
    /// the window allows. Neither our writes nor those of others move the lease.
    pub fn handle_elected(&mut self, now: Timestamp, until: Timestamp) {
        let now = self.advance(now);
        // News of an election may arrive after the leadership that it announces has ended.
        if until <= now {
            return self.handle_not_elected(now);
        }
        self.authority = Authority::Elected { until };
        for shard in &mut self.shards {
            if shard.contest.win(now, until - now, None) {
                shard.window.close();
                self.counters.won += 1;
                self.role_generation += 1;
            }
        }
        self.all_changed();
    }

    /// Takes in that the election made another replica leader, or none, or that its result is
    /// unknown.
    pub fn handle_not_elected(&mut self, now: Timestamp) {
        let now = self.advance(now);
        self.authority = Authority::NotElected;
        for shard in &mut self.shards {
            if shard.contest.retire(now) {
                self.counters.lost += 1;
                self.role_generation += 1;
                shard.window.close();
            }
        }
        self.all_changed();
    }
}

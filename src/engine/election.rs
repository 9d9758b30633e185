//! An election that is held elsewhere decides who works, for an engine that follows one.

use std::hash::Hash;

use super::{Engine, Timestamp, authority::Authority};

impl<K: Hash + Eq + Clone, W> Engine<K, W> {
    /// An election made us leader until then, or prolonged that. From the first such call on, or the first of
    /// [`handle_not_elected`](Self::handle_not_elected), the election alone decides: works run only while we are elected, as
    /// many at once as the window allows, and what they or others write moves no lease.
    pub fn handle_elected(&mut self, now: Timestamp, until: Timestamp) {
        let now = self.advance(now);
        if until <= now {
            return self.handle_not_elected(now);
        }
        self.authority = Authority::Elected { until };
        if self.contest.win(now, until - now, None) {
            self.window.close();
            self.counters.won += 1;
        }
    }

    /// The election made somebody else leader, or nobody, or it can't be known.
    pub fn handle_not_elected(&mut self, now: Timestamp) {
        let now = self.advance(now);
        self.authority = Authority::NotElected;
        if self.contest.retire(now) {
            self.counters.lost += 1;
            self.window.close();
        }
    }
}

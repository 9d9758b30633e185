//! The hand-over of shards, after a change of the roster.

use std::hash::Hash;

use super::{
    Engine,
    contest::Role,
    incumbent::Incumbent,
    roster::{Turn, TurnChange},
    time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Hands shards over. Who gives one up counts its keys as another's from then on; who gets one
    /// counts others' keys in it as nobody's, and needs no election.
    pub(super) fn hand_over(&mut self, now: Timestamp, changes: &[TurnChange]) {
        let Some(roster) = &self.roster else { return };
        let starts = roster.blocked_until(now, self.echo.current()).unwrap_or(now);
        let until = now + self.echoes(self.config.tuning.hand_over_echoes);
        let is_by_work = self.authority.is_by_work();
        let mut changed: Vec<Option<Turn>> = vec![None; self.shards.len()];
        for change in changes {
            changed[usize::from(change.shard)] = Some(change.now);
            let shard = &mut self.shards[usize::from(change.shard)];
            shard.turn = change.now;
            let before = shard.contest.role();
            match change.now {
                // An election comes before the roster.
                _ if !is_by_work => {}
                Turn::Us => {
                    (shard.handed_over, shard.hand_over_until) = (now, until);
                    self.role_generation += u64::from(shard.contest.take_turn(now));
                }
                Turn::Other => {
                    (shard.handed_over, shard.hand_over_until) = (now, until);
                    self.role_generation += u64::from(shard.contest.give_turn(now, self.config.term));
                    shard.window.close();
                    self.counters.lost += u64::from(before == Role::Leader);
                }
                // Whoever led it leads on.
                Turn::Open => {}
            }
        }
        // While a group gathers, each newcomer makes all wait a little longer.
        for shard in self.shards.iter_mut().filter(|shard| shard.turn == Turn::Us) {
            shard.election = starts;
        }
        if !changes.is_empty() && is_by_work {
            self.queue.change_incumbents(now, |shard, incumbent| {
                match (changed[usize::from(shard)], incumbent) {
                    (Some(Turn::Us), Incumbent::Other) => Incumbent::Nobody,
                    (Some(Turn::Other), Incumbent::Us) => Incumbent::Other,
                    (_, incumbent) => incumbent,
                }
            });
        }
        self.all_changed();
    }
}

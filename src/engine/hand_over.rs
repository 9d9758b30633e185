//! The hand-over of shards, after a change of the roster.

use std::hash::Hash;

use super::{
    Engine,
    backoff::seconds,
    contest::Role,
    incumbent::Incumbent,
    roster::{Turn, TurnChange},
    time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Hands shards over. Who gives one up counts its keys as another's from then on; who gets one
    /// counts others' keys in it as nobody's, and needs no election. If `somebody_left`, others' keys in
    /// all shards of ours may be of the one who did.
    pub(super) fn hand_over(&mut self, now: Timestamp, changes: &[TurnChange], somebody_left: bool) {
        let Some(roster) = &self.roster else { return };
        let starts = roster.blocked_until(now, self.echo.current()).unwrap_or(now);
        let until = now + self.echoes(self.config.tuning.hand_over_echoes);
        let in_flight = self.echoes(self.config.tuning.backoff_echoes);
        let is_by_work = self.authority.is_by_work();
        let (mut gained, mut given_up) = (vec![false; self.shards.len()], vec![false; self.shards.len()]);
        for change in changes {
            gained[usize::from(change.shard)] = change.now == Turn::Us;
            given_up[usize::from(change.shard)] = change.now == Turn::Other;
            let shard = &mut self.shards[usize::from(change.shard)];
            shard.turn = change.now;
            let before = shard.contest.role();
            match change.now {
                // An election comes before the roster.
                _ if !is_by_work => {}
                Turn::Us => {
                    (shard.handed_over, shard.hand_over_until) = (now, until);
                    self.role_generation += u64::from(shard.contest.take_turn(now));
                    // What a living predecessor has in flight ends first, or one of the two is refused.
                    shard.election = if change.from_member { now + in_flight } else { now };
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
        let delay = self.echoes(self.config.tuning.election_echoes).as_secs_f64();
        for (number, shard) in (0..).zip(&mut self.shards) {
            shard.patience.inherit(roster.is_heir(number), &self.config, &mut self.rng);
            match shard.turn {
                // While a group gathers, each newcomer makes all wait a little longer.
                Turn::Us => shard.election = shard.election.max(starts),
                // Nobody waits for a roster that cannot be read.
                Turn::Open if starts < shard.election => {
                    let drawn = starts + seconds(delay * self.rng.truncated_exponential());
                    shard.election = shard.election.min(drawn);
                }
                Turn::Open | Turn::Other => {}
            }
        }
        if (!changes.is_empty() || somebody_left) && is_by_work {
            let shards = &self.shards;
            self.queue.change_incumbents(now, |number, incumbent| {
                let number = usize::from(number);
                let is_ours = shards[number].turn == Turn::Us;
                match incumbent {
                    Incumbent::Other if gained[number] || is_ours && somebody_left => Incumbent::Nobody,
                    // Also what we took over from the one before. In a shard that stays another's, what we
                    // write nobody else may want.
                    Incumbent::Us if given_up[number] => Incumbent::Other,
                    incumbent => incumbent,
                }
            });
        }
        self.all_changed();
    }
}

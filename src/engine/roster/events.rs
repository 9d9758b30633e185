//! Events of the roster, and the requests that come out.

use std::{hash::Hash, sync::Arc, time::Duration};

use super::{Member, Roster, RosterChange, RosterRequest, Turn, TurnChange};
use crate::engine::{Engine, Timestamp, backoff::seconds};

/// How long a member that is suspected has to answer: its watch, its write and our watch take an echo
/// or two.
const ANSWER_ECHOES: u32 = 32;
/// The least such time, because a machine may be busy.
const LEAST_ANSWER: Duration = Duration::from_millis(500);

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Takes in that there is a roster, and the entry that we want on it. Until the first call of
    /// [`handle_members`](Self::handle_members) or
    /// [`handle_roster_unreadable`](Self::handle_roster_unreadable) the roster is being read.
    pub fn handle_join(&mut self, now: Timestamp, own: Member) {
        let now = self.advance(now);
        let mut roster = Roster::new(own, self.config.shards);
        if !self.is_empty() || self.in_flight() > 0 {
            roster.wants_to_join(now);
        }
        self.roster = Some(roster);
    }

    /// Takes in the complete roster, after each change of it. Returns what that moved.
    pub fn handle_members(&mut self, now: Timestamp, members: Vec<Member>) -> RosterChange {
        // All see the mark of a member that is suspected. The first to strike it off silences the rest.
        let spread = self.echoes(self.config.tuning.rival_echoes).as_secs_f64();
        let drawn = seconds(spread * self.rng.truncated_exponential());
        let time = self.echoes(ANSWER_ECHOES).max(LEAST_ANSWER) + drawn;
        self.change_turns(now, |roster, now| roster.members(now, members, time))
    }

    /// Takes in that the roster cannot be read. The shards go on without.
    pub fn handle_roster_unreadable(&mut self, now: Timestamp) -> RosterChange {
        self.change_turns(now, Roster::cannot_read)
    }

    /// Takes in that the store denies our entry on the roster.
    pub fn handle_join_denied(&mut self, now: Timestamp) {
        let now = self.advance(now);
        if let Some(roster) = &mut self.roster {
            roster.cannot_join(now);
        }
    }

    /// Returns the next write to the roster that is due. Call it until it returns `None`;
    /// [`poll_timeout`](Self::poll_timeout) says when there may be another one.
    pub fn poll_roster(&mut self, now: Timestamp) -> Option<RosterRequest> {
        // No attempt ends by this, so the clock need not advance.
        self.roster.as_mut()?.poll(now.max(self.clock))
    }

    fn change_turns(
        &mut self,
        now: Timestamp,
        change: impl FnOnce(&mut Roster, Timestamp) -> Vec<TurnChange>,
    ) -> RosterChange {
        let now = self.advance(now);
        let Some(roster) = &mut self.roster else { return RosterChange::default() };
        let before = roster.names();
        let changes = change(roster, now);
        let after = roster.names();
        let moved = || changes.iter().filter(|change| !change.is_claimed);
        let of = |is_it: fn(&&TurnChange) -> bool| moved().filter(is_it).map(|change| change.shard).collect();
        let missing = |from: &[Arc<str>], of: &[Arc<str>]| -> Vec<Arc<str>> {
            of.iter().filter(|name| from.binary_search(name).is_err()).cloned().collect()
        };
        let left: Vec<Arc<str>> = missing(&after, &before);
        self.hand_over(now, &changes, !left.is_empty());
        RosterChange {
            joined: missing(&before, &after),
            left,
            gained: of(|change| change.now == Turn::Us),
            given_up: of(|change| change.before == Turn::Us),
            moved: moved().count(),
        }
    }
}

//! Whether a member lives: the question, its answer, and the trust that follows.

use std::time::Duration;

use super::{Member, Roster, RosterRequest, Seen, View, pause};
use crate::engine::time::Timestamp;

/// After so many tries, a write to another's entry is left to the next replica that takes a shard over.
pub(super) const TRIES: u32 = 5;
/// How long a member is not suspected after its first answer. It doubles with each, up to some four
/// hours. If it dies in that time, others lead its shards, as if it wanted other keys.
pub(super) const TRUST: Duration = Duration::from_secs(60);
pub(super) const MAX_TRUST: u32 = 8;
/// How long a member that was struck off is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Our opinion of a member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// The mark of its entry, or the deletion of one that is marked.
    pub(super) due: Option<Due>,
    /// How many suspicions it has answered.
    answers: u32,
    trusted_until: Timestamp,
}

/// A write that is repeated, ever later, until the roster shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// When to ask for it the next time.
    pub(super) at: Timestamp,
    pub(super) asked: u32,
}

impl Roster {
    /// Takes in that another replica wrote a key of a shard before anybody could have lost patience: as a
    /// rule it was its member.
    pub(in crate::engine) fn sign_of_life(&mut self, now: Timestamp, shard: u16) {
        if let Some(index) = self.view.turns.get(usize::from(shard)) {
            self.view.members[usize::from(*index)].last_sign = now;
        }
    }

    /// Returns when a shard's member last seemed to write, in whichever shard.
    pub(in crate::engine) fn last_sign(&self, shard: u16) -> Timestamp {
        let index = self.view.turns.get(usize::from(shard));
        index.map_or(Timestamp::ZERO, |index| self.view.members[usize::from(*index)].last_sign)
    }

    /// Takes in that we do the work of a shard's member: it is to be suspected at a time from `at` on, when
    /// it is no longer trusted.
    pub(in crate::engine) fn doubt(&mut self, shard: u16, at: Timestamp) {
        let Some(index) = self.view.turns.get(usize::from(shard)) else { return };
        let seen = &mut self.view.members[usize::from(*index)];
        if seen.member.name != self.own.name && seen.doubt.due.is_none() {
            seen.doubt.due = Some(Due { at: at.max(seen.doubt.trusted_until), asked: 0 });
            self.view.find_next_due();
        }
    }

    /// Returns the write to another's entry that is due, if one is: the question, or the end of a member that
    /// did not answer.
    pub(super) fn next_question(&mut self, now: Timestamp) -> Option<RosterRequest> {
        if self.view.next_due.is_none_or(|next| next > now) {
            return None;
        }
        let is_due = |seen: &&mut Seen| seen.doubt.due.is_some_and(|due| due.at <= now);
        let seen = self.view.members.iter_mut().find(is_due)?;
        let due = seen.doubt.due.as_mut()?;
        due.again(now);
        if due.asked == TRIES {
            seen.doubt.due = None;
        }
        let name = seen.member.name.clone();
        let is_suspected = seen.member.is_suspected;
        self.view.find_next_due();
        Some(if is_suspected { RosterRequest::StrikeOff(name) } else { RosterRequest::Suspect(name) })
    }

    /// Remembers members that are suspected and on the roster no more, for a while.
    pub(super) fn remember_gone(&mut self, now: Timestamp, before: &View, seen: &[Seen]) {
        let is_gone = |known: &&Seen| {
            let place = seen.binary_search_by(|seen| seen.member.name.cmp(&known.member.name));
            known.member.is_suspected && place.is_err()
        };
        for known in before.members.iter().filter(is_gone) {
            let doubt = Doubt { due: None, trusted_until: now, ..known.doubt };
            self.gone.insert(known.member.name.clone(), doubt);
        }
        self.gone.retain(|_, doubt| now - doubt.trusted_until < REMEMBERED);
    }

    /// Takes in that another replica did work of ours that we wanted to do.
    pub(in crate::engine) fn is_displaced(&mut self) {
        self.is_displaced = true;
    }

    /// Returns our entry as it should be.
    pub(super) fn entry(&self) -> Member {
        let claims = self.view.find(&self.own.name).map_or(0, |us| us.member.claims);
        Member { claims: claims.saturating_add(self.is_displaced.into()), ..self.own.clone() }
    }
}

impl Doubt {
    pub(super) fn is_answered(&mut self, now: Timestamp) {
        let trust = |answers: u32| TRUST * (1 << answers.saturating_sub(1).min(MAX_TRUST));
        // A member that did its work for as long again starts anew.
        if now > self.trusted_until + trust(self.answers) {
            self.answers = 0;
        }
        self.answers += 1;
        (self.due, self.trusted_until) = (None, now + trust(self.answers));
    }
}

impl Due {
    pub(super) fn again(&mut self, now: Timestamp) {
        self.asked += 1;
        self.at = now + pause(self.asked);
    }
}

//! The roster: the names of the replicas that are about, and whose turn each shard is.
//!
//! ```text
//!  members, cannot_read       ──> Roster ──┬──> the turns that changed
//!  wants_to_join, cannot_join       │       └──> poll: join, suspect, strike off
//!  doubt                      ──────┘
//! ```
//!
//! The roster is kept by work. A replica joins with its first job and stays without a heartbeat.
//! Another replica that won one of its shards by silence, while nothing was written in its other shards
//! either, suspects it: it marks the member's entry. So does one that has led a shard of it for a term:
//! writes name no writer, and those in its other shards may be of replicas that took these over. A
//! member that lives answers: it writes its entry anew, without the mark. One that does not is struck off by
//! those that see the mark (Das, Gupta and Motivala, "SWIM", 2002, where members refute suspicions as well).
//!
//! A member that answered is trusted for a while, ever longer: perhaps it wants other keys than those that
//! were taken over. If it wants these, it claims them back with its answer: its shards are handed over as
//! if it were new. A replica that was struck off although it lives joins again with its
//! next job, after a pause that doubles each time.
//!
//! All replicas that see the same roster agree on whose turn each shard is: [`assign`] depends on
//! nothing else. The roster is advice. A stale one, or one that differs between replicas, costs time
//! or a refused write, because the store compares every write.
//!
//! # Two living replicas of one name
//!
//! Both believe that the shards of that name are theirs, and neither steps back. Writes are compared,
//! and each keeps the keys that it wrote last, so a new key costs one of them a refused write. If one
//! leaves, it takes the entry of both away, and the other joins again with its next job.

mod assignment;
mod doubt;
mod events;
mod hash;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use self::doubt::{Doubt, Due};
pub(super) use self::{assignment::assign, hash::shard_of};
use super::time::Timestamp;

/// A replica on the roster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name, which no other replica has.
    pub name: Arc<str>,
    /// Its share of the shards, against the other weights: from 1 to [`MAX_WEIGHT`](Self::MAX_WEIGHT).
    pub weight: u16,
    /// Another replica took its work over, and asks whether it lives.
    pub is_suspected: bool,
    /// How many times it has claimed its work back.
    pub claims: u32,
}

impl Member {
    /// The greatest weight.
    pub const MAX_WEIGHT: u16 = 100;

    /// Returns a replica of which nobody doubts anything.
    pub fn new(name: impl Into<Arc<str>>, weight: u16) -> Self {
        Self { name: name.into(), weight, is_suspected: false, claims: 0 }
    }
}

/// The replica whose turn a shard is, by the roster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Turn {
    /// Nobody's: there is no roster, or nobody is on it. The first to write leads.
    #[default]
    Open,
    /// Ours.
    Us,
    /// Another member's.
    Other,
}

/// A shard of which the roster gave the turn to another member or to nobody, or that its member claims
/// back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnChange {
    pub(crate) shard: u16,
    pub(crate) before: Turn,
    /// [`Turn::Other`], like `before`, if the turn went from one other member to another.
    pub(crate) now: Turn,
    /// The member that had the turn before is still on the roster.
    pub(crate) from_member: bool,
    /// The same member has the turn as before, and claims its work back.
    pub(crate) is_claimed: bool,
}

/// A change of the roster, and what it moved. [`WriterLease::subscribe_roster`] sends it.
///
/// [`WriterLease::subscribe_roster`]: crate::WriterLease::subscribe_roster
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RosterChange {
    /// The members that are new.
    pub joined: Vec<Arc<str>>,
    /// The members that left, or were struck off.
    pub left: Vec<Arc<str>>,
    /// The shards of which we got the turn.
    pub gained: Vec<u16>,
    /// The shards of which we had the turn before.
    pub given_up: Vec<u16>,
    /// How many shards have another member than before, those included.
    pub moved: usize,
}

/// A member of the roster, as this replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberView {
    /// Its name.
    pub name: Arc<str>,
    /// Its share of the shards, against the other weights.
    pub weight: u16,
    /// The number of shards whose turn it has.
    pub shards: u16,
    /// Whether it is this replica.
    pub is_us: bool,
    /// Another replica took its work over, and asks whether it lives.
    pub is_suspected: bool,
}

/// A write to the roster that is due. It is asked for again, ever later, until the roster shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RosterRequest {
    /// Write our own entry.
    Join(Member),
    /// Mark the entry of this member, unless it is marked.
    Suspect(Arc<str>),
    /// Delete the entry of this member, if it is marked.
    StrikeOff(Arc<str>),
}

/// The roster as this replica last read it, and the part that this replica takes in it.
#[derive(Debug)]
pub(super) struct Roster {
    own: Member,
    shards: u16,
    reading: Reading,
    view: View,
    /// We have had a job since we were last known to be on the roster.
    wants: bool,
    /// When we first had a job.
    wanted_since: Option<Timestamp>,
    /// No join before this time.
    join_at: Timestamp,
    /// How many joins were asked for since we last stayed on the roster for a while.
    joins: u32,
    /// Our entry is marked, and we shall write it anew.
    answer: Option<Due>,
    /// Others do work of ours that we want to do.
    is_displaced: bool,
    /// Our doubts of members that were struck off: they may live, and join again.
    gone: BTreeMap<Arc<str>, Doubt>,
    /// Since when we have been on the roster without a break.
    on_since: Option<Timestamp>,
    forming: Forming,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Nothing was read yet.
    Awaited,
    Done,
    /// The roster cannot be read.
    Failed,
}

/// The members, and the assignment that follows from them.
#[derive(Debug, Default)]
struct View {
    /// Sorted by name, without duplicates.
    members: Vec<Seen>,
    /// The member of each shard, as an index; empty if there are no members.
    turns: Vec<u16>,
    /// The members that go first if those fall silent.
    heirs: Vec<Option<u16>>,
    /// When to ask for the next write to another's entry. It is kept because every event needs it.
    next_due: Option<Timestamp>,
}

/// A member, and what we think of it.
#[derive(Debug)]
struct Seen {
    member: Member,
    doubt: Doubt,
    last_sign: Timestamp,
}

/// The first moments of a group whose replicas start at the same time.
#[derive(Debug, Default)]
struct Forming {
    /// When we first read the roster.
    read: Timestamp,
    /// The roster was empty then, or others joined since.
    is_new_group: bool,
    /// When we appeared on the roster for the first time, unless our entry was there before us.
    appeared: Option<Timestamp>,
    /// When anybody last appeared.
    last_appeared: Timestamp,
}

/// How long nobody probes while the first reading of the roster, or our first entry, is on its way;
/// in echoes, each takes about one. The least time, because no echo was measured at the start.
const ANSWER_ECHOES: u32 = 16;
const LEAST_ANSWER: Duration = Duration::from_millis(250);
/// How long a new group waits for the next member to appear, and how long in all; in echoes.
const SETTLING_ECHOES: u32 = 4;
const LONGEST_SETTLING_ECHOES: u32 = 16;
/// The first pause before a request is made again. It doubles up to 2^[`MAX_DOUBLINGS`] times that.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 6;
/// After this time on the roster, a member that is struck off starts again from the first pause.
const STAY: Duration = Duration::from_secs(60);
/// The most members that count, the first by name: each costs time in every assignment.
const MAX_MEMBERS: usize = 1024;

impl Roster {
    pub(super) fn new(own: Member, shards: u16) -> Self {
        Self {
            own,
            shards,
            reading: Reading::Awaited,
            view: View::default(),
            wants: false,
            wanted_since: None,
            join_at: Timestamp::ZERO,
            joins: 0,
            answer: None,
            is_displaced: false,
            gone: BTreeMap::new(),
            on_since: None,
            forming: Forming::default(),
        }
    }

    /// Takes in that we have a job, so we want to be on the roster. The cost does not depend on the
    /// number of members.
    pub(super) fn wants_to_join(&mut self, now: Timestamp) {
        self.wanted_since.get_or_insert(now);
        self.wants |= self.on_since.is_none();
    }

    /// Takes in the complete roster, after each change of it. Anybody may have written it, so
    /// duplicates and impossible weights are put right. A member that is suspected has `time` to answer.
    /// Returns the shards whose turn changed.
    pub(super) fn members(
        &mut self,
        now: Timestamp,
        mut members: Vec<Member>,
        time: Duration,
    ) -> Vec<TurnChange> {
        members.sort_unstable();
        members.dedup_by(|second, first| second.name == first.name);
        members.truncate(MAX_MEMBERS);
        let is_first = self.reading == Reading::Awaited;
        self.reading = Reading::Done;
        if is_first {
            self.forming.read = now;
            self.forming.is_new_group = members.iter().all(|member| member.name == self.own.name);
        }
        let before = std::mem::take(&mut self.view);
        let mut seen = Vec::with_capacity(members.len());
        for mut member in members {
            member.weight = member.weight.clamp(1, Member::MAX_WEIGHT);
            let known = before.find(&member.name);
            if known.is_none() {
                self.forming.is_new_group |= !is_first && member.name != self.own.name;
                self.forming.last_appeared = now;
            }
            // Whoever joins again after it was struck off has answered late.
            let gone = self.gone.remove(&member.name);
            let was_suspected = gone.is_some() || known.is_some_and(|known| known.member.is_suspected);
            let mut doubt = known.map(|known| known.doubt).or(gone).unwrap_or_default();
            match (was_suspected, member.is_suspected) {
                (false, true) => doubt.due = Some(Due { at: now + time, asked: 0 }),
                (true, false) => doubt.is_answered(now),
                _ => {}
            }
            // To appear is no sign: whoever gets a turn has a whole patience before anybody wins by silence.
            let last_sign = known.map_or(Timestamp::ZERO, |known| known.last_sign);
            seen.push(Seen { member, doubt, last_sign });
        }
        self.remember_gone(now, &before, &seen);
        self.view = View::new(self.shards, seen);
        if let Ok(us) = self.view.place(&self.own.name) {
            let us = &mut self.view.members[us];
            us.doubt = Doubt::default();
            let asked_now = Due { at: now, asked: 0 };
            self.answer = us.member.is_suspected.then(|| self.answer.unwrap_or(asked_now));
            let known = before.find(&self.own.name);
            self.is_displaced &= known.is_some_and(|known| known.member.claims == us.member.claims);
        }
        self.view.find_next_due();
        self.note_presence(now, is_first);
        self.changes_since(&before)
    }

    /// Takes in that the roster cannot be read, and may never be. All turns are open until it can.
    pub(super) fn cannot_read(&mut self, now: Timestamp) -> Vec<TurnChange> {
        self.reading = Reading::Failed;
        let before = std::mem::take(&mut self.view);
        self.answer = None;
        self.note_presence(now, false);
        self.changes_since(&before)
    }

    /// Takes in that the store denies our entry. A later job tries again, at the slowest pace.
    pub(super) fn cannot_join(&mut self, now: Timestamp) {
        (self.wants, self.answer) = (false, None);
        self.joins = self.joins.max(MAX_DOUBLINGS + 1);
        self.join_at = now + pause(self.joins);
    }

    /// Returns the next write that is due, if any.
    pub(super) fn poll(&mut self, now: Timestamp) -> Option<RosterRequest> {
        if let Some(answer) = self.answer.as_mut().filter(|answer| answer.at <= now) {
            answer.again(now);
            return Some(RosterRequest::Join(self.entry()));
        }
        if self.join_due().is_some_and(|due| due <= now) {
            self.joins = self.joins.saturating_add(1);
            self.join_at = now + pause(self.joins);
            return Some(RosterRequest::Join(self.entry()));
        }
        self.next_question(now)
    }

    /// Returns when [`poll`](Self::poll) has a request, without an event before.
    pub(super) fn timeout(&self) -> Option<Timestamp> {
        let answer = self.answer.map(|answer| answer.at);
        [answer, self.join_due(), self.view.next_due].into_iter().flatten().min()
    }

    /// Returns the members, by name.
    pub(super) fn views(&self) -> impl Iterator<Item = MemberView> {
        let shards_of = |index| self.view.turns.iter().filter(|turn| usize::from(**turn) == index).count();
        self.view.members.iter().enumerate().map(move |(index, seen)| MemberView {
            name: seen.member.name.clone(),
            weight: seen.member.weight,
            shards: shards_of(index) as u16,
            is_us: seen.member.name == self.own.name,
            is_suspected: seen.member.is_suspected,
        })
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.view.members.iter().map(|seen| seen.member.name.clone()).collect()
    }

    /// Returns how many members there are.
    pub(super) fn len(&self) -> usize {
        self.view.members.len()
    }

    /// Returns whether we go first if the member whose turn a shard is falls silent. `None` if nobody
    /// does.
    pub(super) fn is_heir(&self, shard: u16) -> Option<bool> {
        let heir = (*self.view.heirs.get(usize::from(shard))?)?;
        Some(self.view.members[usize::from(heir)].member.name == self.own.name)
    }

    /// Returns the name of the member whose turn a shard is.
    pub(super) fn member_of(&self, shard: u16) -> Option<&Arc<str>> {
        self.view.member_of(shard).map(|member| &member.name)
    }

    /// Returns whose turn a shard is.
    pub(super) fn turn(&self, shard: u16) -> Turn {
        self.turn_in(&self.view, shard)
    }

    /// Returns until when nobody should probe: until the roster was read and shows our entry, or both
    /// were awaited for long enough; and until a new group has gathered. So the start of many replicas costs no race.
    /// `echo` is how long news takes to arrive.
    pub(super) fn blocked_until(&self, now: Timestamp, echo: Duration) -> Option<Timestamp> {
        let answer = echo.saturating_mul(ANSWER_ECHOES).max(LEAST_ANSWER);
        let until = match (self.reading, self.forming.appeared) {
            (Reading::Awaited, _) => self.wanted_since? + answer,
            // The entry is on its way.
            (Reading::Done, None) if self.wants => self.wanted_since?.max(self.forming.read) + answer,
            (Reading::Done, Some(appeared)) if self.forming.is_new_group => {
                let quiet = self.forming.last_appeared + echo.saturating_mul(SETTLING_ECHOES);
                quiet.min(appeared + echo.saturating_mul(LONGEST_SETTLING_ECHOES))
            }
            _ => return None,
        };
        (until > now).then_some(until)
    }

    /// Returns when to join, if we want to and the roster lacks our entry.
    fn join_due(&self) -> Option<Timestamp> {
        (self.wants && self.reading == Reading::Done).then_some(self.join_at)
    }

    /// Notes whether we are on the roster, after each reading.
    fn note_presence(&mut self, now: Timestamp, is_first: bool) {
        // An entry of ours with another weight is a predecessor's, and needs to be written anew.
        let is_on = self.view.find(&self.own.name).is_some_and(|seen| seen.member.weight == self.own.weight);
        match (self.on_since, is_on) {
            (None, true) => {
                self.on_since = Some(now);
                self.wants = false;
                // Who restarts under the same name moves nothing and waits for nobody.
                if !is_first && self.forming.appeared.is_none() {
                    self.forming.appeared = Some(now);
                }
            }
            (Some(since), false) => {
                self.on_since = None;
                if now - since >= STAY {
                    self.joins = 0;
                }
                self.joins = self.joins.max(1);
                self.join_at = now + pause(self.joins);
            }
            _ => {}
        }
    }

    fn turn_in(&self, view: &View, shard: u16) -> Turn {
        match view.member_of(shard) {
            None => Turn::Open,
            Some(member) if member.name == self.own.name => Turn::Us,
            Some(_) => Turn::Other,
        }
    }

    /// Returns the shards that have another member than before, and those whose member claims its work
    /// back.
    fn changes_since(&self, before: &View) -> Vec<TurnChange> {
        let change = |shard| {
            let (had, has) = (before.member_of(shard), self.view.member_of(shard));
            let is_same = had.map(|had| &had.name) == has.map(|has| &has.name);
            let is_claimed = is_same && had.map(|had| had.claims) != has.map(|has| has.claims);
            (is_claimed || !is_same).then(|| TurnChange {
                shard,
                before: self.turn_in(before, shard),
                now: self.turn(shard),
                from_member: had.is_some_and(|had| self.view.find(&had.name).is_some()),
                is_claimed,
            })
        };
        (0..self.shards).filter_map(change).collect()
    }
}

impl View {
    fn new(shards: u16, members: Vec<Seen>) -> Self {
        if members.is_empty() {
            return Self::default();
        }
        let sorted: Vec<Member> = members.iter().map(|seen| seen.member.clone()).collect();
        let turns = assign(shards, &sorted);
        let heirs = assignment::heirs(&sorted, &turns);
        Self { turns, heirs, members, next_due: None }
    }

    fn find_next_due(&mut self) {
        self.next_due = self.members.iter().filter_map(|seen| seen.doubt.due).map(|due| due.at).min();
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.members.binary_search_by(|seen| (*seen.member.name).cmp(name))
    }

    fn find(&self, name: &str) -> Option<&Seen> {
        self.place(name).ok().map(|place| &self.members[place])
    }

    fn member_of(&self, shard: u16) -> Option<&Member> {
        let index = *self.turns.get(usize::from(shard))?;
        Some(&self.members[usize::from(index)].member)
    }
}

/// Returns the pause after this many tries, at least one.
fn pause(tries: u32) -> Duration {
    FIRST_PAUSE * (1 << tries.saturating_sub(1).min(MAX_DOUBLINGS))
}

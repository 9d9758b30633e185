//! A replica: the real engine or what it is compared with, and what the guard does around it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Member,
    contender::{Contender, Start},
    witness::{Standing, Witness},
};
use crate::engine::{
    Timestamp, nanos,
    outcome::{Outcome, Verdict},
};

/// What a key holds: the round that it is at, as its last writer's group wants it. Edits of others leave that alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    /// Zero if the key does not exist.
    pub round: u64,
    pub group: u8,
    /// The position of the last write in the store's order; zero if there was none.
    pub order: u64,
}

impl Value {
    fn reaches(self, group: u8, round: u64) -> bool {
        self.group == group && self.round >= round
    }
}

pub(super) struct Replica {
    pub contender: Contender,
    member: Member,
    /// When the clock was at zero, in the world's time.
    born: Duration,
    /// The watch has been answered.
    listed: bool,
    /// Of the keys, from the first one on.
    pages: Vec<Page>,
    /// Attempts that are out, by their keys.
    flying: BTreeMap<usize, Flying>,
    /// The fence of the leadership that it has won last, if elections are held.
    fence: Option<u64>,
    pub witness: Witness,
}

/// What a replica knows of a key, and wants of it.
#[derive(Clone, Debug, Default)]
struct Page {
    value: Value,
    /// We saw it while it was not as we want it.
    wrong: bool,
    /// A round that we wrote without getting an answer.
    lost: Option<u64>,
    /// The round that was wanted last; zero if none is.
    goal: u64,
    /// The rounds that were wanted and are not known to be reached, and since when, in the world's time: the first one apart,
    /// because there are seldom more.
    first: Option<(u64, Duration)>,
    later: VecDeque<(u64, Duration)>,
}

impl Page {
    fn wants(&mut self, round: u64, now: Duration) {
        match self.first {
            None => self.first = Some((round, now)),
            Some(_) => self.later.push_back((round, now)),
        }
    }

    /// What is wanted now.
    fn wanted(&self) -> Option<u64> {
        self.later.back().or(self.first.as_ref()).map(|(round, _)| *round)
    }

    /// Forgets what is reached. Returns whether that is all.
    fn reach(&mut self, value: Value, group: u8) -> bool {
        while let Some((round, _)) = self.first
            && value.reaches(group, round)
        {
            self.first = self.later.pop_front();
        }
        self.first.is_none()
    }

    fn forget(&mut self) {
        self.first = None;
        self.later.clear();
    }
}

/// An attempt that is out.
struct Flying {
    start: Start,
    started: Duration,
    fence: Option<u64>,
    /// None, if no engine began it.
    standing: Option<Standing>,
    /// Changes that came meanwhile.
    held: Vec<Change>,
}

/// News of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub key: usize,
    pub value: Value,
    pub listing: bool,
    /// When the write began, if it is our own.
    pub ours_since: Option<Duration>,
}

/// An attempt that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub key: usize,
    pub began: Duration,
    pub fence: Option<u64>,
}

impl Replica {
    pub fn new(member: Member, contender: Contender, born: Duration) -> Self {
        Self {
            contender,
            pages: vec![Page::default(); member.keys],
            member,
            born,
            listed: false,
            flying: BTreeMap::new(),
            fence: None,
            witness: Witness::default(),
        }
    }

    /// The replica's own clock.
    pub fn local(&self, now: Duration) -> Timestamp {
        Timestamp::from_nanos((nanos(now - self.born) as f64 * self.member.rate) as u64)
    }

    /// When it has to be asked again, in the world's time.
    pub fn wakes(&self) -> Option<Duration> {
        let wakes = self.contender.wakes()?.as_nanos();
        // A nanosecond more, because the way there and back rounds.
        Some(self.born + Duration::from_nanos((wakes as f64 / self.member.rate) as u64 + 2))
    }

    pub fn is_leader(&self, now: Duration) -> bool {
        self.contender.is_leader(self.local(now))
    }

    /// The keys that are pending, and since when.
    pub fn pending(&self) -> impl Iterator<Item = (Duration, usize)> {
        let pages = self.pages.iter().zip(self.member.first_key..);
        pages.filter_map(|(page, key)| page.first.map(|(_, since)| (since, key)))
    }

    /// The round that it wants of a key, or wanted last.
    pub fn goal(&self, key: usize) -> Option<u64> {
        let page = self.pages.get(key.checked_sub(self.member.first_key)?)?;
        (page.goal > 0).then_some(page.goal)
    }

    pub fn wants(&mut self, now: Duration, key: usize, round: u64) {
        let (group, listed) = (self.member.group, self.listed);
        let page = self.page(key);
        page.goal = round;
        if page.value.reaches(group, round) {
            return;
        }
        // What we saw last is not as it should be, if we have seen anything; a listing shows what does not exist, too.
        page.wrong = listed || page.value.order > 0;
        page.wants(round, now);
        let local = self.local(now);
        self.contender.tries(local, key, round);
    }

    /// The key is nothing that it wants any more.
    pub fn leaves(&mut self, now: Duration, key: usize) {
        let page = self.page(key);
        page.goal = 0;
        page.forget();
        let local = self.local(now);
        self.contender.removes(local, key);
    }

    /// The attempts that begin now. An error names a key that has one already.
    pub fn polls(&mut self, now: Duration) -> Result<Vec<Begin>, usize> {
        let local = self.local(now);
        let mut begins = Vec::new();
        while let Some(start) = self.contender.starts(local) {
            let (key, fence) = (start.key, self.fence);
            let standing = self.standing(now);
            if let Some(engine) = self.contender.engine() {
                self.witness.begins(engine, local);
            }
            let flying = Flying { start, started: now, fence, standing, held: Vec::new() };
            if self.flying.insert(key, flying).is_some() {
                return Err(key);
            }
            begins.push(Begin { key, began: now, fence });
        }
        Ok(begins)
    }

    /// The attempt of a key that is out.
    pub fn attempt(&self, key: usize) -> Option<Begin> {
        self.flying.get(&key).map(|flying| Begin { key, began: flying.started, fence: flying.fence })
    }

    /// How many attempts are out that began after `since`.
    pub fn attempts_since(&self, since: Duration) -> usize {
        self.flying.values().filter(|flying| flying.started > since).count()
    }

    /// What was read. Returns the round to write; none, if there is nothing to write, which ends the attempt.
    pub fn read(&mut self, now: Duration, key: usize, value: Value) -> Option<u64> {
        let group = self.member.group;
        let page = self.page(key);
        match page.wanted() {
            Some(want) if !value.reaches(group, want) => {
                if value.order >= page.value.order {
                    page.value = value;
                }
                page.wrong = true;
                Some(want)
            }
            _ => {
                let ours = page.lost.take() == Some(value.round);
                let by_other = page.wrong && !ours && page.value.order != value.order;
                page.value = value;
                page.wrong = false;
                page.forget();
                if by_other {
                    self.extends(now, key, value.order);
                }
                self.lands(now, key, Outcome::Unchanged.done());
                None
            }
        }
    }

    /// Our write landed; that ends the attempt.
    pub fn wrote(&mut self, now: Duration, key: usize, value: Value) {
        let group = self.member.group;
        let page = self.page(key);
        if value.order > page.value.order {
            page.value = value;
        }
        page.lost = None;
        page.wrong = !page.reach(value, group);
        self.lands(now, key, Outcome::Written.done().at_revision(Some(value.order)));
    }

    /// How the engine stands now.
    fn standing(&self, now: Duration) -> Option<Standing> {
        self.contender.engine().map(|engine| Standing::of(engine, self.local(now)))
    }

    /// Our write was refused, or nobody knows what became of it.
    pub fn failed(&mut self, now: Duration, key: usize, outcome: Outcome, sent: Option<u64>) {
        if sent.is_some() {
            self.page(key).lost = sent;
        }
        self.lands(now, key, outcome.retry());
    }

    fn lands(&mut self, now: Duration, key: usize, verdict: Verdict) {
        let Some(flying) = self.flying.remove(&key) else { return };
        let (local, before) = (self.local(now), self.standing(now));
        self.contender.ends(local, flying.start, verdict);
        if let Some(engine) = self.contender.engine()
            && let Some((began, before)) = flying.standing.zip(before)
        {
            self.witness.ended(engine, began, before, verdict, self.fence.is_none());
        }
        for change in flying.held {
            self.hears(now, change);
        }
    }

    /// The watch was answered after so long.
    pub fn lists(&mut self, now: Duration, round_trip: Duration) {
        self.listed = true;
        let local = self.local(now);
        if let Some(engine) = self.contender.engine_mut() {
            engine.handle_echo_hint(local, round_trip);
        }
    }

    /// News.
    pub fn hears(&mut self, now: Duration, change: Change) {
        let (key, value, group) = (change.key, change.value, self.member.group);
        if let Some(flying) = self.flying.get_mut(&key) {
            flying.held.push(change);
            return;
        }
        let local = self.local(now);
        if let Some(since) = change.ours_since
            && let Some(engine) = self.contender.engine_mut()
        {
            engine.handle_echo(local, now - since);
        }
        let Some(page) = key.checked_sub(self.member.first_key).and_then(|index| self.pages.get_mut(index))
        else {
            return;
        };
        if value.order <= page.value.order {
            return;
        }
        let ours = page.lost.take() == Some(value.round);
        let was_wrong = std::mem::take(&mut page.wrong);
        page.value = value;
        let Some((first, _)) = page.first else {
            // It was right, and is gone: it is wanted again.
            if value.round == 0 && page.goal > 0 {
                let goal = page.goal;
                self.wants(now, key, goal);
            }
            return;
        };
        let evidence = was_wrong && !ours && !change.listing;
        if page.reach(value, group) {
            if evidence {
                self.extends(now, key, value.order);
            } else {
                self.contender.removes(local, key);
            }
            return;
        }
        page.wrong = true;
        if evidence
            && value.reaches(group, first)
            && let Some(round) = page.wanted()
        {
            // Not what we want by now, but what we wanted first.
            self.extends(now, key, value.order);
            self.contender.tries(local, key, round);
        }
    }

    /// Somebody else did it.
    fn extends(&mut self, now: Duration, key: usize, order: u64) {
        let (local, before) = (self.local(now), self.standing(now));
        self.contender.extends(local, key, order);
        if let Some(engine) = self.contender.engine()
            && let Some(before) = before
        {
            self.witness.heard(engine, before, order);
        }
    }

    /// It was elected, or is again, for so long from when it asked.
    pub fn elected(&mut self, now: Duration, asked: Duration, lasts: Duration, fence: u64) {
        self.fence = Some(fence);
        let (local, until) = (self.local(now), self.local(asked) + lasts);
        if let Some(engine) = self.contender.engine_mut() {
            engine.handle_elected(local, until);
        }
    }

    pub fn not_elected(&mut self, now: Duration) {
        let local = self.local(now);
        if let Some(engine) = self.contender.engine_mut() {
            engine.handle_not_elected(local);
        }
    }

    fn page(&mut self, key: usize) -> &mut Page {
        &mut self.pages[key - self.member.first_key]
    }
}

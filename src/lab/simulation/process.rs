//! A running replica: the real engine, or an algorithm that it is compared with, and a shell around
//! real objects.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    checker::{Checker, Of, Standing},
    contender::{Contender, Start},
    keeper::{Keeper, Name},
    message::{Content, News, Simulated, Stored, Wish, Write},
    plan::Member,
};
use crate::{
    engine::{Engine, Incumbent, Timestamp, nanos, outcome::Verdict},
    object::{Answer, Change, Effect, Object, Request, RequestId, Step, Wishes},
};

pub(super) struct Process {
    pub contender: Contender,
    member: Member,
    /// The number of keys, from the world's first one on, with which it is never content.
    restless: usize,
    /// When the clock was at zero, in the world's time.
    born: Duration,
    /// The member's keys, from the first one on.
    keys: Vec<Key>,
    /// The watch is open, and no listing is in progress.
    live: bool,
    /// How many requests there have been.
    requests: u64,
    /// The last round that it was asked for.
    round: u64,
    attempts: BTreeMap<usize, Attempt>,
    /// The fence of the last leadership that it won, if elections are held.
    fence: Option<u64>,
    /// Its part in the roster, if it keeps one.
    keeper: Option<Keeper>,
    /// It starts nothing any more, and ends with its last attempt.
    pub leaving: bool,
    /// It leaves, and its last attempt has ended.
    departing: bool,
    pub checker: Checker,
}

/// A key, as the process sees it.
struct Key {
    object: Object<Simulated>,
    /// The round that was wanted last; zero if none is.
    goal: u64,
    ages: Ages,
}

/// The rounds that were wanted and that the process does not know to be reached, and since when in
/// the world's time. The first one stands apart, because there are seldom more.
#[derive(Default)]
struct Ages {
    first: Option<(u64, Duration)>,
    later: VecDeque<(u64, Duration)>,
}

/// An attempt that is in flight.
struct Attempt {
    start: Start,
    started: Duration,
    fence: Option<u64>,
    wishes: Wishes<Simulated>,
    /// `None` if no engine started it.
    standing: Option<Standing>,
    of: Of,
}

impl Process {
    pub fn new(member: Member, restless: usize, contender: Contender, born: Duration) -> Self {
        let key = || Key { object: Object::new(false), goal: 0, ages: Ages::default() };
        Self {
            contender,
            keys: (0..member.keys).map(|_| key()).collect(),
            member,
            restless,
            born,
            live: false,
            requests: 0,
            round: 0,
            attempts: BTreeMap::new(),
            fence: None,
            keeper: None,
            leaving: false,
            departing: false,
            checker: Checker::default(),
        }
    }

    /// The process's own clock.
    pub fn local(&self, now: Duration) -> Timestamp {
        Timestamp::from_nanos((nanos(now - self.born) as f64 * self.member.rate) as u64)
    }

    /// The world's time at a time of the process's own clock.
    fn global(&self, local: Timestamp) -> Duration {
        // A nanosecond or two more, because the way there and back rounds.
        self.born + Duration::from_nanos((local.as_nanos() as f64 / self.member.rate) as u64 + 2)
    }

    /// When it has to be polled again, in the world's time.
    pub fn wake_at(&mut self) -> Option<Duration> {
        let wake_at = self.contender.wake_at()?;
        Some(self.global(wake_at))
    }

    /// The times in which the store gave it no answer: since when, and until when.
    pub fn silences(&self) -> impl Iterator<Item = (Duration, Option<Duration>)> {
        let silences = self.checker.silences();
        silences.map(|(since, until)| (self.global(since), until.map(|until| self.global(until))))
    }

    /// The least number of setbacks in a row among the pending keys that it can write.
    pub fn fewest_setbacks(&self, now: Duration, can_write: impl Fn(usize) -> bool) -> u32 {
        let Some(engine) = self.contender.engine() else { return 0 };
        let keys = self.member.range().filter(|key| can_write(*key));
        let setbacks = keys.filter_map(|key| Some(engine.explain(self.local(now), &key)?.setbacks));
        setbacks.min().unwrap_or_default()
    }

    pub fn is_leader(&self, now: Duration) -> bool {
        self.contender.is_leader(self.local(now))
    }

    /// How long it waits for others in the shard of a key.
    pub fn patience(&self, key: usize) -> Option<Duration> {
        let engine = self.contender.engine()?;
        engine.shards().nth(engine.shard_of(&key).into()).map(|shard| shard.patience)
    }

    /// Returns whether it leads the shard of a key; without an engine, whether it leads.
    pub fn leads_key(&self, now: Duration, key: usize) -> bool {
        match self.contender.engine() {
            Some(engine) => engine.leads(self.local(now), &key),
            None => self.is_leader(now),
        }
    }

    /// The keys that are pending, and since when.
    pub fn pending(&self) -> impl Iterator<Item = (Duration, usize)> {
        let keys = self.keys.iter().zip(self.member.first_key..);
        keys.filter(|_| !self.leaving)
            .filter_map(|(key, number)| key.ages.first.map(|(_, since)| (since, number)))
    }

    /// The round of a key that it wants, or wanted last.
    pub fn goal(&self, key: usize) -> Option<u64> {
        let key = self.keys.get(key.checked_sub(self.member.first_key)?)?;
        (key.goal > 0).then_some(key.goal)
    }

    /// Takes in a round. Returns whether it is news: a round that was overtaken asks for what nobody
    /// wants any more, and a controller that lists and watches never sees it.
    pub fn begin_round(&mut self, round: u64) -> bool {
        let is_news = self.round < round;
        self.round = self.round.max(round);
        is_news
    }

    /// Wants a round of a key.
    pub fn request(&mut self, now: Duration, number: usize, round: u64) {
        if self.leaving {
            return;
        }
        let group = self.member.group;
        let id = RequestId(self.requests);
        let restless = number < self.restless;
        let key = self.key(number);
        key.goal = round;
        key.ages.add(round, now);
        let wish = Wish { content: Content { round, group }, restless };
        let effects =
            key.object.handle_request(Request { id, part: "".into(), wish, seen: None, waiter: Some(()) });
        self.requests += 1;
        self.carry_out(now, number, effects);
    }

    /// Its part in the roster, if it keeps one, with its engine and its time.
    pub fn keeper(&mut self, now: Duration) -> Option<(&mut Keeper, &mut Engine<usize, u64>, Timestamp)> {
        let local = self.local(now);
        Some((self.keeper.as_mut()?, self.contender.engine_mut()?, local))
    }

    /// Joins the group that keeps the roster, under this name.
    pub fn join_roster(&mut self, now: Duration, name: Name) {
        let local = self.local(now);
        self.keeper = self.contender.engine_mut().map(|engine| Keeper::new(engine, local, name));
    }

    /// Returns whether the last attempt of a process that leaves has just ended.
    pub fn may_depart(&mut self) -> bool {
        self.attempts.is_empty() && !std::mem::replace(&mut self.departing, self.attempts.is_empty())
    }

    /// Wants a key no more.
    pub fn withdraw(&mut self, now: Duration, number: usize) {
        let key = self.key(number);
        key.goal = 0;
        let effects = key.object.handle_removal();
        self.carry_out(now, number, effects);
    }

    /// Starts the attempts that may start now, and returns their keys.
    ///
    /// # Errors
    ///
    /// The key that has an attempt in flight already.
    pub fn poll(&mut self, now: Duration) -> Result<Vec<usize>, usize> {
        let local = self.local(now);
        let mut started = Vec::new();
        while let Some(start) = self.contender.start(local) {
            let (key, fence) = (start.key, self.fence);
            let standing = self.standing(now, key);
            let mut incumbent = Incumbent::Nobody;
            if let Some(engine) = self.contender.engine() {
                self.checker.attempt_starts(engine, local, key);
                incumbent = engine.incumbent(&key);
            }
            let of = Of { key, failed_before: self.checker.has_failed(key), cleared: false, incumbent };
            if self.attempts.contains_key(&key) {
                return Err(key);
            }
            let wishes = self.key(key).object.handle_attempt();
            self.attempts.insert(key, Attempt { start, started: now, fence, wishes, standing, of });
            started.push(key);
        }
        Ok(started)
    }

    /// How many attempts are in flight that started after `since`, and how many of these are of
    /// keys that had failed before.
    pub fn attempts_since(&self, since: Duration) -> (usize, usize) {
        let attempts = || self.attempts.values().filter(|attempt| attempt.started > since);
        (attempts().count(), attempts().filter(|attempt| attempt.of.failed_before).count())
    }

    /// How many attempts are in flight that started after `since` and without the lease of this shard,
    /// of keys in it that nobody is known to have written. An attempt of a key that failed before
    /// holds up no other, so that it counts for itself.
    pub fn contested_since(&self, since: Duration, shard: u16) -> usize {
        let competes = |attempt: &Attempt| {
            attempt.standing.is_some_and(|standing| standing.shard() == shard && !standing.leads())
        };
        let started = |attempt: &&Attempt| {
            attempt.started > since && attempt.of.incumbent == Incumbent::Nobody && competes(attempt)
        };
        let (failed, clean): (Vec<_>, Vec<_>) =
            self.attempts.values().filter(started).partition(|attempt| attempt.of.failed_before);
        failed.len().max(clean.len())
    }

    /// The shards that have attempts in flight.
    pub fn shards_in_flight(&self) -> impl Iterator<Item = u16> {
        self.attempts.values().filter_map(|attempt| Some(attempt.standing?.shard()))
    }

    /// How many attempts of keys that had failed before started after `silent_since`, too, by the process's own clock.
    pub fn repeats_since(&self, since: Duration, silent_since: Timestamp) -> usize {
        let started = |attempt: &&Attempt| {
            attempt.started > since && attempt.standing.is_some_and(|standing| standing.at() > silent_since)
        };
        self.attempts.values().filter(|attempt| attempt.of.failed_before).filter(started).count()
    }

    /// An attempt has read a key. Returns the write to send. If there is nothing to write, that
    /// ends the attempt.
    pub fn read(&mut self, now: Duration, number: usize, stored: Stored) -> Option<Write> {
        let local = self.local(now);
        let attempt = self.attempts.get(&number)?;
        let (fence, read) = (attempt.fence, stored.entry());
        let evaluation = attempt.wishes.evaluate(read.as_ref().map(|(content, _)| content));
        let object = &mut self.keys[number - self.member.first_key].object;
        let by_rival = object.before_read(read.as_ref(), &evaluation).is_some();
        let (step, effects) = object.handle_read(local, read, evaluation, by_rival);
        self.carry_out(now, number, effects);
        match step {
            Step::Write { value, expected } => Some(Write { content: value, expected, fence }),
            Step::Delete { .. } => unreachable!("no replica wants a key to be absent"),
            Step::Finish(verdict) => {
                self.finish(now, number, verdict);
                None
            }
        }
    }

    /// The answer to an attempt's write, or that there is none to its read. That ends the attempt.
    pub fn answer(&mut self, now: Duration, number: usize, answer: Answer<Simulated>) {
        let (verdict, effects) = self.key(number).object.handle_answer(answer);
        self.carry_out(now, number, effects);
        self.finish(now, number, verdict);
    }

    /// An attempt is over: takes in the changes that waited for it, then lets the contender know.
    fn finish(&mut self, now: Duration, number: usize, verdict: Verdict) {
        while let Some(change) = self.key(number).object.poll_deferred() {
            self.take_in(now, number, change);
        }
        let Some(attempt) = self.attempts.remove(&number) else { return };
        let (local, before) = (self.local(now), self.standing(now, number));
        self.contender.end(local, attempt.start, verdict);
        if let Some(engine) = self.contender.engine()
            && let Some((began, before)) = attempt.standing.zip(before)
        {
            self.checker.attempt_ended(engine, attempt.of, began, before, verdict, self.fence.is_none());
        }
    }

    /// The store has answered a watch after this time, with a listing that follows. `is_first` says
    /// that this process has not watched before.
    pub fn open_watch(&mut self, now: Duration, round_trip: Duration, is_first: bool) {
        let local = self.local(now);
        self.live = false;
        self.keys.iter_mut().for_each(|key| key.object.handle_listing());
        let Some(engine) = self.contender.engine_mut() else { return };
        if is_first {
            engine.handle_echo_hint(local, round_trip);
        } else {
            engine.handle_relisting(local);
            self.checker.store_was_listed();
        }
    }

    /// When the attempt of a key that is in flight began.
    pub fn attempt_began(&self, number: usize) -> Option<Duration> {
        self.attempts.get(&number).map(|attempt| attempt.started)
    }

    /// The listing is complete.
    pub fn end_listing(&mut self, now: Duration) {
        let local = self.local(now);
        for number in self.member.range() {
            if !self.key(number).object.is_listed() {
                self.take_in(now, number, Change::listed(None, local));
            }
        }
        self.live = true;
        // As the guard does: what is known may satisfy what is pending.
        for number in self.member.range() {
            self.assess(now, number);
        }
    }

    /// Receives news, perhaps of a key that it does not want.
    pub fn receive(&mut self, now: Duration, news: News) {
        let local = self.local(now);
        if self.member.range().contains(&news.key) {
            self.take_in(now, news.key, news.change(local));
        }
    }

    fn take_in(&mut self, now: Duration, number: usize, change: Change<Simulated>) {
        let value = change.value;
        let object = &mut self.key(number).object;
        let question = object.question(&change);
        let judgement = question.judge(|wishes| Some(wishes.evaluate(value.as_ref())), |_| true);
        let effects = object.handle_change(change, &question, judgement);
        self.carry_out(now, number, effects.expect("nothing happened since the question"));
        let group = self.member.group;
        let key = self.key(number);
        // The controller looks at each change: a key that is gone, or that a restored store has set
        // back, is requested again.
        let goal = key.goal;
        let is_behind = match key.object.value() {
            Some(value) => value.group == group && value.round < goal,
            None => !key.object.is_unknown(),
        };
        if is_behind && goal > 0 && key.object.requests().is_empty() {
            self.request(now, number, goal);
        }
    }

    /// The process was elected, or was confirmed, for this time from when it asked.
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

    fn carry_out(&mut self, now: Duration, number: usize, effects: Vec<Effect<Simulated>>) {
        let local = self.local(now);
        for effect in effects {
            match effect {
                Effect::Queue => {
                    let newest = self.key(number).object.requests().iter().map(|request| request.id.0).max();
                    self.contender.try_work(local, number, newest.expect("the job has a request"));
                }
                Effect::Clear => {
                    self.contender.remove(local, number);
                    self.key_was_cleared(number);
                }
                Effect::Satisfied => {
                    self.contender.satisfied(local, number);
                    self.key_was_cleared(number);
                }
                Effect::Evidence { revision } => self.extend(now, number, revision),
                Effect::Deleted => {
                    if let Some(engine) = self.contender.engine_mut() {
                        engine.handle_deleted(local, &number);
                    }
                }
                Effect::Echo(echo) => {
                    if let Some(engine) = self.contender.engine_mut() {
                        engine.handle_echo(local, echo);
                    }
                }
                Effect::Assess => self.assess(now, number),
                // Callers do not wait here, and what was lost is a matter of the contention
                // tracker.
                Effect::Complete(..) | Effect::Deny(..) | Effect::Discard(_) | Effect::Lost(_) => {}
            }
        }
        let group = self.member.group;
        let Key { object, ages, .. } = self.key(number);
        if object.requests().is_empty() {
            *ages = Ages::default();
        } else {
            ages.forget_reached(object.value(), group);
        }
    }

    fn assess(&mut self, now: Duration, number: usize) {
        let live = self.live;
        let object = &mut self.key(number).object;
        let Some((question, value)) = object.assessment() else { return };
        let evaluation = question.wishes.evaluate(value.as_ref());
        let assessed = object.handle_assessment(&question, Some(evaluation), live);
        let (_, effects) = assessed.expect("nothing happened since the question");
        self.carry_out(now, number, effects);
        let effects = self.key(number).object.handle_contention(&question.wishes, None);
        self.carry_out(now, number, effects);
    }

    /// A rival did what was wanted.
    fn extend(&mut self, now: Duration, number: usize, revision: Option<u64>) {
        let (local, before) = (self.local(now), self.standing(now, number));
        self.contender.extend(local, number, revision);
        self.key_was_cleared(number);
        if let Some(engine) = self.contender.engine()
            && let Some(before) = before
        {
            self.checker.rival_was_seen(engine, before, revision);
        }
    }

    fn key_was_cleared(&mut self, number: usize) {
        match self.attempts.get_mut(&number) {
            Some(attempt) => attempt.of.cleared = true,
            None => self.checker.key_was_cleared(number),
        }
    }

    /// How the engine stands now in the shard of a key.
    fn standing(&self, now: Duration, key: usize) -> Option<Standing> {
        self.contender.engine().map(|engine| Standing::of(engine, self.local(now), key))
    }

    fn key(&mut self, number: usize) -> &mut Key {
        &mut self.keys[number - self.member.first_key]
    }
}

impl Ages {
    fn add(&mut self, round: u64, now: Duration) {
        match self.first {
            None => self.first = Some((round, now)),
            Some(_) => self.later.push_back((round, now)),
        }
    }

    fn forget_reached(&mut self, value: Option<&Content>, group: u8) {
        while let Some((round, _)) = self.first
            && value.is_some_and(|value| value.reaches(group, round))
        {
            self.first = self.later.pop_front();
        }
    }
}

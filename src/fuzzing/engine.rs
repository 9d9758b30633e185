//! The engine under any events at any times, against a reference that knows only where each work is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    LeaseBuilder, LeaseConfig, Outcome, Verdict,
    engine::{AttemptId, Engine, Role, Start, Timestamp},
};

type Key = u8;
type Work = u32;

const KEYS: Key = 5;

/// Settings, then events. Running out of bytes is no error, so that every input means something.
pub fn engine(data: &[u8]) {
    let mut input = Input(data);
    let Some(config) = input.config() else { return };
    let mut run = Run::new(config);
    while !input.0.is_empty() {
        run.take(&mut input);
    }
    run.finishes();
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// Zero when there are no more.
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn key(&mut self) -> Key {
        self.byte() % KEYS
    }

    fn revision(&mut self) -> Option<u64> {
        match self.byte() {
            0 => None,
            u8::MAX => Some(u64::MAX),
            order => Some(order.into()),
        }
    }

    /// All orders of magnitude, and the extremes.
    fn duration(&mut self) -> Duration {
        match self.byte() {
            0 => Duration::ZERO,
            u8::MAX => Duration::MAX,
            byte => {
                let nanos = 10_u64.pow(u32::from(byte % 20));
                Duration::from_nanos(nanos.saturating_mul(1 + u64::from(byte / 20)))
            }
        }
    }

    fn verdict(&mut self) -> Verdict {
        let byte = self.byte();
        let outcome = match byte % 8 {
            0..=2 => Outcome::Written,
            3 => Outcome::WrittenByOther,
            4 => Outcome::Unchanged,
            5 => Outcome::Failed,
            _ => Outcome::Conflict,
        };
        let verdict = match byte / 8 % 8 {
            0..=4 => outcome.into(),
            5 => outcome.done(),
            6 => outcome.retry(),
            _ => outcome.retry_after(self.duration()),
        };
        verdict.at_revision(if byte < 128 { None } else { self.revision() })
    }

    /// `None` if the settings are refused, which they may be.
    fn config(&mut self) -> Option<LeaseConfig> {
        let kind = self.byte();
        let mut settings = LeaseBuilder::new("fuzz").seed(self.byte().into());
        settings = settings.concurrency(match self.byte() {
            u8::MAX => usize::MAX,
            byte => usize::from(byte % 8),
        });
        if kind & 1 != 0 {
            settings = settings.term(self.duration()).backoff_base(self.duration());
        }
        if kind & 2 != 0 {
            settings = settings.retry_interval(self.duration()).echo_hint(self.duration());
        }
        if kind & 4 != 0 {
            settings = settings.attempt_timeout(self.duration());
        }
        if kind & 8 != 0 {
            settings = settings.fixed_patience();
        } else if kind & 16 != 0 {
            settings = settings.min_patience(self.duration());
        }
        if kind & 32 != 0 {
            let (power, jitter) = (i32::from(self.byte()), f64::from(self.byte()));
            settings = settings.backoff_factor(2_f64.powi(4 * power)).jitter(jitter / 255.0);
        }
        if kind & 64 != 0 {
            let steps = u32::from(self.byte());
            settings = settings.backoff_steps(if steps == 255 { u32::MAX } else { steps });
        }
        settings.build().ok()
    }
}

/// An attempt that is out, as the reference sees it.
struct Out {
    id: AttemptId,
    key: Key,
    work: Work,
    deadline: Timestamp,
    cleared: bool,
}

/// What only some events may move.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Standing {
    role: Role,
    reign: u64,
    epoch: u64,
    tick: u32,
    lease_end: Timestamp,
}

struct Run {
    engine: Engine<Key, Work>,
    now: Timestamp,
    works: Work,
    pending: BTreeMap<Key, Work>,
    out: Vec<Out>,
    returned: BTreeSet<Work>,
    attempts: BTreeMap<Work, u32>,
    /// The last attempt that ended.
    ended: Option<AttemptId>,
    /// Once an election was heard of: until when it lets us work.
    elected: Option<Timestamp>,
}

impl Run {
    fn new(config: LeaseConfig) -> Self {
        Self {
            engine: Engine::new(config),
            now: Timestamp::ZERO,
            works: 0,
            pending: BTreeMap::new(),
            out: Vec::new(),
            returned: BTreeSet::new(),
            attempts: BTreeMap::new(),
            ended: None,
            elected: None,
        }
    }

    fn standing(&self) -> Standing {
        let engine = &self.engine;
        Standing {
            role: engine.role(),
            reign: engine.role_generation(),
            epoch: engine.epoch(),
            tick: engine.losses(),
            lease_end: engine.lease_end(),
        }
    }

    fn take(&mut self, input: &mut Input<'_>) {
        let before = self.standing();
        let mut moves = true;
        match input.byte() % 20 {
            0..=3 => {
                moves = false;
                self.wants(input.key());
            }
            4..=6 => {
                let verdict = input.verdict();
                moves = matches!(verdict.outcome, Outcome::Written | Outcome::WrittenByOther);
                if let Some(out) = self.one_that_is_out(input) {
                    self.ends(out, verdict);
                }
            }
            7 => {
                moves = false;
                if let Some(out) = self.one_that_is_out(input) {
                    let returned = self.engine.handle_panic(self.now, out.id, out.work);
                    self.settles(out, true, returned);
                }
            }
            8 | 9 => {
                let (key, order) = (input.key(), input.revision());
                let work = self.engine.handle_extend(self.now, &key, order);
                self.cleared(key, work);
            }
            10 => self.engine.handle_observe(self.now, input.revision()),
            11 => {
                moves = false;
                let key = input.key();
                let work = self.engine.handle_remove(self.now, &key);
                self.cleared(key, work);
            }
            12 => {
                self.engine.handle_expire(self.now);
                let lease_end = self.standing().lease_end;
                assert!(lease_end <= before.lease_end, "who ends a lease does not prolong it");
            }
            13 => {
                moves = false;
                let (kind, time) = (input.byte(), input.duration());
                // Also by a clock that went backwards.
                let now = Timestamp::from_nanos(self.now.as_nanos() / (1 + u64::from(kind / 2)));
                match kind % 2 {
                    0 => self.engine.handle_echo(now, time),
                    _ => self.engine.handle_echo_hint(now, time),
                }
            }
            14 => {
                moves = false;
                for (key, work) in self.engine.drain() {
                    assert_eq!(self.pending.remove(&key), Some(work));
                    self.returns(Some(work));
                }
                assert!(self.pending.is_empty());
            }
            15 => {
                moves = false;
                if let Some(id) = self.ended {
                    self.works += 1;
                    let returned = self.engine.handle_outcome(self.now, id, input.verdict(), self.works);
                    assert_eq!(returned, Some(self.works), "an attempt ends once");
                    self.returns(returned);
                }
            }
            16 => {
                let until = self.now + input.duration();
                self.elected = Some(until);
                self.engine.handle_elected(self.now, until);
                assert_eq!(self.engine.is_leader(self.now), until > self.now);
            }
            17 => {
                self.elected = Some(Timestamp::ZERO);
                self.engine.handle_not_elected(self.now);
                assert!(!self.engine.is_leader(self.now));
            }
            18 => {
                moves = false;
                self.now = self.now + input.duration();
            }
            _ => {
                moves = false;
                self.now = self.engine.poll_timeout().map_or(self.now, |at| at.max(self.now));
                self.polls();
            }
        }
        let after = self.standing();
        assert!(moves || after == before, "{before:?} became {after:?}");
        assert!(after.tick <= before.tick.saturating_add(1), "one loss is one step");
        assert!(after.reign >= before.reign && after.epoch - before.epoch <= 1);
        self.check();
    }

    fn one_that_is_out(&mut self, input: &mut Input<'_>) -> Option<Out> {
        let which = usize::from(input.byte());
        let out = (!self.out.is_empty()).then(|| self.out.swap_remove(which % self.out.len()))?;
        self.ended = Some(out.id);
        Some(out)
    }

    fn wants(&mut self, key: Key) {
        self.works += 1;
        let replaced = self.engine.handle_try(self.now, key, self.works);
        assert_eq!(replaced, self.pending.insert(key, self.works));
        self.returns(replaced);
    }

    fn ends(&mut self, out: Out, verdict: Verdict) {
        let returned = self.engine.handle_outcome(self.now, out.id, verdict, out.work);
        self.settles(out, verdict.next != crate::Next::Done, returned);
    }

    /// What must become of the work of an attempt that has ended.
    fn settles(&mut self, out: Out, again: bool, returned: Option<Work>) {
        if again && !out.cleared && !self.pending.contains_key(&out.key) {
            assert_eq!(returned, None);
            self.pending.insert(out.key, out.work);
        } else {
            assert_eq!(returned, Some(out.work));
            self.returns(returned);
        }
    }

    fn cleared(&mut self, key: Key, work: Option<Work>) {
        assert_eq!(work, self.pending.remove(&key));
        self.returns(work);
        self.out.iter_mut().filter(|out| out.key == key).for_each(|out| out.cleared = true);
    }

    fn returns(&mut self, work: Option<Work>) {
        if let Some(work) = work {
            assert!(self.returned.insert(work), "work {work} was handed back twice");
        }
    }

    fn polls(&mut self) {
        let before = self.standing();
        loop {
            let announced = self.engine.poll_timeout().is_some_and(|at| at <= self.now);
            let Some(start) = self.engine.poll_attempt(self.now) else { break };
            assert!(announced, "an attempt that no deadline announced");
            self.starts(start);
        }
        assert_eq!(self.standing(), before, "to look changes nothing");
        let timeout = self.engine.poll_timeout();
        // Nothing comes after the end of time.
        assert!(
            timeout.is_none_or(|at| at > self.now) || self.now == Timestamp::MAX,
            "a deadline in the past after polling"
        );
        let bars = |key: &Key| self.out.iter().any(|out| out.key == *key);
        assert!(
            timeout.is_some() || !self.may_work() || self.pending.keys().all(bars),
            "a key that nothing will wake"
        );
    }

    /// Whether no election forbids it.
    fn may_work(&self) -> bool {
        self.elected.is_none_or(|until| self.now < until)
    }

    fn starts(&mut self, start: Start<Key, Work>) {
        assert!(self.out.iter().all(|out| out.key != start.key), "two attempts of key {}", start.key);
        assert_eq!(self.pending.remove(&start.key), Some(start.job), "an attempt of what is not pending");
        let attempts = self.attempts.entry(start.job).or_default();
        *attempts += 1;
        assert_eq!(start.number, *attempts);
        assert_eq!(start.epoch, self.engine.epoch());
        assert_eq!(start.deadline, self.now + self.engine.config().attempt_timeout());
        assert!(self.may_work(), "an attempt without a mandate");
        let Start { id, key, job: work, deadline, .. } = start;
        self.out.push(Out { id, key, work, deadline, cleared: false });
        let most = match self.engine.role() {
            Role::Leader if self.engine.is_leader(self.now) => self.engine.window(),
            Role::Leader | Role::Election => 1,
            Role::Follower => self.engine.config().concurrency(),
        };
        let in_time = self.in_time();
        assert!(in_time <= most, "{in_time} in flight, {most} allowed");
    }

    fn in_time(&self) -> usize {
        self.out.iter().filter(|out| out.deadline > self.now).count()
    }

    fn check(&self) {
        let engine = &self.engine;
        let config = engine.config();
        assert_eq!((engine.len(), engine.in_flight()), (self.pending.len(), self.out.len()));
        assert_eq!(
            self.pending.len() + self.out.len() + self.returned.len(),
            self.works as usize,
            "a work was lost"
        );
        assert!(self.in_time() <= config.concurrency());
        assert!((1..=config.concurrency()).contains(&engine.window()));
        assert!(engine.patience() <= config.term());
        let leads = engine.role() == Role::Leader && self.now < engine.lease_end();
        assert_eq!(engine.is_leader(self.now), leads);
        if self.elected.is_none() {
            // The longest backoff is a tenth more than the term; that of a leader that was deposed half a term more.
            let longest = config.term().saturating_mul(17) / 10;
            assert!(engine.lease_end() <= self.now + longest + Duration::from_micros(1));
        }
        let counters = engine.counters();
        assert_eq!((counters.won, counters.won + counters.lost), (engine.epoch(), engine.role_generation()));
        assert_eq!(counters.attempts, self.attempts.values().map(|&n| u64::from(n)).sum::<u64>());
    }

    /// From wherever the run is: what hung returns, whatever is tried succeeds, and time goes on. Then everything is done.
    fn finishes(&mut self) {
        while let Some(out) = self.out.pop() {
            self.ends(out, Outcome::Unchanged.done());
        }
        if self.elected.is_some() {
            self.elected = Some(Timestamp::MAX);
            self.engine.handle_elected(self.now, Timestamp::MAX);
        }
        let mut wakes = 0;
        // An election's mandate ends with time itself.
        while !self.pending.is_empty() && (self.elected.is_none() || self.now < Timestamp::MAX) {
            self.polls();
            if self.out.is_empty() {
                wakes += 1;
                assert!(wakes <= 8 * usize::from(KEYS), "deadlines that lead nowhere");
                let next = self.engine.poll_timeout().expect("pending work has a deadline");
                assert!(next > self.now || self.now == Timestamp::MAX);
                self.now = next.max(self.now);
            }
            while let Some(out) = self.out.pop() {
                self.ends(out, Outcome::Written.done());
            }
            self.check();
        }
    }
}

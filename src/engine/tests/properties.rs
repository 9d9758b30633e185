//! Random runs against a reference that knows nothing of leases, only where each work is.
//!
//! Each run is checked after every step. `PROPTEST_CASES=100000` makes them many; a failure prints its settings and events,
//! which are all that a run depends on.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::vec,
    option,
    prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest},
    sample::select,
};

use super::*;

type Key = u8;
type Work = u64;

const KEYS: Key = 8;

#[derive(Clone, Debug)]
enum Event {
    Try(Key),
    /// Of one of the attempts that are out.
    Outcome(usize, Verdict),
    Panic(usize),
    Extend(Key, Option<u64>),
    Observe(Option<u64>),
    Remove(Key),
    Expire,
    Echo(Duration),
    /// Time passes; attempts that are out hang.
    Pass(Duration),
    /// Time passes until the engine wants to be polled.
    Wake,
    Drain,
}

fn orders() -> impl Strategy<Value = Option<u64>> {
    option::of(0..10_u64)
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => select(vec![Duration::ZERO, Duration::from_nanos(1), secs(10), secs(61), secs(86_400)]),
        3 => (1..50_u64).prop_map(ms),
        2 => (50..5_000_u64).prop_map(ms),
    ]
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    let outcomes = select(vec![
        Outcome::Written,
        Outcome::Written,
        Outcome::Written,
        Outcome::WrittenByOther,
        Outcome::Conflict,
        Outcome::Conflict,
        Outcome::Unchanged,
        Outcome::Failed,
        Outcome::Failed,
    ]);
    let usual = outcomes.clone().prop_map(Verdict::from);
    let unusual = (outcomes, select(vec![None, Some(ms(0)), Some(secs(1)), Some(secs(3_600))])).prop_map(
        |(outcome, after)| match after {
            _ if outcome == Outcome::Failed && after.is_none() => outcome.done(),
            None => outcome.retry(),
            Some(after) => outcome.retry_after(after),
        },
    );
    (prop_oneof![3 => usual, 1 => unusual], orders()).prop_map(|(verdict, order)| verdict.at_revision(order))
}

fn events() -> impl Strategy<Value = Event> {
    let key = 0..KEYS;
    prop_oneof![
        12 => key.clone().prop_map(Event::Try),
        10 => (0..64_usize, verdicts()).prop_map(|(which, verdict)| Event::Outcome(which, verdict)),
        1 => (0..64_usize).prop_map(Event::Panic),
        3 => (key.clone(), orders()).prop_map(|(key, order)| Event::Extend(key, order)),
        1 => orders().prop_map(Event::Observe),
        1 => key.prop_map(Event::Remove),
        1 => Just(Event::Expire),
        1 => durations().prop_map(Event::Echo),
        4 => durations().prop_map(Event::Pass),
        10 => Just(Event::Wake),
        1 => Just(Event::Drain),
    ]
}

/// Settings, and whether the engine is polled after every event, as the driver does, or on waking only.
#[derive(Clone, Debug)]
struct Setup {
    config: LeaseConfig,
    eager: bool,
}

fn setups() -> impl Strategy<Value = Setup> {
    (any::<u64>(), 1..6_usize, select(vec![ms(300), secs(5), TERM]), any::<[bool; 4]>()).prop_map(
        |(seed, concurrency, term, [fixed, steady, slow, eager])| {
            let mut settings = settings(seed).concurrency(concurrency).term(term);
            if fixed {
                settings = settings.fixed_patience();
            }
            if steady {
                settings = settings.jitter(0.0);
            }
            if slow {
                settings = settings.echo_hint(ms(80));
            }
            Setup { config: settings.build().unwrap(), eager }
        },
    )
}

/// An attempt that is out, as the reference sees it.
#[derive(Debug)]
struct Out {
    id: AttemptId,
    key: Key,
    work: Work,
    since: Timestamp,
    reign: u64,
    deadline: Timestamp,
    cleared: bool,
}

#[derive(Debug)]
struct Run {
    engine: Engine<Key, Work>,
    now: Timestamp,
    works: Work,
    /// Since when each pending key is unfulfilled, and its work.
    pending: BTreeMap<Key, (Timestamp, Work)>,
    out: Vec<Out>,
    returned: BTreeSet<Work>,
    attempts: BTreeMap<Work, u32>,
    /// Keys that may wait for a time of their own, because an attempt of theirs is to be repeated.
    repeating: BTreeSet<Key>,
    /// All that could be seen from outside.
    trace: Vec<(Timestamp, Standing, Counters, Option<Timestamp>)>,
}

impl Run {
    fn new(setup: &Setup) -> Self {
        Self {
            engine: Engine::new(setup.config.clone()),
            now: Timestamp::ZERO,
            works: 0,
            pending: BTreeMap::new(),
            out: Vec::new(),
            returned: BTreeSet::new(),
            attempts: BTreeMap::new(),
            repeating: BTreeSet::new(),
            trace: Vec::new(),
        }
    }

    fn standing(&self) -> Standing {
        Standing::of(&self.engine)
    }

    fn take(&mut self, setup: &Setup, event: &Event) {
        let before = self.standing();
        match *event {
            Event::Try(key) => self.wants(key),
            Event::Outcome(which, verdict) if !self.out.is_empty() => {
                let out = self.out.swap_remove(which % self.out.len());
                self.ends(out, verdict);
            }
            Event::Panic(which) if !self.out.is_empty() => {
                let out = self.out.swap_remove(which % self.out.len());
                let returned = self.engine.handle_panic(self.now, out.id, out.work);
                self.settles(out, true, None, returned);
            }
            Event::Outcome(..) | Event::Panic(_) => {}
            Event::Extend(key, order) => {
                let work = self.engine.handle_extend(self.now, &key, order);
                self.cleared(key, work);
            }
            Event::Observe(order) => self.engine.handle_observe(self.now, order),
            Event::Remove(key) => {
                let work = self.engine.handle_remove(self.now, &key);
                self.cleared(key, work);
            }
            Event::Expire => self.engine.handle_expire(self.now),
            Event::Echo(echo) => self.engine.handle_echo(self.now, echo),
            Event::Pass(time) => self.now = self.now + time,
            Event::Wake => self.now = self.engine.poll_timeout().map_or(self.now, |at| at.max(self.now)),
            Event::Drain => self.drains(),
        }
        self.check_movement(event, before);
        if setup.eager || matches!(event, Event::Wake) {
            self.polls();
        }
        self.check();
        self.trace.push((self.now, self.standing(), self.engine.counters(), self.engine.poll_timeout()));
    }

    fn wants(&mut self, key: Key) {
        self.works += 1;
        let replaced = self.engine.handle_try(self.now, key, self.works);
        let since = self.pending.get(&key).map_or(self.now, |&(since, _)| since.min(self.now));
        let known = self.pending.insert(key, (since, self.works));
        assert_eq!(replaced, known.map(|(_, work)| work));
        self.returns(replaced);
    }

    fn ends(&mut self, out: Out, verdict: Verdict) {
        let before = self.standing();
        let pause = self.engine.outage.until();
        let returned = self.engine.handle_outcome(self.now, out.id, verdict, out.work);
        if out.reign != before.reign {
            assert_eq!(self.standing(), before, "old news moved something");
            assert!(self.engine.outage.until() <= pause, "old news is no outage");
        }
        let done = matches!(verdict.outcome, Outcome::Written | Outcome::Unchanged);
        let anew = match verdict.next {
            Next::RetryAfter(delay) => self.now + delay,
            _ => self.now + self.engine.config().retry_interval(),
        };
        self.settles(out, verdict.next != Next::Done, done.then_some(anew), returned);
    }

    /// What must become of the work of an attempt that has ended. `anew`: it did what was wanted, which is wanted again
    /// from then on.
    fn settles(&mut self, out: Out, again: bool, anew: Option<Timestamp>, returned: Option<Work>) {
        let again = again && !out.cleared;
        if again
            && anew.is_none()
            && let Some((since, _)) = self.pending.get_mut(&out.key)
        {
            *since = out.since;
        }
        if again {
            self.repeating.insert(out.key);
        }
        if again && !self.pending.contains_key(&out.key) {
            assert_eq!(returned, None);
            self.pending.insert(out.key, (anew.unwrap_or(out.since), out.work));
        } else {
            assert_eq!(returned, Some(out.work));
            self.returns(returned);
        }
    }

    fn cleared(&mut self, key: Key, work: Option<Work>) {
        assert_eq!(work, self.pending.remove(&key).map(|(_, work)| work));
        self.returns(work);
        self.out.iter_mut().filter(|out| out.key == key).for_each(|out| out.cleared = true);
        self.repeating.remove(&key);
    }

    fn drains(&mut self) {
        let drained = self.engine.drain();
        let ages: Vec<Timestamp> = drained.iter().map(|(key, _)| self.pending[key].0).collect();
        assert!(ages.is_sorted(), "oldest first");
        for (key, work) in drained {
            assert_eq!(self.pending.remove(&key).map(|(_, work)| work), Some(work));
            self.returns(Some(work));
        }
        assert!(self.pending.is_empty());
        self.repeating.clear();
    }

    fn returns(&mut self, work: Option<Work>) {
        if let Some(work) = work {
            assert!(self.returned.insert(work), "work {work} was handed back twice");
        }
    }

    fn polls(&mut self) {
        loop {
            self.engine.in_flight.expire(self.now);
            let before = self.engine.in_flight.counted();
            let wanted_now = self.engine.poll_timeout().is_some_and(|at| at <= self.now);
            let Some(start) = self.engine.poll_attempt(self.now) else { break };
            assert!(wanted_now, "an attempt that no deadline announced");
            let own = self.engine.in_flight.counted().own > before.own;
            self.starts(start, own);
        }
        let timeout = self.engine.poll_timeout();
        assert!(timeout.is_none_or(|at| at > self.now), "a deadline in the past after polling");
        let barred = |key: &Key| self.out.iter().any(|out| out.key == *key);
        assert!(timeout.is_some() || self.pending.keys().all(barred), "a key that nothing will wake");
    }

    fn starts(&mut self, start: Start<Key, Work>, own: bool) {
        assert!(self.out.iter().all(|out| out.key != start.key), "two attempts of key {}", start.key);
        let (since, work) = self.pending.remove(&start.key).expect("an attempt of pending work");
        assert_eq!(start.job, work);
        let attempts = self.attempts.entry(work).or_default();
        *attempts += 1;
        assert_eq!(start.number, *attempts);
        assert_eq!(start.epoch, self.engine.epoch());
        assert_eq!(start.deadline, self.now + self.engine.config().attempt_timeout());
        self.repeating.remove(&start.key);

        let out = self.engine.in_flight.counted();
        let most = match self.engine.role() {
            Role::Leader if self.engine.is_leader(self.now) => self.engine.window(),
            Role::Leader | Role::Election => 1,
            Role::Follower if own => self.engine.config().concurrency(),
            Role::Follower => out.own + 1,
        };
        assert!(out.all <= most, "{out:?} in flight, {most} allowed");
        assert!(self.now >= self.engine.outage.until(), "an attempt during the pause of an outage");
        assert!(!self.engine.outage.lasts() || out.all == 1, "one finds out whether the store is back");
        self.out.push(Out {
            id: start.id,
            key: start.key,
            work,
            since,
            reign: self.engine.role_generation(),
            deadline: start.deadline,
            cleared: false,
        });
    }

    /// Only some events move role, tick and lease, and only in their direction.
    fn check_movement(&self, event: &Event, before: Standing) {
        let after = self.standing();
        match event {
            Event::Outcome(_, verdict) if verdict.outcome == Outcome::Written => {
                assert!(after.role == before.role || after.role == Role::Leader);
                if before.role == Role::Leader {
                    assert!(after.lease_end >= before.lease_end && after.epoch == before.epoch);
                }
                assert_eq!(after.epoch - before.epoch, u64::from(after.role != before.role));
            }
            Event::Outcome(_, Verdict { outcome: Outcome::WrittenByOther, .. })
            | Event::Extend(..)
            | Event::Observe(_) => {
                assert!(after.role == before.role || after.role == Role::Follower);
                assert!(after.tick <= before.tick + 1);
                assert_eq!(after.epoch, before.epoch);
            }
            Event::Expire => {
                let lease_end = before.lease_end.min(self.now);
                assert_eq!(after, Standing { lease_end, ..before });
            }
            _ => {
                let Standing { window, patience, .. } = after;
                assert_eq!(after, Standing { window, patience, ..before }, "{event:?} moved the lease");
                assert!(window <= before.window);
            }
        }
    }

    fn check(&self) {
        let engine = &self.engine;
        let config = engine.config();
        assert_eq!((engine.len(), engine.in_flight()), (self.pending.len(), self.out.len()));
        assert_eq!(self.pending.len() + self.out.len() + self.returned.len(), self.works as usize);
        assert!(
            self.pending.values().all(|(_, work)| !self.returned.contains(work))
                && self.out.iter().all(|out| !self.returned.contains(&out.work)),
            "work that is in two places"
        );

        let in_time = self.out.iter().filter(|out| out.deadline > self.now).count();
        assert!(in_time <= config.concurrency());
        assert!((1..=config.concurrency()).contains(&engine.window()));
        assert!(engine.patience() <= config.term());

        assert!(!engine.is_leader(engine.lease_end()));
        assert_eq!(
            engine.is_leader(self.now),
            engine.role() == Role::Leader && self.now < engine.lease_end()
        );
        let counters = engine.counters();
        assert_eq!((counters.won, counters.won + counters.lost), (engine.epoch(), engine.role_generation()));
        assert_eq!(counters.attempts, self.attempts.values().map(|&n| u64::from(n)).sum::<u64>());

        // What waits for the lease has no deadline of its own.
        if self.repeating.is_empty() {
            assert_eq!(engine.queue.next_due(), None);
        }
    }

    /// From wherever the run is: hung attempts return, and everything succeeds from now on.
    fn finishes(&mut self) {
        while let Some(out) = self.out.pop() {
            self.ends(out, Outcome::Unchanged.done());
        }
        let mut wakes = 0;
        while !self.pending.is_empty() {
            self.polls();
            if self.out.is_empty() {
                wakes += 1;
                assert!(wakes <= 4 * usize::from(KEYS), "deadlines that lead nowhere");
                self.now = self.engine.poll_timeout().expect("pending work has a deadline");
            }
            while let Some(out) = self.out.pop() {
                self.ends(out, Outcome::Written.done());
            }
            self.check();
        }
        assert_eq!(self.returned.len(), self.works as usize, "every work came back");
    }
}

fn run(setup: &Setup, events: &[Event]) -> Run {
    let mut run = Run::new(setup);
    for event in events {
        run.take(setup, event);
    }
    run
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_invariants_hold_and_no_work_is_lost(
        setup in setups(),
        events in vec(events(), 1..150),
    ) {
        run(&setup, &events).finishes();
    }

    #[test]
    fn one_seed_and_one_sequence_of_events_is_one_run(setup in setups(), events in vec(events(), 1..100)) {
        prop_assert_eq!(run(&setup, &events).trace, run(&setup, &events).trace);
    }

    #[test]
    fn while_attempts_succeed_no_key_outlives_its_patience_by_more_than_the_attempts_before_it(
        town in towns(),
        doings in vec((0..600_u64, doings()), 1..120),
    ) {
        town.lives(&doings);
    }
}

/// A world in which every attempt succeeds after a bounded time, and somebody else keeps writing.
#[derive(Clone, Debug)]
struct Town {
    setup: Setup,
    /// The longest that an attempt takes.
    latency: Duration,
    /// How often somebody else writes a key that nobody here wants.
    rumours: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Doing {
    Want(Key),
    Evidence(Key),
}

fn towns() -> impl Strategy<Value = Town> {
    (setups(), 1..200_u64, option::of(5..500_u64)).prop_map(|(setup, latency, rumours)| Town {
        setup,
        latency: ms(latency).min(setup_timeout()),
        rumours: rumours.map(ms),
    })
}

fn doings() -> impl Strategy<Value = Doing> {
    prop_oneof![6 => (0..KEYS).prop_map(Doing::Want), 1 => (0..KEYS).prop_map(Doing::Evidence)]
}

/// Attempts shorter than this meet every deadline of `setups`.
fn setup_timeout() -> Duration {
    ms(250)
}

impl Town {
    fn lives(&self, doings: &[(u64, Doing)]) {
        let mut run = Run::new(&self.setup);
        // Since when each key is unfulfilled, with the longest patience since then.
        let mut wanted: BTreeMap<Key, (Timestamp, Duration)> = BTreeMap::new();
        let mut landing: BTreeSet<(Timestamp, AttemptId)> = BTreeSet::new();
        let mut rumour = self.rumours.map(|every| run.now + every);
        let mut doings = doings.iter();
        let mut next = doings.next().map(|(gap, doing)| (run.now + ms(*gap), doing));
        while next.is_some() || !run.pending.is_empty() || !run.out.is_empty() {
            let lands = landing.first().map(|&(at, _)| at);
            run.now = earliest([run.engine.poll_timeout(), lands, rumour, next.map(|(at, _)| at)])
                .expect("something to wait for")
                .max(run.now);
            while let Some(&(at, id)) = landing.first()
                && at <= run.now
            {
                landing.pop_first();
                let place = run.out.iter().position(|out| out.id == id).unwrap();
                let out = run.out.swap_remove(place);
                let key = out.key;
                run.ends(out, Outcome::Written.done());
                self.check_age(&run, wanted.remove(&key));
                if let Some(&(since, _)) = run.pending.get(&key) {
                    wanted.insert(key, (since, Duration::ZERO));
                }
            }
            if rumour.is_some_and(|at| at <= run.now) {
                run.engine.handle_extend(run.now, &KEYS, None);
                rumour = rumour.zip(self.rumours).map(|(at, every)| at + every);
            }
            if let Some((at, doing)) = next
                && at <= run.now
            {
                match *doing {
                    Doing::Want(key) => {
                        run.wants(key);
                        wanted.entry(key).or_insert((run.now, Duration::ZERO));
                    }
                    Doing::Evidence(key) => {
                        let work = run.engine.handle_extend(run.now, &key, None);
                        run.cleared(key, work);
                        if run.out.iter().all(|out| out.key != key) {
                            wanted.remove(&key);
                        }
                    }
                }
                next = doings.next().map(|(gap, doing)| (run.now + ms(*gap), doing));
            }
            let known = run.out.len();
            run.polls();
            for (i, out) in run.out[known..].iter().enumerate() {
                let share = (out.work + i as u64) % 7 + 1;
                landing.insert((run.now + self.latency * share as u32 / 7, out.id));
            }
            run.check();
            for age in wanted.values_mut() {
                age.1 = age.1.max(run.engine.patience());
                self.check_age(&run, Some(*age));
            }
        }
    }

    /// While a key waits, the leader may do each of the others that were wanted before it, or not much later, one at a time
    /// and just before it would be suspected. Then it shows by newer work that it has passed the key over, or falls silent.
    /// Then the key waits for the election, and for older keys and their newer work at most.
    fn check_age(&self, run: &Run, wanted: Option<(Timestamp, Duration)>) {
        let (since, patience) = wanted.expect("an attempt of a key that is wanted");
        let before_it = self.latency * (2 * u32::from(KEYS) + 1);
        let patiences = u32::from(KEYS) + 1;
        let bound = patiences * patience.max(run.engine.patience()) + before_it + run.engine.echo() * 16;
        assert!(run.now - since <= bound, "{:?} old, {bound:?} allowed", run.now - since);
        assert!(patience <= run.engine.config().term());
    }
}

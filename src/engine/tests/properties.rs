//! Random runs against the reference in `model`.
//!
//! `PROPTEST_CASES=100000` sets how many. A failure prints its settings and events; a run depends
//! on nothing else.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::vec,
    option,
    prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest},
    sample::select,
};

use super::{
    model::{Event, Key, Run},
    *,
};

const KEYS: Key = 8;

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
        Outcome::Denied,
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
        1 => durations().prop_map(|echo| Event::Echo { divisor: 1, echo }),
        4 => durations().prop_map(Event::Pass),
        10 => Just(Event::Wake),
        1 => Just(Event::Drain),
    ]
}

/// The settings of a run, and whether the engine is polled after every event or on waking only.
#[derive(Clone, Debug)]
struct Setup {
    config: LeaseConfig,
    eager: bool,
}

impl Setup {
    fn run(&self) -> Run {
        Run::new(self.config.clone(), self.eager)
    }
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

/// The part of a run that can be seen from outside.
type Seen = (Timestamp, Standing, Counters, Option<Timestamp>);

/// Runs the events. Returns the run, and its state after each of them.
fn run(setup: &Setup, events: &[Event]) -> (Run, Vec<Seen>) {
    let mut run = setup.run();
    let trace = events.iter().map(|&event| {
        run.take(event);
        (run.now, run.standing(), run.engine.counters(), run.engine.poll_timeout())
    });
    let trace = trace.collect();
    (run, trace)
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn invariants_hold_and_no_work_is_lost(
        setup in setups(),
        events in vec(events(), 1..150),
    ) {
        run(&setup, &events).0.finish(4 * usize::from(KEYS));
    }

    #[test]
    fn same_seed_and_events_give_the_same_run(setup in setups(), events in vec(events(), 1..100)) {
        prop_assert_eq!(run(&setup, &events).1, run(&setup, &events).1);
    }

    #[test]
    fn patience_and_earlier_attempts_bound_every_wait(
        town in towns(),
        doings in vec((0..600_u64, doings()), 1..120),
    ) {
        town.lives(&doings);
    }
}

/// A world in which every attempt succeeds after a bounded time, and another replica keeps writing.
#[derive(Clone, Debug)]
struct Town {
    setup: Setup,
    /// The longest that an attempt takes.
    latency: Duration,
    /// How often another replica writes a key that this one never requests.
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
        let mut run = self.setup.run();
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
                run.end(out, Outcome::Written.done());
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
                        run.request(key);
                        wanted.entry(key).or_insert((run.now, Duration::ZERO));
                    }
                    Doing::Evidence(key) => {
                        let work = run.engine.handle_extend(run.now, &key, None);
                        run.clear(key, work);
                        if run.out.iter().all(|out| out.key != key) {
                            wanted.remove(&key);
                        }
                    }
                }
                next = doings.next().map(|(gap, doing)| (run.now + ms(*gap), doing));
            }
            let known = run.out.len();
            run.poll();
            for (i, out) in run.out[known..].iter().enumerate() {
                let share = (out.job + i as u32) % 7 + 1;
                landing.insert((run.now + self.latency * share / 7, out.id));
            }
            run.check();
            for age in wanted.values_mut() {
                age.1 = age.1.max(run.engine.patience());
                self.check_age(&run, Some(*age));
            }
        }
    }

    /// While a key waits, the leader may first write each key that was requested before it or soon
    /// after, one at a time and just before it would be suspected. Then it serves newer requests,
    /// which shows that it skips the key, or it falls silent. From then on the key waits for the
    /// election, for older keys and for newer jobs of these.
    fn check_age(&self, run: &Run, wanted: Option<(Timestamp, Duration)>) {
        let (since, patience) = wanted.expect("an attempt of a key that is wanted");
        let before_it = self.latency * (2 * u32::from(KEYS) + 1);
        let patiences = u32::from(KEYS) + 1;
        let bound = patiences * patience.max(run.engine.patience()) + before_it + run.engine.echo() * 16;
        assert!(run.now - since <= bound, "{:?} old, {bound:?} allowed", run.now - since);
        assert!(patience <= run.engine.config().term());
    }
}

//! Rule 5: delays are measured in echoes, and spread so that the first to go silences the rest.

use std::ops::RangeInclusive;

use super::*;

#[test]
fn until_the_first_echo_round_trips_count_double() {
    let mut world = World::new(1);
    world.engine.handle_echo_hint(world.now, ms(50));
    assert_eq!(world.engine.echo(), ms(100), "it reads, writes, and hears of it");
    world.engine.handle_echo(world.now, ms(80));
    world.engine.handle_echo_hint(world.now, ms(50));
    assert_eq!(world.engine.echo(), ms(80), "it knows better now");
}

/// The election delays that seeds draw, as shares of sixteen echoes.
fn election_delays(seeds: std::ops::Range<u64>, hint: Duration) -> Vec<f64> {
    let delay = |seed| {
        let mut world = World::with(settings(seed).echo_hint(hint));
        world.wants("a");
        world.timeout().unwrap().as_secs_f64() / (hint * 16).as_secs_f64()
    };
    seeds.map(delay).collect()
}

#[test]
fn election_delay_is_exponential_over_sixteen_echoes() {
    let mut delays = election_delays(0..4_000, ms(50));
    delays.sort_by(f64::total_cmp);
    assert!(*delays.last().unwrap() <= 1.0);
    // Quantiles of the truncated exponential: F(x) = (e^10x - 1) / (e^10 - 1).
    for share in [0.1, 0.25, 0.5, 0.75, 0.9] {
        let expected = (share * 10_f64.exp_m1()).ln_1p() / 10.0;
        let drawn = delays[(share * 4_000.0) as usize];
        assert!((drawn - expected).abs() < 0.015, "{share}: {drawn} for {expected}");
    }
}

#[test]
fn first_probe_is_usually_an_echo_ahead() {
    for group in [2, 10, 50, 500] {
        let delays = election_delays(0..20_000, ECHO);
        let alone = delays.chunks_exact(group).filter(|delays| {
            let first = delays.iter().copied().fold(f64::MAX, f64::min);
            delays.iter().filter(|delay| **delay < first + 1.0 / 16.0).count() == 1
        });
        let (alone, groups) = (alone.count(), 20_000 / group);
        assert!(alone * 2 >= groups, "{group}: {alone} of {groups}");
    }
}

#[test]
fn measured_echo_replaces_the_hint_and_is_smoothed() {
    let mut world = World::new(1);
    assert_eq!(world.engine.echo(), ECHO);
    world.engine.handle_echo(world.now, ms(80));
    assert_eq!(world.engine.echo(), ms(80));
    world.engine.handle_echo(world.now, ms(160));
    assert_eq!(world.engine.echo(), ms(90));
}

#[test]
fn election_delay_stretches_with_the_echo() {
    let delay = |echo| {
        let mut world = World::new(7);
        world.engine.handle_echo(world.now, echo);
        world.wants("a");
        world.timeout().unwrap()
    };
    assert!(delay(ms(60)).abs_diff(delay(ms(6)) * 10) < Duration::from_micros(1));
}

#[test]
fn no_backoff_is_shorter_than_two_echoes() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.engine.handle_echo(world.now, ms(100));
        world.evidence("theirs");
        assert!((ms(200)..=ms(300)).contains(&world.lease()), "of the lease: {:?}", world.lease());

        let mut world = World::leading(seed);
        world.engine.handle_echo(world.now, ms(100));
        world.wants("a");
        let attempt = world.one();
        world.ends(attempt, Outcome::Conflict);
        let wait = world.timeout().unwrap();
        assert!((ms(200)..=ms(300)).contains(&wait), "of a refused key: {wait:?}");
        for key in ["b", "c"] {
            world.wants(key);
            let attempt = world.one();
            world.ends(attempt, Outcome::Failed);
        }
        world.wants("d");
        let pause = world.timeout().unwrap();
        assert!((ms(200)..=ms(220)).contains(&pause), "of an outage: {pause:?}");
    }
}

#[test]
fn incumbent_has_a_head_start_of_four_echoes() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.pass(TERM * 2);
        assert!(world.lease().is_zero());
        world.wants("a");
        let head_start = world.timeout().unwrap();
        assert!(head_start >= ECHO * 4 && head_start <= ECHO * 6, "{head_start:?}");
        assert_eq!(world.sleeps_for_one().key, "a");
        assert_eq!(world.engine.counters().suspicions, 0, "the incumbent is not suspected");
    }
    let mut world = World::leading(1);
    world.pass(TERM * 2);
    world.wants("a");
    assert_eq!(world.one().key, "a", "the incumbent itself goes immediately");
}

/// Asserts that durations fill the range.
fn assert_spread(durations: impl IntoIterator<Item = Duration>, range: RangeInclusive<Duration>) {
    let all: Vec<Duration> = durations.into_iter().collect();
    assert!(all.iter().all(|duration| range.contains(duration)), "{all:?}");
    let margin = (*range.end() - *range.start()) / 10;
    assert!(all.iter().any(|duration| *duration < *range.start() + margin), "none is early in {range:?}");
    assert!(all.iter().any(|duration| *duration > *range.end() - margin), "none is late in {range:?}");
}

#[test]
fn jitter_covers_the_first_step_and_the_cap() {
    assert_spread(SEEDS.map(|seed| World::following(seed).lease()), backoff(0));
    assert_spread(SEEDS.map(|seed| World::long_following(seed).lease()), TERM..=secs(66));
    let after = |outcome| {
        SEEDS.map(move |seed| {
            let mut world = World::leading(seed);
            world.wants("a");
            let attempt = world.one();
            world.wants("b");
            world.ends(attempt, outcome);
            if outcome == Outcome::Conflict {
                world.removes("b");
            } else {
                let attempt = world.one();
                world.ends(attempt, outcome);
                world.wants("c");
                // Each of these waits for itself.
                world.removes("a");
                world.removes("b");
            }
            world.timeout().unwrap()
        })
    };
    assert_spread(after(Outcome::Conflict), ms(20)..=ms(30));
    assert_spread(after(Outcome::Failed), ms(20)..=ms(22));
}

#[test]
fn patience_is_spread_over_two_seconds() {
    let mut places: Vec<f64> =
        (0..4_000).map(|seed| (World::new(seed).engine.patience() - secs(1)).as_secs_f64() / 2.0).collect();
    places.sort_by(f64::total_cmp);
    assert!((0.0..1.0).contains(&places[0]) && *places.last().unwrap() < 1.0);
    for share in [0.1, 0.5, 0.9] {
        let expected = (share * 10_f64.exp_m1()).ln_1p() / 10.0;
        assert!((places[(share * 4_000.0) as usize] - expected).abs() < 0.015);
    }
}

#[test]
fn idle_replicas_draw_the_election_delay_anew() {
    let delays = |seed| {
        let mut world = World::new(seed);
        let mut delay = || {
            world.wants("a");
            let start = world.now;
            let attempt = world.sleeps_for_one();
            let delay = world.now - start;
            world.ends(attempt, Outcome::Unchanged);
            world.pass(secs(1));
            delay
        };
        (delay(), delay())
    };
    let all: Vec<_> = SEEDS.map(delays).collect();
    assert!(all.iter().all(|(first, second)| first != second));
    assert!(all.iter().filter(|(_, second)| *second > 8 * ECHO).count() > SEEDS.count() * 9 / 10);
}

/// Delays of many echoes must not take many seconds, although the server idles.
#[test]
fn long_echo_counts_for_a_quarter_of_a_second() {
    let mut world = World::new(1);
    world.engine.handle_echo(world.now, secs(2));
    assert_eq!(world.engine.echo(), ms(250));
    let mut world = World::new(1);
    world.engine.handle_echo_hint(world.now, secs(2));
    assert_eq!(world.engine.echo(), ms(250));
}

#[test]
fn shorter_echo_shortens_a_head_start_that_lasts() {
    for seed in SEEDS {
        let mut world = World::following_with(settings(seed).echo_hint(ms(80)));
        world.wants("new");
        assert!(world.polls().is_empty());
        let before = world.timeout();
        world.engine.handle_echo(world.now, ms(1));
        assert!(world.timeout() < before, "{before:?}");
        world.pass(world.lease());
        assert_eq!(world.one().key, "new");
    }
}

//! Rule 10: `backoff(losses)`.

use super::*;

#[test]
fn backoff_grows_by_its_factor_to_the_term() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        for losses in 0..20 {
            assert_eq!(world.engine.losses(), losses);
            assert!(backoff(losses).contains(&world.lease()), "{losses}: {:?}", world.lease());
            world.evidence("theirs");
        }
    }
}

#[test]
fn without_jitter_backoff_is_exact_within_a_tenth() {
    let steady = |seed| settings(seed).jitter(0.0).backoff_base(ms(10)).backoff_factor(3.0).backoff_steps(4);
    for seed in SEEDS {
        let mut world = World::following_with(steady(seed).echo_hint(ms(5)));
        assert_eq!(world.lease(), ms(10));
        for losses in 1..=4 {
            world.evidence("theirs");
            let exact = ms(10) * 3_u32.pow(losses);
            let lease = world.lease() + Duration::from_nanos(1);
            assert!(lease >= exact && lease <= exact.mul_f64(1.1), "{losses}: {lease:?}");
        }
        world.evidence("theirs");
        assert!((TERM..=secs(66)).contains(&world.lease()));
    }
}

#[test]
fn backoff_stays_within_110_percent_of_the_term() {
    for seed in SEEDS {
        let mut world = World::following_with(settings(seed).term(ms(100)).backoff_base(ms(90)));
        for _ in 0..10 {
            assert!(world.lease() <= ms(110), "{:?}", world.lease());
            world.evidence("theirs");
        }
    }
}

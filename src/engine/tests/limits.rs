//! The limits of time and of settings, which no rule states and every user relies on.

use super::*;

#[test]
fn time_does_not_run_backwards() {
    let mut world = World::leading(1);
    let later = world.now + secs(61);
    world.engine.handle_expire(later);
    assert!(!world.engine.is_leader(world.now));
    world.wants("a");
    let attempt = world.one();
    assert_eq!(attempt.deadline, later + secs(10));
}

#[test]
fn absurd_settings_and_echoes_never_panic() {
    let absurd = || settings(1).term(Duration::MAX).retry_interval(Duration::MAX).backoff_base(Duration::MAX);
    for mut world in [
        World::following_with(settings(1).echo_hint(Duration::MAX)),
        World::following_with(absurd().echo_hint(Duration::MAX)),
        World::following_with(absurd().backoff_factor(f64::MAX).backoff_steps(u32::MAX)),
    ] {
        world.engine.handle_echo(world.now, Duration::MAX);
        world.wants("a");
        world.engine.poll_timeout();
        world.engine.handle_expire(world.now);
        for outcome in [Outcome::Conflict, Outcome::Failed] {
            world.engine.handle_expire(world.now);
            world.wants("b");
            world.polls().into_iter().for_each(|attempt| {
                world.ends(attempt, outcome);
            });
            world.engine.poll_timeout();
        }
    }
}

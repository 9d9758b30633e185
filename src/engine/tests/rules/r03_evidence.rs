//! Rule 3: only evidence counts.

use super::*;

#[test]
fn only_writes_of_others_make_a_follower() {
    for mut world in [World::new(1), World::leading(1)] {
        let role = world.engine.role();
        world.wants_many(6);
        for outcome in [Outcome::Conflict, Outcome::Failed, Outcome::Unchanged] {
            let attempt = world.sleeps_for_one();
            world.ends(attempt, outcome);
        }
        let panicking = world.sleeps_for_one();
        world.panics(panicking);
        world.removes("5");
        world.engine.handle_expire(world.now);
        world.engine.handle_echo(world.now, ms(1));
        let hung = world.sleeps_for_one();
        world.pass(TERM * 2);
        world.ends(hung, Outcome::Written);
        assert_eq!((world.engine.role(), world.engine.losses()), (role, 0));
        assert_eq!((world.engine.counters().lost, world.engine.counters().evidence), (0, 0));
    }
}

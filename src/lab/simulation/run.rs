//! Runs of a plan.

use super::{
    plan::Plan,
    promises::Promises,
    report::{RoundStats, RunStats, Violation},
    world::World,
};

impl Plan {
    /// Runs the plan, and checks all promises.
    ///
    /// # Errors
    ///
    /// The first [`Violation`].
    pub fn run(&self) -> Result<RunStats, Violation> {
        run(self, true).map(|(stats, _)| stats)
    }

    /// Runs the plan, and returns the figures of each round. Promises about time, and about who
    /// leads, are not checked: other [tuning](crate::engine::Tuning), and more requests than can be
    /// served, break them.
    ///
    /// # Errors
    ///
    /// The first [`Violation`] of another promise.
    pub fn rounds(&self) -> Result<(RunStats, Vec<RoundStats>), Violation> {
        run(self, false)
    }

    /// Returns a smaller plan that breaks the same promise: this one if there is none, or if it
    /// breaks none.
    #[must_use]
    pub fn shrink(&self) -> Self {
        let broken = |plan: &Self| plan.run().err().map(|violation| violation.promise);
        let Some(promise) = broken(self) else { return self.clone() };
        let mut smallest = self.clone();
        loop {
            let smaller = smallest.smaller().into_iter().find(|plan| broken(plan) == Some(promise));
            match smaller {
                Some(smaller) => smallest = smaller,
                None => return smallest,
            }
        }
    }
}

fn run(plan: &Plan, in_time: bool) -> Result<(RunStats, Vec<RoundStats>), Violation> {
    let mut promises = Promises::new(plan, in_time);
    let mut world = World::new(plan, promises.check_every(plan));
    while let Some((at, event)) = world.next_event()
        && (at <= plan.end() || promises.allow_more(&world, at))
    {
        world.handle(at, event);
        while let Some(observation) = world.observations.pop_front() {
            promises.check(&world, observation)?;
        }
    }
    let stats = promises.check_end(&world)?;
    Ok((stats, world.rounds))
}

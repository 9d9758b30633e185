//! The description of a violation.

use std::fmt;

use super::{host::Host, report::Violation, world::World};

/// Describes all engines, so that the cause of a violation can be found.
pub(super) fn standing(world: &World) -> String {
    let stands = |host: &Host| {
        let Some(process) = &host.process else { return "dead".to_owned() };
        let Some(engine) = process.contender.engine() else { return "alive".to_owned() };
        format!(
            "{:?}, losses {}, lease {:?}, patience {:?}, echo {:?}, {} pending, {} in flight, {:?}",
            engine.role(),
            engine.losses(),
            engine.lease_end() - process.local(world.now),
            engine.patience(),
            engine.echo(),
            engine.len(),
            engine.in_flight(),
            engine.counters()
        )
    };
    world.hosts.iter().map(stands).collect::<Vec<_>>().join("\n")
}

pub(super) fn violation(
    world: &World,
    promise: &'static str,
    replica: usize,
    detail: impl fmt::Display,
) -> Violation {
    Violation { promise, at: world.now, detail: format!("replica {replica}: {detail}") }
}
